//! Keeps this host's registration: the one place that replaces its key, runs the fence, and reads
//! the report.
//!
//! Whoever changes the key holds the keeper: a beat in the middle of a fence would move the key that
//! the fence names.

use std::sync::Arc;
use std::time::Duration;

use fencing::reservation::drain_wait;
use fencing::{
    Claim, ClusterTag, Epoch, FenceSequence, FenceUnverified, KeyFlags, Limits, Mailbox, MemberId,
    Mono, ReservationKey, StartRefused, StartSequence, WritePermit, drive,
};
use nvme::reservation::{ChangePersistence, Register};
use nvme::{HostId, Identified, Namespace};

use super::carrier::Carrier;
use crate::clock;
use crate::decide::{Timings, Victim};

/// Pause before a sequence tries again what failed twice.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// This host's registration and whatever changes it.
pub(super) struct Keeper {
    volume: Arc<Carrier>,
    identified: Identified,
    host: HostId,
    cluster: ClusterTag,
    member: MemberId,
    timings: Timings,
    require_persistence: bool,
    /// The registered key as far as this process knows; `None` where it must be read first.
    key: Option<ReservationKey>,
    /// Whether this host held when the key was last read.
    holds: bool,
}

/// Who registers, and what is asked of the volume.
pub(super) struct Registrant {
    pub host: HostId,
    pub cluster: ClusterTag,
    pub member: MemberId,
    /// Reservations must survive a power loss of the target.
    pub require_persistence: bool,
}

/// A command on the own key that did not succeed.
#[derive(Debug, thiserror::Error)]
pub(super) enum KeyError {
    /// The volume refused it, or its outcome is unknown.
    #[error("{attempted}")]
    Command {
        attempted: &'static str,
        #[source]
        source: nvme::Error,
    },
    /// Nothing of this member is registered.
    #[error("this host is not registered: it was fenced, or the target lost its registrations")]
    NotRegistered,
    /// This host holds: its registration is what keeps others out.
    #[error("this host holds the volume: its registration stays, so that the reservation does")]
    Holds,
}

impl KeyError {
    /// Whether the key may nevertheless have been changed.
    pub fn outcome_unknown(&self) -> bool {
        matches!(self, Self::Command { source, .. } if source.outcome_unknown())
    }
}

fn failed(attempted: &'static str) -> impl FnOnce(nvme::Error) -> KeyError {
    move |source| KeyError::Command { attempted, source }
}

impl Keeper {
    /// Nothing is registered yet as far as the keeper knows.
    pub fn new(
        volume: Arc<Carrier>,
        identified: Identified,
        registrant: Registrant,
        timings: Timings,
    ) -> Self {
        let Registrant {
            host,
            cluster,
            member,
            require_persistence,
        } = registrant;
        Self {
            volume,
            identified,
            host,
            cluster,
            member,
            timings,
            require_persistence,
            key: None,
            holds: false,
        }
    }

    /// Registers this host, or replaces the key that an earlier process left.
    pub async fn register(
        &mut self,
        epoch: Epoch,
        flags: KeyFlags,
        deadline: Mono,
    ) -> Result<Mailbox, StartRefused> {
        let mut sequence = StartSequence::new(self.claim(epoch, flags), self.limits(deadline));
        let registered = drive(
            &mut sequence,
            &*self.volume,
            clock::now,
            self.timings.command,
        )
        .await?;
        self.key = Some(registered.key);
        Ok(registered.mailbox)
    }

    /// Takes this host's registration back. A host that is not registered is no error.
    ///
    /// The key is replaced first: a preempt of ours that is still under way names the old one and
    /// conflicts, so the report that follows tells for good whether this host holds. A holder stays
    /// registered: with its registration the reservation would go, which keeps older zombies out.
    pub async fn unregister(&mut self) -> Result<(), KeyError> {
        self.key = None;
        let current = match self.current().await {
            Ok(key) => key,
            Err(KeyError::NotRegistered) => return Ok(()),
            Err(error) => return Err(error),
        };
        self.say(current.epoch, current.flags).await?;
        self.key = None;
        let key = self.current().await?;
        if self.holds {
            return Err(KeyError::Holds);
        }
        let action = Register::Unregister { key: key.pack() };
        self.volume
            .register(action, ChangePersistence::Unchanged)
            .await
            .map_err(failed("take this host's registration back"))?;
        self.key = None;
        Ok(())
    }

    /// Replaces the key by one with this epoch, these flags and the next beat.
    pub async fn say(&mut self, epoch: Epoch, flags: KeyFlags) -> Result<(), KeyError> {
        let current = self.current().await?;
        if is_late(current, epoch, flags) {
            return Ok(());
        }
        let new = current.saying(epoch, flags);
        let action = Register::Replace {
            current: current.pack(),
            new: new.pack(),
        };
        // Until the answer is there, the key is either one.
        self.key = None;
        self.volume
            .register(action, ChangePersistence::Unchanged)
            .await
            .map_err(failed("replace this host's key"))?;
        self.key = Some(new);
        Ok(())
    }

    /// Fences and proves it; see [`FenceSequence`].
    pub async fn fence(
        &mut self,
        epoch: Epoch,
        flags: KeyFlags,
        victim: Victim,
        former_gone: Option<Mono>,
        deadline: Mono,
    ) -> Result<WritePermit, FenceUnverified> {
        let claim = Claim {
            former_controllers_gone: former_gone,
            ..self.claim(epoch, flags)
        };
        let mut sequence = FenceSequence::new(claim, victim.into(), self.limits(deadline));
        self.key = None;
        let permit = drive(
            &mut sequence,
            &*self.volume,
            clock::now,
            self.timings.command,
        )
        .await?;
        self.key = Some(permit.key());
        Ok(permit)
    }

    /// The key as registered, read from the volume where it is not known.
    async fn current(&mut self) -> Result<ReservationKey, KeyError> {
        if let Some(key) = self.key {
            return Ok(key);
        }
        let report = self
            .volume
            .report()
            .await
            .map_err(failed("read the reservation report"))?;
        let mailbox = Mailbox::read(&report, self.cluster);
        let own = mailbox
            .of_host(self.host)
            .filter(|entry| entry.key.member == self.member);
        let own = own.ok_or(KeyError::NotRegistered)?;
        self.key = Some(own.key);
        self.holds = own.holder;
        Ok(own.key)
    }

    fn claim(&self, epoch: Epoch, flags: KeyFlags) -> Claim {
        Claim {
            host: self.host,
            cluster: self.cluster,
            member: self.member,
            epoch,
            flags,
            former_controllers_gone: None,
        }
    }

    fn limits(&self, deadline: Mono) -> Limits {
        Limits {
            deadline,
            retry_pause: RETRY_PAUSE,
            drain_wait: drain_wait(&self.identified),
            beat: if self.timings.storage_beats {
                self.timings.storage_beat
            } else {
                Duration::ZERO
            },
            verify_within: self.timings.command,
            require_persistence: self.require_persistence,
        }
    }
}

/// Whether a word comes after a newer one: a beat that was held up must not take `clean` back, nor
/// an older epoch the place of a newer one.
fn is_late(current: ReservationKey, epoch: Epoch, flags: KeyFlags) -> bool {
    epoch < current.epoch || (epoch == current.epoch && current.flags.clean && !flags.clean)
}
