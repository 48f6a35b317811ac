//! The file behind a namespace, with a volatile write cache in front of it if configured.
//!
//! Blocking calls. Without the cache a write is in the file (that is, in the host's page cache) on
//! return, and a flush is fdatasync. With it, a write is in memory only until a flush, a forced unit
//! access or an overflow writes it back; [`Storage::power_loss`] drops what was not written back.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use nix::fcntl::{FallocateFlags, fallocate};

use super::cache::{Content, DirtyMap, Extent, write_zeros};

/// Most extents in the cache: bounds the memory for their bookkeeping.
const EXTENTS_MAX: usize = 64 * 1024;

/// Why a namespace's file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Opening, sizing or locking failed.
    #[error("cannot {operation} the namespace's file {}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Another target has it.
    #[error("the namespace's file {} is in use by another target", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The file exists with another size than the one asked for.
    #[error("the namespace's file {} has {had} bytes, not {wanted}: nothing was changed", path.display())]
    OtherSize {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        had: u64,
        /// The size asked for.
        wanted: u64,
    },
    /// No size to use.
    #[error("the namespace's file {} needs a size that is a multiple of {block_size} bytes, and not 0; it has {had}", path.display())]
    BadSize {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        had: u64,
        /// Logical block size in bytes.
        block_size: u32,
    },
}

/// The file and its cache.
pub struct Storage {
    file: File,
    size: u64,
    cache: Option<Cache>,
}

struct Cache {
    limit: usize,
    layers: Mutex<Layers>,
    /// One write-back at a time: two could put an older extent over a newer one.
    write_back: Mutex<()>,
}

#[derive(Default)]
struct Layers {
    /// Power losses so far: a write that began before one does not land after it.
    generation: u64,
    dirty: DirtyMap,
    /// What a write-back is taking to the file: below `dirty`, above the file.
    leaving: Arc<DirtyMap>,
}

impl Storage {
    /// Opens and locks the file, creating it with `size` bytes if it is absent or empty.
    /// `cache_limit`: bytes of the volatile write cache, `None` for no cache.
    pub fn open(
        path: &Path,
        size: Option<u64>,
        block_size: u32,
        cache_limit: Option<usize>,
    ) -> Result<Self, OpenError> {
        let failed = |operation| {
            move |source| OpenError::Io {
                operation,
                path: path.to_owned(),
                source,
            }
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(size.is_some())
            .truncate(false)
            .open(path)
            .map_err(failed("open"))?;
        file.try_lock().map_err(|_| OpenError::InUse {
            path: path.to_owned(),
        })?;
        let mut had = file.metadata().map_err(failed("inspect"))?.len();
        if let Some(wanted) = size.filter(|wanted| *wanted != had) {
            if had != 0 {
                let path = path.to_owned();
                return Err(OpenError::OtherSize { path, had, wanted });
            }
            file.set_len(wanted).map_err(failed("size"))?;
            had = wanted;
        }
        if had == 0 || had % u64::from(block_size) != 0 {
            let path = path.to_owned();
            return Err(OpenError::BadSize {
                path,
                had,
                block_size,
            });
        }
        let cache = cache_limit.map(|limit| Cache {
            limit,
            layers: Mutex::default(),
            write_back: Mutex::default(),
        });
        Ok(Self {
            file,
            size: had,
            cache,
        })
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes that a power loss would lose now.
    pub fn dirty_bytes(&self) -> usize {
        self.cache.as_ref().map_or(0, |cache| {
            let layers = cache.layers();
            layers.dirty.data_bytes() + layers.leaving.data_bytes()
        })
    }

    /// Power losses so far: to be given to the writes that begin now.
    pub fn generation(&self) -> u64 {
        self.cache
            .as_ref()
            .map_or(0, |cache| cache.layers().generation)
    }

    /// Reads `length` bytes.
    pub fn read(&self, offset: u64, length: usize) -> io::Result<Bytes> {
        // The overlay is taken before the file is read: what a write-back moves meanwhile is in it.
        let overlay = self.cache.as_ref().map(|cache| {
            let layers = cache.layers();
            let end = offset + length as u64;
            let mut overlay = layers.leaving.overlapping(offset, end);
            overlay.extend(layers.dirty.overlapping(offset, end));
            overlay
        });
        let mut buffer = vec![0; length];
        self.file.read_exact_at(&mut buffer, offset)?;
        for extent in overlay.into_iter().flatten() {
            extent.copy_to(offset, &mut buffer);
        }
        Ok(buffer.into())
    }

    /// Writes; `generation` is from when the command began. After a power loss it is an error.
    pub fn write(&self, offset: u64, data: Bytes, generation: u64) -> io::Result<()> {
        let length = data.len() as u64;
        self.put(
            Extent {
                offset,
                length,
                content: Content::Data(data),
            },
            generation,
        )
    }

    /// Makes the range read as zeros, freeing its blocks where the filesystem can.
    pub fn write_zeros(&self, offset: u64, length: u64, generation: u64) -> io::Result<()> {
        self.put(
            Extent {
                offset,
                length,
                content: Content::Zeros,
            },
            generation,
        )
    }

    fn put(&self, extent: Extent, generation: u64) -> io::Result<()> {
        let Some(cache) = &self.cache else {
            return self.apply(&extent);
        };
        let full = {
            let mut layers = cache.layers();
            if layers.generation != generation {
                return Err(io::Error::other("the power was lost"));
            }
            layers.dirty.insert(extent);
            layers.dirty.data_bytes() > cache.limit || layers.dirty.extents() > EXTENTS_MAX
        };
        if full { self.write_back(cache) } else { Ok(()) }
    }

    /// Makes all completed writes durable.
    pub fn flush(&self) -> io::Result<()> {
        if let Some(cache) = &self.cache {
            self.write_back(cache)?;
        }
        self.file.sync_data()
    }

    /// Loses what was not written back. Without a cache nothing is lost.
    pub fn power_loss(&self) {
        let Some(cache) = &self.cache else { return };
        // A write-back under way is let finish: its data had reached the medium.
        let _alone = lock(&cache.write_back);
        let mut layers = cache.layers();
        layers.generation += 1;
        layers.dirty = DirtyMap::default();
        layers.leaving = Arc::default();
    }

    /// Takes the dirty extents to the file. If that fails they stay dirty for the next attempt.
    fn write_back(&self, cache: &Cache) -> io::Result<()> {
        let _alone = lock(&cache.write_back);
        let leaving = {
            let mut layers = cache.layers();
            layers.leaving = Arc::new(std::mem::take(&mut layers.dirty));
            Arc::clone(&layers.leaving)
        };
        let result = leaving.iter().try_for_each(|extent| self.apply(extent));
        let mut layers = cache.layers();
        layers.leaving = Arc::default();
        if result.is_err() {
            // Below the writes that came meanwhile.
            let newer = std::mem::replace(&mut layers.dirty, DirtyMap::clone(&leaving));
            newer
                .iter()
                .for_each(|extent| layers.dirty.insert(extent.clone()));
        }
        result
    }

    fn apply(&self, extent: &Extent) -> io::Result<()> {
        match &extent.content {
            Content::Data(data) => self.file.write_all_at(data, extent.offset),
            Content::Zeros => self.punch(extent.offset, extent.length),
        }
    }

    fn punch(&self, offset: u64, length: u64) -> io::Result<()> {
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        match fallocate(&self.file, flags, offset as i64, length as i64) {
            Ok(()) => Ok(()),
            Err(nix::errno::Errno::EOPNOTSUPP | nix::errno::Errno::ENOSYS) => {
                write_zeros(offset, length, |at, zeros| {
                    self.file.write_all_at(zeros, at)
                })
            }
            Err(errno) => Err(errno.into()),
        }
    }
}

impl Cache {
    fn layers(&self) -> MutexGuard<'_, Layers> {
        lock(&self.layers)
    }
}

/// A lock whose holder panicked protects plain data that every step leaves consistent.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(dir: &tempfile::TempDir, cache: Option<usize>) -> Storage {
        Storage::open(&dir.path().join("ns"), Some(1 << 20), 512, cache).unwrap()
    }

    fn write(storage: &Storage, offset: u64, byte: u8) {
        let data = Bytes::from(vec![byte; 512]);
        storage.write(offset, data, storage.generation()).unwrap();
    }

    #[test]
    fn power_loss_takes_exactly_what_was_not_flushed() {
        let dir = tempfile::tempdir().unwrap();
        let storage = open(&dir, Some(1 << 20));
        write(&storage, 0, 1);
        storage.flush().unwrap();
        write(&storage, 0, 2);
        write(&storage, 512, 2);
        assert_eq!(storage.read(0, 512).unwrap()[0], 2);
        assert_eq!(storage.dirty_bytes(), 1024);
        storage.power_loss();
        assert_eq!(storage.read(0, 512).unwrap()[0], 1);
        assert_eq!(storage.read(512, 512).unwrap()[0], 0);
    }

    #[test]
    fn a_write_from_before_the_power_loss_does_not_land_after_it() {
        let dir = tempfile::tempdir().unwrap();
        let storage = open(&dir, Some(1 << 20));
        let before = storage.generation();
        storage.power_loss();
        storage
            .write(0, Bytes::from_static(&[7; 512]), before)
            .unwrap_err();
        assert_eq!(storage.read(0, 512).unwrap()[0], 0);
    }

    #[test]
    fn an_overflow_writes_back() {
        let dir = tempfile::tempdir().unwrap();
        let storage = open(&dir, Some(1024));
        for n in 0..3 {
            write(&storage, n * 512, 9);
        }
        assert_eq!(storage.dirty_bytes(), 0);
        storage.power_loss();
        assert_eq!(storage.read(1024, 512).unwrap()[0], 9);
    }

    #[test]
    fn zeros_go_over_data_and_back_to_the_file() {
        let dir = tempfile::tempdir().unwrap();
        for cache in [None, Some(1 << 20)] {
            let storage = open(&dir, cache);
            write(&storage, 0, 5);
            write(&storage, 512, 5);
            storage.write_zeros(0, 512, storage.generation()).unwrap();
            storage.flush().unwrap();
            assert_eq!(storage.read(0, 512).unwrap()[..], [0; 512]);
            assert_eq!(storage.read(512, 512).unwrap()[..], [5; 512]);
        }
    }

    #[test]
    fn a_file_in_use_or_of_another_size_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ns");
        let first = open(&dir, None);
        let second = Storage::open(&path, None, 512, None);
        assert!(matches!(second, Err(OpenError::InUse { .. })));
        drop(first);
        let other = Storage::open(&path, Some(4096), 512, None);
        assert!(matches!(other, Err(OpenError::OtherSize { .. })));
        let odd = Storage::open(&path, None, 1 << 21, None);
        assert!(matches!(odd, Err(OpenError::BadSize { .. })));
    }
}
