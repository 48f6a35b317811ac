//! What one member remembers from one decision to the next: its role with its phase, what it saw
//! when, and what it said. Plain values; every time is this machine's own [`Mono`].

use std::collections::BTreeMap;

use fencing::{Epoch, KeyFlags, MemberId, Mono};
use nvme::HostId;
use serde::{Deserialize, Serialize};

use super::action::{Victim, Work};
use super::ask::RequestId;
use super::observation::{HandoverCause, Heartbeat, LeaseVersion, RoleName, StepId};
use super::reason::{Evidence, Reason};
use super::zone::ZoneMemory;

/// The memory. A process starts with [`Memory::default`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// The role, with its phase.
    pub role: Role,
    /// The step that was ordered and not yet dealt with.
    pub issued: Option<Issued>,
    /// The number of the next step.
    pub next_step: StepId,
    /// When `decide` was called last; `None` before the first time.
    pub looked: Option<Mono>,
    /// When this member last woke from a gap in its own looking, or began.
    pub awake_since: Mono,
    /// The greatest epoch seen or used anywhere.
    pub newest: Epoch,
    /// The device's `made` number with which the volume was last mounted: that device must not
    /// acquire again.
    pub tainted: Option<u64>,
    /// Since when earlier controllers of this host, which may have written, can have sent nothing
    /// more; `None` if there were none or they ended cleanly.
    pub former_gone: Option<Mono>,
    /// When this member last proved that nothing of an earlier ownership is left of it.
    pub cleaned: Mono,
    /// This host's registration, since this process made it; `None` when it is not registered.
    pub registered: Option<Registered>,
    /// What was seen of the owner.
    pub watch: Watch,
    /// Beginnings of the unplanned take-overs within the window.
    pub takeovers: Vec<Mono>,
    /// Claims that the lease store has refused in a row, because another version was there.
    #[serde(default)]
    pub claims_lost: u8,
    /// Restarts of PostgreSQL within the window.
    pub restarts: Vec<Mono>,
    /// When this member last gave the volume away because it could not serve.
    pub failed: Option<Mono>,
    /// After a failure: nothing hazardous before this moment.
    pub not_before: Mono,
    /// What an operator must know meanwhile; `None` after a failure that may pass by itself.
    pub held_up: Option<Reason>,
    /// No automatic take-over, as the lease last said.
    pub paused: bool,
    /// The key that was beaten last.
    pub beat: Option<BeatSaid>,
    /// The heartbeat that was sent last.
    pub said: Option<Said>,
    /// Number of heartbeats sent.
    pub heartbeats: u64,
    /// When the lease was last written.
    pub lease_written: Option<Mono>,
    /// What was last told to the platform.
    pub routed: Option<Routed>,
    /// An operator's word that every earlier owner is stopped: when it was given.
    pub owners_stopped: Option<Mono>,
    /// An operator's switchover that is on its way.
    pub switching: Option<Switching>,
    /// An operator's restart of PostgreSQL that is on its way.
    #[serde(default)]
    pub restarting: Option<Restarting>,
    /// The newest reload that was ordered; the executor answers it.
    #[serde(default)]
    pub reloading: Option<RequestId>,
    /// What concerns the other sites.
    #[serde(default)]
    pub zone: ZoneMemory,
}

/// An operator's restart of PostgreSQL that is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restarting {
    /// The request to answer.
    pub request: RequestId,
    /// Where it is.
    pub stage: RestartStage,
}

/// ```text
/// Checkpointing → (Withdrawing) → StoppingFast → (StoppingImmediate → Killing) → Starting
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RestartStage {
    /// Checkpoint and syncfs while still serving.
    Checkpointing,
    /// Letting clients wait, where something routes them.
    Withdrawing,
    /// Stop, fast.
    StoppingFast,
    /// The bound has passed: stop, immediate.
    StoppingImmediate,
    /// That bound, too: kill.
    Killing,
    /// Start.
    Starting,
}

/// An operator's switchover that is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Switching {
    /// The request to answer.
    pub request: RequestId,
    /// The epoch that is given up.
    pub epoch: Epoch,
    /// When the other member was seen to hold; `None` before.
    pub taken: Option<Mono>,
}

/// The role of a member, with everything that its phase needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// Nothing is proven yet.
    Joining {
        /// `FS_IOC_SHUTDOWN` was done on what an earlier life left mounted.
        shut: bool,
    },
    /// Waits.
    Standby,
    /// Takes over.
    TakingOver(TakeOver),
    /// Owns and serves.
    Active(Ownership),
    /// Gives the volume away.
    HandingOver(Handover),
    /// Cleans up after an ownership.
    Returning {
        /// Why it ended.
        why: Reason,
        /// The epoch that was owned.
        epoch: Epoch,
        /// It ended with everything flushed and unmounted: no command of the device is left.
        clean: bool,
        /// `FS_IOC_SHUTDOWN` was done.
        shut: bool,
    },
    /// Goes away: only to unregister is left.
    Leaving,
    /// The process ends.
    Stopped,
}

impl Role {
    /// The role's name.
    pub fn name(&self) -> RoleName {
        match self {
            Self::Joining { .. } => RoleName::Joining,
            Self::Standby => RoleName::Standby,
            Self::TakingOver(_) => RoleName::TakingOver,
            Self::Active(_) => RoleName::Active,
            Self::HandingOver(_) => RoleName::HandingOver,
            Self::Returning { .. } | Self::Leaving => RoleName::Returning,
            Self::Stopped => RoleName::Stopped,
        }
    }
}

/// A take-over on its way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TakeOver {
    /// The epoch it will own.
    pub epoch: Epoch,
    /// What allows it.
    pub evidence: Evidence,
    /// Whom it fences.
    pub victim: Victim,
    /// Where it is.
    pub phase: TakeOverPhase,
    /// When the hold was proven; `None` before.
    pub proven_at: Option<Mono>,
}

/// ```text
/// (Inspecting) → Claiming → Fencing → Preparing → (Formatting) → Mounting → Starting → Active
///                   │ lost     │ lost, unproven      │ hold lost           │ keeps failing
///                   ▼          ▼                     ▼                     ▼
///                Standby    Standby              Returning            HandingOver
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TakeOverPhase {
    /// First start only: proving the volume blank.
    Inspecting,
    /// Claiming the epoch in the lease store.
    Claiming,
    /// Fencing.
    Fencing,
    /// Reading what is on the volume.
    Preparing,
    /// First start only: making filesystem and database.
    Formatting,
    /// Mounting.
    Mounting,
    /// Starting PostgreSQL.
    Starting,
}

/// The ownership of an active.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ownership {
    /// Its epoch.
    pub epoch: Epoch,
    /// When the hold was proven: older reports say nothing about it.
    pub proven_at: Mono,
}

/// A handover on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handover {
    /// The epoch that is given up.
    pub epoch: Epoch,
    /// When the hold was proven.
    pub proven_at: Mono,
    /// To whom; `None` if nobody is ready and the member goes alone.
    pub to: Option<MemberId>,
    /// Why.
    pub cause: HandoverCause,
    /// Where it is.
    pub stage: HandoverStage,
    /// How many times this stage's step has failed.
    pub failures: u8,
    /// When it became clean.
    pub clean_since: Option<Mono>,
}

/// ```text
/// Checkpointing → (Withdrawing) → StoppingFast → (StoppingImmediate → Killing) → Unmounting
///                                                                                   ▼
///               Returning or Stopped ◄ taken, or not ◄ Waiting ◄──────────────── Announcing
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HandoverStage {
    /// Checkpoint and syncfs while still serving.
    Checkpointing,
    /// Leading clients away, where something routes them.
    Withdrawing,
    /// Stop, fast.
    StoppingFast,
    /// The bound has passed: stop, immediate.
    StoppingImmediate,
    /// That bound, too: kill.
    Killing,
    /// Flush and unmount.
    Unmounting,
    /// Say so in the key.
    Announcing,
    /// Waiting to be preempted.
    Waiting,
}

/// A step that was ordered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Issued {
    /// Its number.
    pub id: StepId,
    /// What it is.
    pub work: Work,
    /// When it was ordered.
    pub at: Mono,
    /// Its deadline.
    pub deadline: Mono,
}

/// This host's registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registered {
    /// When the registering was seen to be done.
    pub at: Mono,
    /// How many heartbeats had been sent by then: a peer that heard a later one has spoken after
    /// the registration.
    pub heartbeats: u64,
}

/// What was seen of the members' signs of life, by this member's own clock.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watch {
    /// Each host's key on the volume.
    pub keys: BTreeMap<HostId, Track<u64>>,
    /// The reads of the mailbox without a gap between; `None` while it is unknown.
    pub mailbox: Option<Span>,
    /// The lease record's version.
    pub lease: Option<Track<Option<LeaseVersion>>>,
    /// The reads of the lease without a gap between; `None` while it is unknown.
    pub lease_read: Option<Span>,
    /// The newest successful read of the lease.
    pub lease_last: Option<Mono>,
    /// The newest heartbeat of each peer in which it spoke as an owner that gets on.
    pub alive: BTreeMap<MemberId, Mono>,
    /// The owner that the reservation or the owner itself names, with its epoch and whether it is
    /// clean.
    pub owner: Option<Track<(MemberId, Epoch, bool)>>,
    /// Which owner was seen to be clean, by its key or its heartbeat.
    pub clean: Option<Track<(MemberId, Epoch)>>,
    /// After a fence that failed: only a report that began later says who holds.
    pub read_after: Mono,
    /// Since when the volume is seen without a holder, while this host is registered.
    pub absent: Option<Registered>,
    /// Since when each peer says, without a word to the contrary, that it has nothing of the volume.
    pub nothing: BTreeMap<MemberId, Mono>,
    /// The volume was seen to hold a database, whatever the lease says.
    pub in_service: bool,
}

/// A value and since when it has been unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Track<T> {
    /// The value.
    pub value: T,
    /// When it was first seen.
    pub since: Mono,
}

/// A time in which a channel was read again and again without a gap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// Its first read.
    pub since: Mono,
    /// Its newest.
    pub last: Mono,
}

/// The beat that was sent last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BeatSaid {
    /// When.
    pub at: Mono,
    /// With which epoch.
    pub epoch: Epoch,
    /// With which flags.
    pub flags: KeyFlags,
}

/// The heartbeat that was sent last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Said {
    /// When.
    pub at: Mono,
    /// What.
    pub heartbeat: Heartbeat,
}

/// What was last told to the platform.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Routed {
    /// The role.
    pub role: RoleName,
    /// The epoch.
    pub epoch: Epoch,
    /// The primary's term.
    pub term: u64,
    /// Serving.
    pub serving: bool,
    /// Following another site's primary.
    pub follows: bool,
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            role: Role::Joining { shut: false },
            issued: None,
            next_step: StepId(1),
            looked: None,
            awake_since: Mono::ZERO,
            newest: Epoch::ZERO,
            tainted: None,
            former_gone: None,
            cleaned: Mono::ZERO,
            registered: None,
            watch: Watch::default(),
            takeovers: Vec::new(),
            claims_lost: 0,
            restarts: Vec::new(),
            failed: None,
            not_before: Mono::ZERO,
            held_up: None,
            paused: false,
            beat: None,
            said: None,
            heartbeats: 0,
            lease_written: None,
            routed: None,
            owners_stopped: None,
            switching: None,
            restarting: None,
            reloading: None,
            zone: ZoneMemory::default(),
        }
    }
}
