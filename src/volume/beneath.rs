//! Files of the mounted volume, which whoever runs PostgreSQL there can turn into anything.
//!
//! The process that mounts has more rights than the one that writes there: a link, a FIFO or a device in the
//! place of a file must lead it nowhere. So every name is resolved by the kernel beneath the volume's root,
//! through no link and on no other filesystem; only regular files are opened, and never more is read than a
//! file of its kind can have. What a file holds is not for error texts.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// How a name is resolved (openat2(2), Linux 5.6).
const RESOLVE: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// For everything that is opened for more than its name. A FIFO does not block.
const OPEN: OFlags = OFlags::CLOEXEC
    .union(OFlags::NOFOLLOW)
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOCTTY);

/// For a look at what a name is.
const NAME: OFlags = OFlags::PATH.union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);

/// How often a name with `..` is tried while others rename directories.
const TRIES: u32 = 8;

/// What a name is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nothing has this name.
    Absent,
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link, and where it says that it leads.
    Link(PathBuf),
    /// A FIFO, a device or a socket.
    Other,
}

/// A directory that is open, and what lies beneath it. All paths are relative to it.
#[derive(Debug)]
pub struct Beneath {
    root: OwnedFd,
    path: PathBuf,
}

impl Beneath {
    /// Opens a directory that nobody but an operator can replace. Its own name is no link.
    ///
    /// # Errors
    /// It cannot be opened, or is no directory.
    pub fn at(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(Self {
            root: rustix::fs::open(path, flags, Mode::empty())?,
            path: path.to_owned(),
        })
    }

    /// Opens a directory by a path on whose way, and at whose end, an operator may have put links.
    ///
    /// # Errors
    /// As [`Beneath::at`].
    pub fn resolved(path: &Path) -> io::Result<Self> {
        Self::at(&std::fs::canonicalize(path)?)
    }

    /// The path by which it was opened: for texts.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The open directory.
    pub fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// A second descriptor.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            root: self.root.try_clone()?,
            path: self.path.clone(),
        })
    }

    /// What a name is.
    ///
    /// # Errors
    /// It cannot be looked at, or a link or another filesystem is on the way to it.
    pub fn kind(&self, path: &Path) -> io::Result<Kind> {
        let name = match self.open(path, NAME, Mode::empty()) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Kind::Absent),
            opened => opened?,
        };
        let about = rustix::fs::fstat(&name)?;
        Ok(match FileType::from_raw_mode(about.st_mode) {
            FileType::RegularFile => Kind::File,
            FileType::Directory => Kind::Directory,
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(&name, "", Vec::new())?;
                Kind::Link(OsString::from_vec(target.into_bytes()).into())
            }
            _ => Kind::Other,
        })
    }

    /// The whole of a regular file of at most `most` bytes.
    ///
    /// # Errors
    /// It cannot be read, is no regular file, or is longer.
    pub fn read(&self, path: &Path, most: u64) -> io::Result<Vec<u8>> {
        let file = self.file(path, OFlags::empty())?;
        let mut content = Vec::new();
        file.take(most + 1).read_to_end(&mut content)?;
        if content.len() as u64 > most {
            return Err(ErrorKind::FileTooLarge.into());
        }
        Ok(content)
    }

    /// A regular file for reading past the page cache.
    ///
    /// # Errors
    /// It cannot be opened so, or is no regular file.
    pub fn open_direct(&self, path: &Path) -> io::Result<File> {
        self.file(path, OFlags::DIRECT)
    }

    /// The names in a directory, at most `most` of them.
    ///
    /// # Errors
    /// It cannot be read, or is no directory.
    pub fn names(&self, path: &Path, most: usize) -> io::Result<Vec<OsString>> {
        let flags = OPEN | OFlags::RDONLY | OFlags::DIRECTORY;
        let directory = self.open(path, flags, Mode::empty())?;
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::new(directory)? {
            let name = entry?.file_name().to_owned();
            if name.as_bytes() == b"." || name.as_bytes() == b".." {
                continue;
            }
            if names.len() == most {
                break;
            }
            names.push(OsString::from_vec(name.into_bytes()));
        }
        Ok(names)
    }

    /// Replaces a file right in this directory, durably: the file, then its name.
    ///
    /// # Errors
    /// The system refuses: the earlier file stands.
    pub fn replace(&self, name: &str, content: &[u8]) -> io::Result<()> {
        let fresh = format!(".{name}.new");
        match rustix::fs::unlinkat(&self.root, &fresh, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
        let flags = OPEN | OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        let mode = Mode::from_raw_mode(0o644);
        let mut file = File::from(self.open(Path::new(&fresh), flags, mode)?);
        file.write_all(content)?;
        file.sync_all()?;
        rustix::fs::renameat(&self.root, &fresh, &self.root, name)?;
        Ok(rustix::fs::fsync(&self.root)?)
    }

    /// Gives the directory itself away.
    ///
    /// # Errors
    /// The system refuses.
    pub fn give_to(&self, (user, group): (u32, u32)) -> io::Result<()> {
        std::os::unix::fs::fchown(&self.root, Some(user), Some(group))
    }

    fn file(&self, path: &Path, flags: OFlags) -> io::Result<File> {
        let opened = self.open(path, OPEN | OFlags::RDONLY | flags, Mode::empty())?;
        let file = File::from(opened);
        match file.metadata()?.is_file() {
            true => Ok(file),
            false => Err(io::Error::other("this is no regular file")),
        }
    }

    fn open(&self, path: &Path, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
        let path = match path.as_os_str() {
            empty if empty.is_empty() => OsStr::new("."),
            path => path,
        };
        for _ in 1..TRIES {
            match rustix::fs::openat2(&self.root, path, flags, mode, RESOLVE) {
                Err(Errno::AGAIN) => {}
                opened => return opened.map_err(explained),
            }
        }
        rustix::fs::openat2(&self.root, path, flags, mode, RESOLVE).map_err(explained)
    }
}

/// What the kernel's refusals mean here.
fn explained(error: Errno) -> io::Error {
    match error {
        Errno::LOOP => io::Error::other("a symbolic link is in the way: it is not followed"),
        Errno::XDEV => io::Error::other("it leads outside the volume"),
        error => error.into(),
    }
}

#[cfg(test)]
mod tests;
