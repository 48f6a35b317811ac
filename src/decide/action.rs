//! What `decide` orders: imperatives with all their parameters and a deadline.
//!
//! At most one [`Action::Begin`] per decision, and one step at a time; the other actions are cheap
//! and may run beside a step. Executors hold no policy.

use std::time::Duration;

use fencing::reservation::OwnHold;
use fencing::{Epoch, Expectation, KeyFlags, MemberId, Mono};
use nvme::HostId;
use serde::{Deserialize, Serialize};

use super::ask::{Answer, RequestId};
use super::observation::{Heartbeat, LeaseRecord, LeaseVersion, RoleName, StepId};
use super::zone::{ClusterRecord, Serve, SiteName};

/// One imperative for the executor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// Begin this step. No other is running, or this one is urgent ([`Work::is_urgent`]): then the
    /// running one is given up (its outcome no longer counts, its permit is dropped) and this one
    /// begins at once, beside it if it cannot be cancelled.
    Begin(Step),
    /// Replace this host's key by one with this epoch, these flags and the next beat (naming the
    /// current key, never IEKEY), then read the report into the mailbox. Drop it if a beat is still
    /// under way. Never sent while a fence is running.
    Beat {
        /// The epoch in the key.
        epoch: Epoch,
        /// The flags in the key.
        flags: KeyFlags,
    },
    /// Compare-and-set the lease; the result is the next lease observation (on success with the new
    /// version, `at` = the write's beginning). Drop it if a lease write is still under way.
    WriteLease {
        /// The version that must be found; `None`: no record may exist.
        expected: Option<LeaseVersion>,
        /// The new record.
        record: LeaseRecord,
        /// Give up then; the channel is Unknown.
        deadline: Mono,
    },
    /// Compare-and-set the cluster's record; the result is its next observation. Drop it if such a
    /// write is still under way.
    WriteCluster {
        /// The version that must be found; `None`: no record may exist.
        expected: Option<LeaseVersion>,
        /// The new record.
        record: Box<ClusterRecord>,
        /// Give up then; the channel is Unknown.
        deadline: Mono,
    },
    /// Re-read the cluster's record now.
    RefreshCluster,
    /// Send this heartbeat to every peer, now.
    Publish(Heartbeat),
    /// Re-read these channels now instead of at the next `observe` interval.
    Refresh {
        /// The reservation report.
        mailbox: bool,
        /// The lease.
        lease: bool,
    },
    /// Tell the platform (pod labels, endpoints, pooler) who serves. Sent when it changes.
    PublishRole {
        /// This member's role.
        role: RoleName,
        /// The epoch it owns or knows.
        epoch: Epoch,
        /// The term in which the primary runs here; 0 with one site, and where it does not.
        term: u64,
        /// PostgreSQL accepts writes here, and no handover has begun to lead clients away.
        serving: bool,
        /// PostgreSQL runs here as a replica of another site's.
        follows: bool,
    },
    /// Read the member's settings of PostgreSQL anew, have PostgreSQL re-read them if it runs, and answer
    /// the request. Waits for nothing of the volume.
    Reload {
        /// Which.
        request: RequestId,
    },
    /// Answer an operator's request and take it out of the observation.
    Answer {
        /// Which.
        request: RequestId,
        /// What.
        answer: Answer,
    },
    /// Leave the loop and end the process with exit code 0. Nothing of PostgreSQL is left.
    Exit,
}

/// A step with its number and deadline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Quoted by `Running` and `Finished`.
    pub id: StepId,
    /// What to do.
    pub work: Work,
    /// At this moment the step ends as `Overdue` if it can be cancelled; if it cannot (a blocked
    /// system call) it stays in `Observation::running`, and the member's beats stop.
    pub deadline: Mono,
}

/// How to stop PostgreSQL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StopMode {
    /// Disconnect everybody, write the shutdown checkpoint. Never waits for archiving.
    Fast,
    /// Abort; WAL is replayed at the next start.
    Immediate,
}

/// Whom the fence is to make harmless, and what is believed of the reservation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Victim {
    /// Another host holds.
    Holder {
        /// Its host identifier, from the mailbox.
        host: HostId,
        /// The member in its key.
        member: MemberId,
        /// The epoch in its key.
        epoch: Epoch,
        /// Whether its key says `clean`. The fence ends as `FenceLost` if that changes.
        clean: bool,
    },
    /// This very host holds, from an earlier process or a fence that could not be proven. Unless
    /// `clean`, the sequence waits until the old controllers' commands are provably over.
    Own {
        /// The epoch in the key that holds.
        epoch: Epoch,
        /// Whether that key says `clean`.
        clean: bool,
        /// Since when no command of an earlier owner or of an earlier process of this host can have
        /// been started: this host was seen to hold, and everything of its past was cleaned up.
        quiet_since: Mono,
    },
    /// Nobody holds, and this is why an acquire is nevertheless permitted.
    Nobody(AbsenceEvidence),
}

/// Why an absent reservation may be acquired. Absence alone never permits it.
///
/// The proof of `EveryOwnerStopped` without any clock or lease: this host registered *after* it saw
/// its registration missing, and is registered ever since (the acquire names its key, so it fails if
/// the target forgot again). Nobody ever releases a reservation, so in all that time nobody can have
/// held and ceased to hold. A peer that, in answer to a heartbeat sent after that registration,
/// says it has nothing of the volume, has had no way to gain anything since.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AbsenceEvidence {
    /// The first start: no database was ever in service by the lease, this is the bootstrap member,
    /// and `PrepareVolume` proved the volume blank just before.
    FirstStart,
    /// This member has nothing of the volume, and every other one is proven to have nothing either.
    EveryOwnerStopped {
        /// Since when none of them can have sent a command.
        since: Mono,
    },
    /// An operator said so ([`super::Ask::OwnersStopped`]) after this host registered.
    OperatorsWord,
}

/// What the fence sequence is to find; the executor and the simulation hand it the same.
impl From<Victim> for Expectation {
    fn from(victim: Victim) -> Self {
        match victim {
            Victim::Holder {
                host,
                member,
                epoch,
                clean,
            } => Self::Holder(fencing::Victim {
                host,
                member,
                epoch,
                clean,
            }),
            Victim::Own {
                epoch: _,
                clean: true,
                quiet_since: _,
            } => Self::Ourselves(OwnHold::Clean),
            Victim::Own {
                epoch: _,
                clean: false,
                quiet_since,
            } => Self::Ourselves(OwnHold::QuietSince(quiet_since)),
            Victim::Nobody(evidence) => Self::Nobody(match evidence {
                AbsenceEvidence::FirstStart => fencing::AbsenceEvidence::NeverOwned,
                AbsenceEvidence::EveryOwnerStopped { since } => {
                    fencing::AbsenceEvidence::EveryOwnerStopped { since }
                }
                AbsenceEvidence::OperatorsWord => fencing::AbsenceEvidence::OperatorsWord,
            }),
        }
    }
}

/// One step. Hazardous ones say so: `fence, format, mount, start, stop, unmount, kill`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Work {
    /// Register this host's key; replace it if an earlier process left one. Never while this host
    /// holds. Outcome `Done`.
    Register {
        /// The epoch in the key.
        epoch: Epoch,
        /// The flags in the key.
        flags: KeyFlags,
    },
    /// Unregister: this standby goes away. Never while this host holds. Outcome `Done`.
    Unregister,
    /// Compare-and-set the lease for a new epoch. Outcome `Done` (the observation has the new
    /// version), `ClaimLost`, `Failed`, `Overdue`.
    ClaimLease {
        /// The version that must be found; `None`: no record may exist.
        expected: Option<LeaseVersion>,
        /// The new record.
        record: LeaseRecord,
    },
    /// Hazardous. Let a beat that is under way end, then replace this host's key (naming the current one: `Failed` if the registration is
    /// gone, never register anew here) by one of `epoch`, then run the fence sequence to its end.
    /// Outcome `Fenced`, `FenceLost`, `Failed`, `Overdue`; nothing but `Fenced` leaves a permit.
    Fence {
        /// The new owner's epoch.
        epoch: Epoch,
        /// Flags of the new key (never `clean`).
        flags: KeyFlags,
        /// Whom.
        victim: Victim,
        /// Since when earlier controllers of this very host, which may have written, can have sent
        /// nothing more; `None` if there were none or they ended cleanly. Their commands may live for
        /// another 3 × keep-alive + quiesce, and would become legal with this host's hold.
        former_gone: Option<Mono>,
    },
    /// Destroy the block device and everything queued in it (end the bridge, delete the
    /// controllers), prove O_EXCL, make it anew. PostgreSQL is stopped and nothing is mounted.
    /// Outcome `Done` and `Device::Attached` with a greater `made`.
    RebuildDevice,
    /// Drop the device's cached blocks, read superblock and pg_control with O_DIRECT. Reads only.
    /// Outcome `Volume`.
    PrepareVolume,
    /// Hazardous. As [`Work::Format`], but with a copy of another site's database. Outcome `Done`.
    Seed {
        /// Whose permit.
        epoch: Epoch,
        /// The primary's site.
        from: SiteName,
        /// The term in which it is that.
        term: u64,
    },
    /// Hazardous. Bring the data directory in line with the cluster's record: rewind what the
    /// primary of this term does not have, or copy its database anew. PostgreSQL is stopped.
    /// Without a record, term and writes 0, only look at what is noted beside the data.
    /// Outcome `Aligned`, `RecordOlder` or `CopyNeeded`.
    Align {
        /// Whose permit.
        epoch: Epoch,
        /// The term of the record.
        term: u64,
        /// How many writes the record has seen.
        writes: u64,
        /// The primary's site.
        primary: SiteName,
        /// Copy the database anew.
        reseed: bool,
    },
    /// Hazardous. Start PostgreSQL, as [`Work::StartPostgres`], in this way. A replica commits
    /// nothing: it is ready when it takes connections. Outcome `Done`.
    Serve {
        /// Whose permit.
        epoch: Epoch,
        /// In which way.
        serve: Serve,
    },
    /// Let the running PostgreSQL go on in another way, and see that it does. A replica that shall
    /// not receive has no receiver any more when this is done. Outcome `Reconfigured`.
    Reconfigure {
        /// Whose permit.
        epoch: Epoch,
        /// In which way.
        serve: Serve,
    },
    /// Hazardous. Make the running replica, which does not receive, the primary; wait for a
    /// committed write. Outcome `Done`, also where it was promoted before.
    Promote {
        /// Whose permit.
        epoch: Epoch,
        /// The term it begins.
        term: u64,
        /// How many writes the record has seen.
        writes: u64,
        /// The greatest timeline that the cluster knows: the new one is above it.
        above: u32,
        /// In which way it goes on.
        serve: Serve,
    },
    /// Make the other sites' replication slots, and those anew that are lost. Outcome `Done`.
    KeepSlots {
        /// Whose permit.
        epoch: Epoch,
    },
    /// Hazardous. A fast stop that must end in order. Outcome `ShutDown`, or `Stopped`.
    StopToMove,
    /// Hazardous. Under the permit of this epoch and on a volume re-proven blank (or unfinished):
    /// make the filesystem, mount it, `initdb`, unmount. Outcome `Done`.
    Format {
        /// Whose permit.
        epoch: Epoch,
    },
    /// Hazardous. Confirm the permit of this epoch by a fresh report, then mount. Outcome `Done`,
    /// `Failed` (also when the hold is lost: nothing was mounted), `Overdue`.
    Mount {
        /// Whose permit.
        epoch: Epoch,
    },
    /// Hazardous. Remove a stale postmaster.pid, start, wait for a committed write. Outcome `Done`,
    /// `Failed`, `Overdue`.
    StartPostgres {
        /// Whose permit.
        epoch: Epoch,
    },
    /// `CHECKPOINT` and `syncfs` while serving, so that the stop is short. Outcome `Done`.
    Checkpoint,
    /// Lead clients away while PostgreSQL still answers: pause the pooler, empty the Service's
    /// endpoints. Only where [`super::Config::routed`]. Whatever its outcome, the handover goes on.
    Withdraw {
        /// The epoch whose route it is.
        epoch: Epoch,
    },
    /// Hazardous. Outcome `Stopped`.
    StopPostgres {
        /// How.
        mode: StopMode,
    },
    /// Hazardous. `syncfs`, unmount (never lazy), NVMe Flush, drop caches, read the superblock
    /// back. Outcome `Unmounted`, `Failed` (still mounted).
    Unmount,
    /// Replace this host's key by one with the `clean` flag. After it nothing of this member writes.
    /// Outcome `Done`, `Failed` (the hold is not ours any more), `Overdue` (unknown).
    AnnounceClean {
        /// The epoch given up.
        epoch: Epoch,
        /// Flags besides `clean`.
        flags: KeyFlags,
    },
    /// Hazardous, urgent. SIGKILL to every process of PostgreSQL, wait until none is left. `Done`.
    KillPostgres,
    /// Hazardous, urgent. `FS_IOC_SHUTDOWN` with NOLOGFLUSH: no write of this mount from now on.
    /// Outcome `Done`, also when nothing is mounted.
    ShutdownFilesystem,
    /// Hazardous. Unmount a filesystem that was shut down; flushes nothing. Outcome `Done`.
    DropMount,
}

impl Work {
    /// Whether it begins at once, even while another step is running.
    pub fn is_urgent(&self) -> bool {
        match self {
            Self::KillPostgres | Self::ShutdownFilesystem => true,
            Self::Register { .. }
            | Self::Unregister
            | Self::ClaimLease { .. }
            | Self::Fence { .. }
            | Self::RebuildDevice
            | Self::PrepareVolume
            | Self::Format { .. }
            | Self::Seed { .. }
            | Self::Align { .. }
            | Self::Serve { .. }
            | Self::Reconfigure { .. }
            | Self::Promote { .. }
            | Self::KeepSlots { .. }
            | Self::StopToMove
            | Self::Mount { .. }
            | Self::StartPostgres { .. }
            | Self::Checkpoint
            | Self::Withdraw { .. }
            | Self::StopPostgres { .. }
            | Self::Unmount
            | Self::AnnounceClean { .. }
            | Self::DropMount => false,
        }
    }

    /// A short name for logs and phase timelines.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Register { .. } => "register",
            Self::Unregister => "unregister",
            Self::ClaimLease { .. } => "claim-lease",
            Self::Fence { .. } => "fence",
            Self::RebuildDevice => "rebuild-device",
            Self::PrepareVolume => "prepare-volume",
            Self::Format { .. } => "format",
            Self::Seed { .. } => "seed",
            Self::Align { .. } => "align",
            Self::Serve { .. } => "start-postgres",
            Self::Reconfigure { .. } => "reconfigure",
            Self::Promote { .. } => "promote",
            Self::KeepSlots { .. } => "keep-slots",
            Self::StopToMove => "stop-postgres-to-move",
            Self::Mount { .. } => "mount",
            Self::StartPostgres { .. } => "start-postgres",
            Self::Checkpoint => "checkpoint",
            Self::Withdraw { .. } => "withdraw",
            Self::StopPostgres {
                mode: StopMode::Fast,
            } => "stop-postgres-fast",
            Self::StopPostgres {
                mode: StopMode::Immediate,
            } => "stop-postgres-immediate",
            Self::Unmount => "unmount",
            Self::AnnounceClean { .. } => "announce-clean",
            Self::KillPostgres => "kill-postgres",
            Self::ShutdownFilesystem => "shutdown-filesystem",
            Self::DropMount => "drop-mount",
        }
    }
}

/// How long a kind of step may take; from [`super::Timings`].
pub(super) fn allowance(work: &Work, timings: &super::Timings) -> Duration {
    match work {
        Work::Register { .. } | Work::Unregister | Work::AnnounceClean { .. } => timings.command,
        Work::ClaimLease { .. } => timings.lease_deadline,
        Work::Fence { .. } => timings.fence,
        Work::RebuildDevice => timings.rebuild,
        Work::PrepareVolume => timings.prepare,
        Work::Format { .. } => timings.format,
        Work::Seed { .. } | Work::Align { .. } => timings.seed,
        Work::Serve { .. } => timings.start,
        // Until commits wait for another site, a checkpoint goes by.
        Work::Reconfigure {
            serve: Serve::Primary { need: 1.., .. },
            ..
        } => timings.checkpoint,
        Work::Reconfigure { .. } | Work::KeepSlots { .. } => timings.command * 5,
        Work::Promote { .. } => timings.promote,
        Work::StopToMove => timings.stop_fast,
        Work::Mount { .. } => timings.mount,
        Work::StartPostgres { .. } => timings.start,
        Work::Checkpoint => timings.checkpoint,
        Work::Withdraw { .. } => timings.withdraw,
        Work::StopPostgres {
            mode: StopMode::Fast,
        } => timings.stop_fast,
        Work::StopPostgres {
            mode: StopMode::Immediate,
        } => timings.stop_immediate,
        Work::Unmount | Work::DropMount => timings.unmount,
        Work::KillPostgres | Work::ShutdownFilesystem => timings.kill,
    }
}
