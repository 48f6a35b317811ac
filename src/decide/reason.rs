//! Why a decision is what it is. English is made in `Display` only; code and tests match variants.

use std::fmt;

use fencing::{Epoch, MemberId, Mono};
use serde::{Deserialize, Serialize};

use super::ask::Ask;
use super::observation::HandoverCause;
use super::zone::ZoneReason;

/// What allows a member to take the volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Evidence {
    /// The owner announced that it flushed and unmounted.
    Clean {
        /// The owner.
        by: MemberId,
        /// Why it goes; `None` where only its key or the lease said it.
        cause: Option<HandoverCause>,
    },
    /// The platform says that every process of the owner is gone.
    Exited {
        /// The owner.
        owner: MemberId,
    },
    /// The owner itself says that its PostgreSQL is gone.
    Relinquished {
        /// The owner.
        owner: MemberId,
    },
    /// All readable channels were silent for the whole detection.
    Silence {
        /// The owner.
        owner: MemberId,
        /// Its last sign of life on any channel, or the beginning of the watch.
        last: Mono,
    },
    /// This very host holds: an earlier process of it, or a fence that could not be proven.
    OwnHold {
        /// The key says `clean`.
        clean: bool,
    },
    /// Nobody ever owned the volume.
    FirstStart,
    /// The reservation is gone, and every member is proven to have nothing of the volume.
    EveryOwnerStopped,
    /// The reservation is gone, and an operator vouches that every owner is stopped.
    OperatorsWord,
}

/// Why a member waits, acts or holds back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reason {
    // Joining and returning
    /// Making sure that nothing of an earlier life runs or is mounted, making the device anew.
    CleaningUp,
    /// Registering this host's key.
    Registering,
    /// The mailbox cannot be read.
    VolumeUnseen {
        /// Since when.
        since: Mono,
    },
    /// A step of this member is overdue and cannot be cancelled.
    StepStuck,
    /// A step failed; it is tried again.
    Retrying {
        /// When.
        at: Mono,
    },
    /// Another member uses this host's identity: neither can be fenced from the other.
    SharedHostIdentity {
        /// The other member.
        other: MemberId,
    },

    // Standby
    /// The owner lives: it was seen on some channel within the detection.
    OwnerLives {
        /// The owner.
        owner: MemberId,
        /// Its epoch.
        epoch: Epoch,
    },
    /// Silence cannot be judged yet: no independent channel was read without a gap for long enough.
    Watching {
        /// The owner.
        owner: MemberId,
        /// Since when the reading has no gap; `None` while nothing can be read.
        since: Option<Mono>,
    },
    /// The owner is gone or clean; another member was asked to take over, or has claimed it.
    LeftTo {
        /// Whom, where it is known.
        other: Option<MemberId>,
    },
    /// The operator wants no automatic take-over.
    Paused,
    /// Too many take-overs in the window: an operator must look.
    TakeoversExhausted {
        /// How many there were.
        count: u32,
    },
    /// Writes of this host's former device may still be on their way, and would become legal the
    /// moment it holds: it must not fence anybody before they are over.
    NotReady {
        /// When they are.
        until: Mono,
    },
    /// The reservation is gone, and not every earlier owner is proven stopped: an operator must
    /// decide.
    ReservationAbsent {
        /// The first member about which nothing is proven.
        unproven: MemberId,
    },
    /// Nobody holds and no database ever was: the bootstrap member makes it.
    WaitingForBootstrap {
        /// The bootstrap member.
        bootstrap: MemberId,
    },
    /// A host that is not of this site holds, or a reservation of a type that is not ours.
    ForeignHolder,
    /// No database ever was here, but hosts that are not of this site are registered.
    ForeignRegistrants,
    /// The epochs are used up.
    EpochsExhausted,

    // Taking over
    /// Taking over.
    TakingOver {
        /// What allows it.
        evidence: Evidence,
        /// The new epoch.
        epoch: Epoch,
    },
    /// The claim or the fence found another owner than the one that was to be fenced.
    RaceLost,
    /// The fence was not proven; nothing was mounted.
    FenceUnverified,
    /// The volume holds something else: an operator must look.
    VolumeForeign,
    /// The volume is blank although it should not be: an operator must look.
    VolumeBlank,
    /// The filesystem or the database cannot be made: an operator must look.
    CannotFormat,

    // Active
    /// Serving.
    Serving,
    /// The path to the volume is lost; the hold cannot be checked.
    PathLost {
        /// Since when.
        since: Mono,
    },
    /// Another one holds: PostgreSQL is killed.
    HoldLost {
        /// Who holds, where it is a member.
        to: Option<MemberId>,
    },
    /// The reservation is gone: PostgreSQL is killed.
    HoldVanished,
    /// The path was lost for too long: PostgreSQL is killed.
    PathLostTooLong,
    /// The device or the mount broke away: PostgreSQL is killed.
    MountLost,
    /// PostgreSQL is not running and is started again.
    RestartingPostgres {
        /// The how-manieth time within the window.
        attempt: u32,
    },
    /// PostgreSQL is stopped and started again because an operator asked for it.
    RestartingAsAsked,
    /// PostgreSQL does not stay up, and nobody else can do better: an operator must look.
    PostgresKeepsFailing,

    // Handing over
    /// Handing over.
    HandingOver {
        /// Why.
        cause: HandoverCause,
        /// To whom.
        to: Option<MemberId>,
    },
    /// Clean, and waiting for the other to take over.
    AwaitingTakeover {
        /// Whom.
        to: Option<MemberId>,
    },
    /// Another member has taken over.
    TakenOver {
        /// Who.
        by: MemberId,
    },
    /// Nobody took over in time: this member takes back.
    NotTaken,

    // Requests
    /// The switchover has no ready standby to go to.
    NoReadyStandby,
    /// This member is not the owner.
    NotActive {
        /// Who is.
        active: Option<MemberId>,
    },
    /// The member asked for already is the owner.
    AlreadyActive,
    /// There is no such member.
    NoSuchMember,
    /// The lease store cannot be written, and this request is kept there.
    LeaseUnreachable,
    /// It went wrong on the way; the volume stayed, or came back, here.
    HandoverFailed,
    /// PostgreSQL did not come up again, or the member lost or gave away the volume meanwhile.
    RestartFailed,
    /// The settings were not read anew; those of before are in force.
    ReloadFailed {
        /// For people.
        cause: String,
    },
    /// The request makes no sense in this state.
    NotNow {
        /// What was asked.
        ask: Ask,
    },

    // Other sites
    /// What concerns the other sites.
    Zone(ZoneReason),
    /// The cluster has one site, or this member is not its site's active.
    NoSuchSite,

    // Leaving
    /// Leaving.
    Leaving,
    /// Left.
    Left,
}

impl Reason {
    /// Whether a person must look: the member will not get on by itself.
    pub fn needs_operator(&self) -> bool {
        matches!(
            self,
            Self::SharedHostIdentity { .. }
                | Self::TakeoversExhausted { .. }
                | Self::ReservationAbsent { .. }
                | Self::ForeignHolder
                | Self::ForeignRegistrants
                | Self::EpochsExhausted
                | Self::VolumeForeign
                | Self::VolumeBlank
                | Self::CannotFormat
                | Self::PostgresKeepsFailing
                | Self::Zone(
                    ZoneReason::OtherSystem | ZoneReason::RecordLost | ZoneReason::RecordOlder
                )
        )
    }
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Clean { by, cause: None } => write!(f, "member {by} flushed and unmounted"),
            Self::Clean {
                by,
                cause: Some(cause),
            } => {
                write!(f, "member {by} flushed and unmounted ({cause})")
            }
            Self::Exited { owner } => write!(f, "the platform says member {owner} has exited"),
            Self::Relinquished { owner } => {
                write!(f, "member {owner} says its PostgreSQL is gone")
            }
            Self::Silence { owner, last } => {
                write!(f, "no sign of life of member {owner} since {last}")
            }
            Self::OwnHold { clean: true } => f.write_str("this host holds since a clean stop"),
            Self::OwnHold { clean: false } => f.write_str("this host holds, unproven"),
            Self::FirstStart => f.write_str("the volume is blank and never had an owner"),
            Self::EveryOwnerStopped => {
                f.write_str("the reservation is gone and every member is proven stopped")
            }
            Self::OperatorsWord => {
                f.write_str("the reservation is gone and an operator vouches for every owner")
            }
        }
    }
}

impl fmt::Display for HandoverCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Operator => "an operator's switchover",
            Self::Stopping => "it is stopping",
            Self::Isolated => "it reaches neither lease store nor peers",
            Self::PostgresFailed => "PostgreSQL does not stay up there",
            Self::TakeOverFailed => "it could not bring the volume into service",
        })
    }
}

/// `member 3`, or `nobody known`.
struct Whom(Option<MemberId>);

impl fmt::Display for Whom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(member) => write!(f, "member {member}"),
            None => f.write_str("whoever is ready"),
        }
    }
}

impl fmt::Display for Reason {
    // A flat table of sentences.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CleaningUp => f.write_str("proving that nothing of an earlier life is left"),
            Self::Registering => f.write_str("registering at the volume"),
            Self::VolumeUnseen { since } => {
                write!(f, "the volume's reservations are unreadable since {since}")
            }
            Self::StepStuck => f.write_str("a step is overdue and cannot be cancelled"),
            Self::Retrying { at } => write!(f, "the last step failed; next try at {at}"),
            Self::SharedHostIdentity { other } => write!(
                f,
                "member {other} uses the same host identity: give each host its own hostid"
            ),
            Self::OwnerLives { owner, epoch } => {
                write!(f, "member {owner} owns epoch {epoch} and lives")
            }
            Self::Watching {
                owner,
                since: Some(since),
            } => {
                write!(f, "watching member {owner} without a gap since {since}")
            }
            Self::Watching { owner, since: None } => {
                write!(
                    f,
                    "nothing that does not depend on member {owner} itself can be read"
                )
            }
            Self::LeftTo { other } => write!(f, "left to {}", Whom(*other)),
            Self::Paused => f.write_str("automatic take-over is paused"),
            Self::TakeoversExhausted { count } => {
                write!(f, "{count} take-overs in the window: an operator must look")
            }
            Self::NotReady { until } => write!(
                f,
                "writes of this host's former device may still be on their way until {until}"
            ),
            Self::ReservationAbsent { unproven } => write!(
                f,
                "nobody holds the reservation, and member {unproven} is not proven stopped: make \
                 sure that it is, then confirm"
            ),
            Self::WaitingForBootstrap { bootstrap } => {
                write!(f, "waiting for member {bootstrap} to make the database")
            }
            Self::ForeignHolder => f.write_str(
                "the volume is reserved by another cluster, another site or another program: attach \
                 the right one, or stop that program and release its reservation",
            ),
            Self::ForeignRegistrants => f.write_str(
                "hosts of another cluster, another site or another program are registered at the \
                 volume, so no database is made here: attach the right one, or remove their \
                 registrations",
            ),
            Self::EpochsExhausted => f.write_str("no epoch is left: the cluster needs a new name"),
            Self::TakingOver { evidence, epoch } => {
                write!(f, "taking over as epoch {epoch}: {evidence}")
            }
            Self::RaceLost => f.write_str("another member was faster"),
            Self::FenceUnverified => f.write_str("the fence is not proven"),
            Self::VolumeForeign => f.write_str(
                "the volume holds something that is not ours: attach the right one; nothing of it \
                 was changed",
            ),
            Self::VolumeBlank => f.write_str(
                "the volume is blank, and nothing proves that there never was a database: attach \
                 the right volume, or restore the lease; only where nothing is to be kept and \
                 every member is stopped, remove the lease to begin anew",
            ),
            Self::CannotFormat => f.write_str(
                "the database cannot be made on the blank volume: correct what the last step says",
            ),
            Self::Serving => f.write_str("serving"),
            Self::PathLost { since } => write!(f, "no path to the volume since {since}"),
            Self::HoldLost { to } => match to {
                Some(to) => write!(f, "member {to} holds the volume now"),
                None => f.write_str("the hold on the volume is lost"),
            },
            Self::HoldVanished => f.write_str("the reservation is gone"),
            Self::PathLostTooLong => f.write_str("no path to the volume for too long"),
            Self::MountLost => f.write_str("the mount or its device is gone"),
            Self::RestartingPostgres { attempt } => {
                write!(f, "starting PostgreSQL again, attempt {attempt}")
            }
            Self::RestartingAsAsked => f.write_str("restarting PostgreSQL as asked"),
            Self::PostgresKeepsFailing => f.write_str(
                "the volume or PostgreSQL cannot be brought into service, and no other member \
                     can do better: correct what the last step says",
            ),
            Self::HandingOver { cause, to } => {
                write!(f, "handing over to {}: {cause}", Whom(*to))
            }
            Self::AwaitingTakeover { to } => write!(f, "clean; waiting for {}", Whom(*to)),
            Self::TakenOver { by } => write!(f, "member {by} has taken over"),
            Self::NotTaken => f.write_str("nobody took over in time"),
            Self::NoReadyStandby => f.write_str("there is no ready standby"),
            Self::NotActive {
                active: Some(active),
            } => {
                write!(f, "this member is not the active; member {active} is")
            }
            Self::NotActive { active: None } => f.write_str("this member is not the active"),
            Self::AlreadyActive => f.write_str("that member is the active already"),
            Self::NoSuchMember => f.write_str("there is no such member"),
            Self::LeaseUnreachable => f.write_str("the lease store cannot be written"),
            Self::HandoverFailed => f.write_str("the handover did not succeed"),
            Self::RestartFailed => f.write_str(
                "PostgreSQL is not up again: baton status and its log say why; it is tried further",
            ),
            Self::ReloadFailed { cause } => {
                write!(f, "the settings of before stay in force: {cause}")
            }
            Self::NotNow { ask } => f.write_str(match ask {
                Ask::Switchover { .. } => {
                    "no member serves now, so there is nothing to hand over; baton status says why"
                }
                Ask::OwnersStopped => {
                    "this word is asked for only by a ready standby that finds no reservation; \
                     baton status says whether it is needed"
                }
                Ask::SwitchoverSite { .. } => {
                    "this member does not run the primary; ask the active of the primary's site"
                }
                Ask::Failover { .. } | Ask::Reinit => {
                    "this member runs no replica; ask the active of a replica's site"
                }
                Ask::Restart => {
                    "the volume is changing hands, or this member is not up; baton status says more"
                }
                Ask::Reload | Ask::Pause | Ask::Resume => {
                    "not possible in this state; baton status says why"
                }
            }),
            Self::Zone(why) => why.fmt(f),
            Self::NoSuchSite => {
                f.write_str("there is no such site, or the primary is there already")
            }
            Self::Leaving => f.write_str("leaving"),
            Self::Left => f.write_str("left"),
        }
    }
}
