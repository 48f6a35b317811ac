//! What each step does. One action, an outcome; no policy.

mod device;
mod postgres;
mod reservation;
mod volume;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use fencing::{ClusterTag, Epoch, KeyFlags, Mono, WritePermit};
use tokio::sync::{Mutex, mpsc};

use super::carrier::Carrier;
use super::device::{Device, Remains};
use super::event::{Changes, Event};
use super::further::{FenceOrder, Further};
use super::keeper::{Keeper, KeyError};
use super::self_fence::SelfFence;
use crate::config::Config;
use crate::decide::{Outcome, StopMode, Timings, Work};
use crate::lease::LeaseStore;
use crate::volume::Mounted;

pub(super) use postgres::Database;

/// What the steps work with. Each part has its own lock, so that an urgent step never waits for a
/// stuck one that holds another part.
pub(super) struct Tools {
    pub config: Config,
    pub timings: Timings,
    pub cluster: ClusterTag,
    pub volume: Arc<Carrier>,
    pub keeper: Mutex<Keeper>,
    pub further: Further,
    pub self_fence: SelfFence,
    pub lease: LeaseStore,
    pub device: Mutex<Option<Device>>,
    /// Former devices that are not proven gone.
    pub remains: Mutex<Vec<Remains>>,
    pub made: AtomicU64,
    /// Taken for as long as a mount or unmount is under way in the kernel.
    pub mounted: Arc<Mutex<Option<Mounted>>>,
    pub database: Database,
    pub marks: super::marks::Marks,
    /// How long commands of an earlier process that owned may live once its device is gone; taken when
    /// that is proven.
    pub former_drain: std::sync::Mutex<Option<Duration>>,
    pub events: mpsc::UnboundedSender<Event>,
}

/// A step's end.
type Done = (Outcome, Changes);

impl Tools {
    /// Does one step, to its end. `deadline` bounds what can be bounded.
    pub async fn perform(
        self: &Arc<Self>,
        work: &Work,
        deadline: Mono,
        permit: Option<&Arc<WritePermit>>,
    ) -> Done {
        match work {
            Work::Register { epoch, flags } => self.register(*epoch, *flags, deadline).await,
            Work::Unregister => self.unregister().await,
            Work::ClaimLease { expected, record } => {
                self.claim_lease(expected.clone(), record.clone(), deadline)
                    .await
            }
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
            Work::Format { epoch } => match held(permit, *epoch) {
                Some(permit) => self.format(permit, deadline).await,
                None => without_permit(*epoch),
            },
            Work::Mount { epoch } => match held(permit, *epoch) {
                Some(permit) => self.mount(permit, deadline).await,
                None => without_permit(*epoch),
            },
            Work::StartPostgres { epoch } => match held(permit, *epoch) {
                Some(permit) => self.start_postgres(permit, deadline).await,
                None => without_permit(*epoch),
            },
            Work::Checkpoint => self.checkpoint(deadline).await,
            Work::StopPostgres {
                mode: StopMode::Fast,
            } => self.stop_postgres(false).await,
            Work::StopPostgres {
                mode: StopMode::Immediate,
            } => self.stop_postgres(true).await,
            Work::KillPostgres => self.kill_postgres().await,
            Work::Unmount => self.unmount(deadline).await,
            Work::ShutdownFilesystem => self.shut_filesystem_down().await,
            Work::DropMount => self.drop_mount(deadline).await,
        }
    }

    /// Replaces the key unless it is being worked on: a fence beats by itself.
    pub async fn say_if_free(&self, epoch: Epoch, flags: KeyFlags) -> Result<(), KeyError> {
        match self.keeper.try_lock() {
            Ok(mut keeper) => keeper.say(epoch, flags).await,
            Err(_busy) => Ok(()),
        }
    }
}

/// The permit for exactly this epoch. SAFETY.md I2
fn held(permit: Option<&Arc<WritePermit>>, epoch: Epoch) -> Option<Arc<WritePermit>> {
    permit.filter(|permit| permit.epoch() == epoch).cloned()
}

fn without_permit(epoch: Epoch) -> Done {
    failed(format!(
        "no permit for epoch {epoch} is in hand: nothing was touched"
    ))
}

fn done() -> Done {
    (Outcome::Done, Changes::default())
}

fn failed(cause: impl std::fmt::Display) -> Done {
    (
        Outcome::Failed {
            cause: cause.to_string(),
        },
        Changes::default(),
    )
}

/// An error with all its causes, for people.
pub(super) fn whole(error: impl std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
