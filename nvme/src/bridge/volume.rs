//! Byte ranges on a namespace: bounds, splitting to the transfer limit, and repeating after a
//! reconnect.

use std::ops::Range;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::task::JoinSet;

use super::Backend;
use super::replay::with_replay;
use super::unflushed::{Change, WriteLog};
use crate::Identified;

/// Most blocks of one command: NLB is a zero-based 16-bit number.
const MAX_COMMAND_BLOCKS: u32 = 1 << 16;

/// A namespace as a range of bytes. Errors are error numbers for the block layer.
pub struct Volume<B> {
    backend: Arc<B>,
    identified: Identified,
    path_loss: Duration,
    log: Arc<WriteLog>,
}

impl<B: Backend> Volume<B> {
    /// The volume of an identified namespace.
    pub fn new(backend: Arc<B>, identified: Identified, path_loss: Duration) -> Self {
        let association = backend.association();
        let log = Arc::new(WriteLog::new(identified.volatile_write_cache, association));
        let unflushed: Weak<WriteLog> = Arc::downgrade(&log);
        backend.repeat_on_reconnect(unflushed);
        Self {
            backend,
            identified,
            path_loss,
            log,
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

    /// Whether what was written needs a flush to be durable.
    pub fn has_volatile_cache(&self) -> bool {
        self.identified.volatile_write_cache
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
        let block = u64::from(self.block_size());
        let changes = pieces.into_iter().map(|piece| {
            let from = (piece.start * block - offset) as usize;
            let to = (piece.end * block - offset) as usize;
            Change::Write {
                lba: piece.start,
                data: data.slice(from..to),
            }
        });
        self.change_all(changes.collect()).await
    }

    /// The same, and durable when it returns (FUA), as far as the target's cache goes.
    ///
    /// A durable write is not kept to be repeated. So it goes another way, plain and with a flush,
    /// where a kept change would be repeated over it.
    pub async fn write_durable(&self, offset: u64, data: Bytes) -> Result<(), i32> {
        let pieces = self.pieces(offset, data.len() as u64, self.transfer_blocks())?;
        if pieces
            .iter()
            .any(|piece| self.log.overlaps(piece, self.block_size()))
        {
            self.write(offset, data).await?;
            return self.flush().await;
        }
        let block = u64::from(self.block_size());
        for piece in pieces {
            let from = (piece.start * block - offset) as usize;
            let to = (piece.end * block - offset) as usize;
            let part = data.slice(from..to);
            with_replay(&*self.backend, self.path_loss, || {
                self.backend.write(piece.start, part.clone(), true)
            })
            .await?;
        }
        Ok(())
    }

    /// Zeroes `length` bytes at `offset`; with `deallocate` the target may free the blocks, which
    /// then still read as zeros.
    pub async fn write_zeroes(
        &self,
        offset: u64,
        length: u64,
        deallocate: bool,
    ) -> Result<(), i32> {
        let pieces = self.pieces(offset, length, MAX_COMMAND_BLOCKS)?;
        let changes = pieces.into_iter().map(|piece| Change::Zeroes {
            lba: piece.start,
            blocks: (piece.end - piece.start) as u32,
            deallocate,
        });
        self.change_all(changes.collect()).await
    }

    async fn change_all(&self, mut changes: Vec<Change>) -> Result<(), i32> {
        if self.log.is_full() {
            self.flush().await?;
        }
        if changes.len() == 1
            && let Some(only) = changes.pop()
        {
            return make(&self.backend, &self.log, only, self.path_loss).await;
        }
        let mut running = JoinSet::new();
        for change in changes {
            let (backend, log) = (Arc::clone(&self.backend), Arc::clone(&self.log));
            let path_loss = self.path_loss;
            running.spawn(async move { make(&backend, &log, change, path_loss).await });
        }
        let mut outcome = Ok(());
        while let Some(made) = running.join_next().await {
            outcome = outcome.and(made.unwrap_or(Err(libc::EIO)));
        }
        outcome
    }

    /// Makes all completed writes durable, or says that it could not.
    pub async fn flush(&self) -> Result<(), i32> {
        let mark = self.log.begin_flush()?;
        with_replay(&*self.backend, self.path_loss, || self.backend.flush()).await?;
        self.log.end_flush(mark)
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

/// Makes a change and keeps it until a flush covers it.
async fn make<B: Backend>(
    backend: &Arc<B>,
    log: &WriteLog,
    change: Change,
    path_loss: Duration,
) -> Result<(), i32> {
    loop {
        let association = backend.association();
        match &change {
            Change::Write { lba, data } => {
                with_replay(&**backend, path_loss, || {
                    backend.write(*lba, data.clone(), false)
                })
                .await?;
            }
            Change::Zeroes {
                lba,
                blocks,
                deallocate,
            } => {
                with_replay(&**backend, path_loss, || {
                    backend.write_zeroes(*lba, *blocks, *deallocate)
                })
                .await?;
            }
        }
        // Nobody above knows of the change yet, so that making it again overwrites nothing newer.
        if log.keep(association, change.clone()).is_ok() {
            return Ok(());
        }
    }
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
    async fn a_write_on_a_breaking_connection_is_repeated() {
        let (volume, backend) = volume().await;
        backend.set_fault(Some(Fault::NextWriteBreaks));
        let page = Bytes::from(vec![7; 4096]);
        volume
            .write(0, page.clone())
            .await
            .expect("the repeated write");
        assert_eq!(volume.read(0, 4096).await, Ok(page));
        volume.flush().await.expect("flush");
    }

    #[tokio::test]
    async fn what_a_restart_loses_from_the_cache_is_written_again() {
        let (volume, backend) = volume().await;
        let page = |byte| Bytes::from(vec![byte; 4096]);
        volume.write(0, page(1)).await.expect("write");
        volume.write(4096, page(2)).await.expect("write");
        volume.flush().await.expect("flush");
        volume.write(0, page(3)).await.expect("write");
        volume.write(0, page(4)).await.expect("write");
        volume.write_zeroes(4096, 4096, false).await.expect("zero");
        backend.lose_cache();
        assert_eq!(
            backend.repeated(),
            3,
            "what was flushed is not written again"
        );
        volume.flush().await.expect("flush");
        backend.lose_cache();
        assert_eq!(backend.repeated(), 3);
        assert_eq!(volume.read(0, 4096).await, Ok(page(4)));
        assert_eq!(volume.read(4096, 4096).await, Ok(page(0)));
    }

    #[tokio::test]
    async fn a_durable_write_survives_without_a_flush_and_no_older_write_comes_over_it() {
        let (volume, backend) = volume().await;
        let page = |byte| Bytes::from(vec![byte; 4096]);
        volume.write(4096, page(1)).await.expect("write");
        volume.write_durable(0, page(2)).await.expect("write");
        assert_eq!(backend.flushes(), 0);
        volume.write_durable(4096, page(3)).await.expect("write");
        assert_eq!(backend.flushes(), 1, "an older write of the block was kept");
        backend.lose_cache();
        assert_eq!(backend.repeated(), 0);
        assert_eq!(volume.read(0, 4096).await, Ok(page(2)));
        assert_eq!(volume.read(4096, 4096).await, Ok(page(3)));
    }

    #[tokio::test]
    async fn a_flush_fails_when_lost_writes_cannot_be_made_again() {
        let (volume, backend) = volume().await;
        volume
            .write(0, Bytes::from(vec![1; 4096]))
            .await
            .expect("write");
        backend.set_fault(Some(Fault::WritesConflict));
        backend.lose_cache();
        assert_eq!(volume.flush().await, Err(libc::EBADE));
        volume.flush().await.expect("told once");
    }

    #[tokio::test]
    async fn kept_writes_are_bounded() {
        let (volume, backend) = volume().await;
        for _ in 0..80 {
            volume
                .write(0, Bytes::from(vec![1; 1 << 20]))
                .await
                .expect("write");
        }
        assert!((2..8).contains(&backend.flushes()), "{}", backend.flushes());
    }

    #[tokio::test]
    async fn a_conflict_is_not_repeated() {
        let (volume, backend) = volume().await;
        backend.set_fault(Some(Fault::WritesConflict));
        let page = Bytes::from(vec![7; 4096]);
        assert_eq!(volume.write(0, page).await, Err(libc::EBADE));
    }
}
