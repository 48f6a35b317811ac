//! Byte ranges on a namespace: bounds, splitting to the transfer limit, repeating after a
//! reconnect, and the truth about flushes.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::task::JoinSet;

use super::Backend;
use super::replay::with_replay;
use crate::Identified;

/// Most blocks of one command: NLB is a zero-based 16-bit number.
const MAX_COMMAND_BLOCKS: u32 = 1 << 16;

/// A namespace as a range of bytes. Errors are error numbers for the block layer.
pub struct Volume<B> {
    backend: Arc<B>,
    identified: Identified,
    path_loss: Duration,
    cache: Mutex<WriteCache>,
}

/// What is known of writes that a volatile cache may still hold.
///
/// A target that restarts loses them, and a flush on the new connection would succeed without
/// them: that flush must fail.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct WriteCache {
    /// The oldest association on which a write completed since the last successful flush.
    unflushed_since: Option<u64>,
}

impl WriteCache {
    fn wrote(&mut self, association: u64) {
        let oldest = self.unflushed_since.unwrap_or(association);
        self.unflushed_since = Some(oldest.min(association));
    }
}

impl<B: Backend> Volume<B> {
    /// The volume of an identified namespace.
    pub fn new(backend: Arc<B>, identified: Identified, path_loss: Duration) -> Self {
        Self {
            backend,
            identified,
            path_loss,
            cache: Mutex::default(),
        }
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.identified.blocks * u64::from(self.identified.block_size)
    }

    /// Logical block size in bytes.
    pub fn block_size(&self) -> u32 {
        self.identified.block_size
    }

    /// Reads `size` bytes at `offset`, both multiples of the block size.
    pub async fn read(&self, offset: u64, size: u32) -> Result<Bytes, i32> {
        let pieces = self.pieces(offset, u64::from(size), self.transfer_blocks())?;
        if let [piece] = pieces.as_slice() {
            return read_piece(&self.backend, piece, self.path_loss).await;
        }
        let mut reads = JoinSet::new();
        for piece in pieces {
            let (backend, path_loss) = (Arc::clone(&self.backend), self.path_loss);
            reads.spawn(async move {
                let data = read_piece(&backend, &piece, path_loss).await;
                (piece.start, data)
            });
        }
        let mut whole = BytesMut::zeroed(size as usize);
        let block = u64::from(self.block_size());
        while let Some(read) = reads.join_next().await {
            let (lba, data) = read.map_err(|_| libc::EIO)?;
            let data = data?;
            let at = (lba * block - offset) as usize;
            whole[at..at + data.len()].copy_from_slice(&data);
        }
        Ok(whole.freeze())
    }

    /// Writes whole blocks at `offset`. Returns when no part is under way any more, failed or not.
    pub async fn write(&self, offset: u64, data: Bytes) -> Result<(), i32> {
        let pieces = self.pieces(offset, data.len() as u64, self.transfer_blocks())?;
        if let [piece] = pieces.as_slice() {
            let association = write_piece(&self.backend, piece.start, data, self.path_loss).await?;
            self.wrote(association);
            return Ok(());
        }
        let mut writes = JoinSet::new();
        let block = u64::from(self.block_size());
        for piece in pieces {
            let (backend, path_loss) = (Arc::clone(&self.backend), self.path_loss);
            let from = (piece.start * block - offset) as usize;
            let to = (piece.end * block - offset) as usize;
            let part = data.slice(from..to);
            writes.spawn(async move { write_piece(&backend, piece.start, part, path_loss).await });
        }
        let mut outcome = Ok(());
        while let Some(write) = writes.join_next().await {
            match write.unwrap_or(Err(libc::EIO)) {
                Ok(association) => self.wrote(association),
                Err(errno) => outcome = Err(errno),
            }
        }
        outcome
    }

    /// Zeroes `length` bytes at `offset`; with `deallocate` the target may free the blocks, which
    /// then still read as zeros.
    pub async fn write_zeroes(
        &self,
        offset: u64,
        length: u64,
        deallocate: bool,
    ) -> Result<(), i32> {
        for piece in self.pieces(offset, length, MAX_COMMAND_BLOCKS)? {
            let blocks = (piece.end - piece.start) as u32;
            let (backend, lba) = (&self.backend, piece.start);
            let association = backend.association();
            with_replay(&**backend, self.path_loss, || {
                backend.write_zeroes(lba, blocks, deallocate)
            })
            .await?;
            self.wrote(association);
        }
        Ok(())
    }

    /// Makes all completed writes durable, or says that it could not.
    pub async fn flush(&self) -> Result<(), i32> {
        let before = std::mem::take(&mut *self.cache());
        let flushed = with_replay(&*self.backend, self.path_loss, || self.backend.flush()).await;
        // Read after the flush: if nothing changed since the oldest write, the flush ran on the
        // association that has the write.
        let association = self.backend.association();
        if let Err(errno) = flushed {
            if let Some(oldest) = before.unflushed_since {
                self.cache().wrote(oldest);
            }
            return Err(errno);
        }
        if self.identified.volatile_write_cache
            && before
                .unflushed_since
                .is_some_and(|oldest| oldest != association)
        {
            tracing::warn!("the path was lost between writes and their flush: the flush fails");
            return Err(libc::EIO);
        }
        Ok(())
    }

    /// Notes a completed write. `association` was read before the write was sent: too old errs on
    /// the safe side.
    fn wrote(&self, association: u64) {
        self.cache().wrote(association);
    }

    fn cache(&self) -> std::sync::MutexGuard<'_, WriteCache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn transfer_blocks(&self) -> u32 {
        (self.identified.max_transfer / self.block_size()).clamp(1, MAX_COMMAND_BLOCKS)
    }

    /// The range in blocks, in pieces of at most `most` blocks.
    fn pieces(&self, offset: u64, length: u64, most: u32) -> Result<Vec<Range<u64>>, i32> {
        let block = u64::from(self.block_size());
        if !offset.is_multiple_of(block) || !length.is_multiple_of(block) || length == 0 {
            return Err(libc::EINVAL);
        }
        let end = offset.checked_add(length).ok_or(libc::EINVAL)?;
        if end > self.size() {
            return Err(libc::EIO);
        }
        let (first, last) = (offset / block, end / block);
        Ok((first..last)
            .step_by(most as usize)
            .map(|start| start..last.min(start + u64::from(most)))
            .collect())
    }
}

async fn read_piece<B: Backend>(
    backend: &Arc<B>,
    piece: &Range<u64>,
    path_loss: Duration,
) -> Result<Bytes, i32> {
    let (lba, blocks) = (piece.start, (piece.end - piece.start) as u32);
    with_replay(&**backend, path_loss, || backend.read(lba, blocks)).await
}

/// Writes, and gives the number of the association before the first attempt.
async fn write_piece<B: Backend>(
    backend: &Arc<B>,
    lba: u64,
    data: Bytes,
    path_loss: Duration,
) -> Result<u64, i32> {
    let association = backend.association();
    with_replay(&**backend, path_loss, || {
        backend.write(lba, data.clone(), false)
    })
    .await?;
    Ok(association)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Namespace;
    use crate::memory::{Fault, MemoryNamespace};

    async fn volume() -> (Volume<MemoryNamespace>, Arc<MemoryNamespace>) {
        let backend = Arc::new(MemoryNamespace::new(4096, 4096));
        let identified = backend.identify().await.expect("memory answers");
        let volume = Volume::new(Arc::clone(&backend), identified, Duration::from_secs(5));
        (volume, backend)
    }

    #[tokio::test]
    async fn long_ranges_are_split_and_put_together() {
        let (volume, _backend) = volume().await;
        let data: Bytes = (0..1 << 20).map(|i: u32| (i / 4096 + i) as u8).collect();
        volume.write(8192, data.clone()).await.expect("write");
        assert_eq!(volume.read(8192, 1 << 20).await, Ok(data));
        volume.write_zeroes(8192, 4096, true).await.expect("zero");
        assert_eq!(
            volume.read(8192, 4096).await,
            Ok(Bytes::from(vec![0; 4096]))
        );
    }

    #[tokio::test]
    async fn ranges_that_are_not_on_the_volume_fail() {
        let (volume, _backend) = volume().await;
        let page = Bytes::from(vec![0; 4096]);
        assert_eq!(volume.read(1, 4096).await, Err(libc::EINVAL));
        assert_eq!(volume.read(0, 100).await, Err(libc::EINVAL));
        assert_eq!(volume.write(volume.size(), page).await, Err(libc::EIO));
        assert_eq!(volume.read(u64::MAX - 4095, 8192).await, Err(libc::EINVAL));
    }

    #[tokio::test]
    async fn a_broken_connection_repeats_the_write_and_fails_the_next_flush() {
        let (volume, backend) = volume().await;
        backend.set_fault(Some(Fault::NextWriteBreaks));
        let page = Bytes::from(vec![7; 4096]);
        volume
            .write(0, page.clone())
            .await
            .expect("the repeated write");
        assert_eq!(volume.read(0, 4096).await, Ok(page));
        assert_eq!(
            volume.flush().await,
            Err(libc::EIO),
            "the cache may be lost"
        );
        volume
            .flush()
            .await
            .expect("told once, and nothing unflushed since");
    }

    #[tokio::test]
    async fn a_flush_on_the_writes_own_association_succeeds() {
        let (volume, backend) = volume().await;
        volume
            .write(0, Bytes::from(vec![7; 4096]))
            .await
            .expect("write");
        volume.flush().await.expect("flush");
        backend.reconnect();
        volume.flush().await.expect("nothing is unflushed");
        assert_eq!(backend.flushes(), 2);
    }

    #[tokio::test]
    async fn a_conflict_is_not_repeated() {
        let (volume, backend) = volume().await;
        backend.set_fault(Some(Fault::WritesConflict));
        let page = Bytes::from(vec![7; 4096]);
        assert_eq!(volume.write(0, page).await, Err(libc::EBADE));
    }
}
