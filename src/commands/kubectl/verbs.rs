//! `kubectl baton switchover`, `pause`, `resume`: asked of a member's HTTP API through the API server.
//!
//! The token goes in a header of Baton's own: the API server takes `Authorization` for itself and passes
//! none on. It also does not check the pod's certificate, so the token is as safe as the way between API
//! server and pod.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use axum::http::{Request, header};
use kube::client::Body;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::site::{Seen, Site};
use crate::api::TOKEN_HEADER;
use crate::cluster::names;

/// How long `pause` and `resume` may take.
const QUICK: Duration = Duration::from_secs(15);

/// No answer of a member is nearly as long.
const ANSWER_BYTES: usize = 1 << 16;

/// Hands over, and waits until the new active has committed a write.
pub async fn switchover(
    site: &Site,
    to: Option<&str>,
    patience: Duration,
) -> anyhow::Result<ExitCode> {
    let seen = site.look().await?;
    let said = hand_over(site, &seen, to, patience).await?;
    println!("{said}");
    Ok(ExitCode::SUCCESS)
}

/// Asks the active to hand over; its answer comes when it is done.
pub async fn hand_over(
    site: &Site,
    seen: &Seen,
    to: Option<&str>,
    patience: Duration,
) -> anyhow::Result<String> {
    let owner = seen.view.owner().context("no member owns the volume")?;
    let mut body = json!({"leader": owner.name});
    if let Some(to) = to {
        body["candidate"] = json!(to);
    }
    post(site, seen, &owner.name, "switchover", &body, patience).await
}

/// Pauses or resumes automatic take-over.
pub async fn pause(site: &Site, on: bool) -> anyhow::Result<ExitCode> {
    let seen = site.look().await?;
    let owner = seen.view.owner().or(seen.view.standby());
    let owner = owner.context("no member owns the volume or could take over")?;
    let verb = if on { "pause" } else { "resume" };
    let said = post(site, &seen, &owner.name, verb, &json!({}), QUICK).await?;
    println!("{said}");
    Ok(ExitCode::SUCCESS)
}

async fn post(
    site: &Site,
    seen: &Seen,
    member: &str,
    verb: &str,
    body: &Value,
    patience: Duration,
) -> anyhow::Result<String> {
    let token = site.token(&seen.cluster).await?;
    let pod = names::pod(&site.cluster, member);
    let (namespace, port) = (&site.namespace, names::API_PORT);
    let path = format!("/api/v1/namespaces/{namespace}/pods/https:{pod}:{port}/proxy/{verb}");
    let request = Request::post(path)
        .header(TOKEN_HEADER, token)
        .header(header::CONTENT_TYPE, "application/json")
        .body(Body::from(serde_json::to_vec(body)?))
        .context("write the request")?;
    let answered = async {
        let answer = site.client.send(request).await?;
        let code = answer.status();
        let body = axum::body::Body::new(answer.into_body());
        let body = axum::body::to_bytes(body, ANSWER_BYTES).await?;
        anyhow::Ok((code, body))
    };
    let (code, answer) = timeout(patience, answered)
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
