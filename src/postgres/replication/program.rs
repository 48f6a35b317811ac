//! PostgreSQL's own programs on the volume: `pg_basebackup`, `pg_rewind`, a single-user `postgres`.
//!
//! Each runs as the postmaster does: under `postgres-init`, as PostgreSQL's user, with the node's lock open. So
//! it dies with the member, an end proves that all its processes are gone, and nobody else takes the volume
//! while one of them lives.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fencing::Mono;

use crate::clock;
use crate::postgres::configuration::{self, ConfigurationError};
use crate::postgres::process::{End, Postmaster, Spawn, SpawnError};
use crate::postgres::{Instance, StartedBy};

/// Between two looks at what a program has said.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// How long the kernel is given to end a killed program: it may wait for the volume.
const KILL: Duration = Duration::from_secs(20);

/// How much of the end of what a program said is read, in bytes.
const TAIL: u64 = 4096;

/// Why a program did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// The directory for its log could not be made.
    #[error("preparing {program}")]
    Configuration {
        /// The program.
        program: &'static str,
        /// Why not.
        #[source]
        source: Box<ConfigurationError>,
    },
    /// Its log could not be made or read.
    #[error("keeping what {program} says in {}", path.display())]
    Log {
        /// The program.
        program: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It could not be started.
    #[error("starting {program}")]
    Spawn {
        /// The program.
        program: &'static str,
        /// Why not.
        #[source]
        source: SpawnError,
    },
    /// It failed.
    #[error("{program} {end}: {said}")]
    Failed {
        /// The program.
        program: &'static str,
        /// How it ended.
        end: End,
        /// The end of what it said.
        said: String,
    },
    /// It made no progress and was ended.
    #[error("{program} made no progress for {stall:?} and was ended: {said}")]
    Stalled {
        /// The program.
        program: &'static str,
        /// For how long.
        stall: Duration,
        /// The end of what it said.
        said: String,
    },
    /// It took too long and was ended.
    #[error("{program} did not end within {limit:?} and was ended: {said}")]
    Overdue {
        /// The program.
        program: &'static str,
        /// How long it had.
        limit: Duration,
        /// The end of what it said.
        said: String,
    },
    /// It was to be ended, and cannot be: a process hangs in the kernel, most likely on the volume.
    #[error("{program} hangs on the volume and cannot be ended")]
    Stuck {
        /// The program.
        program: &'static str,
    },
}

/// When a program is given up.
#[derive(Clone, Copy, Debug)]
pub(super) enum Patience {
    /// When it has said nothing for so long.
    Silence(Duration),
    /// When it has not ended within this time. It may say nothing all the while.
    InAll(Duration),
}

/// One run of a program.
pub(super) struct Program<'a> {
    pub instance: &'a Instance,
    pub by: &'a StartedBy<'a>,
    pub name: &'static str,
    /// The program's file and its arguments. Everybody on the machine can read them: no secrets.
    pub command: Vec<String>,
    /// When it is given up.
    pub patience: Patience,
}

impl Program<'_> {
    /// Runs it to its end; `heard` gets the end of what it has said so far, whenever that grows. Returns all that it
    /// said, as far as that is [`TAIL`]. Dropping the future kills it.
    pub async fn run(self, mut heard: impl FnMut(&str)) -> Result<String, ProgramError> {
        let path = self.log_path();
        let mut postmaster = self.spawn(&path).await?;
        let mut length = 0;
        let began = clock::now();
        let mut last = began;
        loop {
            let end = postmaster.wait_within(LOOK_EVERY).await;
            let (now_length, said) = read_tail(&path).map_err(|error| self.log(&path, error))?;
            if now_length != length {
                (length, last) = (now_length, clock::now());
                heard(&said);
            }
            match end {
                Some(End::Exited { code: 0 }) => return Ok(said),
                Some(end) => return Err(self.failed(end, &said)),
                None if self.is_over(began, last) => {
                    return Err(self.give_up(&mut postmaster, &said).await);
                }
                None => {}
            }
        }
    }

    fn is_over(&self, began: Mono, last: Mono) -> bool {
        let now = clock::now();
        match self.patience {
            Patience::Silence(stall) => last.elapsed(stall, now),
            Patience::InAll(limit) => began.elapsed(limit, now),
        }
    }

    fn log_path(&self) -> PathBuf {
        let directory = &self.instance.runtime_directory;
        directory.join(self.name).with_extension("log")
    }

    async fn spawn(&self, log: &Path) -> Result<Postmaster, ProgramError> {
        let program = self.name;
        configuration::make_runtime_directory(self.instance).map_err(|source| {
            let source = Box::new(source);
            ProgramError::Configuration { program, source }
        })?;
        let open = || {
            let file = OpenOptions::new()
                .create(true)
                .append(true)
                .mode(0o640)
                .open(log)?;
            file.set_len(0)?;
            Ok((file, self.by.again()?.node_lock))
        };
        let (file, node_lock) = open().map_err(|error| self.log(log, error))?;
        let spawned = Postmaster::spawn(Spawn {
            baton: self.by.baton.to_owned(),
            user: self.instance.user.name.clone(),
            command: self.command.clone(),
            log: file,
            node_lock,
            isolation: self.by.isolation,
            witness: self.by.witness.clone(),
        });
        spawned
            .await
            .map_err(|source| ProgramError::Spawn { program, source })
    }

    async fn give_up(&self, postmaster: &mut Postmaster, said: &str) -> ProgramError {
        let program = self.name;
        // An error can only mean that it is gone, which the wait tells.
        let _ = postmaster.kill();
        let ended = postmaster.wait_within(KILL).await;
        let said = words(said);
        match (ended, self.patience) {
            (None, _) => ProgramError::Stuck { program },
            (Some(_end), Patience::Silence(stall)) => ProgramError::Stalled {
                program,
                stall,
                said,
            },
            (Some(_end), Patience::InAll(limit)) => ProgramError::Overdue {
                program,
                limit,
                said,
            },
        }
    }

    fn failed(&self, end: End, said: &str) -> ProgramError {
        ProgramError::Failed {
            program: self.name,
            end,
            said: words(said),
        }
    }

    fn log(&self, path: &Path, source: io::Error) -> ProgramError {
        ProgramError::Log {
            program: self.name,
            path: path.to_owned(),
            source,
        }
    }
}

/// The last lines of what a program said, without the lines that only count.
fn words(said: &str) -> String {
    let lines: Vec<&str> = said
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && progress(line).is_none())
        .collect();
    lines[lines.len().saturating_sub(6)..].join("; ")
}

/// A line such as `12345/67890 kB (18%), 0/1 tablespace`: bytes done and in all.
pub(super) fn progress(line: &str) -> Option<(u64, u64)> {
    let (done, rest) = line.trim_start().split_once('/')?;
    let (total, rest) = rest.split_once(' ')?;
    rest.starts_with("kB").then_some(())?;
    Some((
        done.parse::<u64>().ok()?.checked_mul(1024)?,
        total.parse::<u64>().ok()?.checked_mul(1024)?,
    ))
}

/// The file's length, and the text at its end.
fn read_tail(path: &Path) -> io::Result<(u64, String)> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
    let mut bytes = Vec::new();
    file.take(TAIL).read_to_end(&mut bytes)?;
    Ok((length, String::from_utf8_lossy(&bytes).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_read_and_left_out_of_words() {
        assert_eq!(
            progress("  1024/2048 kB (50%), 0/1 tablespace"),
            Some((1 << 20, 2 << 20))
        );
        assert_eq!(
            progress("10/20 kB (50%) copied"),
            Some((10 << 10, 20 << 10))
        );
        for other in ["", "1/2", "a/b kB", "pg_rewind: error: no 1/2 kB"] {
            assert_eq!(progress(other), None, "{other}");
        }
        assert_eq!(words("1/2 kB (50%)\npg_x: error: y\n\n"), "pg_x: error: y");
    }
}
