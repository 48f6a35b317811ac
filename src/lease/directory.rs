//! The file operations of the store, all relative to one open directory.
//!
//! The directory is opened anew for every operation and first of all: when *it* is missing the store
//! is away, when only the file is missing no lease was ever made. Looking up the whole path at
//! once could not tell the two apart.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use fs2::FileExt;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, renameat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, linkat, unlinkat};

use super::document::FILE_MAX_BYTES;

/// Readable to all, as it holds no secret; writable to its owner.
const FILE_MODE: Mode = Mode::from_bits_truncate(0o644);

/// A lease file's place.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub directory: PathBuf,
    pub name: OsString,
}

impl Place {
    pub fn of(path: &Path) -> Self {
        Self {
            directory: path.parent().unwrap_or(Path::new("/")).to_owned(),
            name: path.file_name().unwrap_or(OsStr::new("lease")).to_owned(),
        }
    }

    /// The name with a suffix: what lies beside the file.
    fn beside(&self, suffix: &str) -> OsString {
        let mut name = self.name.clone();
        name.push(suffix);
        name
    }

    /// Opens the directory; an error means that the store is away.
    pub fn open(&self) -> io::Result<Directory<'_>> {
        let directory = File::open(&self.directory)?;
        if !directory.metadata()?.is_dir() {
            return Err(io::Error::from(io::ErrorKind::NotADirectory));
        }
        Ok(Directory {
            place: self,
            directory,
        })
    }
}

/// The open directory.
pub(super) struct Directory<'p> {
    place: &'p Place,
    directory: File,
}

/// How far a replacement got when it failed.
pub(super) enum ReplaceError {
    /// The old file is untouched.
    NotDone(io::Error),
    /// The new file is in place, but perhaps not durable.
    NotDurable,
}

impl Directory<'_> {
    fn at(&self, name: &OsStr, flags: OFlag) -> nix::Result<OwnedFd> {
        openat(&self.directory, name, flags | OFlag::O_CLOEXEC, FILE_MODE)
    }

    /// The file's bytes; none if there is no file.
    pub fn read(&self) -> io::Result<Option<Vec<u8>>> {
        let file = match self.at(&self.place.name, OFlag::O_RDONLY) {
            Ok(file) => File::from(file),
            Err(Errno::ENOENT) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        let mut bytes = Vec::new();
        file.take(FILE_MAX_BYTES).read_to_end(&mut bytes)?;
        Ok(Some(bytes))
    }

    /// Waits for the lock that every writer takes; dropping the file gives it back. It is a sibling,
    /// because the lease file itself is replaced by each write.
    pub fn lock(&self) -> io::Result<File> {
        let lock = self.at(&self.place.beside(".lock"), OFlag::O_RDWR | OFlag::O_CREAT)?;
        let lock = File::from(lock);
        lock.lock_exclusive()?;
        Ok(lock)
    }

    /// Puts a new file in the old one's place, under the lock. Order: the new bytes are durable
    /// before the name points to them; the name is durable before we say "done".
    pub fn replace(&self, bytes: &[u8], first: bool) -> Result<(), ReplaceError> {
        let new = self.place.beside(".new");
        self.write_new(&new, bytes).map_err(ReplaceError::NotDone)?;
        let name = self.place.name.as_os_str();
        let moved = if first {
            // Fails where a file exists: the first lease of a site is made exactly once.
            linkat(
                &self.directory,
                new.as_os_str(),
                &self.directory,
                name,
                AtFlags::empty(),
            )
            .and_then(|()| unlinkat(&self.directory, new.as_os_str(), UnlinkatFlags::NoRemoveDir))
        } else {
            renameat(&self.directory, new.as_os_str(), &self.directory, name)
        };
        moved.map_err(|errno| ReplaceError::NotDone(errno.into()))?;
        self.directory
            .sync_all()
            .map_err(|_| ReplaceError::NotDurable)
    }

    fn write_new(&self, new: &OsStr, bytes: &[u8]) -> io::Result<()> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC;
        let mut file = File::from(self.at(new, flags)?);
        file.write_all(bytes)?;
        file.sync_all()
    }
}
