//! The proof that this host alone may write to the volume.

use nvme::{HostId, ReservationReport, ReservationType};
use serde::{Deserialize, Serialize};

use crate::{ClusterTag, Epoch, Holder, Mailbox, MemberId, Mono, ReservationKey};

/// How it was proven that no command of an earlier owner can still reach the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Drain {
    /// The very preempt-and-abort that removed the holder's registration completed successfully.
    Aborted {
        /// The key that it removed.
        victim: ReservationKey,
    },
    /// Time enough has passed for every old command to be over.
    Waited {
        /// Since when none can have been started.
        since: Mono,
    },
    /// There never was an owner.
    NeverOwned,
    /// We were the owner, and our key said that everything was flushed and unmounted.
    OwnClean,
}

/// The right to mount the volume and to write to it, made from a verified reservation report only.
///
/// It has no public constructor and is not `Clone`: whoever holds one was handed it by a sequence.
/// It proves what was true at `proven_at`; [`WritePermit::confirm`] proves it again.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[must_use = "a permit that nobody uses leaves the volume fenced and unserved"]
pub struct WritePermit(PermitRecord);

/// A permit's word to the process that runs PostgreSQL: it may start it on the mounted volume.
///
/// The permit itself stays with whoever mounts, which on Kubernetes is another process. A licence is made
/// by a permit, or read from the words of one who has it; it mounts nothing and fences nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Licence {
    epoch: Epoch,
    member: MemberId,
}

impl Licence {
    /// The epoch of the ownership.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The member that may write.
    pub fn member(&self) -> MemberId {
        self.member
    }
}

/// A permit written down, for a process that goes on where an earlier one of this boot has ended: the same
/// host, the same associations of its block device, the same mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PermitRecord {
    host: HostId,
    key: ReservationKey,
    proven_at: Mono,
    generation: u32,
    drain: Drain,
}

impl PermitRecord {
    /// The permit again, if a fresh report shows that its hold has lasted: who fences this host becomes
    /// the holder under a greater epoch, and an epoch is owned once, so a hold under the same host, member
    /// and epoch was never broken.
    ///
    /// # Errors
    /// The report does not show it.
    pub fn resume(self, report: &ReservationReport) -> Result<WritePermit, PermitLost> {
        let permit = WritePermit(self);
        permit.confirm(report)?;
        Ok(permit)
    }
}

/// What a report must show before a permit is made, and whenever it is confirmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum PermitLost {
    /// Nobody holds the reservation: anybody may write.
    #[error(
        "nobody holds the volume's reservation any more: stop PostgreSQL, unmount, and take over \
         again only with proof that every earlier owner has stopped"
    )]
    ReservationAbsent,
    /// Another host holds it, or several do, or the report names no holder.
    #[error("the volume's reservation is no longer ours ({holder:?}): stop PostgreSQL and unmount")]
    HeldByOther {
        /// Who holds.
        holder: Holder,
    },
    /// We hold, but of a type that lets others write.
    #[error("the reservation's type is {found:?} instead of Write Exclusive: others may write")]
    WrongType {
        /// The type.
        found: ReservationType,
    },
    /// Our host holds, under a key that is not this permit's.
    #[error(
        "this host holds the reservation for member {member}, epoch {epoch}, not for this permit: \
         another process of this host took over"
    )]
    OtherIncarnation {
        /// The member in the key.
        member: MemberId,
        /// The epoch in the key.
        epoch: Epoch,
    },
    /// A preempted key is registered again, or still.
    #[error("the preempted key {key} is still registered: the fence did not remove it")]
    VictimRegistered {
        /// The key.
        key: ReservationKey,
    },
}

impl WritePermit {
    /// Verifies `mailbox` and makes the permit. `drain` is the other half of the proof.
    pub(crate) fn prove(
        mailbox: &Mailbox,
        host: HostId,
        key: ReservationKey,
        preempted: &[ReservationKey],
        drain: Drain,
        now: Mono,
    ) -> Result<Self, PermitLost> {
        check_hold(mailbox, host, key)?;
        if let Some(victim) = preempted.iter().find(|victim| mailbox.has_key(**victim)) {
            return Err(PermitLost::VictimRegistered { key: *victim });
        }
        Ok(Self(PermitRecord {
            host,
            key,
            proven_at: now,
            generation: mailbox.generation,
            drain,
        }))
    }

    /// The holder's key was replaced since, and says that the fence is proven.
    pub(crate) fn under_key(self, key: ReservationKey) -> Self {
        Self(PermitRecord { key, ..self.0 })
    }

    /// Checks against a fresh report that the permit still stands: this host holds, Write Exclusive,
    /// for the same cluster, member and epoch. Flags and beat may have moved since, and a fenced host
    /// may have registered again, even with its old key: it cannot write.
    pub fn confirm(&self, report: &ReservationReport) -> Result<(), PermitLost> {
        let mailbox = Mailbox::read(report, self.cluster());
        check_hold(&mailbox, self.0.host, self.0.key)
    }

    /// The permit written down.
    pub fn record(&self) -> PermitRecord {
        self.0.clone()
    }

    /// The host that may write.
    pub fn host(&self) -> HostId {
        self.0.host
    }

    /// The key with which it held when this was proven, or the one that said so right after. If the
    /// reply to the latter was lost, the registered key is one beat further.
    pub fn key(&self) -> ReservationKey {
        self.0.key
    }

    /// The cluster that owns the volume.
    pub fn cluster(&self) -> ClusterTag {
        self.0.key.cluster
    }

    /// The member that may write.
    pub fn member(&self) -> MemberId {
        self.0.key.member
    }

    /// The epoch of this ownership.
    pub fn epoch(&self) -> Epoch {
        self.0.key.epoch
    }

    /// The word that PostgreSQL may be started under this permit.
    pub fn licence(&self) -> Licence {
        Licence {
            epoch: self.0.key.epoch,
            member: self.0.key.member,
        }
    }

    /// When it was proven.
    pub fn proven_at(&self) -> Mono {
        self.0.proven_at
    }

    /// GEN of the report that proved it.
    pub fn generation(&self) -> u32 {
        self.0.generation
    }

    /// How the earlier owners' commands were proven over.
    pub fn drain(&self) -> Drain {
        self.0.drain
    }
}

fn check_hold(mailbox: &Mailbox, host: HostId, key: ReservationKey) -> Result<(), PermitLost> {
    let held = match mailbox.holder {
        Holder::Nobody => return Err(PermitLost::ReservationAbsent),
        Holder::Member(entry) if entry.host == host => entry.key,
        holder
        @ (Holder::Member(_) | Holder::Foreign(_) | Holder::Several(_) | Holder::Missing) => {
            return Err(PermitLost::HeldByOther { holder });
        }
    };
    match mailbox.reservation {
        Some(ReservationType::WriteExclusive) => {}
        Some(found) => return Err(PermitLost::WrongType { found }),
        None => return Err(PermitLost::ReservationAbsent),
    }
    if (held.cluster, held.member, held.epoch) == (key.cluster, key.member, key.epoch) {
        Ok(())
    } else {
        Err(PermitLost::OtherIncarnation {
            member: held.member,
            epoch: held.epoch,
        })
    }
}
