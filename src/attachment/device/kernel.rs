//! The kernel's own block device. It outlives this process, so the first thing that is ever made anew
//! is what an earlier one, or a CSI driver, has left.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nvme::block::{self, Usage};
use nvme::kernel::{KernelDisk, KernelInitiator};

use super::DeviceError;
use crate::attachment::word::{Happening, Tell};
use crate::volume::{Bounded, within};

/// How long a look may take whether the device is in use.
const USAGE_WITHIN: Duration = Duration::from_secs(2);

/// A device that is there, until it is destroyed or the kernel gives it up.
pub(in crate::attachment) struct Device {
    initiator: Arc<KernelInitiator>,
    disk: KernelDisk,
    /// How long its destruction may take.
    bound: Duration,
}

impl Device {
    /// Finds or connects the block device; its end is a [`Happening::DeviceGone`] with this `made`.
    pub async fn make(
        initiator: Arc<KernelInitiator>,
        bound: Duration,
        made: u64,
        tell: Tell,
    ) -> Result<Self, DeviceError> {
        let disk = initiator.attach().await?;
        let watched = disk.clone();
        tokio::spawn(async move {
            watched.gone().await;
            tell.say(Happening::DeviceGone { made });
        });
        Ok(Self {
            initiator,
            disk,
            bound,
        })
    }

    pub fn path(&self) -> &Path {
        self.disk.path()
    }

    pub fn is_alive(&self) -> bool {
        self.disk.is_there()
    }

    /// Deletes the controllers, without waiting for the end of it.
    pub fn condemn(&self) {
        let (initiator, bound) = (self.initiator.clone(), self.bound);
        tokio::spawn(async move {
            if let Err(error) = initiator.destroy(bound).await {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "the condemned block device is not gone yet");
            }
        });
    }

    pub fn remains(self) -> Remains {
        Remains {
            initiator: self.initiator,
            bound: self.bound,
        }
    }
}

/// Controllers and disks that this process has not proven gone.
pub(in crate::attachment) struct Remains {
    initiator: Arc<KernelInitiator>,
    bound: Duration,
}

impl Remains {
    /// Whatever the kernel has before this process made anything.
    pub fn of_earlier(initiator: Arc<KernelInitiator>, bound: Duration) -> Self {
        Self { initiator, bound }
    }

    /// Proves that no filesystem is alive on the device, in any mount namespace, then deletes the
    /// controllers and waits until the kernel has neither them nor the disk.
    pub async fn prove_gone(&mut self) -> Result<(), DeviceError> {
        for disk in self.initiator.disks()? {
            let path = disk.path().to_owned();
            let look = move || block::usage(&path);
            let usage = within(USAGE_WITHIN, "device-usage", look).await;
            let free = matches!(usage, Ok(Bounded::Done(Ok(Usage::Free))));
            if !free && disk.is_there() {
                let path = disk.path().to_owned();
                return Err(DeviceError::InUse { path });
            }
        }
        Ok(self.initiator.destroy(self.bound).await?)
    }
}
