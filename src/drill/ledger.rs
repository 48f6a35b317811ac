//! The ledger: what the writer claims that PostgreSQL acknowledged.
//!
//! An append-only text file outside the volume, one line a row: `A` (acknowledged) or `U` (fate
//! unknown), connection, number, milliseconds of `Mono`. A line is claimed only once it is durable:
//! one thread writes what has gathered, syncs it, and only then counts it. What the file does not
//! hold as a complete line is not claimed, so a crash of the writer can lose claims, never add one.
//! Verification reads the file, not the writer's memory.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use tokio::sync::mpsc;

use crate::clock::Mono;

/// Lines that may wait for their sync, over all connections. A full queue holds the writers back,
/// so that memory stays bounded when the ledger's disk is slow.
const QUEUE: usize = 16_384;

/// A row that the writer tried to insert: unique, because a number is never tried twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Row {
    /// The writer's connection.
    pub connection: u16,
    /// The connection's running number.
    pub number: u64,
}

/// What the writer knows of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// PostgreSQL acknowledged its commit: it must be there for ever.
    Acknowledged,
    /// The session broke before an answer: it may be there or not.
    Unknown,
}

/// One line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What is known of the row.
    pub fate: Fate,
    /// Which row.
    pub row: Row,
    /// When the acknowledgement arrived, or the writer gave up.
    pub at: Mono,
}

/// Writing or reading a ledger failed.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The file could not be made, written, synced or read.
    #[error("ledger {path}")]
    Io {
        /// The ledger.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A complete line is none that this module writes.
    #[error("ledger {path}, line {line}: {text:?} is no entry")]
    Malformed {
        /// The ledger.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// The line.
        text: String,
    },
    /// An entry came after the thread had stopped, because of an error that `close` returns.
    #[error("ledger {path} takes no more entries")]
    Closed {
        /// The ledger.
        path: PathBuf,
    },
}

impl Entry {
    /// The entry's line, with its newline.
    fn to_line(self) -> String {
        let letter = match self.fate {
            Fate::Acknowledged => 'A',
            Fate::Unknown => 'U',
        };
        let Row { connection, number } = self.row;
        format!("{letter} {connection} {number} {}\n", self.at.as_millis())
    }

    fn from_line(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        let fate = match words.next()? {
            "A" => Fate::Acknowledged,
            "U" => Fate::Unknown,
            _ => return None,
        };
        let connection = words.next()?.parse().ok()?;
        let number = words.next()?.parse().ok()?;
        let at = Mono::from_millis(words.next()?.parse().ok()?);
        let row = Row { connection, number };
        words.next().is_none().then_some(Self { fate, row, at })
    }
}

/// Takes entries from many connections; its thread makes them durable in groups.
#[derive(Debug)]
pub struct Ledger {
    path: PathBuf,
    queue: mpsc::Sender<Entry>,
    durable: Arc<AtomicU64>,
    thread: JoinHandle<io::Result<()>>,
}

impl Ledger {
    /// Makes the file anew (it must not exist: an old ledger's claims are not ours to lose) and
    /// starts its thread.
    pub fn create(path: &Path) -> Result<Self, LedgerError> {
        let failed = |source| LedgerError::Io {
            path: path.to_owned(),
            source,
        };
        let file = OpenOptions::new()
            .append(true)
            .create_new(true)
            .open(path)
            .map_err(failed)?;
        sync_parent(path).map_err(failed)?;
        let (queue, entries) = mpsc::channel(QUEUE);
        let durable = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&durable);
        let thread = std::thread::Builder::new()
            .name("ledger".into())
            .spawn(move || make_durable(file, entries, &counter))
            .map_err(failed)?;
        Ok(Self {
            path: path.to_owned(),
            queue,
            durable,
            thread,
        })
    }

    /// A handle for one connection.
    pub fn recorder(&self) -> Recorder {
        Recorder {
            path: self.path.clone(),
            queue: self.queue.clone(),
        }
    }

    /// Acknowledged rows whose lines are durable by now.
    pub fn durable(&self) -> u64 {
        self.durable.load(Ordering::Relaxed)
    }

    /// Waits until every recorder is dropped and every line durable, then reads the file back.
    pub async fn close(self) -> Result<Vec<Entry>, LedgerError> {
        let Self {
            path,
            queue,
            durable: _,
            thread,
        } = self;
        drop(queue);
        let outcome = tokio::task::spawn_blocking(move || thread.join()).await;
        let outcome = match outcome {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) | Err(_) => Err(io::Error::other("its thread panicked")),
        };
        outcome.map_err(|source| LedgerError::Io {
            path: path.clone(),
            source,
        })?;
        read(&path)
    }
}

/// One connection's way to the ledger.
#[derive(Clone, Debug)]
pub struct Recorder {
    path: PathBuf,
    queue: mpsc::Sender<Entry>,
}

impl Recorder {
    /// Hands over one entry. It is claimed once its line is durable, not when this returns.
    pub async fn record(&self, entry: Entry) -> Result<(), LedgerError> {
        let sent = self.queue.send(entry).await;
        sent.map_err(|_| LedgerError::Closed {
            path: self.path.clone(),
        })
    }
}

/// The thread: write all that has gathered, sync, count; until every sender is gone.
fn make_durable(
    mut file: File,
    mut entries: mpsc::Receiver<Entry>,
    durable: &AtomicU64,
) -> io::Result<()> {
    while let Some(first) = entries.blocking_recv() {
        let mut lines = String::new();
        let mut acknowledged = 0;
        let mut next = Some(first);
        while let Some(entry) = next {
            lines.push_str(&entry.to_line());
            acknowledged += u64::from(entry.fate == Fate::Acknowledged);
            next = entries.try_recv().ok();
        }
        file.write_all(lines.as_bytes())?;
        file.sync_data()?;
        durable.fetch_add(acknowledged, Ordering::Relaxed);
    }
    Ok(())
}

/// Makes the file's name durable too.
fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent().filter(|parent| *parent != Path::new("")) {
        Some(parent) => File::open(parent)?.sync_all(),
        None => File::open(".")?.sync_all(),
    }
}

/// Every complete line of a ledger. A last line without its newline was never durable: no claim.
pub fn read(path: &Path) -> Result<Vec<Entry>, LedgerError> {
    let text = std::fs::read_to_string(path).map_err(|source| LedgerError::Io {
        path: path.to_owned(),
        source,
    })?;
    let complete = text.rfind('\n').map_or("", |end| &text[..end]);
    let lines = complete.split('\n').enumerate();
    lines
        .filter(|_| !complete.is_empty())
        .map(|(index, line)| {
            Entry::from_line(line).ok_or_else(|| LedgerError::Malformed {
                path: path.to_owned(),
                line: index + 1,
                text: line.to_owned(),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(number: u64) -> Entry {
        Entry {
            fate: if number.is_multiple_of(3) {
                Fate::Unknown
            } else {
                Fate::Acknowledged
            },
            row: Row {
                connection: (number % 4) as u16,
                number,
            },
            at: Mono::from_millis(1_000 + number),
        }
    }

    #[tokio::test]
    async fn what_was_recorded_is_read_back_after_close() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::create(&dir.path().join("ledger")).unwrap();
        let recorder = ledger.recorder();
        for number in 0..1_000 {
            recorder.record(entry(number)).await.unwrap();
        }
        drop(recorder);
        let entries = ledger.close().await.unwrap();
        assert_eq!(entries, (0..1_000).map(entry).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn an_existing_ledger_is_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        std::fs::write(&path, "A 1 1 1\n").unwrap();
        assert!(matches!(Ledger::create(&path), Err(LedgerError::Io { .. })));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "A 1 1 1\n");
    }

    #[test]
    fn a_torn_last_line_is_no_claim_and_a_foreign_line_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        for (text, expected) in [
            ("", Some(0)),
            ("A 1 1", Some(0)),
            ("A 1 1 7\n", Some(1)),
            ("A 1 1 7\nU 2 3 8\nA 1 2 1", Some(2)),
            ("A 1 1 7\n\nA 1 2 8\n", None),
            ("A 1 1 7 9\n", None),
            ("B 1 1 7\n", None),
        ] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(read(&path).ok().map(|e| e.len()), expected, "{text:?}");
        }
    }
}
