//! The shared volume as a filesystem: ext4, read past the cache, mounted under a permit, given up in
//! order.
//!
//! Every function is one action with an outcome; when to do what is decided elsewhere. Whatever
//! writes takes a [`WritePermit`](fencing::WritePermit). Whatever may wait for the volume for ever
//! runs [`within`] a deadline.

mod beneath;
mod bounded;
mod check;
mod format;
mod label;
mod marker;
mod mount;
mod mount_table;
mod signature;
mod superblock;

pub use beneath::{Beneath, Kind};
pub use bounded::{Bounded, BoundedError, Pending, Vanished, within};
pub use check::{CheckError, Checked, check};
pub use format::{FormatError, finish, format};
pub use label::Label;
pub use marker::{MARKER_NAME, Marker, MarkerError};
pub use mount::{
    Holder, MountError, Mounted, StillMounted, SyncError, UnmountError, adopt, holders, mount,
    unmount,
};
pub use mount_table::{MountEntry, at as mounted_at};
pub use signature::{Contents, Formattable, ProbeError, probe};
pub use superblock::{Cleanliness, ParseError, ReadError, Refusal, Superblock};

use std::path::Path;

use nvme::block::{BlockDevice, BlockError, Usage};

/// Drops this host's cached blocks of `device`, so that the next reads come from the volume.
///
/// Dirty blocks are written back first, so only for a device on which none can be, or whose volume
/// refuses this host's writes.
pub fn drop_caches(device: &Path) -> Result<(), BlockError> {
    BlockDevice::open_direct(device)?.drop_cache()
}

/// Whether no filesystem is alive on `device`, in any mount namespace (an exclusive open succeeds).
pub fn is_free(device: &Path) -> Result<bool, BlockError> {
    Ok(matches!(nvme::block::usage(device)?, Usage::Free))
}
