//! The block device through which this member mounts: a bridge's, or the kernel's own.

mod bridge;
mod kernel;

use std::path::{Path, PathBuf};

use nvme::kernel::{AttachError, DestroyError, sysfs::SysfsError};
use serde::{Deserialize, Serialize};

use super::carrier::{self, Carrier};
use super::word::Tell;
use crate::config::Volume;
use crate::decide::Timings;
use crate::process::ProcessId;

/// A device that is there, until it is destroyed or goes away by itself.
pub(super) enum Device {
    Bridge(bridge::Device),
    Kernel(kernel::Device),
}

/// That a device lives on when its starter dies, and what is done for that.
#[derive(Clone, Debug)]
pub struct Outlive {
    /// Where filesystems of all members of this node are mounted.
    pub members: PathBuf,
    /// The control group for the processes that live on; without one they stay where they are.
    pub control_group: Option<PathBuf>,
}

impl Outlive {
    /// Takes a process out of its starter's control group, which ends with that one's container.
    fn take_in(&self, process: ProcessId) {
        let Some(group) = &self.control_group else {
            return;
        };
        let taken = std::fs::create_dir_all(group)
            .and_then(|()| std::fs::write(group.join("cgroup.procs"), process.pid.to_string()));
        if let Err(error) = taken {
            tracing::warn!(group = %group.display(), %error, "the bridge will end with its agent's container");
        }
    }
}

/// What another process needs to go on with a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum DeviceRecord {
    Bridge(bridge::BridgeRecord),
    Kernel,
}

/// Why there is no device, or why a former one is not proven gone.
#[derive(Debug, thiserror::Error)]
pub(super) enum DeviceError {
    /// A directory, a process or a pipe could not be made.
    #[error("{attempted}")]
    System {
        attempted: &'static str,
        #[source]
        source: std::io::Error,
    },
    /// The bridge ended before it had a device; its log says why.
    #[error("the bridge ended before it had a device; see the lines it logged")]
    Ended,
    /// What the bridge said is not understood.
    #[error("the bridge said {said:?} instead of naming its device")]
    Unreadable { said: String },
    /// Somebody still has the old device open exclusively: a superblock of it is alive.
    #[error("{} is still in use: a mount of the old device is alive somewhere", path.display())]
    InUse { path: PathBuf },
    /// The kernel's device was not found or made.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// The kernel's device is not proven gone.
    #[error("take the kernel's block device away")]
    Destroy(#[from] DestroyError),
    /// The kernel does not tell what it has.
    #[error(transparent)]
    Sysfs(#[from] SysfsError),
}

impl Device {
    /// Makes a device; its end is a [`Happening::DeviceGone`](super::Happening::DeviceGone) with this `made`.
    ///
    /// Must be called on the thread that lives as long as the process: a bridge dies with the thread
    /// that started it.
    pub async fn make(
        carrier: &Carrier,
        volume: &Volume,
        timings: &Timings,
        outlive: Option<&Outlive>,
        made: u64,
        tell: Tell,
    ) -> Result<Self, DeviceError> {
        Ok(match carrier {
            Carrier::UserSpace(_) => {
                let bridge = bridge::Device::make(volume, timings, outlive, made, tell);
                Self::Bridge(bridge.await?)
            }
            Carrier::Kernel(initiator) => {
                let bound = carrier::destroy_deadline(timings);
                let made = kernel::Device::make(initiator.clone(), bound, made, tell);
                Self::Kernel(made.await?)
            }
        })
    }

    /// What another process needs to go on with it.
    pub fn record(&self) -> DeviceRecord {
        match self {
            Self::Bridge(device) => DeviceRecord::Bridge(device.record()),
            Self::Kernel(_) => DeviceRecord::Kernel,
        }
    }

    /// The device that an earlier process made and that has outlived it; `None` if it is gone.
    pub async fn adopt(
        record: DeviceRecord,
        carrier: &Carrier,
        timings: &Timings,
        made: u64,
        tell: Tell,
    ) -> Result<Option<Self>, DeviceError> {
        Ok(match (record, carrier) {
            (DeviceRecord::Bridge(record), Carrier::UserSpace(_)) => {
                bridge::Device::adopt(record, made, tell)
                    .map_err(|source| DeviceError::System {
                        attempted: "go on with the bridge of an earlier process",
                        source,
                    })?
                    .map(Self::Bridge)
            }
            (DeviceRecord::Kernel, Carrier::Kernel(initiator)) => {
                let bound = carrier::destroy_deadline(timings);
                let found = kernel::Device::make(initiator.clone(), bound, made, tell);
                Some(Self::Kernel(found.await?))
            }
            // The volume is reached in another way than before.
            (DeviceRecord::Bridge(_), Carrier::Kernel(_))
            | (DeviceRecord::Kernel, Carrier::UserSpace(_)) => None,
        })
    }

    /// The block device.
    pub fn path(&self) -> &Path {
        match self {
            Self::Bridge(device) => device.path(),
            Self::Kernel(device) => device.path(),
        }
    }

    /// Whether it is still there.
    pub fn is_alive(&self) -> bool {
        match self {
            Self::Bridge(device) => device.is_alive(),
            Self::Kernel(device) => device.is_alive(),
        }
    }

    /// Takes the device away, without waiting for its end: what hangs in it fails.
    pub fn condemn(&self) {
        match self {
            Self::Bridge(device) => device.condemn(),
            Self::Kernel(device) => device.condemn(),
        }
    }

    /// Destroys the device with everything queued in it: no write that waits in it is ever sent.
    /// [`Remains::prove_gone`] ends when that is done.
    pub fn destroy(self) -> Remains {
        match self {
            Self::Bridge(device) => Remains::Bridge(device.destroy()),
            Self::Kernel(device) => Remains::Kernel(device.remains()),
        }
    }

    /// Ends the device at the end of the process. What was not flushed is lost: unmount first.
    ///
    /// # Errors
    /// As [`Remains::prove_gone`].
    pub async fn close(self) -> Result<(), DeviceError> {
        match self {
            Self::Bridge(device) => device.close().await,
            Self::Kernel(device) => device.remains().prove_gone().await,
        }
    }
}

/// What may be left of a former device.
pub(super) enum Remains {
    Bridge(bridge::Remains),
    Kernel(kernel::Remains),
}

impl Remains {
    /// What an earlier process may have left: a bridge dies with its member, and what the kernel keeps
    /// of its ublk device is recorded; the kernel's own device does not die.
    pub fn of_earlier(carrier: &Carrier, volume: &Volume, timings: &Timings) -> Vec<Self> {
        match carrier {
            Carrier::UserSpace(_) => {
                let earlier = bridge::Remains::of_earlier(&volume.directory);
                earlier.into_iter().map(Self::Bridge).collect()
            }
            Carrier::Kernel(initiator) => {
                let bound = carrier::destroy_deadline(timings);
                let remains = kernel::Remains::of_earlier(initiator.clone(), bound);
                vec![Self::Kernel(remains)]
            }
        }
    }

    /// Proves that nothing can write through the former device any more. SAFETY.md I6
    ///
    /// # Errors
    /// That is not proven.
    pub async fn prove_gone(&mut self) -> Result<(), DeviceError> {
        match self {
            Self::Bridge(remains) => remains.prove_gone().await,
            Self::Kernel(remains) => remains.prove_gone().await,
        }
    }
}
