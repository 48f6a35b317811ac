//! The pure core: what one member does next. No tokio, nix, clock or randomness; time comes in as an
//! argument. The same [`decide`] runs in production, in the simulation and in `baton replay`.

mod absence;
pub mod action;
mod active;
mod ask;
mod chores;
mod handover;
mod hold;
pub mod memory;
pub mod observation;
pub mod reason;
mod requests;
mod restart;
mod returning;
mod sites;
mod standby;
mod takeover;
pub mod timings;
mod turn;
mod watch;
pub mod zone;

use std::collections::BTreeSet;

use fencing::{MemberId, Mono};
use serde::{Deserialize, Serialize};

pub use action::{AbsenceEvidence, Action, Step, StopMode, Victim, Work};
pub use ask::{Answer, Ask, Request, RequestId};
pub use memory::{Memory, Role};
pub use observation::{
    Custody, Device, Finished, HandoverCause, HandoverNotice, HandoverPhase, Heard, Heartbeat,
    Incarnation, Lease, LeaseRecord, LeaseVersion, Life, Local, Mount, Observation, Outcome,
    PermitFacts, Postgres, RoleName, Running, Seen, StepId, VolumeFacts,
};
pub use reason::{Evidence, Reason};
use turn::{Next, Turn};

pub use timings::{InvalidTimings, TimingSettings, Timings, Violation};

/// What of a member's configuration its decisions rest on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// This member.
    pub member: MemberId,
    /// All members of the site, this one among them.
    pub members: BTreeSet<MemberId>,
    /// The one member that may format a blank volume at the first start.
    pub bootstrap: MemberId,
    /// Durations and budgets.
    pub timings: Timings,
    /// Something leads clients to the active (a Service's endpoints, a pooler): a handover leads them
    /// away before PostgreSQL stops.
    #[serde(default)]
    pub routed: bool,
    /// The sites, where the cluster has several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<zone::ZoneConfig>,
}

impl Config {
    /// All members of the site but this one.
    pub fn peers(&self) -> impl Iterator<Item = MemberId> {
        self.members
            .iter()
            .copied()
            .filter(|member| *member != self.member)
    }
}

/// What to remember, what to do, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[must_use]
pub struct Decision {
    /// The memory for the next call.
    pub memory: Memory,
    /// In this order. At most one `Begin`.
    pub actions: Vec<Action>,
    /// Why, also for waiting.
    pub reason: Reason,
    /// Call again at this moment at the latest, and at once on every event (a step's end, a peer's
    /// message, a new report, a request).
    pub wake: Mono,
}

/// How often a role may change within one decision. Each change leads on, so a few are enough; the
/// bound keeps a mistake from becoming an endless loop.
const CHANGES: usize = 8;

/// What a member does next: a pure function of what it sees and remembers.
///
/// Call it on every event and at [`Decision::wake`]; keep the returned memory for the next call.
pub fn decide(config: &Config, memory: &Memory, observation: &Observation, now: Mono) -> Decision {
    let mut turn = Turn {
        config,
        seen: observation,
        now,
        memory: memory.clone(),
        actions: Vec::new(),
        wake: now + config.timings.observe,
        ended: None,
        began: false,
    };
    turn.watch();
    turn.settle();
    let mut reason = Reason::CleaningUp;
    for _ in 0..CHANGES {
        match turn.role() {
            Next::Wait(why) => {
                reason = why;
                break;
            }
            Next::Again => {}
        }
    }
    turn.requests();
    turn.chores();
    let Turn {
        memory,
        actions,
        wake,
        ..
    } = turn;
    Decision {
        memory,
        actions,
        reason,
        wake,
    }
}

impl Turn<'_> {
    /// Finds out whether the step that was ordered has ended.
    fn settle(&mut self) {
        let Some(issued) = self.memory.issued.take() else {
            return;
        };
        let running = self
            .seen
            .running
            .is_some_and(|running| running.id == issued.id);
        match &self.seen.finished {
            Some(finished) if finished.id == issued.id => {
                self.end(issued, finished.outcome.clone());
            }
            // The executor does not know it (any more): its outcome is unknown.
            Some(_) | None
                if !running && self.now > issued.deadline + self.config.timings.command =>
            {
                self.end(issued, Outcome::Overdue);
            }
            Some(_) | None => self.memory.issued = Some(issued),
        }
    }

    fn end(&mut self, issued: memory::Issued, outcome: Outcome) {
        let memory::Issued { work, at, .. } = issued;
        let holds = self.config.timings.promote;
        self.memory.zone.worked(&work, at, self.now, holds);
        self.ended = Some((work, outcome));
    }

    fn role(&mut self) -> Next {
        match self.memory.role.clone() {
            Role::Joining { shut } => self.join(shut),
            Role::Standby => self.standby(),
            Role::TakingOver(takeover) => self.take_over(takeover),
            Role::Active(own) => self.active(own),
            Role::HandingOver(handover) => self.handing_over(handover),
            Role::Returning {
                why,
                epoch,
                clean,
                shut,
            } => self.come_back(why, epoch, clean, shut),
            Role::Leaving => self.leave(),
            Role::Stopped => self.stopped(),
        }
    }
}

#[cfg(test)]
mod tests;
