//! This node's watchdog while its member owns: a node whose hold is not confirmed resets itself.
//!
//! Armed before the mount, fed with each report that confirms the hold, disarmed when nothing of the
//! volume is in use here. Nobody else feeds it: whatever stops the member's loop, or leaves a mount or
//! a process behind that does not go away, ends with the reset. SAFETY.md I14

use std::sync::{Mutex, PoisonError};

use fencing::watchdog::{Watchdog, WatchdogError};
use fencing::{Epoch, Holder, Mailbox, MemberId, Mono};
use nvme::{HostId, ReservationType};

use crate::config::FenceWatchdog;

/// The watchdog's active side.
pub(super) struct SelfFence {
    configured: Option<FenceWatchdog>,
    host: HostId,
    member: MemberId,
    armed: Mutex<Option<Armed>>,
}

struct Armed {
    watchdog: Watchdog,
    /// Whose hold feeds it.
    epoch: Epoch,
}

impl SelfFence {
    /// As configured; without a watchdog it does nothing.
    pub fn new(configured: Option<FenceWatchdog>, host: HostId, member: MemberId) -> Self {
        Self {
            configured,
            host,
            member,
            armed: Mutex::new(None),
        }
    }

    /// The ownership of `epoch` begins: from now on only its confirmations keep this node up.
    ///
    /// # Errors
    /// The device does not do what the other members rely on: nothing may be mounted.
    pub fn arm(&self, epoch: Epoch) -> Result<(), WatchdogError> {
        let Some(configured) = &self.configured else {
            return Ok(());
        };
        self.arm_with(epoch, || {
            Watchdog::arm(&configured.device, configured.times)
        })
    }

    fn arm_with(
        &self,
        epoch: Epoch,
        open: impl FnOnce() -> Result<Watchdog, WatchdogError>,
    ) -> Result<(), WatchdogError> {
        let mut armed = self.armed.lock().unwrap_or_else(PoisonError::into_inner);
        match armed.as_mut() {
            Some(armed) => armed.epoch = epoch,
            None => {
                let watchdog = open()?;
                *armed = Some(Armed { watchdog, epoch });
            }
        }
        Ok(())
    }

    /// A report that was asked for at `began` came in. Feeds if it confirms the hold that counts, and
    /// is not too old by now.
    pub fn confirm(&self, mailbox: &Mailbox, began: Mono, now: Mono) {
        let mut armed = self.armed.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(armed) = armed.as_mut() else { return };
        if !self.is_ours(mailbox, armed.epoch) {
            return;
        }
        match armed.watchdog.feed(began, now) {
            Ok(()) => {}
            Err(error @ WatchdogError::Unconfirmed { .. }) => tracing::warn!(%error, "not fed"),
            Err(error) => tracing::error!(%error, "this node resets: its watchdog cannot be fed"),
        }
    }

    fn is_ours(&self, mailbox: &Mailbox, epoch: Epoch) -> bool {
        match mailbox.holder {
            Holder::Member(entry) => {
                entry.host == self.host
                    && entry.key.member == self.member
                    && entry.key.epoch == epoch
                    && mailbox.reservation == Some(ReservationType::WriteExclusive)
            }
            Holder::Nobody | Holder::Foreign(_) | Holder::Several(_) | Holder::Missing => false,
        }
    }

    /// Nothing of the volume is in use here any more: no process, no mount, nothing queued.
    pub fn disarm(&self) {
        let armed = self
            .armed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(Armed { watchdog, epoch: _ }) = armed
            && let Err(error) = watchdog.disarm()
        {
            tracing::error!(%error, "this node resets: its watchdog cannot be disarmed");
        }
    }
}

#[cfg(test)]
mod tests;
