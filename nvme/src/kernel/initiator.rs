//! One namespace of one subsystem as one host, carried by the kernel's initiator.
//!
//! ```text
//! connect ─► attached ──destroy──► nothing ──attach──► attached …
//! ```
//!
//! The kernel itself reconnects a controller whose connection broke. What it has given up, or what was
//! destroyed, is made anew only by [`KernelInitiator::attach`]: a block device must not come back
//! behind the back of whoever proved it gone.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Mutex, oneshot, watch};

use super::fabrics::{ConnectError, Connected};
use super::sysfs::{self, SysfsError};
use super::{AttachError, KernelNamespace, Options, PathView, view::View};
use crate::reservation::{Acquire, ChangePersistence, Register, Release, ReservationReport};
use crate::{Error, Identified, Namespace, ReservationType};

/// Between two looks at sysfs, which tells no changes of a controller's state.
pub(super) const LOOK: Duration = Duration::from_millis(20);
/// Between two looks whether a disk is still there. The end of a disk is nothing that hurries: its
/// commands fail by themselves.
const GONE_LOOK: Duration = Duration::from_millis(250);

/// The kernel's initiator, for one namespace as one host.
///
/// Commands are those of [`Namespace`]; without a block device they fail unsent. Dropping it leaves
/// the controllers as they are.
pub struct KernelInitiator {
    pub(super) options: Options,
    pub(super) current: watch::Sender<Option<Arc<Attached>>>,
    /// One change at a time.
    pub(super) work: Mutex<Work>,
}

/// What attaching and destroying have to remember.
#[derive(Default)]
pub(super) struct Work {
    /// Where controllers were, so that all of them are made again.
    pub addresses: BTreeSet<SocketAddr>,
    /// A connect that did not return in time and may still succeed.
    pub connecting: Option<oneshot::Receiver<Result<Connected, ConnectError>>>,
}

/// A block device of the kernel that was found and opened.
pub(super) struct Attached {
    pub disk: KernelDisk,
    pub namespace: KernelNamespace,
}

/// One block device of the kernel: this very one, not whatever has its name later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelDisk {
    pub(super) sysfs: PathBuf,
    pub(super) name: String,
    pub(super) path: PathBuf,
    pub(super) sequence: u64,
}

impl KernelDisk {
    /// Its device node.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The number that the kernel gave to it alone; see [`crate::block::disk_sequence`].
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Whether the kernel still has it.
    pub fn is_there(&self) -> bool {
        sysfs::disk_sequence(&self.sysfs, &self.name) == Some(self.sequence)
    }

    /// Waits until the kernel has it no more.
    pub async fn gone(&self) {
        while self.is_there() {
            tokio::time::sleep(GONE_LOOK).await;
        }
    }
}

impl KernelInitiator {
    /// Attaches for the first time; see [`Self::attach`].
    ///
    /// # Errors
    /// See [`AttachError`].
    pub async fn connect(options: Options) -> Result<Self, AttachError> {
        let this = Self::detached(options);
        this.attach().await?;
        Ok(this)
    }

    /// Nothing is attached, nothing was touched.
    pub fn detached(options: Options) -> Self {
        let (current, _) = watch::channel(None);
        Self {
            options,
            current,
            work: Mutex::default(),
        }
    }

    /// What this initiator was told.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// The block device, if one was found and not destroyed since.
    pub fn disk(&self) -> Option<KernelDisk> {
        let current = self.current.borrow();
        current.as_ref().map(|attached| attached.disk.clone())
    }

    /// All block devices of the namespace that the kernel has now, whoever made them: with multipath
    /// off, one for each controller.
    ///
    /// # Errors
    /// sysfs cannot be read.
    pub fn disks(&self) -> Result<Vec<KernelDisk>, SysfsError> {
        Ok(View::of(&self.options)?.meant())
    }

    /// The ways to the namespace, as the kernel has them now; none where there is no disk.
    ///
    /// # Errors
    /// sysfs cannot be read.
    pub fn paths(&self) -> Result<Vec<PathView>, SysfsError> {
        Ok(View::of(&self.options)?.paths())
    }

    /// A feature's current value; see [`KernelNamespace::feature`].
    ///
    /// # Errors
    /// As every command's.
    pub fn feature(&self, feature: u8) -> impl Future<Output = Result<u32, Error>> + use<> {
        let attached = self.attached("Get Features");
        async move { attached?.namespace.feature(feature).await }
    }

    fn attached(&self, command: &'static str) -> Result<Arc<Attached>, Error> {
        self.current.borrow().clone().ok_or_else(|| Error::NoPath {
            command,
            cause: "the kernel's block device was taken away".to_owned(),
        })
    }
}

impl Namespace for KernelInitiator {
    async fn identify(&self) -> Result<Identified, Error> {
        self.attached("Identify")?.namespace.identify().await
    }

    async fn read(&self, lba: u64, blocks: u32) -> Result<Bytes, Error> {
        self.attached("Read")?.namespace.read(lba, blocks).await
    }

    async fn write(&self, lba: u64, data: Bytes, fua: bool) -> Result<(), Error> {
        self.attached("Write")?
            .namespace
            .write(lba, data, fua)
            .await
    }

    async fn flush(&self) -> Result<(), Error> {
        self.attached("Flush")?.namespace.flush().await
    }

    async fn write_zeroes(&self, lba: u64, blocks: u32, deallocate: bool) -> Result<(), Error> {
        self.attached("Write Zeroes")?
            .namespace
            .write_zeroes(lba, blocks, deallocate)
            .await
    }

    async fn deallocate(&self, lba: u64, blocks: u32) -> Result<(), Error> {
        self.attached("Dataset Management")?
            .namespace
            .deallocate(lba, blocks)
            .await
    }

    async fn register(
        &self,
        action: Register,
        persistence: ChangePersistence,
    ) -> Result<(), Error> {
        self.attached("Reservation Register")?
            .namespace
            .register(action, persistence)
            .await
    }

    async fn acquire(&self, action: Acquire, key: u64, kind: ReservationType) -> Result<(), Error> {
        self.attached("Reservation Acquire")?
            .namespace
            .acquire(action, key, kind)
            .await
    }

    async fn release(&self, action: Release, key: u64) -> Result<(), Error> {
        self.attached("Reservation Release")?
            .namespace
            .release(action, key)
            .await
    }

    async fn report(&self) -> Result<ReservationReport, Error> {
        self.attached("Reservation Report")?
            .namespace
            .report()
            .await
    }
}
