//! What changes something. Each goes to the loop as `baton switchover`, `pause` and `resume` do, and
//! `decide` judges it; here are only the forms, which are Patroni's, and the codes of the answers.

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::Office;
use super::access::Operator;
use super::answer::{Refusal, done};
use super::documents::{self, newest};
use super::serve::Deadline;
use crate::decide::zone::ZoneReason;
use crate::decide::{Answer, Ask, Reason};

mod sites;

/// How long a switchover is waited for, as by `baton switchover`.
const SWITCHOVER: Duration = Duration::from_secs(90);

/// How long a restart is waited for, as by `baton restart`.
const RESTART: Duration = Duration::from_secs(90);

/// How long anything else is waited for, as by `baton pause`.
const QUICK: Duration = Duration::from_secs(10);

/// What is left for the answer to go out after all waiting.
const ANSWER: Duration = Duration::from_secs(5);

type Verb = Result<Response, Refusal>;

/// The body of `/switchover` and `/failover`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Move {
    leader: Option<String>,
    #[serde(alias = "member")]
    candidate: Option<String>,
    /// Not a member, but another site; no word of Patroni's.
    site: Option<String>,
    /// Also where acknowledged writes may be lost; for a failover to a site alone.
    allow_data_loss: Option<bool>,
    scheduled_at: Option<Value>,
}

/// `POST /switchover`: from `leader` to `candidate`, or to whoever is ready; or to another `site`.
pub(super) async fn switchover(
    _: Operator,
    State(office): State<Arc<Office>>,
    Extension(deadline): Extension<Deadline>,
    body: Bytes,
) -> Verb {
    let asked: Move = read(&body)?;
    if asked.leader.is_none() {
        return Err(bad("a switchover is from a leader: {\"leader\": \"a\"}"));
    }
    if asked.allow_data_loss.is_some() {
        return Err(bad("a switchover loses nothing: leave out allow_data_loss"));
    }
    hand_over(&office, &deadline, asked).await
}

/// `POST /failover`: to `candidate`. It is a planned handover by the active, if there is one: where
/// there is none, the standby takes over by itself, or says in its status why it does not. Or to a lost
/// primary's `site`: that of this member.
pub(super) async fn failover(
    _: Operator,
    State(office): State<Arc<Office>>,
    Extension(deadline): Extension<Deadline>,
    body: Bytes,
) -> Verb {
    let asked: Move = read(&body)?;
    if let Some(site) = &asked.site {
        return sites::fail_over(&office, &deadline, site, &asked).await;
    }
    if asked.candidate.is_none() {
        return Err(bad("a failover is to a candidate: {\"candidate\": \"b\"}"));
    }
    if asked.allow_data_loss.is_some() {
        return Err(bad(
            "a failover within a site loses nothing: leave out allow_data_loss",
        ));
    }
    hand_over(&office, &deadline, asked).await
}

async fn hand_over(office: &Office, deadline: &Deadline, asked: Move) -> Verb {
    let Move {
        leader,
        candidate,
        site,
        allow_data_loss: _,
        scheduled_at,
    } = asked;
    if scheduled_at.is_some() {
        return Err(bad(
            "a switchover cannot be scheduled: leave out scheduled_at",
        ));
    }
    if leader.is_some() && leader == candidate {
        return Err(bad("leader and candidate are the same"));
    }
    let status = newest(office)?;
    let active = status.active().map(|active| &active.name);
    if leader.is_some() && leader.as_ref() != active {
        return Err(impossible(match active {
            Some(active) => format!("the leader is {active}"),
            None => "no leader is known".to_owned(),
        }));
    }
    if let Some(site) = site {
        return match candidate {
            Some(_) => Err(bad("a switchover is to a candidate or to a site, not both")),
            None => sites::move_to(office, deadline, &site).await,
        };
    }
    let config = office.desk.config();
    let to = match candidate {
        None => None,
        Some(name) => Some(config.number_of(&name).ok_or_else(|| {
            let names = office.desk.names();
            impossible(format!("there is no member {name:?}; there are {names}"))
        })?),
    };
    ask(office, deadline, Ask::Switchover { to }, SWITCHOVER).await?;
    let now = office.desk.status();
    let active = now.as_ref().and_then(|status| status.active());
    Ok(done(&match active {
        Some(active) => format!("Successfully switched over to {:?}", active.name),
        None => "Successfully switched over".to_owned(),
    }))
}

/// `POST /pause`: no automatic take-over from now on.
pub(super) async fn pause(
    _: Operator,
    State(office): State<Arc<Office>>,
    Extension(deadline): Extension<Deadline>,
) -> Verb {
    ask(&office, &deadline, Ask::Pause, QUICK).await?;
    Ok(done("automatic take-over is paused"))
}

/// `POST /resume`: automatic take-overs again.
pub(super) async fn resume(
    _: Operator,
    State(office): State<Arc<Office>>,
    Extension(deadline): Extension<Deadline>,
) -> Verb {
    ask(&office, &deadline, Ask::Resume, QUICK).await?;
    Ok(done("automatic take-over is on"))
}

/// The body of `PATCH /config`: null takes a setting away, as Patroni has it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Patch {
    #[serde(deserialize_with = "Option::deserialize")]
    pause: Option<bool>,
}

/// `PATCH /config`: pause and resume, in Patroni's way.
pub(super) async fn patch_config(
    _: Operator,
    State(office): State<Arc<Office>>,
    Extension(deadline): Extension<Deadline>,
    body: Bytes,
) -> Verb {
    let Patch { pause } = read(&body)?;
    let paused = pause.unwrap_or(false);
    let asked = if paused { Ask::Pause } else { Ask::Resume };
    ask(&office, &deadline, asked, QUICK).await?;
    Ok(Json(documents::config(paused)).into_response())
}

/// The body of `/restart`. Of Patroni's conditions only the role has a meaning here.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Again {
    role: Option<String>,
    /// Seconds that PostgreSQL is given.
    timeout: Option<Value>,
}

/// `POST /restart`: PostgreSQL is stopped and started again in place. 200 when it has committed a write,
/// else 503, as Patroni has it.
pub(super) async fn restart(
    _: Operator,
    State(office): State<Arc<Office>>,
    Extension(deadline): Extension<Deadline>,
    body: Bytes,
) -> Verb {
    let Again { role, timeout } = read_if_any(&body)?;
    let primary = ["primary", "master", "leader"];
    if role.is_some_and(|role| !primary.contains(&role.as_str())) {
        return Err(unavailable(
            "restart conditions are not satisfied: only a primary runs PostgreSQL".to_owned(),
        ));
    }
    let patience = match timeout {
        None => RESTART,
        Some(timeout) => seconds(&timeout)
            .ok_or_else(|| bad("timeout is a number of seconds, 1 or more"))?
            .min(RESTART),
    };
    ask(&office, &deadline, Ask::Restart, patience)
        .await
        .map_err(Refusal::unavailable)?;
    Ok(done("restarted successfully"))
}

/// Patroni takes a number, and a number in a string.
fn seconds(value: &Value) -> Option<Duration> {
    let seconds = value.as_u64().or_else(|| value.as_str()?.parse().ok())?;
    (seconds > 0).then(|| Duration::from_secs(seconds))
}

/// `POST /reload`: 202, as Patroni has it: PostgreSQL was told, each of its processes takes the settings
/// up when it next looks.
pub(super) async fn reload(
    _: Operator,
    State(office): State<Arc<Office>>,
    Extension(deadline): Extension<Deadline>,
) -> Verb {
    ask(&office, &deadline, Ask::Reload, QUICK)
        .await
        .map_err(Refusal::unavailable)?;
    Ok((StatusCode::ACCEPTED, done("reload scheduled")).into_response())
}

/// Asks the loop and waits for its answer. Whoever goes away does not stop what is under way.
async fn ask(
    office: &Office,
    deadline: &Deadline,
    ask: Ask,
    patience: Duration,
) -> Result<(), Refusal> {
    deadline.extend(patience + ANSWER);
    tracing::info!(?ask, "asked over HTTP");
    let answered = async {
        match office.desk.ask(ask).await {
            Some(answer) => answer.await.ok(),
            None => None,
        }
    };
    match tokio::time::timeout(patience, answered).await {
        Ok(Some(Answer::Done)) => Ok(()),
        Ok(Some(Answer::Refused(reason))) => Err(refused(&reason)),
        Ok(None) => Err(unavailable(
            "the member stopped before it had an answer".to_owned(),
        )),
        Err(_) => Err(unavailable(format!(
            "status unknown: no answer within {patience:?}, it may still be under way; see GET /status"
        ))),
    }
}

/// Patroni's codes: 412 where what was asked is impossible as things are, 503 where it failed. 409
/// where something else is going on.
fn refused(reason: &Reason) -> Refusal {
    let code = match reason {
        Reason::NoReadyStandby
        | Reason::NotActive { .. }
        | Reason::AlreadyActive
        | Reason::NoSuchMember
        | Reason::NoSuchSite
        | Reason::Zone(ZoneReason::NotSafe(_)) => StatusCode::PRECONDITION_FAILED,
        Reason::NotNow { .. } => StatusCode::CONFLICT,
        // Failed, or a reason that no answer has today: nothing was promised.
        _ => StatusCode::SERVICE_UNAVAILABLE,
    };
    let program = serde_json::to_value(reason).unwrap_or_default();
    Refusal::new(code, reason.to_string()).because(program)
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    serde_json::from_slice(body).map_err(|error| bad(&format!("the body must be JSON: {error}")))
}

/// As [`read`], for a request that needs no body.
fn read_if_any<T: DeserializeOwned + Default>(body: &[u8]) -> Result<T, Refusal> {
    if body.is_empty() {
        return Ok(T::default());
    }
    read(body)
}

fn bad(why: &str) -> Refusal {
    Refusal::new(StatusCode::BAD_REQUEST, why.to_owned())
}

fn impossible(why: String) -> Refusal {
    Refusal::new(StatusCode::PRECONDITION_FAILED, why)
}

fn unavailable(why: String) -> Refusal {
    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, why)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::zone::Unsafe;

    #[test]
    fn refusals_have_patroni_s_codes() {
        for (reason, code) in [
            (Reason::NoReadyStandby, 412),
            (Reason::NotActive { active: None }, 412),
            (Reason::AlreadyActive, 412),
            (Reason::NoSuchSite, 412),
            (Reason::Zone(ZoneReason::NotSafe(Unsafe::PrimaryLives)), 412),
            (Reason::NotNow { ask: Ask::Pause }, 409),
            (Reason::LeaseUnreachable, 503),
            (Reason::HandoverFailed, 503),
        ] {
            assert_eq!(refused(&reason).code().as_u16(), code, "{reason}");
        }
    }

    #[test]
    fn bodies_are_patroni_s() {
        let asked: Move = read(br#"{"leader": "a", "member": "b"}"#).unwrap();
        assert_eq!(asked.candidate.as_deref(), Some("b"));
        assert!(read::<Move>(br#"{"laeder": "a"}"#).is_err());
        assert_eq!(read::<Patch>(br#"{"pause": null}"#).unwrap().pause, None);
        assert!(read::<Patch>(b"{}").is_err());
        assert!(read::<Patch>(br#"{"ttl": 5}"#).is_err());
    }
}
