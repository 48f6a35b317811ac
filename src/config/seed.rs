//! `[replication.seed]`: an operator's backup tool makes a site's database instead of a copy of the primary's.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use super::read::{Absolute, Draft};
use super::reader::Section;
use crate::decide::timings::text;

/// How long a restore may take where nothing else is said: 6 h.
const TIMEOUT: Duration = Duration::from_secs(6 * 3600);

/// `[replication.seed]`. It runs as PostgreSQL does: as its user, with no more in its environment than a search
/// path. Exit code 0 is its word that the database is there; then it is checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SeedCommand {
    /// The program, by its absolute path; no shell is between.
    pub program: PathBuf,
    /// Its arguments, with [`SeedCommand::PLACE`] for the directory that it has to fill. Everybody on the machine
    /// can read them: no secrets.
    pub arguments: Vec<String>,
    /// How long it may take.
    #[serde(with = "text")]
    pub timeout: Duration,
    /// Whether `pg_basebackup` copies the primary's database where the program fails.
    pub fallback: bool,
}

impl SeedCommand {
    /// In the arguments: the empty directory in which the data directory is to be made.
    pub const PLACE: &str = "{data_directory}";
}

/// Reads `[replication.seed]`.
pub(super) fn read(section: &mut Section<'_>) -> Option<SeedCommand> {
    let program = section.required::<Absolute>("program", "\"/usr/bin/pgbackrest\"");
    let arguments = section.required::<Vec<String>>(
        "arguments",
        "[\"--stanza=main\", \"--pg1-path={data_directory}\", \"--type=standby\", \"restore\"]",
    );
    let timeout = section.optional("timeout", TIMEOUT);
    let fallback = section.optional("fallback", true);
    let place = |arguments: &Vec<String>| {
        let mut arguments = arguments.iter();
        arguments.any(|text| text.contains(SeedCommand::PLACE))
    };
    if arguments.as_ref().is_some_and(|given| !place(given)) {
        let text = format!("nowhere say {}: where to restore to", SeedCommand::PLACE);
        section.problem("arguments", text);
        return None;
    }
    Some(SeedCommand {
        program: program?.0,
        arguments: arguments?,
        timeout: timeout?,
        fallback: fallback?,
    })
}

/// Whether this setting of PostgreSQL's fetches from the archive what was written since the backup.
#[allow(clippy::ptr_arg, reason = "a map's keys are Strings")]
pub(super) fn is_restore_command(name: &String) -> bool {
    name.eq_ignore_ascii_case("restore_command")
}

/// What it needs of the rest of the file.
pub(super) fn contradictions(
    known: &SeedCommand,
    draft: &Draft,
    note: &mut impl FnMut(&str, String),
) {
    let parameters = draft.postgres.as_ref().map(|postgres| &postgres.parameters);
    if parameters.is_some_and(|parameters| !parameters.keys().any(is_restore_command)) {
        let text = "needs postgres.parameters.restore_command: the primary does not keep what was written since the \
                    backup, so that must come from the archive";
        note("replication.seed", text.to_owned());
    }
    if known.timeout.is_zero() {
        let text = "must be more than zero";
        note("replication.seed.timeout", text.to_owned());
    }
    if let Some(timings) = &draft.timings
        && timings.seed < known.timeout * 2
    {
        let text = format!(
            "is {:?}, must be at least 2 × replication.seed.timeout = {:?}: pg_basebackup may have to do it after all",
            timings.seed,
            known.timeout * 2
        );
        note("timings.seed", text);
    }
}
