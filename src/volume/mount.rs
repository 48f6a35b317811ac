//! Mounting the shared volume, flushing it, and giving it up: one system call each.
//!
//! Never here: a lazy unmount (it hides a live writer), a forced one, a global sync, or a mount
//! without a [`WritePermit`]. All functions block for as long as the volume does: run them
//! [within](super::within) a deadline.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use fencing::WritePermit;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, umount2};
use serde::{Deserialize, Serialize};

use super::beneath::Beneath;
use super::mount_table::{self, MountEntry};
use super::superblock::names_nobarrier;

/// ext4's options. `errors=remount-ro` and `data_err=abort`: a write that the volume refuses ends
/// all writing instead of being forgotten. `barrier=1` and `data=ordered` are the defaults, named so
/// that no default of the superblock replaces them.
const OPTIONS: &str = "errors=remount-ro,data_err=abort,barrier=1,data=ordered";

/// A mounted volume.
///
/// It keeps the root directory open from the beginning, because `syncfs` reports only the
/// write-back errors that occurred since its descriptor was opened. Dropping it unmounts nothing.
#[derive(Debug)]
pub struct Mounted {
    root: Beneath,
    mount_point: PathBuf,
    device: PathBuf,
}

/// Why a volume is not mounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The mount point could not be made or opened.
    #[error("{operation} mount point {}", path.display())]
    MountPoint {
        /// What was attempted.
        operation: &'static str,
        /// The mount point.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Something is mounted there already.
    #[error("{} is already mounted on {}", device.display(), mount_point.display())]
    Occupied {
        /// What is mounted.
        device: PathBuf,
        /// Where.
        mount_point: PathBuf,
    },
    /// The kernel refused.
    #[error("mounting {} on {}: {}", device.display(), mount_point.display(), hint(*errno))]
    Refused {
        /// The block device.
        device: PathBuf,
        /// Where it was to be mounted.
        mount_point: PathBuf,
        /// What the kernel said.
        #[source]
        errno: Errno,
    },
    /// It was mounted otherwise than asked for, and unmounted again (or not: then it says so).
    #[error("{} was mounted with {options:?}: {what}; {}", device.display(),
        if *unmounted { "unmounted again" } else { "it could not be unmounted" })]
    Options {
        /// The block device.
        device: PathBuf,
        /// The options in force.
        options: String,
        /// What is wrong with them.
        what: &'static str,
        /// Whether it was unmounted again.
        unmounted: bool,
    },
}

/// What an errno of mount(2) means for ext4.
fn hint(errno: Errno) -> &'static str {
    match errno {
        Errno::EROFS => "the volume is read-only for this host, so its journal cannot be replayed",
        Errno::EIO | Errno::EBADE => "the volume fails or refuses reads or writes",
        Errno::EBUSY => "the device is in use, perhaps in another mount namespace",
        Errno::EUCLEAN | Errno::EINVAL => "the filesystem is damaged; see the kernel's log",
        Errno::EPERM | Errno::EACCES => "mounting needs CAP_SYS_ADMIN",
        _ => "the kernel refused",
    }
}

/// A process that keeps a filesystem busy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Its process id.
    pub pid: i32,
    /// Its name.
    pub name: String,
    /// A path through which it uses the filesystem.
    pub path: PathBuf,
}

/// Why a volume is still mounted.
#[derive(Debug, thiserror::Error)]
pub enum UnmountError {
    /// Somebody still uses it.
    #[error("{} is busy: {}", mount_point.display(), describe(holders, mounts))]
    Busy {
        /// Where it is mounted.
        mount_point: PathBuf,
        /// The processes that were found to use it; may be empty.
        holders: Vec<Holder>,
        /// Filesystems mounted below it.
        mounts: Vec<PathBuf>,
    },
    /// The kernel refused for another reason.
    #[error("unmounting {}", mount_point.display())]
    Refused {
        /// Where it is mounted.
        mount_point: PathBuf,
        /// What the kernel said.
        #[source]
        errno: Errno,
    },
}

/// A volume that could not be unmounted.
#[derive(Debug, thiserror::Error)]
#[error("the volume is still mounted")]
pub struct StillMounted {
    /// For another attempt; `None` if not even its root can be opened any more.
    pub mounted: Option<Mounted>,
    /// Why.
    #[source]
    pub cause: UnmountError,
}

fn describe(holders: &[Holder], mounts: &[PathBuf]) -> String {
    let processes = holders
        .iter()
        .map(|h| format!("process {} ({}) uses {}", h.pid, h.name, h.path.display()));
    let mounts = mounts
        .iter()
        .map(|m| format!("{} is mounted below it", m.display()));
    let all: Vec<String> = processes.chain(mounts).collect();
    if all.is_empty() {
        "no user found".to_owned()
    } else {
        all.join("; ")
    }
}

/// Why the kernel could not write everything back.
#[derive(Debug, thiserror::Error)]
#[error("writing {} back to the volume", mount_point.display())]
pub struct SyncError {
    /// Where the volume is mounted.
    pub mount_point: PathBuf,
    /// What the kernel said; also for an error of an earlier write-back.
    #[source]
    pub errno: Errno,
}

/// Mounts the ext4 on `device` at `mount_point`, replaying its journal. The mount point is made.
///
/// SAFETY.md: nothing is mounted without a permit. The caller confirms it right before this call.
pub fn mount(
    _permit: &WritePermit,
    device: &Path,
    mount_point: &Path,
) -> Result<Mounted, MountError> {
    let path = mount_point.to_owned();
    let at_mount_point = |operation| {
        let path = path.clone();
        move |source| MountError::MountPoint {
            operation,
            path,
            source,
        }
    };
    fs::create_dir_all(mount_point).map_err(at_mount_point("making"))?;
    // The mount table knows no symbolic links.
    let resolved = fs::canonicalize(mount_point).map_err(at_mount_point("resolving"))?;
    let mount_point = resolved.as_path();
    let entry = mount_table::at(mount_point).map_err(at_mount_point("looking up"))?;
    if let Some(entry) = entry {
        return Err(MountError::Occupied {
            device: entry.source,
            mount_point: mount_point.to_owned(),
        });
    }
    let flags = MsFlags::MS_NOATIME | MsFlags::MS_NODEV | MsFlags::MS_NOSUID;
    nix::mount::mount(
        Some(device),
        mount_point,
        Some("ext4"),
        flags,
        Some(OPTIONS),
    )
    .map_err(|errno| MountError::Refused {
        device: device.to_owned(),
        mount_point: mount_point.to_owned(),
        errno,
    })?;
    verify_options(device, mount_point)?;
    let root = Beneath::at(mount_point).map_err(at_mount_point("opening"))?;
    Ok(Mounted {
        root,
        mount_point: mount_point.to_owned(),
        device: device.to_owned(),
    })
}

/// The mount that an earlier process left at `mount_point`, if it is of `device`.
///
/// # Errors
/// The mount table or the mount point cannot be read, or another device is mounted there.
pub fn adopt(device: &Path, mount_point: &Path) -> Result<Option<Mounted>, MountError> {
    let failed = |operation| {
        move |source| MountError::MountPoint {
            operation,
            path: mount_point.to_owned(),
            source,
        }
    };
    let Some(entry) = mount_table::at(mount_point).map_err(failed("looking up"))? else {
        return Ok(None);
    };
    if entry.source != device {
        return Err(MountError::Occupied {
            device: entry.source,
            mount_point: mount_point.to_owned(),
        });
    }
    let root = Beneath::at(mount_point).map_err(failed("opening"))?;
    Ok(Some(Mounted {
        root,
        mount_point: mount_point.to_owned(),
        device: device.to_owned(),
    }))
}

/// Reads back what the kernel made of the options; on a bad surprise the mount is undone.
fn verify_options(device: &Path, mount_point: &Path) -> Result<(), MountError> {
    let entry = mount_table::at(mount_point).map_err(|source| MountError::MountPoint {
        operation: "looking up",
        path: mount_point.to_owned(),
        source,
    })?;
    let (options, what) = match entry {
        None => (String::new(), "it does not appear in the mount table"),
        Some(MountEntry { super_options, .. }) => match forbidden(&super_options) {
            None => return Ok(()),
            Some(what) => (super_options, what),
        },
    };
    Err(MountError::Options {
        device: device.to_owned(),
        options,
        what,
        unmounted: umount2(mount_point, MntFlags::UMOUNT_NOFOLLOW).is_ok(),
    })
}

/// What in a filesystem's options endangers data, if anything.
fn forbidden(super_options: &str) -> Option<&'static str> {
    if names_nobarrier(super_options) {
        return Some("without barriers a Flush never reaches the volume");
    }
    let has = |wanted: &str| super_options.split(',').any(|option| option == wanted);
    if has("ro") {
        return Some("it is read-only: the journal failed at once");
    }
    if has("data=writeback") {
        return Some("data=writeback shows stale blocks after a crash");
    }
    None
}

impl Mounted {
    /// Where the volume is mounted.
    pub fn mount_point(&self) -> &Path {
        &self.mount_point
    }

    /// Its root directory: the way to everything on it.
    pub fn root(&self) -> &Beneath {
        &self.root
    }

    /// The block device.
    pub fn device(&self) -> &Path {
        &self.device
    }

    /// Writes everything back and flushes the volume's cache: this filesystem alone.
    ///
    /// Fails also for write-back errors since the mount that nobody was told of yet.
    pub fn sync(&self) -> Result<(), SyncError> {
        nix::unistd::syncfs(self.root.as_fd()).map_err(|errno| SyncError {
            mount_point: self.mount_point.clone(),
            errno,
        })
    }

    /// A second descriptor for [`sync`](Self::sync) on another thread; to be dropped before the
    /// unmount, which it would keep busy.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            root: self.root.try_clone()?,
            mount_point: self.mount_point.clone(),
            device: self.device.clone(),
        })
    }

    /// Shuts the filesystem down without flushing: every later access fails with EIO, nothing more
    /// is written. For an owner that lost its hold. The mount itself stays.
    pub fn shut_down(&self) -> Result<(), nvme::block::BlockError> {
        nvme::block::shut_down(&self.mount_point)
    }

    /// Unmounts, waiting for the last write. On failure the volume is still mounted, and the value
    /// comes back for another attempt.
    pub fn unmount(self) -> Result<(), Box<StillMounted>> {
        let Self {
            root,
            mount_point,
            device,
        } = self;
        drop(root);
        let Err(cause) = unmount(&mount_point) else {
            return Ok(());
        };
        let mounted = Beneath::at(&mount_point).ok().map(|root| Self {
            root,
            mount_point,
            device,
        });
        Err(Box::new(StillMounted { mounted, cause }))
    }
}

/// Unmounts whatever is mounted at `mount_point`: also one that another value mounted.
pub fn unmount(mount_point: &Path) -> Result<(), UnmountError> {
    match umount2(mount_point, MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) => Ok(()),
        Err(Errno::EBUSY) => Err(UnmountError::Busy {
            mount_point: mount_point.to_owned(),
            holders: holders(mount_point),
            mounts: mount_table::below(mount_point).unwrap_or_default(),
        }),
        Err(errno) => Err(UnmountError::Refused {
            mount_point: mount_point.to_owned(),
            errno,
        }),
    }
}

/// The processes that use files below `mount_point`, as far as their links in /proc tell.
///
/// Reads links only, never the files: a frozen filesystem cannot hang it.
pub fn holders(mount_point: &Path) -> Vec<Holder> {
    let Ok(processes) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    processes
        .filter_map(Result::ok)
        .filter_map(|entry| {
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            let path = used_path(&entry.path(), mount_point)?;
            let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            Some(Holder {
                pid,
                name: name.trim().to_owned(),
                path,
            })
        })
        .collect()
}

fn used_path(process: &Path, mount_point: &Path) -> Option<PathBuf> {
    let links = ["cwd", "root", "exe"]
        .into_iter()
        .map(|name| process.join(name));
    let files = fs::read_dir(process.join("fd")).into_iter().flatten();
    let files = files.filter_map(Result::ok).map(|entry| entry.path());
    let mapped = fs::read_dir(process.join("map_files"))
        .into_iter()
        .flatten();
    let mapped = mapped.filter_map(Result::ok).map(|entry| entry.path());
    links
        .chain(files)
        .chain(mapped)
        .filter_map(|link| fs::read_link(link).ok())
        .find(|target| target.starts_with(mount_point))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dangerous_options_are_seen() {
        assert_eq!(forbidden("rw,errors=remount-ro,data_err=abort"), None);
        for options in ["rw,nobarrier", "rw,barrier=0", "ro", "rw,data=writeback"] {
            assert!(forbidden(options).is_some(), "{options}");
        }
    }

    #[test]
    fn this_process_is_found_to_hold_its_files() {
        let directory = tempfile::tempdir().unwrap();
        let _file = fs::File::create(directory.path().join("file")).unwrap();
        let found = holders(directory.path());
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(found.iter().any(|holder| holder.pid == own), "{found:?}");
    }
}
