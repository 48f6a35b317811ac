//! Probes: what a status code alone says.
//!
//! A status that is older than `timings.detection` proves nothing: from then on another member may
//! have taken over, and this one, woken from a freeze, must not say "primary" to a load balancer.

use std::time::Duration;

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use super::Office;
use super::documents;
use crate::clock;
use crate::control::Status;
use crate::decide::{Postgres, RoleName};

/// How long the loop may go without a decision before a supervisor should start the member anew. It
/// decides at least at every heartbeat. Patroni's `ttl` by default: long after a standby took over,
/// so that an overloaded machine is not made worse by restarts.
const LOOP_PATIENCE: Duration = Duration::from_secs(30);

const NO_REPLICA: &str = "no replica that is near enough to its primary runs here: a standby of a shared \
                          volume runs no PostgreSQL";

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Question {
    /// Does PostgreSQL accept writes here?
    Primary,
    /// Does this member own the volume, whether or not PostgreSQL is up yet?
    Leader,
    /// Is here a replica to read from, near enough to the primary?
    Replica,
    /// Such a one for which commits wait?
    Sync,
    /// Such a one for which none waits?
    Async,
    /// Is here something to read from?
    ReadOnly,
    /// Is here something to read from that has every acknowledged write?
    ReadOnlySync,
    /// Is PostgreSQL up?
    Health,
    /// Does the loop make progress?
    Liveness,
    /// Does it serve, or could it take over?
    Readiness,
}

/// What the answer rests on.
struct Seen<'a> {
    /// The newest status, once there is one.
    status: Option<&'a Status>,
    /// From which age on it proves nothing.
    stale: Duration,
    /// How long the API has been up.
    up: Duration,
}

impl Seen<'_> {
    /// Yes, or why not.
    fn judge(&self, question: Question) -> Result<(), String> {
        if question == Question::Liveness {
            return self.alive();
        }
        let status = self.status.ok_or("no decision has been made yet")?;
        let age = Duration::from_millis(status.age_ms);
        if age > self.stale {
            return Err(format!("the member has decided nothing for {age:?}"));
        }
        let role = status.members.first().and_then(|member| member.role);
        let zone = status.zone.as_ref();
        let readable = zone.is_some_and(|zone| zone.readable);
        let waited = zone.is_some_and(|zone| zone.waited_for(&status.site));
        let (yes, no) = match question {
            Question::Primary => (status.serving, "PostgreSQL does not accept writes here"),
            Question::Leader => (
                role == Some(RoleName::Active),
                "this member does not own the volume",
            ),
            Question::Replica => (readable, NO_REPLICA),
            Question::Sync => (readable && waited, "no replica for which commits wait"),
            Question::Async => (
                readable && !waited,
                "no replica for which commits do not wait",
            ),
            Question::ReadOnly => (status.serving || readable, NO_REPLICA),
            Question::ReadOnlySync => (status.serving || (readable && waited), NO_REPLICA),
            Question::Health => (
                status.postgres == Postgres::Running,
                "PostgreSQL is not running here",
            ),
            Question::Readiness => (
                status.serving
                    || readable
                    || status.members.first().is_some_and(|member| member.ready),
                "this member neither serves nor could take over",
            ),
            Question::Liveness => (true, ""),
        };
        yes.then_some(()).ok_or_else(|| no.to_owned())
    }

    /// Rests on the loop alone: what the lease store or the volume do is no reason for a restart.
    fn alive(&self) -> Result<(), String> {
        let silent = self
            .status
            .map_or(self.up, |status| Duration::from_millis(status.age_ms));
        if silent < LOOP_PATIENCE {
            return Ok(());
        }
        Err(format!("the member has decided nothing for {silent:?}"))
    }
}

/// The code with Patroni's document.
pub(super) fn answer(office: &Office, question: Question) -> Response {
    let status = office.desk.status();
    let judged = judge(office, status.as_ref(), question);
    let document = documents::node(office, status.as_ref(), judged.as_ref().err());
    (code_of(&judged), Json(document)).into_response()
}

/// The code alone.
pub(super) fn code(office: &Office, question: Question) -> StatusCode {
    let status = office.desk.status();
    code_of(&judge(office, status.as_ref(), question))
}

fn judge(office: &Office, status: Option<&Status>, question: Question) -> Result<(), String> {
    let seen = Seen {
        status,
        stale: office.desk.config().timings.detection,
        up: clock::now().since(office.began),
    };
    seen.judge(question)
}

fn code_of(judged: &Result<(), String>) -> StatusCode {
    match judged {
        Ok(()) => StatusCode::OK,
        Err(_) => StatusCode::SERVICE_UNAVAILABLE,
    }
}
