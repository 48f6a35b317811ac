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

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Question {
    /// Does PostgreSQL accept writes here?
    Primary,
    /// Does this member own the volume, whether or not PostgreSQL is up yet?
    Leader,
    /// Is here a replica to read from?
    Replica,
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
        let (yes, no) = match question {
            Question::Primary => (status.serving, "PostgreSQL does not accept writes here"),
            Question::Leader => (
                role == Some(RoleName::Active),
                "this member does not own the volume",
            ),
            Question::Replica => (
                false,
                "no replica: a standby of a shared volume runs no PostgreSQL",
            ),
            Question::Health => (
                status.postgres == Postgres::Running,
                "PostgreSQL is not running here",
            ),
            Question::Readiness => (
                status.serving || status.members.first().is_some_and(|member| member.ready),
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
