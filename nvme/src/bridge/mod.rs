//! Shows a namespace as a block device: by the kernel's ublk driver where it has that, else by a FUSE
//! file system with one file and a loop device over it.
//!
//! ```text
//! ext4 ─► /dev/ublkbN ─► this process ─► Backend ─► NVMe/TCP target
//! ext4 ─► /dev/loopN ─► (direct I/O) ─► FUSE file ─► this process ─► Backend ─► NVMe/TCP target
//! ```
//!
//! Both serve the same [`Volume`], and are built so that every end of the process, SIGKILL too, takes
//! the device away, fails all requests at once, and leaves nothing that could write:
//!
//! - The FUSE file system is mounted *detached*: no path leads to it, no other mount namespace can
//!   inherit it. It lives as long as the loop device has its file open. The loop device has autoclear
//!   and is held open by this process and by mounted file systems. `/dev/fuse` closes with the
//!   process, which fails all requests.
//! - A ublk device without recovery flags is removed by the kernel when its server ends, see
//!   [`UblkDevice`] for what stays.
//!
//! The process that serves must not touch files on its own device: it would wait for itself. Nor may
//! a file system on its device be mounted in its own mount namespace: should it be the last process
//! there, it would unmount that while it dies, and wait for itself for ever.

mod abort;
mod attach;
mod device;
mod filesystem;
mod replay;
#[cfg(test)]
mod tests;
mod ublk;
mod unflushed;
mod volume;

use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::sync::Weak;
use std::time::Duration;

use crate::block::BlockError;
use crate::{Error, Namespace};

pub use abort::abort;
pub use attach::{Announcement, Behind, Bridge, Driver};
pub use ublk::{Left, UblkDevice};
pub use unflushed::{Change, Unflushed};
pub use volume::Volume;

/// A namespace as the bridge needs it: one whose path can be lost and come back.
pub trait Backend: Namespace + 'static {
    /// Counts associations, upwards: a different number means that the connection was made anew in
    /// between, so that the target may have restarted.
    fn association(&self) -> u64;

    /// From now on, repeats what `unflushed` names on every new association, before any other
    /// command can use it.
    fn repeat_on_reconnect(&self, unflushed: Weak<dyn Unflushed>);

    /// Waits until there is a path. `false` when there has been none for `path_loss`.
    fn usable(&self, path_loss: Duration) -> impl Future<Output = bool> + Send;
}

/// How a bridge behaves.
#[derive(Clone, Debug)]
pub struct BridgeOptions {
    /// How long requests wait for a lost path before they fail. Reads and writes are repeated
    /// after a reconnect, as the kernel's initiator does; what protects the data from a fenced
    /// host's late writes is the target's reservation, not this time.
    pub path_loss: Duration,
    /// What `losetup` shows as the loop device's backing file; at most 63 bytes.
    pub name: String,
    /// What shows the device.
    pub driver: Driver,
    /// Where a ublk device is recorded while it may exist, see [`UblkDevice::recorded`]: a directory
    /// that no other living bridge has.
    pub directory: Option<PathBuf>,
}

/// Why a namespace could not be shown as a block device.
#[derive(Debug, thiserror::Error)]
pub enum BridgeError {
    /// The namespace could not be identified.
    #[error("identify the namespace")]
    Identify(#[source] Error),
    /// The namespace's block size is not one that every kernel's block devices can have.
    #[error("a block size of {block_size} bytes cannot be shown by a block device (512 to 4096)")]
    BlockSize {
        /// The namespace's logical block size in bytes.
        block_size: u32,
    },
    /// The FUSE file system could not be mounted.
    #[error("{step} for the bridge's FUSE file system")]
    Fuse {
        /// What was attempted.
        step: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The ublk device could not be made.
    #[error("{step} for the bridge's ublk device")]
    Ublk {
        /// What was attempted.
        step: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The loop device could not be attached.
    #[error("attach a loop device")]
    Loop(#[source] BlockError),
}
