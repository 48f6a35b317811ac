//! The pure core: what one member does next. No tokio, nix, clock or randomness; time comes in as an
//! argument. The same [`decide`] runs in production, in the simulation and in `baton replay`.

pub mod action;
pub mod memory;
pub mod observation;
pub mod reason;
pub mod timings;

use std::collections::BTreeSet;

use fencing::{MemberId, Mono};
use serde::{Deserialize, Serialize};

pub use action::{AbsenceEvidence, Action, Step, StopMode, Victim, Work};
pub use memory::Memory;
pub use observation::{
    Answer, Ask, Custody, Device, Finished, HandoverCause, HandoverNotice, HandoverPhase, Heard,
    Heartbeat, Incarnation, Lease, LeaseRecord, LeaseVersion, Life, Local, Mount, Observation,
    Outcome, PermitFacts, Postgres, Request, RequestId, RoleName, Running, Seen, StepId,
    VolumeFacts,
};
pub use reason::{Evidence, Reason};
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

/// What a member does next: a pure function of what it sees and remembers.
///
/// Call it on every event and at [`Decision::wake`]; keep the returned memory for the next call.
pub fn decide(config: &Config, memory: &Memory, observation: &Observation, now: Mono) -> Decision {
    let _ = observation;
    Decision {
        memory: memory.clone(),
        actions: Vec::new(),
        reason: Reason::CleaningUp,
        wake: now + config.timings.observe,
    }
}
