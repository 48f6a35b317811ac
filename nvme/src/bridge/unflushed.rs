//! Completed writes that no flush has covered yet, kept so that they can be repeated.
//!
//! A target that restarts may have lost what was in its volatile cache, and nothing on the new
//! connection tells. A flush there would succeed without those writes: an fsync that lied. So they
//! are written again on each new connection, in the order of their completion and before any other
//! command, as NFS clients do with unstable writes.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::replay::errno;
use crate::Error;

/// Bytes of writes kept before the bridge flushes by itself.
const MAX_KEPT: usize = 32 << 20;

/// A change of the namespace that can be made again with the same result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Write.
    Write {
        /// First logical block.
        lba: u64,
        /// Whole blocks.
        data: Bytes,
    },
    /// Write Zeroes.
    Zeroes {
        /// First logical block.
        lba: u64,
        /// Number of blocks.
        blocks: u32,
        /// Whether they may be deallocated.
        deallocate: bool,
    },
}

/// What must be repeated on a new connection; see [`super::Backend::repeat_on_reconnect`].
pub trait Unflushed: Send + Sync {
    /// The changes to repeat on the association that will have this number, oldest first. What
    /// completed on an earlier one and is not among them is made again by its own caller.
    fn begin(&self, association: u64) -> Vec<Change>;

    /// They were repeated, or one of them was refused.
    fn end(&self, outcome: Result<(), Error>);
}

/// The change completed on a connection after its successor was told what to repeat: it must be
/// made again.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Stale;

/// The kept changes of one volume.
pub(super) struct WriteLog {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Without a volatile cache nothing needs to be kept.
    volatile: bool,
    kept: VecDeque<Change>,
    bytes: usize,
    /// How many changes flushes have covered: the number of the first one kept.
    covered: u64,
    /// The association on which all kept changes are, at least in the cache.
    association: u64,
    /// Kept changes were refused: the next flush fails with this error number.
    lost: Option<i32>,
}

impl WriteLog {
    pub(super) fn new(volatile: bool, association: u64) -> Self {
        Self {
            state: Mutex::new(State {
                volatile,
                association,
                ..State::default()
            }),
        }
    }

    /// Keeps a change that completed. `association` was read before the command was sent: if that
    /// one has been replaced in between, nobody knows whether the change was in its cache.
    pub(super) fn keep(&self, association: u64, change: Change) -> Result<(), Stale> {
        let mut state = self.state();
        if !state.volatile {
            return Ok(());
        }
        if association < state.association {
            return Err(Stale);
        }
        state.bytes += size(&change);
        state.kept.push_back(change);
        Ok(())
    }

    /// Whether a kept change touches these blocks.
    pub(super) fn overlaps(&self, blocks: &Range<u64>, block_size: u32) -> bool {
        let touches = |change: &Change| {
            let (first, end) = match change {
                Change::Write { lba, data } => {
                    (*lba, lba + data.len() as u64 / u64::from(block_size))
                }
                Change::Zeroes { lba, blocks, .. } => (*lba, lba + u64::from(*blocks)),
            };
            first < blocks.end && blocks.start < end
        };
        self.state().kept.iter().any(touches)
    }

    /// Whether it is time for a flush.
    pub(super) fn is_full(&self) -> bool {
        self.state().bytes >= MAX_KEPT
    }

    /// Marks what a flush that begins now covers.
    pub(super) fn begin_flush(&self) -> Result<u64, i32> {
        let mut state = self.state();
        match state.lost.take() {
            Some(errno) => Err(errno),
            None => Ok(state.covered + state.kept.len() as u64),
        }
    }

    /// The flush succeeded.
    pub(super) fn end_flush(&self, mark: u64) -> Result<(), i32> {
        let mut state = self.state();
        if let Some(errno) = state.lost.take() {
            return Err(errno);
        }
        while state.covered < mark {
            let Some(change) = state.kept.pop_front() else {
                break;
            };
            state.bytes -= size(&change);
            state.covered += 1;
        }
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Unflushed for WriteLog {
    fn begin(&self, association: u64) -> Vec<Change> {
        let mut state = self.state();
        // From here on, changes of the old association come too late to be repeated.
        state.association = association;
        state.kept.iter().cloned().collect()
    }

    fn end(&self, outcome: Result<(), Error>) {
        let mut state = self.state();
        if let Err(error) = outcome {
            tracing::warn!(%error, "writes before the reconnect are lost: the next flush fails");
            state.lost = Some(errno(&error));
            state.covered += state.kept.len() as u64;
            state.kept.clear();
            state.bytes = 0;
        }
    }
}

/// What a change counts for in [`MAX_KEPT`], with something for its own bookkeeping.
fn size(change: &Change) -> usize {
    match change {
        Change::Write { data, .. } => data.len() + 128,
        Change::Zeroes { .. } => 128,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zero(lba: u64) -> Change {
        Change::Zeroes {
            lba,
            blocks: 1,
            deallocate: false,
        }
    }

    #[test]
    fn a_change_that_completes_while_others_are_repeated_is_stale() {
        let log = WriteLog::new(true, 1);
        log.keep(1, zero(1)).expect("in time");
        assert_eq!(log.begin(2), [zero(1)]);
        assert_eq!(log.keep(1, zero(2)), Err(Stale));
        log.end(Ok(()));
        log.keep(2, zero(2)).expect("made again");
        assert_eq!(log.begin(3), [zero(1), zero(2)]);
    }

    #[test]
    fn kept_changes_overlap_the_blocks_that_they_touch() {
        let log = WriteLog::new(true, 1);
        let data = Bytes::from(vec![0; 8192]);
        log.keep(1, Change::Write { lba: 4, data })
            .expect("in time");
        log.keep(1, zero(8)).expect("in time");
        for (blocks, expected) in [
            (0..4, false),
            (3..5, true),
            (5..6, true),
            (6..8, false),
            (7..9, true),
        ] {
            assert_eq!(log.overlaps(&blocks, 4096), expected, "{blocks:?}");
        }
    }

    #[test]
    fn a_flush_covers_what_was_complete_when_it_began() {
        let log = WriteLog::new(true, 1);
        log.keep(1, zero(1)).expect("in time");
        let mark = log.begin_flush().expect("nothing is lost");
        log.keep(1, zero(2)).expect("in time");
        log.end_flush(mark).expect("nothing is lost");
        assert_eq!(log.begin(2), [zero(2)]);
    }

    #[test]
    fn flushes_that_overlap_cover_no_more_than_each_saw() {
        let log = WriteLog::new(true, 1);
        let early = log.begin_flush().expect("nothing is lost");
        log.keep(1, zero(1)).expect("in time");
        let late = log.begin_flush().expect("nothing is lost");
        log.keep(1, zero(2)).expect("in time");
        log.end_flush(late).expect("nothing is lost");
        log.end_flush(early).expect("nothing is lost");
        assert_eq!(log.begin(2), [zero(2)]);
    }
}
