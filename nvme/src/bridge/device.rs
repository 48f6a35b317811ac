//! Mounting the FUSE file system, opening its file, attaching the loop device.

use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use fuser::{BackgroundSession, Config, Session, SessionACL};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::filesystem::{FILE_NAME, OneFile};
use super::{Backend, BridgeError, Volume};
use crate::block::LoopDevice;

/// Descriptor number from which `/dev/fuse` is kept, far above all others of a bridge.
///
/// When a process dies its descriptors are released from the highest number down. The FUSE
/// connection must go first: were the loop device released while the connection still stood, its
/// release would write dirty pages back to a server that no longer runs, and never return.
const FUSE_DESCRIPTOR_MIN: i32 = 512;

/// A namespace shown as a loop device by this process.
///
/// Dropping it detaches nothing: detaching writes back what is dirty, which this very process
/// would have to serve. The end of the process detaches everything at once.
pub(super) struct LoopBridge {
    device: ManuallyDrop<LoopDevice>,
    connection: u32,
    _session: ManuallyDrop<BackgroundSession>,
    ended: oneshot::Receiver<()>,
}

impl LoopBridge {
    /// Shows the volume as a loop device. Requests run as tasks of the current tokio runtime, which
    /// must not be blocked by anybody who touches the device.
    pub(super) async fn attach<B: Backend>(
        volume: Arc<Volume<B>>,
        name: String,
    ) -> Result<Self, BridgeError> {
        let runtime = Handle::current();
        // These calls wait for answers that the FUSE thread gives: never on the runtime's thread.
        tokio::task::spawn_blocking(move || Self::attach_blocking(volume, runtime, &name))
            .await
            .map_err(|e| fuse("run the set-up", io::Error::other(e)))?
    }

    fn attach_blocking<B: Backend>(
        volume: Arc<Volume<B>>,
        runtime: Handle,
        name: &str,
    ) -> Result<Self, BridgeError> {
        let block_size = volume.block_size();
        let (gone, ended) = oneshot::channel();
        let opened = open_connection().map_err(|e| fuse("open /dev/fuse", e))?;
        let superblock = create_superblock(&opened).map_err(|e| fuse("make a superblock", e))?;
        let mut config = Config::default();
        config.acl = SessionACL::All;
        let files = OneFile::new(volume, runtime, gone);
        let session = Session::from_fd(files, opened, SessionACL::All, config)
            .and_then(Session::spawn)
            .map_err(|e| fuse("shake hands with the kernel", e))?;
        let backing = open_file(&superblock).map_err(|e| fuse("open the file", e))?;
        let connection = number(&backing).map_err(|e| fuse("find the connection's number", e))?;
        let device =
            LoopDevice::attach(backing.as_fd(), block_size, name).map_err(BridgeError::Loop)?;
        Ok(Self {
            device: ManuallyDrop::new(device),
            connection,
            _session: ManuallyDrop::new(session),
            ended,
        })
    }

    /// The device's path, `/dev/loopN`.
    pub(super) fn path(&self) -> &Path {
        self.device.path()
    }

    /// The number of the FUSE connection, for [`super::abort`].
    pub(super) fn connection(&self) -> u32 {
        self.connection
    }

    /// Waits until the kernel ended the FUSE connection: the device is dead from then on.
    pub(super) async fn ended(&mut self) {
        // A dropped sender means the same as a sent value.
        let _ = (&mut self.ended).await;
    }
}

fn fuse(step: &'static str, source: io::Error) -> BridgeError {
    BridgeError::Fuse { step, source }
}

fn open_connection() -> io::Result<OwnedFd> {
    let device = File::options().read(true).write(true).open("/dev/fuse")?;
    Ok(rustix::io::fcntl_dupfd_cloexec(
        &device,
        FUSE_DESCRIPTOR_MIN,
    )?)
}

/// Makes the FUSE superblock without mounting it anywhere.
fn create_superblock(connection: &OwnedFd) -> io::Result<OwnedFd> {
    let context = rustix::mount::fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let number = connection.as_raw_fd().to_string();
    for (key, value) in [
        ("source", "baton-bridge"),
        ("fd", number.as_str()),
        ("rootmode", "40700"),
        ("user_id", "0"),
        ("group_id", "0"),
    ] {
        rustix::mount::fsconfig_set_string(&context, key, value)?;
    }
    rustix::mount::fsconfig_create(&context)?;
    Ok(context)
}

/// Mounts detached, opens the one file, and lets the mount go: the open file keeps it.
fn open_file(superblock: &OwnedFd) -> io::Result<OwnedFd> {
    let mount = rustix::mount::fsmount(
        superblock,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC,
    )?;
    let flags = OFlags::RDWR | OFlags::DIRECT | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(&mount, FILE_NAME, flags, Mode::empty())?)
}

/// The kernel names a FUSE connection by the minor number of its file system's device
/// (fs/fuse/control.c).
fn number(file: &OwnedFd) -> io::Result<u32> {
    Ok(rustix::fs::minor(rustix::fs::fstat(file)?.st_dev))
}
