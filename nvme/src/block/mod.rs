//! Block devices and the file systems on them, as far as no safe library reaches: sizes, caches,
//! direct reads, exclusive opens, loop devices, and shutting a file system down.
//!
//! Everything here blocks: call it from a thread that may wait, with a deadline around it. Nothing
//! here decides, and nothing scans other devices (a frozen bridge hangs whoever touches its device).

use std::io;
use std::path::PathBuf;

mod device;
mod filesystem;
mod loopback;
mod process;
mod raw;

pub use device::{BlockDevice, Usage, claim, disk_sequence, is_gone, usage};
pub use filesystem::shut_down;
pub use loopback::{LoopDevice, MAX_LOOP_BLOCK_SIZE, MIN_LOOP_BLOCK_SIZE};
pub use process::{become_io_flusher, clock_is_synchronized, die_with_parent};

/// Why an operation on a block device failed.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// A system call on a device failed.
    #[error("{operation} on {} failed", path.display())]
    System {
        /// The system call, by its name.
        operation: &'static str,
        /// The device or file system.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The device ended before the requested range.
    #[error("{} ends before byte {end}", path.display())]
    OutOfRange {
        /// The device.
        path: PathBuf,
        /// First byte after the requested range.
        end: u64,
    },
    /// The kernel attached the loop device without direct I/O: its page cache would keep stale
    /// data of a volume that others write.
    #[error("{} was attached without direct I/O", path.display())]
    NoDirectIo {
        /// The loop device, detached again.
        path: PathBuf,
    },
    /// Others kept taking the free loop device that was offered.
    #[error("no free loop device after {attempts} attempts")]
    NoFreeLoop {
        /// How many were tried.
        attempts: u32,
    },
}

impl BlockError {
    fn system(operation: &'static str, path: &std::path::Path, source: io::Error) -> Self {
        Self::System {
            operation,
            path: path.to_owned(),
            source,
        }
    }
}
