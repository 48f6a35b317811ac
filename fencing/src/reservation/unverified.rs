//! Why a reservation fence is not proven: facts for the decision core, English for people.

use nvme::{HostId, ReservationType, Status};
use serde::{Deserialize, Serialize};

use super::{Expectation, Victim};
use crate::{Epoch, Holder, MemberEntry, MemberId, Mono, Outcome, PermitLost, ReservationKey};

/// Why a fence is not proven. Whatever it is: nothing may be mounted.
///
/// After [`FenceUnverified::OutOfTime`] the volume's state may have changed, even to our favour, and
/// a command may yet be carried out; a new sequence copes with that. After the others this sequence
/// may have sent commands too (a race that was lost halfway): read the volume again and decide anew.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum FenceUnverified {
    /// The expected victim lives on our own host identity, which shares our registration.
    #[error(
        "member {member} runs on this very host ({host}): a reservation cannot tell us apart; hand \
         over by the host's lock, an empty cgroup and an exclusive open instead"
    )]
    VictimOnOwnHost {
        /// The identity of both.
        host: HostId,
        /// The member that was to be fenced.
        member: MemberId,
    },
    /// The claimed epoch is not newer than the holder's.
    #[error(
        "epoch {claimed} does not follow the holder's epoch {holder}: read the volume's keys and \
         the lease again, and claim a newer one"
    )]
    EpochNotNewer {
        /// What was claimed.
        claimed: Epoch,
        /// The holder's.
        holder: Epoch,
    },
    /// Reservations do not persist through power loss, and the caller requires that they do.
    #[error(
        "the volume's reservations do not survive a power loss of the target (PTPLS is 0): enable \
         persistence on the target, or allow volatile reservations in the configuration"
    )]
    NotPersistent,
    /// Our host has no registration, so it may neither preempt nor acquire.
    #[error(
        "this host ({host}) is not registered on the volume: it was fenced, or the target forgot; \
         register again as a standby"
    )]
    NotRegistered {
        /// Our host.
        host: HostId,
    },
    /// Our host is registered with a key that is not this member's.
    #[error(
        "this host ({host}) is registered with the key {key:#018x}, which is not member {member}'s: \
         another program or member uses this host identity; stop it, or give it its own host identity"
    )]
    RegisteredAsAnother {
        /// Our host.
        host: HostId,
        /// Its key.
        key: u64,
        /// Who we are.
        member: MemberId,
    },
    /// Another than the expected one holds, or the holder says something else than expected.
    #[error(
        "expected {expected}, but the volume says {found:?}: another standby won, or the active \
         changed its mind; decide again"
    )]
    UnexpectedHolder {
        /// What was expected.
        expected: Expectation,
        /// What was found.
        found: Holder,
    },
    /// The reservation is of another type: others than the holder may have writes in flight.
    #[error(
        "the volume's reservation is of type {found:?} instead of Write Exclusive: another program \
         made it; find out which, and release the reservation by hand when it has stopped"
    )]
    UnexpectedType {
        /// The type found.
        found: ReservationType,
    },
    /// Nobody holds, and no evidence was given that nobody writes.
    #[error(
        "expected {expected}, but nobody holds the volume's reservation: anybody may be writing. \
         Prove that every earlier owner has stopped, or have an operator say so"
    )]
    ReservationAbsent {
        /// What was expected.
        expected: Expectation,
    },
    /// The volume was said to be new, and a registration tells of an owner.
    #[error(
        "the volume was taken for new, but {entry:?} tells of an earlier owner: prove that every \
         owner has stopped instead"
    )]
    OwnedBefore {
        /// The registration.
        entry: MemberEntry,
    },
    /// The last report does not show what it must.
    #[error("the fence's last report proves nothing")]
    NotHeld(#[from] PermitLost),
    /// Commands of this host's former controllers may still reach the volume, and would be legal once
    /// this host holds.
    #[error(
        "writes of this host's own former connections may still be on their way until {until}, and \
         would become legal with its hold: take over then, or let another member do it"
    )]
    OwnCommandsOnTheirWay {
        /// When they are over for certain.
        until: Mono,
    },
    /// A wait is needed, and nothing bounds how long an old command may live.
    #[error(
        "old commands may still reach the volume, and without a keep-alive time-out nothing says \
         when they are over: set one on every host, or fence by other means"
    )]
    NoDrainBound,
    /// The deadline came first.
    #[error(
        "not fenced within the deadline, after {attempts} preempts and acquires; last trouble: {}. \
         Check the path to the volume and the target, then try again",
        describe(.trouble)
    )]
    OutOfTime {
        /// Preempts and acquires that were sent.
        attempts: u32,
        /// What went wrong last; `None` if time ran out although nothing did.
        trouble: Option<Trouble>,
    },
    /// A sequence that had ended was asked for a further step.
    #[error("this fence sequence has ended: make a new one")]
    Ended,
}

impl FenceUnverified {
    /// Whether the volume's owner is another, or says something else, than the decision saw: nothing
    /// went wrong, a race was lost, and the decision must be taken anew.
    pub fn is_lost_race(&self) -> bool {
        match self {
            Self::UnexpectedHolder { .. } | Self::EpochNotNewer { .. } => true,
            Self::NotHeld(lost) => matches!(lost, PermitLost::HeldByOther { .. }),
            Self::VictimOnOwnHost { .. }
            | Self::NotPersistent
            | Self::NotRegistered { .. }
            | Self::RegisteredAsAnother { .. }
            | Self::UnexpectedType { .. }
            | Self::ReservationAbsent { .. }
            | Self::OwnedBefore { .. }
            | Self::OwnCommandsOnTheirWay { .. }
            | Self::NoDrainBound
            | Self::OutOfTime { .. }
            | Self::Ended => false,
        }
    }
}

/// What can go wrong on the way and be tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Trouble {
    /// The report could not be read.
    #[error("the reservation report {0}")]
    Report(Failure),
    /// Our registration could not be made.
    #[error("registering {0}")]
    Register(Failure),
    /// Our key could not be replaced by a fresh one.
    #[error("replacing our own key {0}")]
    Replace(Failure),
    /// The preempt-and-abort did not succeed.
    #[error("preempt-and-abort of {victim} {failure}")]
    Preempt {
        /// The key to be removed.
        victim: ReservationKey,
        /// Why not.
        failure: Failure,
    },
    /// The acquire did not succeed.
    #[error("acquiring the reservation {0}")]
    Acquire(Failure),
    /// Our own key is not the one that we set: something else replaces it.
    #[error(
        "our own key is {found}, not the one just set: something else on this host replaces it"
    )]
    OwnKeyMoved {
        /// The key found.
        found: ReservationKey,
    },
    /// Preempt-and-abort succeeded, and yet the victim is registered, under this key.
    #[error(
        "preempt-and-abort succeeded, but {key} is registered: it had moved, or was not removed"
    )]
    VictimStays {
        /// The victim's key.
        key: ReservationKey,
    },
}

/// Why a command gave no success.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Failure {
    /// The controller's answer.
    #[error("was refused: {0}")]
    Refused(Status),
    /// There was no path.
    #[error("was not sent: no path to the volume")]
    NotSent,
    /// No answer came.
    #[error("got no answer: it may have been carried out, or may yet be")]
    Unknown,
}

impl Failure {
    /// The failure in an outcome; `None` for success. A report where none was asked for is as good
    /// as no answer.
    pub(super) fn of(outcome: Outcome) -> Option<Self> {
        match outcome {
            Outcome::Done => None,
            Outcome::Refused(status) => Some(Self::Refused(status)),
            Outcome::NotSent => Some(Self::NotSent),
            Outcome::Report(_) | Outcome::Unknown => Some(Self::Unknown),
        }
    }

    /// Whether the command certainly had no effect and never will. A conflict and a command not
    /// sent are such; any other status may come after the change (SPDK answers Command Interrupted
    /// to a preempt whose abort took too long).
    pub(super) fn had_no_effect(self) -> bool {
        match self {
            Self::Refused(status) => status.is_conflict(),
            Self::NotSent => true,
            Self::Unknown => false,
        }
    }
}

fn describe(trouble: &Option<Trouble>) -> String {
    trouble.map_or_else(|| "none".to_owned(), |trouble| trouble.to_string())
}

impl std::fmt::Display for Victim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let clean = if self.clean { ", clean" } else { "" };
        write!(
            f,
            "member {} on host {} (epoch {}{clean})",
            self.member, self.host, self.epoch
        )
    }
}
