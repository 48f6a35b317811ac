//! What one member sees: the facts that `decide` reads. Facts only, no judgement, no handle.
//!
//! The executor fills an [`Observation`] before every call. Everything is serde, so that a journal
//! line replays through `decide`. All times are this machine's own [`Mono`].

use std::collections::BTreeMap;

use fencing::{Epoch, Mailbox, MemberId, Mono, ReservationKey, WritePermit};
use nvme::HostId;
use serde::{Deserialize, Serialize};

use super::ask::Request;
use super::zone::{ClusterRecord, Data, Newest, Position, ZoneSeen};

/// What one channel says. Unknown is its own answer; it is never "dead" and never "silent".
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Seen<T> {
    /// The newest value that was read or received.
    Known {
        /// What it was.
        value: T,
        /// When the read *began* (a polled channel) or the message arrived (a pushed one). For a
        /// polled channel the beginning, so that a value is never taken for newer than it is.
        at: Mono,
    },
    /// The newest attempt failed, or none was made yet.
    Unknown {
        /// When the first failed attempt after the last success *began*; the process's start where
        /// there was no success yet. A failed attempt turns Known into Unknown at once; decide
        /// itself judges how long that may last.
        since: Mono,
        /// For people. Never read by `decide`.
        cause: String,
    },
}

impl<T> Seen<T> {
    /// The value, whatever its age; `None` where unknown.
    pub fn known(&self) -> Option<&T> {
        match self {
            Self::Known { value, at: _ } => Some(value),
            Self::Unknown { since: _, cause: _ } => None,
        }
    }

    /// The value and when it was read.
    pub fn known_at(&self) -> Option<(&T, Mono)> {
        match self {
            Self::Known { value, at } => Some((value, *at)),
            Self::Unknown { since: _, cause: _ } => None,
        }
    }
}

/// One run of a member's process: a random number drawn at its start. A member that comes back is
/// another incarnation, and what the earlier one said no longer binds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Incarnation(pub u64);

/// The lease store's word for one version of the record (a Kubernetes `resourceVersion`, a file's
/// generation). Opaque: compared for equality only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LeaseVersion(pub String);

/// The site's record in the lease store. It says who *should* own the volume; the reservation says
/// who *may* write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseRecord {
    /// The holder's epoch; 0 in a record made only to carry `paused`.
    pub epoch: Epoch,
    /// The greatest epoch that was ever claimed: the next claim is above it. Greater than `epoch`
    /// where an owner wrote itself back after a claim that led to nothing.
    pub newest: Epoch,
    /// Who claimed it; `None` with epoch 0.
    pub holder: Option<MemberId>,
    /// The incarnation that claimed it or renewed it last.
    pub incarnation: Incarnation,
    /// Counts the holder's renewals: "did it move" is the lease's sign of life.
    pub sequence: u64,
    /// The holder flushed and unmounted at this epoch and has not written since.
    pub clean: bool,
    /// The holder took over from an owner that had said `clean`: a planned change. For people.
    pub planned: bool,
    /// A database was in service on this volume once: it may never be formatted again.
    pub initialized: bool,
    /// The operator wants no automatic take-over.
    pub paused: bool,
    /// In the lease of a whole cluster, which is the same kind of register: its record. `None` in a
    /// site's lease.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<Box<ClusterRecord>>,
}

impl LeaseRecord {
    /// A record that nobody holds, and that says nothing.
    pub fn of_nobody(incarnation: Incarnation) -> Self {
        Self {
            epoch: Epoch::ZERO,
            newest: Epoch::ZERO,
            holder: None,
            incarnation,
            sequence: 0,
            clean: false,
            planned: false,
            initialized: false,
            paused: false,
            cluster: None,
        }
    }
}

/// The record with the version that a compare-and-set names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// What the compare-and-set must find.
    pub version: LeaseVersion,
    /// The record.
    pub record: LeaseRecord,
}

/// A member's role, as others and people see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RoleName {
    /// Starting: proves that nothing of an earlier life is left, makes its device, registers.
    Joining,
    /// Waits, attached and registered.
    Standby,
    /// Fences, mounts, starts.
    TakingOver,
    /// Has the volume mounted and serves.
    Active,
    /// Stops, unmounts, announces.
    HandingOver,
    /// Lost or gave away the volume; cleans up before it may be standby again.
    Returning,
    /// Done; the process exits.
    Stopped,
}

/// What a member still has of the volume. The proof that a former owner is harmless.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Custody {
    /// It may have PostgreSQL running or the volume mounted, or is about to.
    Held,
    /// Its PostgreSQL is proven gone; writes of its device may still be queued. Enough for a
    /// take-over that fences it by preempt-and-abort, not for one that finds no reservation.
    Relinquished,
    /// No process, no mount, and its device was made anew since it last owned the volume: nothing of
    /// it can write any more.
    Nothing,
}

/// How far the owner's handover is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HandoverPhase {
    /// Still serving or stopping: warm up.
    Preparing,
    /// Flushed and unmounted, and the key says so: take over now.
    Clean,
}

/// Why the owner hands over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HandoverCause {
    /// `baton switchover`.
    Operator,
    /// SIGTERM: this member goes away.
    Stopping,
    /// Neither lease store nor peers; a ready standby is seen on the volume.
    Isolated,
    /// PostgreSQL does not stay up here.
    PostgresFailed,
    /// This member won the volume and could not bring it into service.
    TakeOverFailed,
}

/// "Take over from me", in the owner's heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandoverNotice {
    /// The epoch that is given up.
    pub epoch: Epoch,
    /// Who shall take it; `None` if whoever is ready may.
    pub to: Option<MemberId>,
    /// Why.
    pub cause: HandoverCause,
    /// How far.
    pub phase: HandoverPhase,
}

/// Which of a peer's heartbeats was the newest when this one was sent. It orders statements between
/// two machines without comparing clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heard {
    /// The peer's incarnation.
    pub incarnation: Incarnation,
    /// Its heartbeat's number.
    pub sequence: u64,
}

/// What one member says to its peers, every `heartbeat` and at once when it changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Who says it.
    pub member: MemberId,
    /// Which run of it.
    pub incarnation: Incarnation,
    /// Counts this incarnation's heartbeats.
    pub sequence: u64,
    /// Its role.
    pub role: RoleName,
    /// The epoch it owns, or the newest it knows of.
    pub epoch: Epoch,
    /// What it still has of the volume.
    pub custody: Custody,
    /// It is a standby that could take over.
    pub ready: bool,
    /// It reaches the lease store.
    pub reachable: bool,
    /// It reads the volume's reservations.
    pub volume: bool,
    /// PostgreSQL failed here lately: hand over to me only if nobody else can.
    pub failed: bool,
    /// A step of it is overdue: do not take this heartbeat for a sign of the owner's health.
    pub stuck: bool,
    /// It hands over.
    pub handover: Option<HandoverNotice>,
    /// The newest heartbeat it has of each peer.
    pub heard: BTreeMap<MemberId, Heard>,
}

/// The platform's word on a member's whole process tree (a container's state, the lab's supervisor).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Life {
    /// It may be running.
    Running,
    /// Every process of it has been reaped, and it has not been started again: a positive proof.
    Exited,
}

/// The block device through which this member mounts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Device {
    /// There is none (not built yet, or its bridge is gone).
    Absent,
    /// It is there.
    Attached {
        /// How many times this process has made it, from 1. A device left by an earlier process is 0.
        made: u64,
    },
}

/// The volume's filesystem on this member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mount {
    /// Not mounted by this member, and no superblock of it is alive.
    Unmounted,
    /// Mounted.
    Mounted,
    /// Unknown: an unmount, or a mount that was given up, has not come back. Treated as mounted.
    Stuck,
}

/// PostgreSQL on this member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Postgres {
    /// Proven: not one process of it is left.
    Stopped,
    /// Started, not yet accepting writes.
    Starting,
    /// Accepts writes: one was committed since the start.
    Running,
    /// Told to stop; processes are left.
    Stopping,
    /// Anything else, a dead postmaster with living children among them.
    Unknown,
}

/// What is known of the `WritePermit` that the executor keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PermitFacts {
    /// For which epoch.
    pub epoch: Epoch,
    /// Under which key the hold was proven.
    pub key: ReservationKey,
    /// When.
    pub proven_at: Mono,
}

impl From<&WritePermit> for PermitFacts {
    fn from(permit: &WritePermit) -> Self {
        Self {
            epoch: permit.epoch(),
            key: permit.key(),
            proven_at: permit.proven_at(),
        }
    }
}

/// Facts of this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Local {
    /// This run of the process.
    pub incarnation: Incarnation,
    /// This host's identifier at the volume.
    pub host: HostId,
    /// The block device.
    pub device: Device,
    /// The mount.
    pub mount: Mount,
    /// PostgreSQL.
    pub postgres: Postgres,
    /// An earlier process on this host may have written to the volume and did not end cleanly (the
    /// mark that is made before a mount and removed after a clean unmount is there). If in doubt, true.
    pub former_writer: bool,
    /// The permit in the executor's hands, if any.
    pub permit: Option<PermitFacts>,
    /// Since when the agent of this node, which alone reaches the volume, has been away; `None` where it is
    /// there, or where the member attaches by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_away: Option<Mono>,
}

/// Number of a step that `decide` ordered, unique within one process.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct StepId(pub u64);

/// The step that the executor is working on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    /// Which.
    pub id: StepId,
    /// Since when.
    pub since: Mono,
}

/// What the volume holds, read with O_DIRECT past every cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum VolumeFacts {
    /// Proven blank: no known signature anywhere one could be.
    Blank,
    /// Our filesystem with the mark of a first format that was begun and not finished: nothing was
    /// ever in service on it, it may be formatted again.
    Unfinished,
    /// Our filesystem.
    Ours {
        /// The superblock says unmounted cleanly, no journal to replay.
        clean: bool,
    },
    /// Anything else: a foreign filesystem, another cluster's data, another PostgreSQL version.
    Foreign {
        /// For people.
        what: String,
    },
}

/// How a step ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Done, and verified where the step says so.
    Done,
    /// `ClaimLease`: the compare-and-set found another version. The lease observation is newer.
    ClaimLost,
    /// `Fence`: proven; the executor has the permit.
    Fenced(PermitFacts),
    /// `Fence`: the holder is no longer the one that was to be fenced. Nothing was mounted.
    FenceLost,
    /// `PrepareVolume`: what is on it.
    Volume(VolumeFacts),
    /// `StopPostgres`: all processes are gone.
    Stopped {
        /// pg_control says "shut down": no WAL to replay.
        clean: bool,
    },
    /// `Unmount`: unmounted, flushed, caches dropped.
    Unmounted {
        /// The superblock, read back with O_DIRECT, needs no recovery.
        clean: bool,
    },
    /// `Align`: what the data directory is now.
    Aligned {
        /// A primary's, or a replica's.
        data: Data,
        /// A copy that was made anew must have received this before it stands for the one before.
        floor: Option<Position>,
    },
    /// `Align`: what is noted beside the data knows a newer record than the one that was read.
    RecordOlder {
        /// What is noted.
        known: Newest,
        /// What the data is, in that term.
        data: Data,
    },
    /// `Align`: what is there cannot be brought in line, it must be copied anew.
    CopyNeeded {
        /// Why.
        why: String,
    },
    /// `Reconfigure`: PostgreSQL runs in that way; where a replica stopped to receive.
    Reconfigured {
        /// What it has flushed of what it received.
        position: Option<Position>,
    },
    /// `StopToMove`: stopped in order, all processes are gone.
    ShutDown {
        /// Its shutdown checkpoint.
        at: Position,
    },
    /// It failed and had no effect, or one that the next observation shows.
    Failed {
        /// For people. Never read by `decide`.
        cause: String,
    },
    /// Its deadline passed; it may yet have its effect. For a fence: not fenced.
    Overdue,
}

/// The step that ended last. It stays until another one ends: `decide` knows by its number
/// whether it has dealt with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finished {
    /// Which.
    pub id: StepId,
    /// When.
    pub at: Mono,
    /// How.
    pub outcome: Outcome,
}

/// Everything that one decision rests on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observation {
    /// The volume's reservations, from the newest report.
    pub mailbox: Seen<Mailbox>,
    /// The lease; `Known(None)` where the store answers and has no record.
    pub lease: Seen<Option<Lease>>,
    /// The newest heartbeat of each peer. It stays Known; `decide` judges its age by `at`.
    pub peers: BTreeMap<MemberId, Seen<Heartbeat>>,
    /// The platform's word on peers, where there is a platform.
    pub platform: BTreeMap<MemberId, Seen<Life>>,
    /// This machine.
    pub local: Local,
    /// The step being worked on.
    pub running: Option<Running>,
    /// The step that ended last.
    pub finished: Option<Finished>,
    /// The oldest unanswered request.
    pub request: Option<Request>,
    /// SIGTERM came: stop after handing over.
    pub stopping: bool,
    /// The other sites, where the cluster has several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<Box<ZoneSeen>>,
}
