//! Directories on the volume that are not, not yet or no longer the database.
//!
//! Only what is called as the data directory is ever started. What is being made or rewound has another name
//! until it is complete and durable.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

use crate::postgres::Instance;
use crate::volume::{Bounded, within};

/// Being made by `pg_basebackup`.
pub(super) const SEEDING: &str = ".seeding";
/// Complete, and about to change places with the data directory; after that, what that one was.
pub(super) const SEEDED: &str = ".seeded";
/// Being changed by `pg_rewind`.
pub(super) const REWINDING: &str = ".rewinding";

/// Whether a rewind of this data directory was cut off, so that it has not its own name.
pub(crate) fn is_rewinding(data_directory: &Path) -> bool {
    let mut name = data_directory.as_os_str().to_owned();
    name.push(REWINDING);
    Path::new(&name).is_dir()
}
/// Replaced by a new base backup, and kept.
const OLD: &str = ".old-";

/// A step on the filesystem failed.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {}", path.display())]
pub struct PlaceError {
    /// What was attempted.
    pub operation: &'static str,
    /// The file or directory.
    pub path: PathBuf,
    /// What the system said.
    #[source]
    pub source: io::Error,
}

pub(super) fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PlaceError {
    let path = path.to_owned();
    move |source| PlaceError {
        operation,
        path,
        source,
    }
}

/// Runs a call that may wait for the volume on a thread of its own, without a bound: the volume's speed and the
/// database's size decide. The caller may give up; the call goes on.
pub(super) async fn on_thread<T: Send + 'static>(
    what: &'static str,
    call: impl FnOnce() -> Result<T, PlaceError> + Send + 'static,
) -> Result<T, PlaceError> {
    let lost = |error: &dyn std::error::Error| {
        failed("working on", Path::new(what))(io::Error::other(error.to_string()))
    };
    match within(Duration::MAX, what, call).await {
        Ok(Bounded::Done(result)) => result,
        Ok(Bounded::Stuck(pending)) => pending.await.map_err(|error| lost(&error))?,
        Err(error) => Err(lost(&error)),
    }
}

/// The directory next to the data directory with this at the end of its name.
pub(super) fn beside(instance: &Instance, ending: &str) -> PathBuf {
    let mut name = OsString::from(&instance.data_directory);
    name.push(ending);
    name.into()
}

/// Whether there is anything in it.
pub(super) fn is_occupied(directory: &Path) -> bool {
    fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_some())
}

/// Makes an empty directory for PostgreSQL's user alone, in place of what an earlier attempt left.
pub(super) fn make_afresh(instance: &Instance, directory: &Path) -> Result<(), PlaceError> {
    if directory.exists() {
        fs::remove_dir_all(directory).map_err(failed("removing", directory))?;
    }
    fs::create_dir_all(directory).map_err(failed("making", directory))?;
    let user = &instance.user;
    chown(directory, Some(user.uid), Some(user.gid)).map_err(failed("giving away", directory))?;
    fs::set_permissions(directory, fs::Permissions::from_mode(0o700))
        .map_err(failed("protecting", directory))
}

/// Makes everything on the volume durable.
pub(super) fn sync(instance: &Instance) -> Result<(), PlaceError> {
    let root = &instance.volume_root;
    File::open(root)
        .and_then(|root| Ok(nix::unistd::syncfs(root)?))
        .map_err(failed("syncing", root))
}

/// Renames, durably, what was made durable before.
pub(super) fn rename(instance: &Instance, from: &Path, to: &Path) -> Result<(), PlaceError> {
    sync(instance)?;
    fs::rename(from, to).map_err(failed("renaming", from))?;
    sync(instance)
}

/// Two directories change names at once, durably; what is in them was made durable before.
pub(super) fn exchange(instance: &Instance, one: &Path, other: &Path) -> Result<(), PlaceError> {
    sync(instance)?;
    renameat2(AT_FDCWD, one, AT_FDCWD, other, RenameFlags::RENAME_EXCHANGE)
        .map_err(|errno| failed("exchanging", one)(errno.into()))?;
    sync(instance)
}

/// Puts a directory aside under a name that says so and is free; returns that.
pub(super) fn put_aside(
    instance: &Instance,
    directory: &Path,
    label: &str,
) -> Result<PathBuf, PlaceError> {
    let to = free_name(&beside(instance, &format!("{OLD}{label}")));
    rename(instance, directory, &to)?;
    Ok(to)
}

/// This name, or it with the first number that makes it a name of nothing.
pub(super) fn free_name(path: &Path) -> PathBuf {
    let numbered = |number: u32| {
        let mut name = OsString::from(path);
        name.push(format!("-{number}"));
        PathBuf::from(name)
    };
    let mut names = std::iter::once(path.to_owned()).chain((2..).map(numbered));
    names
        .find(|name| fs::symlink_metadata(name).is_err())
        .unwrap_or_else(|| path.to_owned())
}

/// How many bytes are free on the volume for PostgreSQL's user.
pub(super) fn free_bytes(instance: &Instance) -> Result<u64, PlaceError> {
    let root = &instance.volume_root;
    let about = nix::sys::statvfs::statvfs(root)
        .map_err(|errno| failed("looking at the space on", root)(errno.into()))?;
    Ok(about.blocks_available() * about.fragment_size())
}

/// The copies of the database that a base backup replaced and that are kept for the operator, oldest name first.
pub fn old_copies(instance: &Instance) -> Result<Vec<PathBuf>, PlaceError> {
    let parent = instance.data_directory.parent().unwrap_or(Path::new("/"));
    let begins = beside(instance, OLD);
    let entries = fs::read_dir(parent).map_err(failed("listing", parent))?;
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed("listing", parent))?.path();
        let name = path.as_os_str().as_encoded_bytes();
        if name.starts_with(begins.as_os_str().as_encoded_bytes()) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_free_name_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let wanted = directory.path().join("x");
        assert_eq!(free_name(&wanted), wanted);
        fs::create_dir(&wanted).unwrap();
        fs::create_dir(directory.path().join("x-2")).unwrap();
        assert_eq!(free_name(&wanted), directory.path().join("x-3"));
    }
}
