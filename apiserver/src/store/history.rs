//! The last changes, oldest first. What has fallen out of it can neither be watched from nor
//! listed at: the client gets 410 and lists afresh.

use std::collections::VecDeque;
use std::sync::Arc;

use serde_json::Value;

use super::{Key, at_version};

/// One write.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    /// The resourceVersion that it made.
    pub version: u64,
    pub key: Key,
    pub before: Option<Arc<Value>>,
    pub after: Option<Arc<Value>>,
}

/// What a change means to one watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChangeKind {
    Added,
    Modified,
    Deleted,
}

impl Change {
    /// What a watch that selects by `matches` is told: an object that stops matching is gone
    /// for it, one that begins to match is new.
    pub(crate) fn seen_by(
        &self,
        matches: impl Fn(&Value) -> bool,
    ) -> Option<(ChangeKind, Arc<Value>)> {
        let before = self.before.as_ref().filter(|object| matches(object));
        let after = self.after.as_ref().filter(|object| matches(object));
        match (before, after) {
            (None, None) => None,
            (None, Some(after)) => Some((ChangeKind::Added, Arc::clone(after))),
            (Some(_), Some(after)) => Some((ChangeKind::Modified, Arc::clone(after))),
            (Some(before), None) => Some((ChangeKind::Deleted, at_version(before, self.version))),
        }
    }
}

/// A version of which the history is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooOld {
    pub wanted: u64,
    /// The oldest version from which changes can still be told.
    pub oldest: u64,
}

#[derive(Debug)]
pub(crate) struct History {
    changes: VecDeque<Change>,
    limit: usize,
    /// Every change after this version is in `changes`.
    complete_after: u64,
}

impl History {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            changes: VecDeque::new(),
            limit,
            complete_after: 0,
        }
    }

    pub(crate) fn push(&mut self, change: Change) {
        self.changes.push_back(change);
        while self.changes.len() > self.limit {
            if let Some(gone) = self.changes.pop_front() {
                self.complete_after = gone.version;
            }
        }
    }

    pub(crate) fn since(
        &self,
        version: u64,
    ) -> Result<impl DoubleEndedIterator<Item = &Change>, TooOld> {
        if version < self.complete_after {
            return Err(TooOld {
                wanted: version,
                oldest: self.complete_after,
            });
        }
        let from = self
            .changes
            .partition_point(|change| change.version <= version);
        Ok(self.changes.range(from..))
    }

    pub(crate) fn forget(&mut self, upto: u64) {
        self.changes.clear();
        self.complete_after = upto;
    }
}
