//! A member's HTTP API, reached through the API server (`pods/proxy`).
//!
//! The token goes in a header of Baton's own: the API server takes `Authorization` for itself and passes
//! none on. It also does not check the pod's certificate, so the token is as safe as the way between API
//! server and pod.

use std::time::Duration;

use anyhow::{Context, bail};
use axum::http::{Request, StatusCode, header};
use kube::client::Body;
use serde_json::Value;
use tokio::time::timeout;

use super::site::{Seen, Site};
use crate::api::TOKEN_HEADER;
use crate::cluster::{BatonCluster, names};
use crate::control::zone::ZoneStatus;

/// How long a member may take to say how it is: one whose node is lost says nothing.
const SAID: Duration = Duration::from_secs(5);

/// No answer of a member is nearly as long.
const ANSWER_BYTES: usize = 1 << 18;

/// Asks a member to do something; its answer comes when that is done.
pub async fn post(
    site: &Site,
    seen: &Seen,
    member: &str,
    verb: &str,
    body: &Value,
    patience: Duration,
) -> anyhow::Result<String> {
    let token = site.token(&seen.cluster).await?;
    let request = Request::post(path(site, member, "https", verb))
        .header(TOKEN_HEADER, token)
        .header(header::CONTENT_TYPE, "application/json")
        .body(Body::from(serde_json::to_vec(body)?))
        .context("write the request")?;
    let pod = names::pod(&site.cluster, member);
    let (code, answer) = timeout(patience, send(site, request))
        .await
        .with_context(|| {
            format!("no answer of {pod} within {patience:?}: it may still be under way, see status")
        })?
        .with_context(|| format!("ask {pod} through the API server"))?;
    let said = told(&answer);
    if !code.is_success() {
        bail!("{pod} answers {code}: {said}");
    }
    Ok(said)
}

/// How a member sees the sites.
pub async fn zone(site: &Site, cluster: &BatonCluster, member: &str) -> anyhow::Result<ZoneStatus> {
    let api = cluster.spec.api.as_ref();
    let tls = api.is_some_and(|api| api.tls_secret.is_some());
    let scheme = if tls { "https" } else { "http" };
    let request = Request::get(path(site, member, scheme, "status"))
        .body(Body::empty())
        .context("write the request")?;
    let (code, answer) = timeout(SAID, send(site, request))
        .await
        .with_context(|| format!("no answer within {SAID:?}"))??;
    if !code.is_success() {
        bail!("{code}: {}", told(&answer));
    }
    let mut status: Value = serde_json::from_slice(&answer).context("understand its status")?;
    serde_json::from_value(status["zone"].take()).context("understand what it says of sites")
}

fn path(site: &Site, member: &str, scheme: &str, what: &str) -> String {
    let pod = names::pod(&site.cluster, member);
    let (namespace, port) = (&site.namespace, names::API_PORT);
    format!("/api/v1/namespaces/{namespace}/pods/{scheme}:{pod}:{port}/proxy/{what}")
}

async fn send(site: &Site, request: Request<Body>) -> anyhow::Result<(StatusCode, Vec<u8>)> {
    let answer = site.client.send(request).await?;
    let code = answer.status();
    let body = axum::body::Body::new(answer.into_body());
    let body = axum::body::to_bytes(body, ANSWER_BYTES).await?;
    Ok((code, body.into()))
}

/// The sentence in an answer: a member's `message`, or its `error`, or an API server's `message`.
fn told(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body).trim().to_owned();
    let Ok(value) = serde_json::from_slice::<Value>(body) else {
        return text;
    };
    let found = ["message", "error"]
        .iter()
        .find_map(|key| value[key].as_str());
    found.map_or(text, str::to_owned)
}
