//! The way back of a former primary: its history is made the new primary's by `pg_rewind`, and what only it
//! had is kept.
//!
//! ```text
//! recover (single-user) ── compare (dry run) ── keep what diverged ── rename away ── rewind ── replica ── rename back
//! ```
//!
//! A rewind that was interrupted leaves no database, so it happens under another name: nothing is ever started
//! on a half-rewound directory.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fencing::Licence;

use super::configure::{self, ConfigureError};
use super::diverged::{self, Diverged};
use super::facts::{Position, Probe};
use super::origin::{self, OriginError};
use super::place::{self, PlaceError, REWINDING, on_thread};
use super::program::{Patience, Program, ProgramError};
use super::progress::{CopiedBy, Meter, Shown};
use super::replay::{ReplayError, replay_all};
use super::source::{Serving, Source};
use crate::hex::hex;
use crate::postgres::configuration::{self, ConfigurationError};
use crate::postgres::session::SessionError;
use crate::postgres::{ControlData, DatabaseState, Instance, NotReady, ReadError, StartedBy};

/// Room, in bytes, that stays free when what diverged is kept: the rewind needs some itself.
const MARGIN: u64 = 32 << 20;

/// What the database is brought back to, and by which bounds.
#[derive(Debug)]
pub struct Rejoin<'a> {
    /// The primary.
    pub source: &'a Source,
    /// Under which name what diverged is kept: the term, or the time.
    pub label: &'a str,
    /// Longest time for connecting to the primary, and for its checkpoint.
    pub connect: Duration,
    /// Longest time that a program may say nothing. `pg_rewind` is silent while it reads the write-ahead log and
    /// `postgres` while it recovers.
    pub stall: Duration,
    /// Where to tell how far the rewind is.
    pub progress: &'a Shown,
}

/// What the way back took.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rejoined {
    /// It has nothing that the primary does not have: it can be started as a replica.
    NotNeeded,
    /// It had. It can be started as a replica.
    Rewound {
        /// What is kept.
        diverged: Diverged,
        /// Where.
        kept: PathBuf,
    },
}

/// Why a former primary's database cannot follow the new one.
#[derive(Debug, thiserror::Error)]
pub enum RejoinError {
    /// There is no database.
    #[error("there is no database in {}", path.display())]
    NoDatabase {
        /// The data directory.
        path: PathBuf,
    },
    /// It cannot be brought back: it must be made anew.
    #[error("the database must be made anew from a base backup: {why}")]
    BaseBackupNeeded {
        /// Why.
        why: String,
    },
    /// A replica does not replay what it has received.
    #[error("finding out how far this replica is")]
    Replay(#[from] ReplayError),
    /// After all that, it is not stopped in order.
    #[error("the control file says {state}, and should say that it is shut down")]
    NotStopped {
        /// What the control file says.
        state: DatabaseState,
    },
    /// The primary's site cannot be compared with.
    #[error("comparing with the primary")]
    Origin(#[from] OriginError),
    /// The primary's site did not answer.
    #[error("comparing with the primary")]
    Session(#[from] SessionError),
    /// There is too little space to keep what diverged.
    #[error(
        "keeping what only this site has takes {needed} bytes and the volume has {free} free; make room, or make it larger"
    )]
    NoSpace {
        /// How many bytes are needed.
        needed: u64,
        /// How many are free.
        free: u64,
    },
    /// A program did not do its work. Nothing of the database was changed, other than by its own recovery.
    #[error("bringing the database back")]
    Program(#[from] ProgramError),
    /// The control file could not be read.
    #[error("reading the state of the database")]
    Control(#[from] ReadError),
    /// The files outside the volume could not be written.
    #[error("preparing the way back")]
    Configuration(#[from] ConfigurationError),
    /// The password, or the mark of a replica, could not be written.
    #[error("preparing the way back")]
    Configure(#[from] ConfigureError),
    /// A step on the volume failed.
    #[error("preparing the way back")]
    Place(#[from] PlaceError),
}

/// Brings a stopped former primary's database to where it can follow the new primary. Durable when it returns.
///
/// # Errors
/// [`RejoinError::BaseBackupNeeded`]: [`reseed`](super::reseed) is what is left, which keeps the old copy. After
/// the other errors it can be tried again.
pub async fn rejoin(
    licence: &Licence,
    instance: &Instance,
    by: &StartedBy<'_>,
    wanted: &Rejoin<'_>,
) -> Result<Rejoined, RejoinError> {
    refuse_unfinished(instance)?;
    let control = ControlData::read(&instance.data_directory)?;
    let system = Some(control.system_identifier);
    let (remote, probe) = origin::connect(instance, wanted.source, system, wanted.connect).await?;
    origin::await_checkpoint(&remote, probe.timeline, wanted.connect).await?;
    let theirs = origin::history(&remote, probe.timeline, wanted.connect).await?;
    drop(remote);
    let control = if configure::is_replica(instance) {
        replay(licence, instance, by, wanted).await?
    } else {
        recover(licence, instance, by, wanted.stall, control).await?
    };
    refuse_twin(instance, &control, &probe, &theirs)?;
    configuration::make_runtime_directory(instance)?;
    configure::give_passfile(instance, wanted.source)?;
    let directory = &instance.data_directory;
    let rewind = Rewind {
        instance,
        by,
        wanted,
    };
    let Some(from) = rewind.compare(directory).await? else {
        return Ok(Rejoined::NotNeeded);
    };
    let (diverged, kept) = keep(instance, &control, from, wanted.label).await?;
    let rewinding = place::beside(instance, REWINDING);
    move_to(instance, directory, &rewinding).await?;
    rewind.run(&rewinding).await?;
    configure::signal_standby(instance, &rewinding)?;
    move_to(instance, &rewinding, directory).await?;
    Ok(Rejoined::Rewound { diverged, kept })
}

fn refuse_unfinished(instance: &Instance) -> Result<(), RejoinError> {
    let rewinding = place::beside(instance, REWINDING);
    if rewinding.exists() {
        let why = format!("{} was left by an interrupted rewind", rewinding.display());
        return Err(RejoinError::BaseBackupNeeded { why });
    }
    let path = &instance.data_directory;
    if place::is_occupied(path) {
        return Ok(());
    }
    Err(RejoinError::NoDatabase { path: path.clone() })
}

/// `pg_rewind` takes two databases on timelines of the same number for one history. They are two if they began
/// apart, or if this one has written where the primary has not been.
fn refuse_twin(
    instance: &Instance,
    control: &ControlData,
    primary: &Probe,
    theirs: &str,
) -> Result<(), RejoinError> {
    let timeline = control.timeline.max(control.minimum_recovery_timeline);
    if timeline != primary.timeline {
        return Ok(());
    }
    let name = format!("{timeline:08X}.history");
    let path = instance.data_directory.join("pg_wal").join(name);
    // The first timeline has none.
    let ours = fs::read(path).unwrap_or_default();
    let end = control.checkpoint.max(control.minimum_recovery);
    if hex(&ours) == theirs && end <= primary.position {
        return Ok(());
    }
    let why = format!("it has a timeline {timeline} of its own, beside the primary's");
    Err(RejoinError::BaseBackupNeeded { why })
}

async fn move_to(instance: &Instance, from: &Path, to: &Path) -> Result<(), RejoinError> {
    let (instance, from, to) = (instance.clone(), from.to_owned(), to.to_owned());
    let rename = move || place::rename(&instance, &from, &to);
    Ok(on_thread("rejoin-rename", rename).await?)
}

async fn keep(
    instance: &Instance,
    control: &ControlData,
    from: Position,
    label: &str,
) -> Result<(Diverged, PathBuf), RejoinError> {
    let (ours, before) = (instance.clone(), control.clone());
    let (size, free) = on_thread("rejoin-space", move || {
        Ok((
            diverged::size(&ours, &before, from)?,
            place::free_bytes(&ours)?,
        ))
    })
    .await?;
    let needed = size + MARGIN;
    if free < needed {
        return Err(RejoinError::NoSpace { needed, free });
    }
    let (ours, before, label) = (instance.clone(), control.clone(), label.to_owned());
    let keep = move || diverged::keep(&ours, &before, from, &label);
    Ok(on_thread("rejoin-keep", keep).await?)
}

/// A former primary that was not shut down in order replays its own write-ahead log first, in single-user mode: no
/// client comes in, and no other process of PostgreSQL runs.
async fn recover(
    _licence: &Licence,
    instance: &Instance,
    by: &StartedBy<'_>,
    stall: Duration,
    control: ControlData,
) -> Result<ControlData, RejoinError> {
    if control.state.is_shut_down() {
        return Ok(control);
    }
    configure::prepare_recovery(instance)?;
    // SAFETY.md: the licence says that nobody else writes; see `launch`.
    let pid_file = instance.data_directory.join("postmaster.pid");
    if pid_file.exists() {
        fs::remove_file(&pid_file).map_err(place::failed("removing", &pid_file))?;
    }
    let mut command = configuration::write(instance, &Serving::Alone)?;
    command.insert(1, "--single".to_owned());
    // The checkpoint at the end must not remove what `pg_rewind` has to read back to the divergence.
    let keep = ["-c", "wal_keep_size=1TB", "template1"];
    command.extend(keep.map(str::to_owned));
    let program = Program {
        instance,
        by,
        name: "postgres-single",
        command,
        patience: Patience::Silence(stall),
    };
    program.run(|_| {}).await?;
    shut_down(instance)
}

/// A replica, however it ended, replays what it has.
async fn replay(
    licence: &Licence,
    instance: &Instance,
    by: &StartedBy<'_>,
    wanted: &Rejoin<'_>,
) -> Result<ControlData, RejoinError> {
    match replay_all(licence, instance, by, wanted.source, wanted.stall).await {
        Ok(()) => shut_down(instance),
        Err(ReplayError::NotReady(NotReady::Ended { end, log })) => {
            let why = format!("PostgreSQL {end} while replaying: {log}");
            Err(RejoinError::BaseBackupNeeded { why })
        }
        Err(error) => Err(error.into()),
    }
}

fn shut_down(instance: &Instance) -> Result<ControlData, RejoinError> {
    let control = ControlData::read(&instance.data_directory)?;
    let state = control.state;
    match state.is_shut_down() {
        true => Ok(control),
        false => Err(RejoinError::NotStopped { state }),
    }
}

/// `pg_rewind` of this database against the primary.
struct Rewind<'a> {
    instance: &'a Instance,
    by: &'a StartedBy<'a>,
    wanted: &'a Rejoin<'a>,
}

impl Rewind<'_> {
    /// Where the two histories part; `None` if this one is the beginning of the primary's. Changes nothing.
    async fn compare(&self, directory: &Path) -> Result<Option<Position>, RejoinError> {
        let said = self.program(directory, &["--dry-run"]).run(|_| {}).await;
        let said = said.map_err(as_need)?;
        if said.contains("no rewind required") {
            return Ok(None);
        }
        let unreadable = || {
            let why = format!("pg_rewind does not say where it diverged: {said}");
            RejoinError::BaseBackupNeeded { why }
        };
        divergence(&said).map(Some).ok_or_else(unreadable)
    }

    async fn run(&self, directory: &Path) -> Result<(), RejoinError> {
        // One syncfs afterwards instead of an fsync per file.
        let program = self.program(directory, &["--no-sync", "--progress"]);
        let mut meter = Meter::start(self.wanted.progress, CopiedBy::Rewind, None);
        match program.run(|said| meter.read(said)).await {
            Ok(_said) => Ok(()),
            // It may have changed any file: this is no database any more.
            Err(error) => {
                let why = format!("{}: it was interrupted", crate::attachment::whole(error));
                Err(RejoinError::BaseBackupNeeded { why })
            }
        }
    }

    fn program(&self, directory: &Path, options: &[&str]) -> Program<'_> {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let passfile = configure::passfile(self.instance);
        let source = self
            .wanted
            .source
            .program_conninfo(&passfile, Some("postgres"));
        let mut command = vec![
            text(&self.instance.programs.path("pg_rewind")),
            format!("--target-pgdata={}", text(directory)),
            format!("--source-server={source}"),
            "--no-ensure-shutdown".to_owned(),
        ];
        command.extend(options.iter().map(|option| (*option).to_owned()));
        Program {
            instance: self.instance,
            by: self.by,
            name: "pg_rewind",
            command,
            patience: Patience::Silence(self.wanted.stall),
        }
    }
}

/// A comparison that fails for another reason than the connection will always fail: the common history is gone.
fn as_need(error: ProgramError) -> RejoinError {
    match error {
        ProgramError::Failed { said, .. } if !said.contains("connect") => {
            RejoinError::BaseBackupNeeded { why: said }
        }
        error => error.into(),
    }
}

/// `servers diverged at WAL location 0/3000148 on timeline 1`
fn divergence(said: &str) -> Option<Position> {
    let (_, after) = said.split_once("diverged at WAL location ")?;
    let (lsn, after) = after.split_once(" on timeline ")?;
    let end = after
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(after.len());
    Some(Position {
        timeline: after[..end].parse().ok()?,
        lsn: lsn.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_divergence_is_read() {
        let said = "pg_rewind: connected to server\npg_rewind: servers diverged at WAL location 0/3000148 on timeline 12\npg_rewind: rewinding from";
        let found = divergence(said).unwrap();
        assert_eq!(found.to_string(), "0/3000148 on timeline 12");
        assert_eq!(divergence("pg_rewind: no rewind required"), None);
    }
}
