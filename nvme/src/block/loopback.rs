//! A loop device over an open file, with direct I/O or not at all.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use super::{BlockError, raw};

/// Smallest block size of a loop device, in bytes.
pub const MIN_LOOP_BLOCK_SIZE: u32 = 512;
/// Largest block size that every kernel accepts, in bytes: a page.
pub const MAX_LOOP_BLOCK_SIZE: u32 = 4096;

const CONTROL: &str = "/dev/loop-control";
/// Others may take the offered device between the offer and our claim; each retry asks anew.
const ATTEMPTS: u32 = 64;

/// An attached loop device, held open. The kernel detaches it when the last user, this value or a
/// mounted file system, is gone: also when this process is killed.
#[derive(Debug)]
pub struct LoopDevice {
    file: File,
    path: PathBuf,
}

impl LoopDevice {
    /// Attaches `backing` with direct I/O, autoclear and this logical block size. `name` is what
    /// `losetup` shows.
    ///
    /// Refuses a device for which direct I/O does not read back as enabled: the kernel drops the
    /// flag silently where it cannot do it.
    pub fn attach(
        backing: BorrowedFd<'_>,
        block_size: u32,
        name: &str,
    ) -> Result<Self, BlockError> {
        let control_path = Path::new(CONTROL);
        let control = open_read_write(control_path)?;
        for _ in 0..ATTEMPTS {
            let number = raw::free_loop(control.as_fd())
                .map_err(|e| BlockError::system("LOOP_CTL_GET_FREE", control_path, e))?;
            let path = PathBuf::from(format!("/dev/loop{number}"));
            let file = open_read_write(&path)?;
            let flags = raw::LO_FLAGS_DIRECT_IO | raw::LO_FLAGS_AUTOCLEAR;
            match raw::configure_loop(file.as_fd(), backing, block_size, flags, name) {
                Ok(()) => return Self { file, path }.verified(),
                Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {}
                Err(e) => return Err(BlockError::system("LOOP_CONFIGURE", &path, e)),
            }
        }
        Err(BlockError::NoFreeLoop { attempts: ATTEMPTS })
    }

    fn verified(self) -> Result<Self, BlockError> {
        let status = raw::loop_status(self.file.as_fd())
            .map_err(|e| BlockError::system("LOOP_GET_STATUS64", &self.path, e))?;
        if status.flags & raw::LO_FLAGS_DIRECT_IO != 0 {
            return Ok(self);
        }
        let path = self.path.clone();
        self.detach()?;
        Err(BlockError::NoDirectIo { path })
    }

    /// The device's path, `/dev/loopN`.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Detaches at once, or at the last close where somebody else has the device open. Writes
    /// dirty pages back first: may wait for the backing file.
    pub fn detach(self) -> Result<(), BlockError> {
        raw::clear_loop(self.file.as_fd())
            .map_err(|e| BlockError::system("LOOP_CLR_FD", &self.path, e))
    }
}

fn open_read_write(path: &Path) -> Result<File, BlockError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .map_err(|e| BlockError::system("open", path, e))
}
