//! A client that asks one thing on a connection of its own, and the files that TLS and token need.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::common::Site;

/// The token that opens the door.
pub const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// Nothing here takes long: only a test that fails waits for it.
pub const SOON: Duration = Duration::from_secs(20);

pub fn secret(site: &Site, name: &str, text: &str) -> PathBuf {
    let path = site.file(name);
    std::fs::write(&path, format!("{text}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    path
}

/// Makes certificate and key for localhost.
pub fn certificate(site: &Site) -> CertificateDer<'static> {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(site.file("api.crt"), made.cert.pem()).unwrap();
    secret(site, "api.key", &made.signing_key.serialize_pem());
    made.cert.der().clone()
}

/// Asks one thing on a connection of its own.
#[derive(Clone)]
pub struct Client {
    pub at: SocketAddr,
    pub tls: Option<CertificateDer<'static>>,
}

#[derive(Debug)]
pub struct Reply {
    pub code: u16,
    pub head: String,
    pub body: String,
}

impl Reply {
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

impl Client {
    /// `headers` end each with a line's end.
    pub async fn ask(&self, method: &str, path: &str, headers: &str, body: &str) -> Reply {
        let length = body.len();
        let text = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n{headers}\r\n{body}"
        );
        self.send(text.as_bytes()).await
    }

    pub async fn with_token(&self, method: &str, path: &str, body: &str) -> Reply {
        let headers = format!("Authorization: Bearer {TOKEN}\r\n");
        self.ask(method, path, &headers, body).await
    }

    pub async fn send(&self, request: &[u8]) -> Reply {
        let stream = TcpStream::connect(self.at).await.unwrap();
        let talk = async {
            match &self.tls {
                None => talk(stream, request).await,
                Some(certificate) => {
                    let name = ServerName::try_from("localhost").unwrap();
                    let connector = connector(certificate);
                    talk(connector.connect(name, stream).await.unwrap(), request).await
                }
            }
        };
        let answer = tokio::time::timeout(SOON, talk).await.expect("no answer");
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let code = head.split(' ').nth(1).and_then(|code| code.parse().ok());
        Reply {
            code: code.unwrap_or(0),
            head: head.to_lowercase(),
            body: body.to_owned(),
        }
    }
}

fn connector(certificate: &CertificateDer<'static>) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    Arc::new(config).into()
}

/// An answer that breaks off is what came until then.
async fn talk(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &[u8]) -> String {
    let _cut = stream.write_all(request).await;
    let mut answer = Vec::new();
    let _cut = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}
