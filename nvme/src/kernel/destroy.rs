//! Taking a block device away with everything that is queued for it: its controllers are deleted.
//!
//! Proof that it is gone: the kernel has neither the controllers nor the disk any more. A controller
//! vanishes from sysfs only after its queues were torn down and its sockets closed, without lingering
//! data; a disk that is gone takes no request, whatever is still mounted on it.

use std::path::PathBuf;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use super::bounded::bounded;
use super::fabrics;
use super::initiator::LOOK;
use super::sysfs::SysfsError;
use super::view::{Incarnation, View};
use super::{KernelDisk, KernelInitiator, Options};
use crate::block::{self, Usage};

/// How long a look may take whether another namespace is in use.
const USAGE_WITHIN: Duration = Duration::from_secs(2);

/// Why a block device is not proven gone.
#[derive(Debug, thiserror::Error)]
pub enum DestroyError {
    /// sysfs cannot be read.
    #[error(transparent)]
    Sysfs(#[from] SysfsError),
    /// Another namespace hangs on the same controllers and is, or may be, in use.
    #[error(
        "{} belongs to another namespace on the same controllers and is in use: deleting them would take it away; give the cluster a subsystem of its own",
        path.display()
    )]
    Shared {
        /// The other namespace's device.
        path: PathBuf,
    },
    /// The controllers are of another host identity.
    #[error("{controller} is connected as another host: it is not touched")]
    OtherHost {
        /// The controller.
        controller: String,
    },
    /// The kernel has not finished in time. It goes on; nothing new is sent meanwhile.
    #[error("still there after {within:?}: {left}")]
    Late {
        /// The limit.
        within: Duration,
        /// What is left, for people.
        left: String,
    },
}

impl KernelInitiator {
    /// Deletes this host's controllers of the subsystem and waits until they and the disk are gone.
    /// Where nothing is there, that is the proof. Can be repeated.
    ///
    /// # Errors
    /// See [`DestroyError`]: nothing is proven.
    pub async fn destroy(&self, within: Duration) -> Result<(), DestroyError> {
        let deadline = Instant::now() + within;
        let Ok(mut work) = tokio::time::timeout_at(deadline, self.work.lock()).await else {
            let left = "the device is just being attached or destroyed".to_owned();
            return Err(DestroyError::Late { within, left });
        };
        let known = self.disk();
        let options = &self.options;
        let (controllers, disks) = {
            let view = View::of(options)?;
            if let Some(foreign) = view.foreign() {
                let controller = foreign.name.clone();
                return Err(DestroyError::OtherHost { controller });
            }
            for other in view.others() {
                refuse_in_use(other).await?;
            }
            let remotes = view.controllers().filter_map(|c| c.remote());
            work.addresses.extend(remotes);
            let mut disks = view.meant();
            disks.extend(known.filter(|disk| !disks.contains(disk)));
            (view.incarnations(), disks)
        };
        self.current.send_replace(None);
        let mut deleting = JoinSet::new();
        for controller in controllers.clone() {
            deleting.spawn(delete(options.clone(), controller, deadline));
        }
        let gone = async {
            while deleting.join_next().await.is_some() {}
            while !self.left(&controllers, &disks).is_empty() {
                tokio::time::sleep(LOOK).await;
            }
        };
        let waited = tokio::time::timeout_at(deadline, gone).await;
        waited.map_err(|_elapsed| DestroyError::Late {
            within,
            left: self.left(&controllers, &disks).join(", "),
        })
    }

    /// What the kernel still has.
    fn left(&self, controllers: &[Incarnation], disks: &[KernelDisk]) -> Vec<String> {
        let controllers = controllers
            .iter()
            .filter(|controller| controller.is_there(&self.options))
            .map(|controller| controller.name.clone());
        let disks = disks
            .iter()
            .filter(|disk| disk.is_there())
            .map(|disk| disk.path.display().to_string());
        controllers.chain(disks).collect()
    }
}

/// Deletes until it is gone: one that is just being made refuses.
async fn delete(options: Options, controller: Incarnation, deadline: Instant) {
    while controller.is_there(&options) {
        let (sysfs, name) = (options.sysfs.clone(), controller.name.clone());
        let left = deadline.saturating_duration_since(Instant::now());
        let deleted = bounded(left, "nvme-delete", move || {
            fabrics::disconnect(&sysfs, &name)
        });
        if let Ok(Err(error)) = deleted.await {
            tracing::debug!(%error, controller = controller.name, "not deleted yet");
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Only an exclusive open tells; an answer that does not come counts as use.
async fn refuse_in_use(disk: KernelDisk) -> Result<(), DestroyError> {
    let path = disk.path.clone();
    let used = bounded(USAGE_WITHIN, "nvme-usage", move || block::usage(&path)).await;
    match used {
        Ok(Ok(Usage::Free)) => Ok(()),
        _ if !disk.is_there() => Ok(()),
        Ok(_) | Err(_) => Err(DestroyError::Shared { path: disk.path }),
    }
}
