//! The documents that only tell: of this member, of its site, of their past.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde_json::{Map, Value, json};

use super::Office;
use super::answer::Refusal;
use crate::control::zone::{ServingAs, ZoneStatus};
use crate::control::{MemberStatus, Status};
use crate::decide::RoleName;

type Answer = Result<Json<Value>, Refusal>;

/// Patroni's document of a node, as far as it makes sense here, with what is Baton's own.
pub(super) fn node(office: &Office, status: Option<&Status>, why: Option<&String>) -> Value {
    let config = office.desk.config();
    let mut document = json!({
        "patroni": {
            "version": env!("CARGO_PKG_VERSION"), "scope": config.cluster, "name": config.member,
        },
    });
    if let Some(status) = status {
        let own = status.members.first();
        document["state"] = json!(own.map(|own| &own.state));
        document["role"] = role(own);
        if let Some(zone) = &status.zone {
            among_sites(&mut document, zone);
        }
        document["epoch"] = json!(own.and_then(|own| own.epoch));
        document["ready"] = json!(own.map(|own| own.ready));
        document["site"] = json!(status.site);
        document["reason"] = json!(status.reason);
        document["age_ms"] = json!(status.age_ms);
        if status.owner.is_none() {
            document["cluster_unlocked"] = json!(true);
        }
        if status.paused {
            document["pause"] = json!(true);
        }
    }
    if let Some(why) = why {
        document["why"] = json!(why);
    }
    document
}

/// What only a member of several sites has: Patroni's words where it has them.
fn among_sites(document: &mut Value, zone: &ZoneStatus) {
    if zone.serving_as == ServingAs::Replica {
        document["role"] = json!("replica");
    }
    if let Some(position) = zone.position {
        document["timeline"] = json!(position.timeline);
        let place = match zone.serving_as {
            ServingAs::Replica => "received_location",
            ServingAs::Primary | ServingAs::Nothing => "location",
        };
        document["xlog"] = json!({ place: position.lsn.0 });
    }
    document["term"] = json!(zone.term);
    document["primary_site"] = json!(zone.primary);
    document["failover_safe"] = json!(zone.failover);
}

/// Who owns the volume runs the primary; all others as Baton calls them.
fn role(member: Option<&MemberStatus>) -> Value {
    match member.and_then(|member| member.role) {
        Some(RoleName::Active) => json!("primary"),
        other => json!(other),
    }
}

/// `GET /patroni`: the node's document, always 200.
pub(super) async fn patroni(State(office): State<Arc<Office>>) -> Json<Value> {
    Json(node(&office, office.desk.status().as_ref(), None))
}

/// `GET /status`: as `baton status --output json`.
pub(super) async fn status(State(office): State<Arc<Office>>) -> Result<Json<Status>, Refusal> {
    newest(&office).map(Json)
}

/// The newest status, or 503.
pub(super) fn newest(office: &Office) -> Result<Status, Refusal> {
    let text = || "the member has not decided anything yet".to_owned();
    let missing = || Refusal::new(StatusCode::SERVICE_UNAVAILABLE, text());
    office.desk.status().ok_or_else(missing)
}

/// `GET /cluster`: the members of the site. A member's address is that of its peers' channel.
pub(super) async fn cluster(State(office): State<Arc<Office>>) -> Answer {
    let status = newest(&office)?;
    let member = |member: &MemberStatus| {
        let role = match member.role {
            Some(RoleName::Active) => json!("leader"),
            other => json!(other),
        };
        json!({
            "name": member.name, "role": role, "state": member.state, "epoch": member.epoch,
            "ready": member.ready, "address": member.address, "heard_ms": member.heard_ms,
        })
    };
    let members: Vec<_> = status.members.iter().map(member).collect();
    let mut document = json!({
        "members": members, "scope": status.cluster, "site": status.site, "owner": status.owner,
    });
    if status.paused {
        document["pause"] = json!(true);
    }
    Ok(Json(document))
}

/// `GET /history`: one line for each change of ownership. Where Patroni has timeline, LSN, reason, time
/// and node, here are epoch, null (the data directory is the same), kind of change, time and member.
pub(super) async fn history(State(office): State<Arc<Office>>) -> Answer {
    let unavailable = |why| Refusal::new(StatusCode::SERVICE_UNAVAILABLE, why);
    // Never closed.
    let Ok(_place) = office.history.acquire().await else {
        return Err(unavailable("the member is stopping".to_owned()));
    };
    let history = office.desk.history().await;
    if let Some(error) = history.lease_error {
        return Err(unavailable(error));
    }
    let line = |change: &crate::lease::Ownership| {
        let kind = if change.planned {
            "planned"
        } else {
            "unplanned"
        };
        json!([
            change.epoch.number(),
            null,
            kind,
            change.at.to_string(),
            change.name
        ])
    };
    Ok(Json(history.changes.iter().map(line).collect()))
}

/// `GET /config`: what `PATCH /config` can change.
pub(super) async fn settings(State(office): State<Arc<Office>>) -> Answer {
    let status = newest(&office)?;
    Ok(Json(config(status.paused)))
}

/// The settings that the whole cluster shares.
pub(super) fn config(paused: bool) -> Value {
    let pause = paused.then(|| ("pause".to_owned(), json!(true)));
    Value::Object(Map::from_iter(pause))
}
