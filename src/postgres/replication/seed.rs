//! Making a replica's database: by an operator's backup tool where one is configured, else, or where that fails,
//! from another site's primary by `pg_basebackup`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use fencing::Licence;

use super::configure::{self, ConfigureError};
use super::facts::Position;
use super::floor;
use super::origin::{self, OriginError};
use super::place::{self, PlaceError, REWINDING, SEEDED, SEEDING, on_thread};
use super::program::{Patience, Program, ProgramError};
use super::progress::{CopiedBy, Meter, Shown};
use super::restore::{Past, Restore, RestoreError};
use super::source::Source;
use crate::attachment::whole;
use crate::config::SeedCommand;
use crate::postgres::configuration::{self, ConfigurationError};
use crate::postgres::session::SessionError;
use crate::postgres::{ControlData, Instance, ReadError, StartedBy};

/// Room, in bytes, for what the primary writes meanwhile and for what is in no database. A twentieth of the
/// databases' size comes to it.
const MARGIN: u64 = 64 << 20;

/// From where a database is made, and by which bounds.
#[derive(Debug)]
pub struct Seeding<'a> {
    /// The primary; its slot keeps the write-ahead log until the replica receives.
    pub source: &'a Source,
    /// The system identifier that is expected, if it is known.
    pub system: Option<u64>,
    /// Longest time for connecting to the primary and asking it.
    pub connect: Duration,
    /// Longest time without any progress, the primary's checkpoint at the beginning among it.
    pub stall: Duration,
    /// What is tried first.
    pub command: Option<&'a SeedCommand>,
    /// Where to tell how far it is.
    pub progress: &'a Shown,
}

/// Why there is no new replica.
#[derive(Debug, thiserror::Error)]
pub enum SeedError {
    /// There is a database already.
    #[error("{} exists already and is not empty", path.display())]
    Exists {
        /// The data directory.
        path: PathBuf,
    },
    /// A rewind of the database was interrupted; it is kept until a new one is complete.
    #[error("{} is left of a rewind: make the replica anew beside it", path.display())]
    Interrupted {
        /// The directory.
        path: PathBuf,
    },
    /// The primary's site cannot give it.
    #[error("no base backup can be had")]
    Origin(#[from] OriginError),
    /// Asking the primary's site failed.
    #[error("no base backup can be had")]
    Session(#[from] SessionError),
    /// There is too little space.
    #[error(
        "a base backup needs about {needed} bytes and the volume has {free} free; remove what is kept of older copies, or make it larger"
    )]
    NoSpace {
        /// How many bytes are needed.
        needed: u64,
        /// How many are free.
        free: u64,
    },
    /// The backup tool made nothing that can follow the primary.
    #[error("no database can be had by replication.seed")]
    Restore(#[from] RestoreError),
    /// `pg_basebackup` did not do its work.
    #[error("taking a base backup")]
    Program(#[from] ProgramError),
    /// What arrived has no usable control file.
    #[error("reading what arrived")]
    Control(#[from] ReadError),
    /// What arrived is another database.
    #[error("the base backup has system identifier {found}, expected {expected}")]
    OtherSystem {
        /// What the primary had said.
        expected: u64,
        /// What arrived.
        found: u64,
    },
    /// The files outside the volume could not be written.
    #[error("preparing a base backup")]
    Configuration(#[from] ConfigurationError),
    /// The password, or the mark of a replica, could not be written.
    #[error("preparing a base backup")]
    Configure(#[from] ConfigureError),
    /// A step on the volume failed.
    #[error("preparing a base backup")]
    Place(#[from] PlaceError),
}

/// Makes the database of a volume that has none; durable, and a replica's, when it returns.
///
/// It is made under another name and renamed when complete, so an interrupted attempt is never taken for a
/// database; the next attempt removes it. Dropping the future kills the program.
pub async fn basebackup(
    licence: &Licence,
    instance: &Instance,
    by: &StartedBy<'_>,
    seeding: &Seeding<'_>,
) -> Result<ControlData, SeedError> {
    let path = &instance.data_directory;
    if place::is_occupied(path) {
        return Err(SeedError::Exists { path: path.clone() });
    }
    let rewinding = place::beside(instance, REWINDING);
    if rewinding.exists() {
        return Err(SeedError::Interrupted { path: rewinding });
    }
    let control = fill(licence, instance, by, seeding, false).await?;
    let ours = instance.clone();
    on_thread("seed-rename", move || {
        place::rename(&ours, &place::beside(&ours, SEEDING), &ours.data_directory)
    })
    .await?;
    Ok(control)
}

/// A database that took the place of another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reseeded {
    /// Its control data.
    pub control: ControlData,
    /// What was there before, and is kept.
    pub old: Vec<PathBuf>,
}

/// Makes the database anew from the primary. What is there stays in its place until the new one is complete, and
/// is kept after that as `<data directory>.old-<label>`. PostgreSQL must not run.
///
/// # Errors
/// Whatever fails, the old database is where it was; with too little space for both nothing is begun. So it is where
/// the primary does not answer any more at the end of a restore: the old copy may have what nobody else has.
pub async fn reseed(
    licence: &Licence,
    instance: &Instance,
    by: &StartedBy<'_>,
    seeding: &Seeding<'_>,
    label: &str,
) -> Result<Reseeded, SeedError> {
    let control = fill(licence, instance, by, seeding, true).await?;
    let (ours, label) = (instance.clone(), label.to_owned());
    let old = on_thread("seed-exchange", move || take_place(&ours, &label)).await?;
    Ok(Reseeded { control, old })
}

/// The new database takes the data directory's name. At no moment does that name lead to an unfinished one.
fn take_place(instance: &Instance, label: &str) -> Result<Vec<PathBuf>, PlaceError> {
    let (seeding, seeded) = (
        place::beside(instance, SEEDING),
        place::beside(instance, SEEDED),
    );
    let mut old = Vec::new();
    // Left by an exchange that was cut off: perhaps the only copy of what was replaced.
    if seeded.exists() {
        old.push(place::put_aside(instance, &seeded, label)?);
    }
    if place::is_occupied(&instance.data_directory) {
        place::rename(instance, &seeding, &seeded)?;
        place::exchange(instance, &seeded, &instance.data_directory)?;
        old.push(place::put_aside(instance, &seeded, label)?);
    } else {
        place::rename(instance, &seeding, &instance.data_directory)?;
    }
    let rewinding = place::beside(instance, REWINDING);
    if rewinding.exists() {
        old.push(place::put_aside(instance, &rewinding, label)?);
    }
    Ok(old)
}

/// Makes a complete replica's database under the name of an unfinished one, with the mark of how far it must get
/// before it stands for what it `replaces`, or for what was on another volume of this site.
async fn fill(
    licence: &Licence,
    instance: &Instance,
    by: &StartedBy<'_>,
    seeding: &Seeding<'_>,
    replaces: bool,
) -> Result<ControlData, SeedError> {
    let (control, primary) = fill_from(licence, instance, by, seeding, replaces).await?;
    floor::mark(instance, &place::beside(instance, SEEDING), primary)?;
    Ok(control)
}

/// Where the primary was, too, when nothing received at this site any more.
async fn fill_from(
    _licence: &Licence,
    instance: &Instance,
    by: &StartedBy<'_>,
    seeding: &Seeding<'_>,
    replaces: bool,
) -> Result<(ControlData, Position), SeedError> {
    let source = seeding.source;
    let (remote, probe) =
        origin::connect(instance, source, seeding.system, seeding.connect).await?;
    origin::admit_slot(source, &probe)?;
    let size = origin::size(&remote, seeding.connect).await?;
    let past = Past::of(&remote, probe, seeding.connect).await?;
    drop(remote);
    let directory = place::beside(instance, SEEDING);
    let (expected, reached) = (past.primary.system, past.reached());
    let mut instead = None;
    let free = make_room(instance, &directory, size).await?;
    if let Some(command) = seeding.command {
        let restore = Restore {
            instance,
            by,
            seeding,
            command,
            directory: &directory,
            past,
            size,
            free,
            replaces,
        };
        match restore.run().await {
            Ok(made) => return Ok(made),
            // To go on would hide that all it is configured with, the archive too, is another cluster's.
            Err(error) if error.is_final() || !command.fallback => {
                return Err(error.into());
            }
            Err(error) => instead = Some(whole(error)),
        }
        let why = &instead;
        tracing::warn!(
            why,
            "replication.seed failed: pg_basebackup copies the primary's database instead"
        );
        make_room(instance, &directory, size).await?;
    }
    receive(instance, by, seeding, &directory, instead).await?;
    configure::signal_standby(instance, &directory)?;
    let control = ControlData::read(&directory)?;
    let found = control.system_identifier;
    if found != expected {
        return Err(SeedError::OtherSystem { expected, found });
    }
    Ok((control, reached))
}

/// An empty directory for the new database, in place of what an earlier attempt left; how many bytes are free then,
/// of which it needs some.
async fn make_room(instance: &Instance, directory: &Path, size: u64) -> Result<u64, SeedError> {
    let (ours, made) = (instance.clone(), directory.to_owned());
    let free = on_thread("seed-prepare", move || {
        place::make_afresh(&ours, &made)?;
        place::free_bytes(&ours)
    })
    .await?;
    let needed = size + size / 20 + MARGIN;
    match free < needed {
        true => Err(SeedError::NoSpace { needed, free }),
        false => Ok(free),
    }
}

async fn receive(
    instance: &Instance,
    by: &StartedBy<'_>,
    seeding: &Seeding<'_>,
    directory: &Path,
    instead: Option<String>,
) -> Result<(), SeedError> {
    configuration::make_runtime_directory(instance)?;
    configure::give_passfile(instance, seeding.source)?;
    let passfile = configure::passfile(instance);
    let program = instance.programs.path("pg_basebackup");
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let conninfo = seeding.source.program_conninfo(&passfile, None);
    let options = [
        "--wal-method=stream",
        "--checkpoint=fast",
        "--progress",
        "--verbose",
        "--no-password",
        // One syncfs afterwards instead of an fsync per file.
        "--no-sync",
    ];
    let mut command = vec![text(&program), format!("--pgdata={}", text(directory))];
    command.push(format!("--dbname={conninfo}"));
    command.push(format!("--slot={}", seeding.source.slot));
    command.extend(options.map(str::to_owned));
    let run = Program {
        instance,
        by,
        name: "pg_basebackup",
        command,
        patience: Patience::Silence(seeding.stall),
    };
    let mut meter = Meter::start(seeding.progress, CopiedBy::BaseBackup, instead);
    run.run(|said| meter.read(said)).await?;
    Ok(())
}
