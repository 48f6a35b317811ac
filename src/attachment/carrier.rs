//! What carries this member's reservation commands and flushes to the volume: Baton's own initiator,
//! or the kernel's.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use nvme::initiator::{self, Initiator};
use nvme::kernel::{self, KernelInitiator, PathView, Selector, TimeOuts};
use nvme::reservation::{Acquire, ChangePersistence, Register, Release};
use nvme::{Error, Identified, Namespace, ReservationReport, ReservationType};

use crate::config::{Transport, Volume};
use crate::decide::Timings;

/// The association's own deadline, in commands' deadlines: whoever sends a command gives up earlier,
/// but a preempt-and-abort may wait for its victims that long (see `fencing::drive`).
const COMMAND_DEADLINES: u32 = 5;

/// Where this member's commands travel.
pub(super) enum Carrier {
    /// Beside the bridge, under the same host identity.
    UserSpace(Initiator),
    /// On the controllers of the block device itself.
    Kernel(Arc<KernelInitiator>),
}

/// Why there is no carrier.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Baton's own initiator did not connect.
    #[error(transparent)]
    UserSpace(#[from] initiator::ConnectError),
    /// The kernel's did not.
    #[error(transparent)]
    Kernel(#[from] kernel::AttachError),
}

impl Carrier {
    /// Connects as configured. With the kernel's initiator, controllers that are there already are
    /// used until the block device is made anew.
    pub async fn connect(volume: &Volume, timings: &Timings) -> Result<Self, ConnectError> {
        Ok(match volume.transport {
            Transport::Tcp => {
                Self::UserSpace(Initiator::connect(own_options(volume, timings)).await?)
            }
            Transport::Kernel => {
                let options = kernel_options(volume, timings);
                Self::Kernel(Arc::new(KernelInitiator::connect(options).await?))
            }
        })
    }

    /// Leaves the node as a storage driver knows it: with the kernel attached to the volume, by controllers
    /// that carry nothing of the member that has ended. A driver that is asked to publish the volume to
    /// the next pod may not look whether it is still connected.
    pub async fn leave_attached(&self) {
        let Self::Kernel(kernel) = self else { return };
        if let Err(error) = kernel.attach().await {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(
                error,
                "the volume is not attached any more: its driver must attach it"
            );
        }
    }

    /// The kernel's ways to the volume, for people; empty with Baton's own initiator, whose errors say
    /// it themselves.
    pub fn paths(&self) -> String {
        let Self::Kernel(kernel) = self else {
            return String::new();
        };
        match kernel.paths() {
            Ok(paths) if paths.is_empty() => "the kernel has no path".to_owned(),
            Ok(paths) => {
                let paths: Vec<_> = paths.iter().map(PathView::to_string).collect();
                paths.join("; ")
            }
            Err(error) => error.to_string(),
        }
    }
}

fn own_options(volume: &Volume, timings: &Timings) -> initiator::Options {
    let mut options = initiator::Options::new(
        volume.address.to_string(),
        volume.subsystem.clone(),
        volume.namespace_id,
        volume.host(),
    );
    options.keep_alive = timings.keep_alive;
    options.command_deadline = COMMAND_DEADLINES * timings.command;
    options
}

/// How the kernel's initiator is told to connect.
fn kernel_options(volume: &Volume, timings: &Timings) -> kernel::Options {
    let namespace = Selector {
        nsid: Some(volume.namespace_id),
        identifier: volume.identifier,
    };
    let mut options = kernel::Options::new(
        volume.address.to_string(),
        volume.subsystem.clone(),
        namespace,
        volume.host(),
    );
    options.time_outs = TimeOuts {
        keep_alive: timings.keep_alive,
        ..TimeOuts::default()
    };
    options.command_deadline = COMMAND_DEADLINES * timings.command;
    options.attach_deadline = attach_deadline(timings);
    options
}

/// Half of the time in which a device must be made anew.
fn attach_deadline(timings: &Timings) -> Duration {
    timings.rebuild / 2
}

/// The other half, for the end of the former one.
pub(super) fn destroy_deadline(timings: &Timings) -> Duration {
    timings.rebuild / 2
}

macro_rules! carried_by {
    ($carrier:expr, $namespace:ident => $command:expr) => {
        match $carrier {
            Carrier::UserSpace($namespace) => $command,
            Carrier::Kernel($namespace) => $command,
        }
    };
}

impl Namespace for Carrier {
    async fn identify(&self) -> Result<Identified, Error> {
        carried_by!(self, namespace => namespace.identify().await)
    }

    async fn read(&self, lba: u64, blocks: u32) -> Result<Bytes, Error> {
        carried_by!(self, namespace => namespace.read(lba, blocks).await)
    }

    async fn write(&self, lba: u64, data: Bytes, fua: bool) -> Result<(), Error> {
        carried_by!(self, namespace => namespace.write(lba, data, fua).await)
    }

    async fn flush(&self) -> Result<(), Error> {
        carried_by!(self, namespace => namespace.flush().await)
    }

    async fn write_zeroes(&self, lba: u64, blocks: u32, deallocate: bool) -> Result<(), Error> {
        carried_by!(self, namespace => namespace.write_zeroes(lba, blocks, deallocate).await)
    }

    async fn deallocate(&self, lba: u64, blocks: u32) -> Result<(), Error> {
        carried_by!(self, namespace => namespace.deallocate(lba, blocks).await)
    }

    async fn register(
        &self,
        action: Register,
        persistence: ChangePersistence,
    ) -> Result<(), Error> {
        carried_by!(self, namespace => namespace.register(action, persistence).await)
    }

    async fn acquire(&self, action: Acquire, key: u64, kind: ReservationType) -> Result<(), Error> {
        carried_by!(self, namespace => namespace.acquire(action, key, kind).await)
    }

    async fn release(&self, action: Release, key: u64) -> Result<(), Error> {
        carried_by!(self, namespace => namespace.release(action, key).await)
    }

    async fn report(&self) -> Result<ReservationReport, Error> {
        carried_by!(self, namespace => namespace.report().await)
    }
}
