//! How far a copy of the primary's database is, for whoever shows it.

use std::fmt;
use std::time::Duration;

use fencing::Mono;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::program::progress;
use crate::clock;

/// Between two lines of the log about one copy.
const LOG_EVERY: Duration = Duration::from_secs(60);

/// What copies the primary's database, or brings an older copy back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CopiedBy {
    /// `pg_basebackup`.
    BaseBackup,
    /// The program of `replication.seed`. What it has written is what the volume has less free.
    BackupTool,
    /// `pg_rewind`: only what differs is copied.
    Rewind,
}

impl fmt::Display for CopiedBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BaseBackup => "pg_basebackup",
            Self::BackupTool => "replication.seed",
            Self::Rewind => "pg_rewind",
        })
    }
}

/// How far a copy is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// What copies.
    pub by: CopiedBy,
    /// Bytes that have arrived.
    pub done: u64,
    /// Bytes in all, by the program's own estimate; 0 as long as nobody knows.
    pub total: u64,
    /// Why not by the backup tool that is configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instead: Option<String>,
}

/// Where the progress of a copy is shown; `None` while none is under way.
pub type Shown = watch::Sender<Option<Progress>>;

/// One copy on its way. It is shown for as long as this exists, however it ends.
pub(super) struct Meter<'a> {
    shown: &'a Shown,
    now: Progress,
    logged: Mono,
}

impl<'a> Meter<'a> {
    /// A copy begins; `instead`: see [`Progress`].
    pub fn start(shown: &'a Shown, by: CopiedBy, instead: Option<String>) -> Self {
        let (done, total) = (0, 0);
        let now = Progress {
            by,
            done,
            total,
            instead,
        };
        shown.send_replace(Some(now.clone()));
        Self {
            shown,
            now,
            logged: clock::now(),
        }
    }

    /// It has said this: lines that count, among others.
    pub fn read(&mut self, said: &str) {
        if let Some((done, total)) = said.lines().rev().find_map(progress) {
            self.show(done, total);
        }
    }

    /// It is that far.
    pub fn show(&mut self, done: u64, total: u64) {
        if (done, total) == (self.now.done, self.now.total) {
            return;
        }
        (self.now.done, self.now.total) = (done, total);
        self.shown.send_replace(Some(self.now.clone()));
        let now = clock::now();
        if self.logged.elapsed(LOG_EVERY, now) {
            self.logged = now;
            tracing::info!(by = %self.now.by, done, total, "copying");
        }
    }
}

impl Drop for Meter<'_> {
    fn drop(&mut self) {
        self.shown.send_replace(None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_shown_only_while_a_copy_runs() {
        let shown = Shown::new(None);
        let mut meter = Meter::start(&shown, CopiedBy::BaseBackup, None);
        let of = |done, total| {
            let by = CopiedBy::BaseBackup;
            Some(Progress {
                by,
                done,
                total,
                instead: None,
            })
        };
        assert_eq!(*shown.borrow(), of(0, 0));
        meter.read("1/4 kB (25%), 0/1 tablespace\nsomething else");
        assert_eq!(*shown.borrow(), of(1 << 10, 4 << 10));
        drop(meter);
        assert_eq!(*shown.borrow(), None);
    }
}
