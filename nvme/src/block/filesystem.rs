//! Stopping a mounted file system without flushing it.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use super::{BlockError, raw};

/// `FS_IOC_SHUTDOWN` with NOLOGFLUSH: every later operation on the file system fails with EIO, and
/// nothing more is written to the device.
///
/// The other modes flush first, and hang on a device that does not answer. Needs CAP_SYS_ADMIN.
pub fn shut_down(mount_point: &Path) -> Result<(), BlockError> {
    let directory =
        File::open(mount_point).map_err(|e| BlockError::system("open", mount_point, e))?;
    raw::shut_down_without_flush(directory.as_fd())
        .map_err(|e| BlockError::system("FS_IOC_SHUTDOWN", mount_point, e))
}
