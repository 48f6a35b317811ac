//! Ending the FUSE connection of a bridge that is dead already.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use crate::block;

/// Fails every request that waits in the FUSE connection under a dead bridge's block device, so that
/// whoever waits for one gets an I/O error. Returns whether there was such a connection.
///
/// The end of the bridge's process does the same by closing `/dev/fuse`, but only when the kernel has
/// let go of every reference to that file, and until then a file system on the device hangs.
///
/// `sequence` is the device's [`block::disk_sequence`] while the bridge lived. The kernel gives numbers
/// of connections out again; while the loop device of this sequence is held open its backing file is,
/// too, and the number is still the bridge's own. A device of another sequence is left alone.
///
/// Works through the FUSE control filesystem (Documentation/filesystems/fuse/fuse.rst, "Control
/// filesystem"), mounted where nobody else sees it. Needs root.
///
/// # Errors
/// What the system said; the connection may still be there.
pub fn abort(device: &Path, sequence: u64, connection: u32) -> io::Result<bool> {
    let held = match File::open(device) {
        Ok(held) => held,
        Err(error) if block::is_gone(&error) => return Ok(false),
        Err(error) => return Err(error),
    };
    if block::disk_sequence(device) != Some(sequence) {
        return Ok(false);
    }
    let aborted = write_abort(connection);
    drop(held);
    match aborted {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        aborted => aborted.map(|()| true),
    }
}

fn write_abort(connection: u32) -> io::Result<()> {
    let context = rustix::mount::fsopen("fusectl", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_create(&context)?;
    let control = rustix::mount::fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC,
    )?;
    let name = format!("{connection}/abort");
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let abort = rustix::fs::openat(&control, name, flags, Mode::empty())?;
    File::from(abort).write_all(b"1")
}
