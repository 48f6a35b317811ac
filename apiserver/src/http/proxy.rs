//! `pods/proxy`: a request that is handed on to a pod, and the pod's answer. As in a real server, the pod's
//! certificate is not checked, and the client's credentials stay here.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper::header::{AUTHORIZATION, CONNECTION, CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use hyper::http::request::Parts;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::rustls::pki_types::ServerName;

use super::{Body, Route};
use crate::anybody::anybody;
use crate::refusal::Refusal;

/// How long a pod may take to be connected to.
const CONNECT: Duration = Duration::from_secs(5);

/// Where a request is handed on to.
pub(super) struct Onward {
    address: SocketAddr,
    tls: bool,
    path: String,
}

/// The name in `pods/<name>/proxy`: `[http:|https:]<pod>[:<port>]`.
pub(super) fn pod(name: &str) -> &str {
    let parts: Vec<_> = name.split(':').collect();
    match parts.as_slice() {
        [pod] | [pod, _] => pod,
        [_, pod, ..] => pod,
        [] => name,
    }
}

impl Onward {
    /// To this pod.
    ///
    /// # Errors
    /// It has no address, or the name is none of a proxy.
    pub fn to(pod: &Value, route: &Route, path: &str) -> Result<Self, Refusal> {
        let parts: Vec<_> = route.name.split(':').collect();
        let (scheme, port) = match parts.as_slice() {
            [_] => ("", "80"),
            [_, port] => ("", *port),
            [scheme, _, port] => (*scheme, *port),
            _ => return Err(Refusal::BadRequest(format!("no pod: {}", route.name))),
        };
        let port = port.parse();
        let port = port.map_err(|_| Refusal::BadRequest(format!("no port: {}", route.name)))?;
        let ip = pod.pointer("/status/podIP").and_then(Value::as_str);
        let ip: Option<IpAddr> = ip.and_then(|ip| ip.parse().ok());
        let ip = ip.ok_or_else(|| Refusal::Unavailable("the pod has no address".to_owned()))?;
        let (_, rest) = path.split_once("/proxy").unwrap_or_default();
        Ok(Self {
            address: SocketAddr::new(ip, port),
            tls: scheme == "https",
            path: if rest.is_empty() { "/" } else { rest }.to_owned(),
        })
    }

    /// Hands it on.
    ///
    /// # Errors
    /// 503 where the pod does not answer.
    pub async fn hand_on(self, head: Parts, body: Bytes) -> Result<Response<Body>, Refusal> {
        let away = |error: &dyn std::fmt::Display| {
            Refusal::Unavailable(format!("error trying to reach service: {error}"))
        };
        let connecting = tokio::time::timeout(CONNECT, TcpStream::connect(self.address));
        let stream = connecting.await.map_err(|late| away(&late))?;
        let stream = stream.map_err(|error| away(&error))?;
        if !self.tls {
            return self
                .converse(stream, head, body)
                .await
                .map_err(|e| away(&e));
        }
        let name = ServerName::from(self.address.ip());
        let stream = anybody().connect(name, stream).await;
        let stream = stream.map_err(|error| away(&error))?;
        self.converse(stream, head, body)
            .await
            .map_err(|e| away(&e))
    }

    async fn converse(
        self,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        head: Parts,
        body: Bytes,
    ) -> hyper::Result<Response<Body>> {
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // Ends with the answer, or when nobody waits for it any more.
        tokio::spawn(async move {
            let _ended = connection.await;
        });
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = head.method;
        *request.headers_mut() = head.headers;
        *request.uri_mut() = self.path.parse().unwrap_or_default();
        for name in [AUTHORIZATION, CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING] {
            request.headers_mut().remove(name);
        }
        if let Ok(host) = self.address.to_string().parse() {
            request.headers_mut().insert(HOST, host);
        }
        let (mut head, body) = sender.send_request(request).await?.into_parts();
        let body = body.collect().await?.to_bytes();
        for name in [CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING] {
            head.headers.remove(name);
        }
        Ok(Response::from_parts(head, Full::new(body).boxed_unsync()))
    }
}
