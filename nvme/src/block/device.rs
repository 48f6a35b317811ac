//! One block device: size, caches, direct reads, and whether anybody uses it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::{BlockError, raw};

/// Alignment of direct reads in bytes: at least the logical block size of every device in use.
const DIRECT_ALIGNMENT: usize = 4096;

/// An open block device.
#[derive(Debug)]
pub struct BlockDevice {
    file: File,
    path: PathBuf,
}

/// Who uses a block device, as far as an exclusive open tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    /// No file system is alive on it, in any mount namespace, and nobody else claims it.
    Free,
    /// A file system or another exclusive user holds it.
    InUse,
}

/// Probes with `O_EXCL` whether a file system is alive on the device in any mount namespace.
///
/// A lazily unmounted file system counts as alive, which is the point.
pub fn usage(path: &Path) -> Result<Usage, BlockError> {
    Ok(match claim(path)? {
        Some(_) => Usage::Free,
        None => Usage::InUse,
    })
}

/// Claims the device with `O_EXCL`: while the file is open no file system can be mounted from it or one of
/// its partitions, and nobody else can claim it. `None` where somebody has.
pub fn claim(path: &Path) -> Result<Option<File>, BlockError> {
    let claimed = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_EXCL | libc::O_CLOEXEC)
        .open(path);
    match claimed {
        Ok(file) => Ok(Some(file)),
        Err(e) if e.raw_os_error() == Some(libc::EBUSY) => Ok(None),
        Err(e) => Err(BlockError::system("exclusive open", path, e)),
    }
}

/// Whether opening a device failed because it is not there any more: no node, or nothing behind it.
pub fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOENT | libc::ENXIO | libc::ENODEV)
    )
}

/// The number that the kernel gives to each medium of a block device (`diskseq`, Linux 5.15): it
/// changes when a loop device is detached and attached anew. So the same path with another number
/// is another device, and nothing of the first one is alive any more. `None` where unknown.
pub fn disk_sequence(path: &Path) -> Option<u64> {
    let name = path.file_name()?;
    let number = Path::new("/sys/class/block").join(name).join("diskseq");
    std::fs::read_to_string(number).ok()?.trim().parse().ok()
}

impl BlockDevice {
    /// Opens for reads that bypass every cache (`O_DIRECT`).
    pub fn open_direct(path: &Path) -> Result<Self, BlockError> {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_DIRECT | libc::O_CLOEXEC)
            .open(path)
            .map_err(|e| BlockError::system("direct open", path, e))?;
        Ok(Self {
            file,
            path: path.to_owned(),
        })
    }

    /// A file that was opened with `O_DIRECT` already, and its path for texts.
    pub fn of_direct(file: File, path: &Path) -> Self {
        Self {
            file,
            path: path.to_owned(),
        }
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Size in bytes.
    pub fn size(&self) -> Result<u64, BlockError> {
        raw::size(self.file.as_fd()).map_err(|e| self.failed("BLKGETSIZE64", e))
    }

    /// Logical block size in bytes.
    pub fn logical_block_size(&self) -> Result<u32, BlockError> {
        raw::logical_block_size(self.file.as_fd()).map_err(|e| self.failed("BLKSSZGET", e))
    }

    /// Drops the device's page cache, **after writing its dirty pages back**: only for a device on
    /// which nothing dirty can be, or whose volume refuses this host's writes.
    pub fn drop_cache(&self) -> Result<(), BlockError> {
        raw::flush_buffers(self.file.as_fd()).map_err(|e| self.failed("BLKFLSBUF", e))
    }

    /// Reads `length` bytes at `offset` from the device itself; neither needs to be aligned.
    pub fn read_direct(&self, offset: u64, length: usize) -> Result<Vec<u8>, BlockError> {
        let skip = (offset % DIRECT_ALIGNMENT as u64) as usize;
        let start = offset - skip as u64;
        let span = (skip + length).next_multiple_of(DIRECT_ALIGNMENT);
        // Over-allocated, so that an aligned part of the wanted size lies inside.
        let mut buffer = vec![0_u8; span + DIRECT_ALIGNMENT];
        let shift = buffer.as_ptr().align_offset(DIRECT_ALIGNMENT);
        let aligned = &mut buffer[shift..shift + span];
        let read = self.read_until_end(start, aligned)?;
        if read < skip + length {
            return Err(BlockError::OutOfRange {
                path: self.path.clone(),
                end: offset + length as u64,
            });
        }
        Ok(aligned[skip..skip + length].to_vec())
    }

    /// Fills `buffer` as far as the device reaches; a short count means its end.
    fn read_until_end(&self, start: u64, buffer: &mut [u8]) -> Result<usize, BlockError> {
        let mut read = 0;
        while read < buffer.len() {
            match self.file.read_at(&mut buffer[read..], start + read as u64) {
                Ok(0) => break,
                Ok(n) => read += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(self.failed("direct read", e)),
            }
        }
        Ok(read)
    }

    fn failed(&self, operation: &'static str, source: io::Error) -> BlockError {
        BlockError::system(operation, &self.path, source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Files take O_DIRECT too on the file systems where tests run; tmpfs does since Linux 6.6.
    #[test]
    fn direct_reads_need_no_alignment_and_know_the_end() {
        let file = tempfile::NamedTempFile::new().expect("make a file");
        let content: Vec<u8> = (0..16384_u32).map(|i| (i % 251) as u8).collect();
        std::fs::write(file.path(), &content).expect("fill the file");
        let device = BlockDevice::open_direct(file.path()).expect("open it");
        for (offset, length) in [(0, 1), (1024, 1024), (4095, 2), (5000, 9000), (16383, 1)] {
            let read = device.read_direct(offset, length).expect("read");
            assert_eq!(read, content[offset as usize..offset as usize + length]);
        }
        let beyond = device.read_direct(16000, 1000);
        assert!(matches!(
            beyond,
            Err(BlockError::OutOfRange { end: 17000, .. })
        ));
    }
}
