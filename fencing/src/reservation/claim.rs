//! What a fence sequence is built from: who claims, what is expected, with which evidence, within
//! which limits. Facts that the decision core gathered.

use std::time::Duration;

use nvme::{HostId, Identified};
use serde::{Deserialize, Serialize};

use super::FenceUnverified;
use crate::{
    Beat, ClusterTag, Epoch, KeyFlags, Mailbox, MemberEntry, MemberId, Mono, ReservationKey,
};

/// Who claims the volume. The beat of its key goes on from the registered one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Our host identity.
    pub host: HostId,
    /// Our cluster.
    pub cluster: ClusterTag,
    /// Our member.
    pub member: MemberId,
    /// The epoch to be owned; newer than any in the mailbox, unless we hold already.
    pub epoch: Epoch,
    /// What the key says from now on.
    pub flags: KeyFlags,
    /// Since when earlier controllers of this host, which may have written, can have sent nothing
    /// more (their processes dead, their device gone). `None`: there were none, or they ended
    /// cleanly with every command completed.
    pub former_controllers_gone: Option<Mono>,
}

impl Claim {
    /// Refuses what no report could make right.
    pub(super) fn check(&self, expectation: &Expectation) -> Result<(), FenceUnverified> {
        let Expectation::Holder(victim) = expectation else {
            return Ok(());
        };
        if victim.host == self.host {
            return Err(FenceUnverified::VictimOnOwnHost {
                host: victim.host,
                member: victim.member,
            });
        }
        if self.epoch <= victim.epoch {
            return Err(FenceUnverified::EpochNotNewer {
                claimed: self.epoch,
                holder: victim.epoch,
            });
        }
        Ok(())
    }

    /// Our registered key; a host has one key, which must be this member's.
    pub(super) fn registered_key(
        &self,
        mailbox: &Mailbox,
    ) -> Result<ReservationKey, FenceUnverified> {
        let host = self.host;
        let as_another = |key| FenceUnverified::RegisteredAsAnother {
            host,
            key,
            member: self.member,
        };
        if let Some(foreign) = mailbox.foreign.iter().find(|f| f.host == host) {
            return Err(as_another(foreign.key));
        }
        let own = || mailbox.members.iter().filter(|m| m.host == host);
        let first = own()
            .next()
            .ok_or(FenceUnverified::NotRegistered { host })?;
        match own().find(|m| m.key.member != self.member || m.key != first.key) {
            Some(stranger) => Err(as_another(stranger.key.pack())),
            None => Ok(first.key),
        }
    }

    /// The key that this claim registers.
    pub(super) fn key(&self, beat: Beat, draining: bool) -> ReservationKey {
        ReservationKey {
            cluster: self.cluster,
            member: self.member,
            epoch: self.epoch,
            flags: KeyFlags {
                draining,
                ..self.flags
            },
            beat,
        }
    }
}

/// The holder that is to be fenced, as the decision saw it. Its beat does not matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Victim {
    /// Its host identity.
    pub host: HostId,
    /// Its member.
    pub member: MemberId,
    /// The epoch in its key.
    pub epoch: Epoch,
    /// Whether its key said `clean`.
    pub clean: bool,
}

impl Victim {
    /// The holder of a mailbox entry, to be fenced as it is now.
    pub fn of(entry: &MemberEntry) -> Self {
        Self {
            host: entry.host,
            member: entry.key.member,
            epoch: entry.key.epoch,
            clean: entry.key.flags.clean,
        }
    }
}

/// Why an absent reservation may be taken. Absence alone is danger: a target that lost its
/// reservations lets every zombie write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AbsenceEvidence {
    /// The volume is proven blank: it never had an owner.
    NeverOwned,
    /// Every earlier owner is proven to have stopped (its agent's word, a new boot identifier).
    EveryOwnerStopped {
        /// Since when, by our clock.
        since: Mono,
    },
    /// We were the last owner ourselves, and nothing of us has written since.
    LastOwnerOurselves {
        /// Since when none of our earlier processes can have sent a command.
        quiet_since: Mono,
    },
    /// An operator says that nobody writes.
    OperatorsWord,
}

/// What the decision expects to find.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Expectation {
    /// This holder, to be fenced.
    Holder(Victim),
    /// Nobody, and it is safe all the same.
    Nobody(AbsenceEvidence),
    /// Ourselves: after a restart, or after a take-over whose end was not seen.
    Ourselves(OwnHold),
}

/// Why commands of the time before can do no harm although we hold already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OwnHold {
    /// Our own key says `clean`: the last process flushed, unmounted and completed every command.
    /// The sequence reads that itself, before it replaces the key.
    Clean,
    /// No command of an earlier owner, or of an earlier process of this host, can have been started
    /// since then: at the earliest when a report first showed us as the holder.
    QuietSince(Mono),
}

impl std::fmt::Display for Expectation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Holder(victim) => write!(f, "{victim} to hold"),
            Self::Nobody(_) => f.write_str("nobody to hold"),
            Self::Ourselves(_) => f.write_str("ourselves to hold"),
        }
    }
}

/// How long a sequence may take, and what it requires.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// When to give up unless we hold by then.
    pub deadline: Mono,
    /// Pause before a further try, after the first, which follows at once.
    pub retry_pause: Duration,
    /// How long a command can live after its sender was lost or fenced; see [`drain_wait`]. `None`
    /// where nothing bounds it: then only a completed preempt-and-abort is proof.
    pub drain_wait: Option<Duration>,
    /// How often our key's beat moves during a wait, so that the others see that we live. Zero: never.
    pub beat: Duration,
    /// How long the last report after a wait may take.
    pub verify_within: Duration,
    /// Whether registrations must survive a power loss of the target (PTPLS).
    pub require_persistence: bool,
}

/// How long old commands can live once their host is lost: 3 × keep-alive time-out (traffic-based
/// keep-alive may need three) + the controller's quiesce time (NVMe Base 2.3, 9.6.2.1). `None` when
/// the keep-alive is off.
///
/// The keep-alive time-out that counts is the victim's: every member must be configured alike.
pub fn drain_wait(identified: &Identified) -> Option<Duration> {
    let keep_alive = identified.keep_alive_timeout;
    (!keep_alive.is_zero()).then(|| keep_alive * 3 + identified.quiesce_time)
}
