//! Making a replica's database by an operator's backup tool, instead of copying the primary's.
//!
//! The tool gets an empty directory and fills it. What it made is believed in nothing: it must be this very
//! database, whole, on the volume, and from the primary's own past. What was written since comes from the archive
//! (`restore_command`) and from the primary.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::configure::{self, ConfigureError};
use super::facts::{Position, Probe};
use super::origin::{self, OriginError};
use super::place::{self, PlaceError, failed, on_thread};
use super::program::{Patience, Program, ProgramError};
use super::progress::{CopiedBy, Meter};
use super::seed::Seeding;
use crate::clock;
use crate::config::SeedCommand;
use crate::postgres::{
    ControlData, DataDirectory, DataDirectoryError, DatabaseState, Instance, Lsn, StartedBy,
};

/// Between two looks at how much the tool has written: it tells nothing that could be read.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What a restore leaves that would make of the database something else than a replica of the primary.
const LEFT_BEHIND: [&str; 2] = ["recovery.signal", "postmaster.pid"];

/// Why a backup tool made no database that can follow the primary.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// It did not do its work.
    #[error("restoring a backup")]
    Program(#[from] ProgramError),
    /// There is nothing where the database should be.
    #[error("the backup tool made no database in {}", path.display())]
    Nothing {
        /// The directory that it got.
        path: PathBuf,
    },
    /// The directory that it got is another user's, or no directory any more.
    #[error("the backup tool left {} as no directory of PostgreSQL's user", path.display())]
    Replaced {
        /// The directory that it got.
        path: PathBuf,
    },
    /// It is another database, of another version, or not whole on the volume.
    #[error("what the backup tool restored cannot be used")]
    Data(#[from] DataDirectoryError),
    /// It would be started in the middle of what a running server wrote.
    #[error(
        "what the backup tool restored is no backup: it has no backup_label, and the control file says {state}"
    )]
    NoBackup {
        /// What the control file says.
        state: DatabaseState,
    },
    /// It has what the primary never had, or does not have yet.
    #[error(
        "what the backup tool restored reaches {reached}, the primary's history goes to {}",
        until.map_or_else(|| "another timeline".to_owned(), |lsn| lsn.to_string())
    )]
    Beyond {
        /// How far it is.
        reached: Position,
        /// How far the primary's history is, or was, on that timeline; `None`: it was never on it.
        until: Option<Lsn>,
    },
    /// The old copy may have acknowledged what the restored one can get from nobody.
    #[error("the primary does not answer any more: what is here stays")]
    PrimaryGone(#[source] OriginError),
    /// It could not be made a replica's.
    #[error("making a replica of what the backup tool restored")]
    Configure(#[from] ConfigureError),
    /// A step on the volume failed.
    #[error("working on what the backup tool restored")]
    Place(#[from] PlaceError),
}

impl RestoreError {
    /// Whether nothing else may be tried: the tool restores another database, so that nothing that it is
    /// configured with is this cluster's, or there is nobody to copy from.
    pub(super) fn is_final(&self) -> bool {
        matches!(
            self,
            Self::Data(DataDirectoryError::OtherSystem { .. }) | Self::PrimaryGone(_)
        )
    }
}

/// The primary's past.
#[derive(Clone, Debug)]
pub(super) struct Past {
    pub primary: Probe,
    /// Where it left each timeline that it was on before.
    pub left: BTreeMap<u32, Lsn>,
}

impl Past {
    /// Of a primary that is what it was admitted as.
    ///
    /// # Errors
    /// It does not tell.
    pub async fn of(
        remote: &super::Remote,
        primary: Probe,
        deadline: Duration,
    ) -> Result<Self, crate::postgres::SessionError> {
        let history = origin::history(remote, primary.timeline, deadline).await?;
        let left = left_timelines(&history);
        Ok(Self { primary, left })
    }

    /// How far the primary was.
    pub fn reached(&self) -> Position {
        Position {
            timeline: self.primary.timeline,
            lsn: self.primary.position,
        }
    }

    /// Whether the primary was there.
    fn admit(&self, reached: Position) -> Result<(), RestoreError> {
        let Position { timeline, lsn } = reached;
        let until = if timeline == self.primary.timeline {
            Some(self.primary.position)
        } else {
            self.left.get(&timeline).copied()
        };
        match until.is_some_and(|until| lsn <= until) {
            true => Ok(()),
            false => Err(RestoreError::Beyond { reached, until }),
        }
    }
}

/// The lines of a timeline's history, in hexadecimal as it was read: timeline, where it was left, why.
fn left_timelines(history: &str) -> BTreeMap<u32, Lsn> {
    let byte = |at: usize| u8::from_str_radix(history.get(at..at + 2)?, 16).ok();
    let bytes: Vec<u8> = (0..history.len()).step_by(2).filter_map(byte).collect();
    let text = String::from_utf8_lossy(&bytes);
    let lines = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
    });
    lines.collect()
}

/// One restore: what is made where, by whom.
pub(super) struct Restore<'a> {
    pub instance: &'a Instance,
    pub by: &'a StartedBy<'a>,
    pub seeding: &'a Seeding<'a>,
    pub command: &'a SeedCommand,
    /// Empty, and PostgreSQL's user's.
    pub directory: &'a Path,
    pub past: Past,
    /// About how much it will be, in bytes.
    pub size: u64,
    /// How many bytes are free before.
    pub free: u64,
    /// There is another copy, which stays unless the primary answers to the end.
    pub replaces: bool,
}

impl Restore<'_> {
    /// Runs the tool, and makes what it restored a replica's; returns how far the primary is. Dropping the future
    /// kills the tool.
    pub async fn run(self) -> Result<(ControlData, Position), RestoreError> {
        let program = Program {
            instance: self.instance,
            by: self.by,
            name: "seed-command",
            command: command_line(self.command, self.directory),
            patience: Patience::InAll(self.command.timeout),
        };
        let mut meter = Meter::start(self.seeding.progress, CopiedBy::BackupTool, None);
        tokio::select! {
            ended = program.run(|_| {}) => drop(ended?),
            never = self.measure(&mut meter) => match never {},
        }
        let past = self.newest_past().await?;
        let reached = past.reached();
        let (instance, directory) = (self.instance.clone(), self.directory.to_owned());
        let admitted = move || Ok(admit(&instance, &directory, &past));
        let control = on_thread("seed-admit", admitted).await??;
        configure::strip_restored(self.instance, self.directory)?;
        configure::signal_standby(self.instance, self.directory)?;
        Ok((control, reached))
    }

    /// Nothing else is written on the volume meanwhile.
    async fn measure(&self, meter: &mut Meter<'_>) -> Infallible {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let instance = self.instance.clone();
            let free = on_thread("seed-look", move || place::free_bytes(&instance)).await;
            if let Ok(free) = free {
                meter.show(self.free.saturating_sub(free), self.size);
            }
        }
    }

    /// The tool may have found a backup that was made since it began. Where the primary does not answer now,
    /// what it said before is true still, and only more is refused; a copy that lives keeps its place then.
    async fn newest_past(&self) -> Result<Past, RestoreError> {
        let ends = clock::now() + self.seeding.connect;
        loop {
            match self.ask_past().await {
                Ok(past) => return Ok(past),
                // A restore may have taken hours.
                Err(_) if clock::now().until(ends) > LOOK_EVERY => {
                    tokio::time::sleep(LOOK_EVERY).await;
                }
                Err(error) if self.replaces => return Err(RestoreError::PrimaryGone(error)),
                Err(_) => return Ok(self.past.clone()),
            }
        }
    }

    async fn ask_past(&self) -> Result<Past, OriginError> {
        let Seeding {
            source, connect, ..
        } = self.seeding;
        let system = Some(self.past.primary.system);
        let (remote, primary) = origin::connect(self.instance, source, system, *connect).await?;
        Ok(Past::of(&remote, primary, *connect).await?)
    }
}

/// The program and its arguments, with the directory in its place.
fn command_line(command: &SeedCommand, directory: &Path) -> Vec<String> {
    let directory = directory.to_string_lossy();
    let arguments = command.arguments.iter();
    let arguments = arguments.map(|text| text.replace(SeedCommand::PLACE, &directory));
    let program = command.program.to_string_lossy().into_owned();
    std::iter::once(program).chain(arguments).collect()
}

/// Whether this is a backup of the primary's database, whole and on the volume.
fn admit(instance: &Instance, directory: &Path, past: &Past) -> Result<ControlData, RestoreError> {
    let path = || directory.to_owned();
    let about = fs::symlink_metadata(directory).map_err(failed("looking at", directory))?;
    if !about.is_dir() || about.uid() != instance.user.uid {
        return Err(RestoreError::Replaced { path: path() });
    }
    let found = DataDirectory::read(&instance.volume_root, directory)?;
    let found = found.ok_or_else(|| RestoreError::Nothing { path: path() })?;
    found.admit_system(past.primary.system)?;
    found.admit(instance.programs.major, None)?;
    let control = found.control;
    if !found.from_backup && !control.state.is_shut_down() {
        let state = control.state;
        return Err(RestoreError::NoBackup { state });
    }
    let at = |timeline, lsn| Position { timeline, lsn };
    past.admit(at(control.timeline, control.checkpoint))?;
    if control.minimum_recovery > Lsn(0) {
        past.admit(at(
            control.minimum_recovery_timeline,
            control.minimum_recovery,
        ))?;
    }
    for name in LEFT_BEHIND {
        remove(&directory.join(name))?;
    }
    fs::set_permissions(directory, fs::Permissions::from_mode(0o700))
        .map_err(failed("protecting", directory))?;
    Ok(control)
}

fn remove(path: &Path) -> Result<(), PlaceError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(failed("removing", path)(error))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hex::hex;

    fn past() -> Past {
        let history =
            "# a comment\n1\t0/3000148\tno recovery target specified\n\n2\t0/5000000\tx\n";
        Past {
            primary: Probe {
                system: 1,
                major: 15,
                in_recovery: false,
                timeline: 4,
                position: Lsn(0x700_0000),
                slot: None,
            },
            left: left_timelines(&hex(history.as_bytes())),
        }
    }

    #[test]
    fn only_what_the_primary_was_is_admitted() {
        for (timeline, lsn, until) in [
            (4, 0x700_0000, None),
            (1, 0x300_0148, None),
            (2, 0x200_0000, None),
            // newer than the primary
            (4, 0x700_0001, Some(Some(Lsn(0x700_0000)))),
            // beyond where it left that timeline
            (1, 0x300_0149, Some(Some(Lsn(0x300_0148)))),
            // of a timeline that is none of its own
            (3, 0x100_0000, Some(None)),
            (5, 0x100_0000, Some(None)),
        ] {
            let lsn = Lsn(lsn);
            let refused = past().admit(Position { timeline, lsn }).err();
            let found = refused.map(|error| match error {
                RestoreError::Beyond { until, .. } => until,
                other => panic!("{other:?}"),
            });
            assert_eq!(found, until, "{lsn} on timeline {timeline}");
        }
    }

    #[test]
    fn the_directory_takes_its_place_in_the_arguments() {
        let command = SeedCommand {
            program: "/usr/bin/pgbackrest".into(),
            arguments: ["--pg1-path={data_directory}", "restore"]
                .map(str::to_owned)
                .into(),
            timeout: Duration::from_secs(1),
            fallback: true,
        };
        let line = command_line(&command, Path::new("/mnt/a b.seeding"));
        assert_eq!(
            line,
            [
                "/usr/bin/pgbackrest",
                "--pg1-path=/mnt/a b.seeding",
                "restore"
            ]
        );
    }
}
