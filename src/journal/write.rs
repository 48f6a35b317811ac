//! Writes the journal from a thread of its own: a slow disk costs lines, never the loop's time.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::mem::{Discriminant, discriminant};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use fencing::Mono;

use super::{Decided, Entry};
use crate::clock;
use crate::config;
use crate::decide::{self, Action, Decision, Incarnation, Memory, Observation, Reason};

/// Lines that may wait for the disk: some seconds of the liveliest hand-over.
const QUEUE: usize = 256;

/// How long the end of the process waits for the last lines.
const FAREWELL: Duration = Duration::from_secs(1);

/// Why the journal cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("open the journal {}: it must be a file that can be written (journal.path)", path.display())]
pub struct JournalError {
    /// The file.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// The member's journal.
pub struct Journal {
    lines: Option<mpsc::SyncSender<String>>,
    finished: mpsc::Receiver<()>,
    lost: u64,
    last: Option<Discriminant<Reason>>,
}

impl Journal {
    /// Opens the file, making it and its directory where needed, and notes that a run begins.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn open(config: &config::Config, incarnation: Incarnation) -> Result<Self, JournalError> {
        let path = config.journal.path.clone();
        let start = Entry::Start {
            at: clock::wall(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            member: config.member.clone(),
            incarnation,
            config: Box::new(config.for_decisions()),
        };
        let failed = |source| JournalError {
            path: path.clone(),
            source,
        };
        let start = encode(&start).map_err(failed)?;
        let (lines, queue) = mpsc::sync_channel(QUEUE);
        let (ended, finished) = mpsc::channel();
        let mut writer = Writer::open(&path, config.journal.max_bytes, start).map_err(failed)?;
        let thread = std::thread::Builder::new().name("journal".to_owned());
        thread
            .spawn(move || {
                writer.run(&queue);
                drop(ended);
            })
            .map_err(failed)?;
        Ok(Self {
            lines: Some(lines),
            finished,
            lost: 0,
            last: None,
        })
    }

    /// Notes a decision if it changed something: a step, the role, the reason, an answer, or a step's
    /// end. Never waits.
    pub fn record(
        &mut self,
        memory: &Memory,
        observation: &Observation,
        now: Mono,
        decision: &Decision,
    ) {
        let reason = discriminant(&decision.reason);
        let news = self.last.replace(reason) != Some(reason);
        if !news && !changed_something(memory, decision) {
            return;
        }
        let decided = Decided {
            at: clock::wall(),
            now,
            memory: memory.clone(),
            observation: observation.clone(),
            decision: decision.clone(),
        };
        self.write(&Entry::Decision(Box::new(decided)));
    }

    fn write(&mut self, entry: &Entry) {
        if self.lost > 0 && self.push(&Entry::Lost { count: self.lost }) {
            self.lost = 0;
        }
        if !self.push(entry) {
            self.lost += 1;
        }
    }

    fn push(&self, entry: &Entry) -> bool {
        let line = encode(entry);
        let Some(lines) = &self.lines else {
            return false;
        };
        line.is_ok_and(|line| lines.try_send(line).is_ok())
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.lines = None;
        // Ends by disconnection when the thread has written everything; a hung disk is left behind.
        let _ = self.finished.recv_timeout(FAREWELL);
    }
}

/// Whether more than time has passed. Beats, heartbeats and renewals come all the time.
fn changed_something(memory: &Memory, decision: &Decision) -> bool {
    let decide::Decision {
        memory: after,
        actions,
        reason: _,
        wake: _,
    } = decision;
    let acts = actions.iter().any(|action| match action {
        Action::Begin(_)
        | Action::PublishRole { .. }
        | Action::Reload { .. }
        | Action::WriteCluster { .. }
        | Action::Answer { .. }
        | Action::Exit => true,
        Action::Beat { .. }
        | Action::WriteLease { .. }
        | Action::Publish(_)
        | Action::RefreshCluster
        | Action::Refresh { .. } => false,
    });
    acts || memory.role != after.role || memory.issued != after.issued
}

fn encode(entry: &Entry) -> io::Result<String> {
    let mut line = serde_json::to_string(entry)?;
    line.push('\n');
    Ok(line)
}

/// The thread's side.
struct Writer {
    path: PathBuf,
    file: File,
    size: u64,
    max: u64,
    /// The line that every file begins with.
    start: String,
    /// The file ends in the middle of a line: after a crash, or a failed write.
    torn: bool,
    complained: bool,
}

impl Writer {
    fn open(path: &Path, max: u64, start: String) -> io::Result<Self> {
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory)?;
        }
        let (file, torn) = open(path)?;
        let size = file.metadata()?.len();
        let mut writer = Self {
            path: path.to_owned(),
            file,
            size,
            max,
            start: start.clone(),
            torn,
            complained: false,
        };
        writer.append(&start)?;
        Ok(writer)
    }

    fn run(&mut self, queue: &mpsc::Receiver<String>) {
        while let Ok(line) = queue.recv() {
            match self.write(&line) {
                Ok(()) => self.complained = false,
                Err(error) if !self.complained => {
                    self.complained = true;
                    tracing::error!(path = %self.path.display(), %error, "write the journal");
                }
                Err(_) => {}
            }
        }
    }

    fn write(&mut self, line: &str) -> io::Result<()> {
        if self.size > 0 && self.size + line.len() as u64 > self.max {
            self.rotate()?;
        }
        self.append(line)
    }

    /// The file becomes the older one; the one that was older is gone.
    fn rotate(&mut self) -> io::Result<()> {
        std::fs::rename(&self.path, older(&self.path))?;
        (self.file, self.torn) = open(&self.path)?;
        self.size = 0;
        let start = self.start.clone();
        self.append(&start)
    }

    fn append(&mut self, line: &str) -> io::Result<()> {
        let end = if self.torn { "\n" } else { "" };
        let text = format!("{end}{line}");
        // Until it is whole it may be torn.
        self.torn = true;
        self.file.write_all(text.as_bytes())?;
        self.torn = false;
        self.size += text.len() as u64;
        Ok(())
    }
}

/// Opens for appending; whether the last line was cut.
fn open(path: &Path) -> io::Result<(File, bool)> {
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .read(true)
        .open(path)?;
    let mut last = [b'\n'];
    if file.metadata()?.len() > 0 {
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
    }
    Ok((file, last != *b"\n"))
}

/// Where the file before this one is kept.
pub(super) fn older(path: &Path) -> PathBuf {
    let mut older = path.as_os_str().to_owned();
    older.push(".1");
    older.into()
}
