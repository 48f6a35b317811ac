//! What every door to a member shares, the control socket and the HTTP API: its newest status, the way
//! to its loop, its history. Reading never waits for the loop, and nothing here decides anything.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};

use super::protocol::Ownerships;
use super::requests::ControlRequest;
use super::status::Status;
use crate::clock::{self, Mono};
use crate::config::Config;
use crate::decide::{Answer, Ask};
use crate::journal;
use crate::lease::LeaseStore;

/// The newest status and when the loop made it.
pub(super) type Newest = Option<(Arc<Status>, Mono)>;

/// The member as its doors see it.
pub struct Desk {
    pub(super) config: Config,
    pub(super) lease: LeaseStore,
    pub(super) newest: watch::Receiver<Newest>,
    pub(super) ask: mpsc::Sender<ControlRequest>,
}

impl Desk {
    /// The member's configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The newest status with its age; none before the first decision.
    pub fn status(&self) -> Option<Status> {
        aged(&self.newest.borrow())
    }

    /// Passes a request to the loop, which answers through what is returned; `None` when the member is
    /// stopping. Waits while the loop has too many requests: give it a deadline.
    pub async fn ask(&self, ask: Ask) -> Option<oneshot::Receiver<Answer>> {
        let (reply, answered) = oneshot::channel();
        let request = ControlRequest { ask, reply };
        self.ask.send(request).await.ok().map(|()| answered)
    }

    /// Who owned the site.
    pub async fn history(&self) -> Ownerships {
        let deadline = clock::now() + self.config.timings.lease_deadline;
        history(&self.config, &self.lease, deadline).await
    }

    /// The names of all members, for messages.
    pub fn names(&self) -> String {
        let members = &self.config.peer.members;
        let others = members.iter().map(|member| member.name.as_str());
        let names: Vec<_> = others.chain([self.config.member.as_str()]).collect();
        names.join(", ")
    }
}

/// The status with its age.
pub(super) fn aged(newest: &Newest) -> Option<Status> {
    let (status, at) = newest.as_ref()?;
    let mut status = Status::clone(status);
    let age = clock::now().since(*at).as_millis();
    status.age_ms = u64::try_from(age).unwrap_or(u64::MAX);
    Some(status)
}

/// Collects who owned the site from the lease store and what it took from the journal.
pub(crate) async fn history(config: &Config, lease: &LeaseStore, deadline: Mono) -> Ownerships {
    let path = config.journal.path.clone();
    let steps = tokio::task::spawn_blocking(move || journal::steps(&path));
    let (changes, lease_error) = match lease.history(deadline).await {
        Ok(changes) => (changes, None),
        Err(error) => (Vec::new(), Some(error.to_string())),
    };
    let steps = steps.await.unwrap_or_default();
    Ownerships {
        changes,
        lease_error,
        steps,
        journal: config.journal.path.clone(),
    }
}
