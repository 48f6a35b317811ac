//! One member's attachment to its site's volume: everything that needs privilege.
//!
//! Reservation commands, the block device, the fence, the mount and the caches. On one machine it is part
//! of the member's process; on Kubernetes the node agent has one for each session. It holds no policy:
//! each step is ordered by a member's [`decide`](crate::decide::decide()), and nothing is mounted, and no
//! licence given, without the permit that its own fence has proven. The permit never leaves it.

mod carrier;
mod device;
mod format;
mod further;
mod keeper;
mod marks;
mod open;
mod rebuild;
mod reservation;
mod resume;
mod self_fence;
mod settings;
mod volume;
mod word;

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex as StdMutex, PoisonError};
use std::time::Duration;

use fencing::{ClusterTag, Epoch, KeyFlags, Licence, Mailbox, Mono, WritePermit};
use nvme::HostId;
use tokio::sync::Mutex;
use tracing::debug;

use crate::clock;
use crate::decide::{Outcome, Timings, Work};
use crate::volume::Mounted;
use carrier::Carrier;
use device::{Device, Remains};
use further::{FenceOrder, Further};
use keeper::{Keeper, KeyError};
use marks::Marks;
use self_fence::SelfFence;

pub use device::Outlive;
pub use open::OpenError;
pub use resume::{Found, Record};
pub use settings::Settings;
pub use word::{Changes, Done, Happening, Look, Tell, whole};

/// One member's attachment. Each part has its own lock, so that an urgent step never waits for a stuck
/// one that holds another part.
pub struct Attachment {
    settings: Settings,
    cluster: ClusterTag,
    carrier: Arc<Carrier>,
    keeper: Mutex<Keeper>,
    further: Further,
    self_fence: SelfFence,
    device: Mutex<Option<Device>>,
    /// Former devices that are not proven gone.
    remains: Mutex<Vec<Remains>>,
    made: AtomicU64,
    /// Taken for as long as a mount or unmount is under way in the kernel.
    mounted: Arc<Mutex<Option<Mounted>>>,
    marks: Marks,
    /// How long commands of an earlier process that owned may live once its device is gone; taken when
    /// that is proven.
    former_drain: StdMutex<Option<Duration>>,
    /// Of the newest proven fence, until a step ends its ownership.
    permit: StdMutex<Option<Arc<WritePermit>>>,
    tell: Tell,
}

impl Attachment {
    /// Does one step, to its end. `deadline` bounds what can be bounded; whoever orders gives up then.
    pub async fn perform(self: &Arc<Self>, work: &Work, deadline: Mono) -> Done {
        if ends_ownership(work) {
            self.drop_permit();
        }
        match work {
            Work::Register { epoch, flags } => self.register(*epoch, *flags, deadline).await,
            Work::Unregister => self.unregister().await,
            Work::Fence {
                epoch,
                flags,
                victim,
                former_gone,
            } => {
                self.fence(FenceOrder {
                    epoch: *epoch,
                    flags: *flags,
                    victim: *victim,
                    former_gone: *former_gone,
                    deadline,
                })
                .await
            }
            Work::AnnounceClean { epoch, flags } => self.announce_clean(*epoch, *flags).await,
            Work::RebuildDevice => self.rebuild_device().await,
            Work::PrepareVolume => self.prepare_volume(deadline).await,
            Work::Mount { epoch } => match self.held(*epoch) {
                Some(permit) => self.mount(permit, deadline).await,
                None => without_permit(*epoch),
            },
            Work::Unmount => self.unmount(deadline).await,
            Work::ShutdownFilesystem => self.shut_filesystem_down().await,
            Work::DropMount => self.drop_mount(deadline).await,
            Work::ClaimLease { .. }
            | Work::Format { .. }
            | Work::Seed { .. }
            | Work::Align { .. }
            | Work::Serve { .. }
            | Work::Reconfigure { .. }
            | Work::Promote { .. }
            | Work::KeepSlots { .. }
            | Work::StopToMove
            | Work::StartPostgres { .. }
            | Work::Checkpoint
            | Work::Withdraw { .. }
            | Work::StopPostgres { .. }
            | Work::KillPostgres => failed("this step is not the volume's"),
        }
    }

    /// The word that PostgreSQL may be started for this epoch.
    ///
    /// # Errors
    /// No permit for it is in hand, or the volume is not mounted.
    pub fn licence(&self, epoch: Epoch) -> Result<Licence, Done> {
        let permit = self.held(epoch).ok_or_else(|| without_permit(epoch))?;
        let mounted = self.mounted.try_lock();
        if !mounted.is_ok_and(|mounted| mounted.is_some()) {
            return Err(failed("the volume is not mounted"));
        }
        Ok(permit.licence())
    }

    fn keep_permit(&self, permit: WritePermit) {
        *self.permit.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(permit));
    }

    /// The permit in hand must not be used: the fence that proved it was given up.
    pub fn drop_permit(&self) {
        *self.permit.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Replaces the key, unless it is being worked on (a fence beats by itself), and reads the mailbox.
    pub async fn beat(&self, epoch: Epoch, flags: KeyFlags) -> Look<Mailbox> {
        let bound = self.settings.timings.command;
        match tokio::time::timeout(bound, self.say_if_free(epoch, flags)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => debug!(%error, "the beat was not accepted"),
            Err(_elapsed) => debug!("the beat got no answer"),
        }
        self.mailbox().await
    }

    async fn say_if_free(&self, epoch: Epoch, flags: KeyFlags) -> Result<(), KeyError> {
        match self.keeper.try_lock() {
            Ok(mut keeper) => keeper.say(epoch, flags).await,
            Err(_busy) => Ok(()),
        }
    }

    /// The loop has seen a report that was asked for at `began`: feeds the node's watchdog if it
    /// confirms the hold. SAFETY.md I14
    pub fn confirm(&self, mailbox: &Mailbox, began: Mono) {
        self.self_fence.confirm(mailbox, began, clock::now());
    }

    /// Nothing of the volume is in use here: the node's watchdog is not needed. SAFETY.md I6
    pub fn settled(&self) {
        self.self_fence.disarm();
    }

    /// This node's host identifier at the volume.
    pub fn host(&self) -> HostId {
        self.settings.volume.host_id
    }

    /// Whether an earlier process on this host owned and was not seen to leave the volume clean.
    pub fn former_writer(&self) -> bool {
        self.marks.stands()
    }

    /// Takes the device away in good order, at the end of the process.
    pub async fn close(&self) {
        if let Some(device) = self.device.lock().await.take() {
            let bound = self.timings().kill;
            // A bridge that does not end is killed with this process, and the node with an armed
            // watchdog: what the bridge still has to send is unknown.
            match tokio::time::timeout(bound, device.close()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return tracing::warn!(%error, "the device is not proven gone"),
                Err(_elapsed) => return,
            }
        }
        let remains = self.remains.try_lock();
        if remains.is_ok_and(|remains| remains.is_empty()) {
            self.self_fence.disarm();
            if self.settings.outlive.is_some() {
                self.carrier.leave_attached().await;
            }
        }
    }

    fn timings(&self) -> &Timings {
        &self.settings.timings
    }

    /// The permit for exactly this epoch. SAFETY.md I2
    fn held(&self, epoch: Epoch) -> Option<Arc<WritePermit>> {
        let permit = self.permit.lock().unwrap_or_else(PoisonError::into_inner);
        permit
            .as_ref()
            .filter(|permit| permit.epoch() == epoch)
            .cloned()
    }
}

/// Whether the permit in hand must not outlive the beginning of this step. SAFETY.md I2
pub(crate) fn ends_ownership(work: &Work) -> bool {
    match work {
        Work::Register { .. }
        | Work::Unregister
        | Work::Fence { .. }
        | Work::RebuildDevice
        | Work::AnnounceClean { .. }
        | Work::ShutdownFilesystem
        | Work::DropMount => true,
        Work::ClaimLease { .. }
        | Work::PrepareVolume
        | Work::Format { .. }
        | Work::Seed { .. }
        | Work::Align { .. }
        | Work::Serve { .. }
        | Work::Reconfigure { .. }
        | Work::Promote { .. }
        | Work::KeepSlots { .. }
        | Work::StopToMove
        | Work::Mount { .. }
        | Work::StartPostgres { .. }
        | Work::Checkpoint
        | Work::Withdraw { .. }
        | Work::StopPostgres { .. }
        | Work::Unmount
        | Work::KillPostgres => false,
    }
}

fn without_permit(epoch: Epoch) -> Done {
    failed(format!(
        "no permit for epoch {epoch} is in hand: nothing was touched"
    ))
}

fn done() -> Done {
    (Outcome::Done, Changes::default())
}

/// A step that failed, with the cause for people.
pub(crate) fn failed(cause: impl std::fmt::Display) -> Done {
    (
        Outcome::Failed {
            cause: cause.to_string(),
        },
        Changes::default(),
    )
}
