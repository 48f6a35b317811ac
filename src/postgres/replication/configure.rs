//! The configuration of a primary or a replica between sites: lines for the files that a member writes
//! anew at every start, and the two things on the volume that would contradict them.
//!
//! What safety rests on ([`OWN`]) must be changeable while PostgreSQL runs, so it cannot be on the command
//! line, and what stands in `postgresql.auto.conf` would win over any file. So it is taken out there before
//! every start, and every change is confirmed by what is in force (see [`reload`](super::reload)).

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use super::source::{PasswordError, Replication, Serving, Source, read_password};
use super::timelines;
use crate::postgres::{ControlData, DatabaseState, Instance, ReadError};

/// The settings that are Baton's alone.
pub(crate) const OWN: [&str; 16] = [
    "synchronous_standby_names",
    "primary_conninfo",
    "primary_slot_name",
    "promote_trigger_file",
    "max_slot_wal_keep_size",
    "hot_standby",
    "wal_log_hints",
    "recovery_min_apply_delay",
    "recovery_target",
    "recovery_target_action",
    "recovery_target_inclusive",
    "recovery_target_lsn",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_timeline",
    "recovery_target_xid",
];

/// Where replay ends: never. A primary ignores what is left of a restore to a point in time; its replica would stop
/// there, go on confirming what it receives, and be promoted without it. Read at the start alone.
const NO_TARGET: &[(&str, &str)] = &[
    ("recovery_target", ""),
    ("recovery_target_action", "pause"),
    ("recovery_target_inclusive", "on"),
    ("recovery_target_lsn", ""),
    ("recovery_target_name", ""),
    ("recovery_target_time", ""),
    ("recovery_target_timeline", "latest"),
    ("recovery_target_xid", ""),
];

/// What Baton sets unless somebody else does.
const DEFAULTS: &[(&str, &str)] = &[
    ("wal_level", "replica"),
    ("max_wal_senders", "10"),
    ("max_replication_slots", "10"),
    ("hot_standby_feedback", "off"),
    // A connection whose other end is gone without a word holds the site's slot: not for a minute.
    ("wal_sender_timeout", "10s"),
    ("wal_receiver_timeout", "20s"),
    ("wal_receiver_status_interval", "1s"),
    ("wal_retrieve_retry_interval", "500ms"),
    ("tcp_keepalives_idle", "2"),
    ("tcp_keepalives_interval", "2"),
    ("tcp_keepalives_count", "3"),
];

/// What makes a former primary able to come back without a new base backup, and a replica readable.
const FIXED: &[(&str, &str)] = &[
    ("hot_standby", "on"),
    ("wal_log_hints", "on"),
    // What is confirmed but not replayed for hours can neither be read nor taken over with.
    ("recovery_min_apply_delay", "0"),
];

/// In megabytes: what is written between a checkpoint and the next by a server that is not very busy.
const KEEP: u64 = 256;

/// What a backup tool leaves in `postgresql.auto.conf` besides targets. There it would win over the member's
/// configuration, and lead to where the database was restored, which has another name by now.
const OF_A_RESTORE: [&str; 3] = [
    "restore_command",
    "archive_cleanup_command",
    "recovery_end_command",
];

const AUTO_CONF: &str = "postgresql.auto.conf";
const STANDBY_SIGNAL: &str = "standby.signal";
const RECOVERY_SIGNAL: &str = "recovery.signal";
const PASSFILE: &str = "replication.pgpass";

/// Why PostgreSQL was not configured for replication.
#[derive(Debug, thiserror::Error)]
pub enum ConfigureError {
    /// A step on the filesystem failed.
    #[error("{operation} {}", path.display())]
    Step {
        /// What was attempted.
        operation: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The password of the role for replication cannot be used.
    #[error("replication needs its password")]
    Password(#[from] PasswordError),
    /// The data directory is a replica's, or its promotion was interrupted. Started as a primary it would write
    /// on the timeline of the primary that it followed.
    #[error(
        "the database in {} is a replica's ({state}) and was not promoted; start it as a replica, then promote it",
        path.display()
    )]
    NotPromoted {
        /// The data directory.
        path: PathBuf,
        /// What the control file says.
        state: DatabaseState,
    },
    /// The control file could not be read.
    #[error("looking at the database's role")]
    Control(#[from] ReadError),
}

pub(super) fn step(
    operation: &'static str,
    path: &Path,
) -> impl FnOnce(io::Error) -> ConfigureError {
    let path = path.to_owned();
    move |source| ConfigureError::Step {
        operation,
        path,
        source,
    }
}

/// libpq's password file, for the server and the programs that connect to another site.
pub(super) fn passfile(instance: &Instance) -> PathBuf {
    instance.runtime_directory.join(PASSFILE)
}

/// The settings that yield to everybody else's.
pub(crate) fn defaults(serving: &Serving) -> Vec<(&'static str, String)> {
    let replication = match serving {
        Serving::Alone => return Vec::new(),
        Serving::Primary { replication, .. } | Serving::Replica { replication, .. } => replication,
    };
    let defaults = DEFAULTS
        .iter()
        .map(|(name, value)| (*name, (*value).to_owned()));
    let keep = kept_megabytes(&replication.slot_wal_max);
    defaults
        .chain([("wal_keep_size", format!("{keep}MB"))])
        .collect()
}

/// How much write-ahead log is kept at any rate: `pg_rewind` has to read back beyond the divergence. No more than
/// a slot may keep, or that bound would mean nothing.
fn kept_megabytes(slot_wal_max: &str) -> u64 {
    let digits = slot_wal_max.trim();
    let end = digits
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(digits.len());
    let (number, unit) = digits.split_at(end);
    let number = number.parse::<u64>().ok();
    let megabytes = number.and_then(|number| match unit.trim() {
        "" | "MB" => Some(number),
        "kB" => Some(number >> 10),
        "GB" => number.checked_mul(1 << 10),
        "TB" => number.checked_mul(1 << 20),
        _ => None,
    });
    megabytes.map_or(KEEP, |most| most.min(KEEP))
}

/// The settings that win over every other line of the files.
pub(crate) fn own(instance: &Instance, serving: &Serving) -> Vec<(&'static str, String)> {
    let (names, receive, replication) = match serving {
        Serving::Alone => return Vec::new(),
        Serving::Primary { names, replication } => (names.clone(), None, replication),
        Serving::Replica {
            receive,
            replication,
        } => (String::new(), receive.as_ref(), replication),
    };
    let targets = match restores(instance, serving) {
        true => &[][..],
        false => NO_TARGET,
    };
    let fixed = FIXED
        .iter()
        .chain(targets)
        .map(|(name, value)| (*name, (*value).to_owned()));
    let [conninfo, slot] = receiving(instance, receive);
    fixed
        .chain([
            ("max_slot_wal_keep_size", replication.slot_wal_max.clone()),
            ("synchronous_standby_names", names),
            ("primary_conninfo", conninfo),
            ("primary_slot_name", slot),
        ])
        .collect()
}

/// Whether this start restores a backup, up to where the restore's own settings say.
fn restores(instance: &Instance, serving: &Serving) -> bool {
    matches!(serving, Serving::Primary { .. })
        && instance.data_directory.join(RECOVERY_SIGNAL).exists()
}

/// Whether a setting says where replay ends, which is decided at the start.
pub(super) fn is_target(name: &str) -> bool {
    NO_TARGET.iter().any(|(target, _)| *target == name)
}

fn receiving(instance: &Instance, receive: Option<&Source>) -> [String; 2] {
    receive.map_or_else(Default::default, |source| {
        [source.conninfo(&passfile(instance)), source.slot.clone()]
    })
}

/// The lines of `pg_hba.conf` for other sites. They come before the user's: no password, no replication.
pub(crate) fn hba(serving: &Serving) -> Vec<String> {
    let replication = match serving {
        Serving::Alone => return Vec::new(),
        Serving::Primary { replication, .. } | Serving::Replica { replication, .. } => replication,
    };
    let Replication {
        user, require_tls, ..
    } = replication;
    let kind = if *require_tls { "hostssl" } else { "host" };
    let user = format!("\"{}\"", user.replace('"', "\"\""));
    let mut lines: Vec<String> = ["replication", "postgres"]
        .iter()
        .map(|database| format!("{kind} {database} {user} all scram-sha-256"))
        .collect();
    // Without this line a user's `host all all … trust` further down would let it in without a password.
    lines.push(format!("host all,replication {user} all reject"));
    lines
}

/// Writes libpq's password file if PostgreSQL shall receive, and removes it if not.
///
/// Without it no new connection to another site is authenticated, whatever a process that has not yet read
/// its new configuration may attempt.
pub(crate) fn write_passfile(instance: &Instance, serving: &Serving) -> Result<(), ConfigureError> {
    match serving {
        Serving::Alone => Ok(()),
        Serving::Replica {
            receive: Some(source),
            ..
        } => give_passfile(instance, source),
        Serving::Primary { .. } | Serving::Replica { receive: None, .. } => {
            let path = passfile(instance);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    Err(step("removing", &path)(error))
                }
                Ok(()) | Err(_) => Ok(()),
            }
        }
    }
}

/// Writes libpq's password file, for PostgreSQL's user alone.
pub(super) fn give_passfile(instance: &Instance, source: &Source) -> Result<(), ConfigureError> {
    let password = read_password(&source.password_file)?;
    let path = passfile(instance);
    let text = source.passfile(&password);
    replace(&path, text.as_bytes(), 0o600, Some(instance))
}

/// Replaces a file at once: a reader sees the old contents or the new ones.
pub(super) fn replace(
    path: &Path,
    contents: &[u8],
    mode: u32,
    owner: Option<&Instance>,
) -> Result<(), ConfigureError> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let mut new = tempfile::Builder::new()
        .permissions(fs::Permissions::from_mode(0o600))
        .tempfile_in(directory)
        .map_err(step("making a file in", directory))?;
    new.write_all(contents).map_err(step("writing", path))?;
    if let Some(instance) = owner
        && nix::unistd::geteuid().is_root()
    {
        chown(new.path(), Some(instance.user.uid), Some(instance.user.gid))
            .map_err(step("giving away", path))?;
    }
    fs::set_permissions(new.path(), fs::Permissions::from_mode(mode))
        .map_err(step("protecting", path))?;
    new.as_file().sync_all().map_err(step("syncing", path))?;
    new.persist(path)
        .map_err(|error| step("replacing", path)(error.error))?;
    Ok(())
}

/// Makes the data directory, which nobody runs, what `serving` says: a replica's carries `standby.signal`, and
/// nobody's `postgresql.auto.conf` sets what is Baton's. Durable when it returns.
///
/// # Errors
/// A replica's directory is never made a primary's: only a promotion begins a new timeline.
pub(crate) fn prepare(instance: &Instance, serving: &Serving) -> Result<(), ConfigureError> {
    let directory = &instance.data_directory;
    match serving {
        Serving::Alone => return Ok(()),
        Serving::Primary { .. } => admit_primary(instance)?,
        Serving::Replica { .. } => {
            let control = ControlData::read(directory)?;
            let own = control.timeline.max(control.minimum_recovery_timeline);
            timelines::release(instance, own)?;
            signal_standby(instance, directory)?;
        }
    }
    strip_auto_conf(instance, restores(instance, serving))?;
    sync_directory(directory)
}

/// A promotion takes `standby.signal` away before the new timeline is in the control file, which then says that
/// the server is a primary's: a crash between the two leaves neither the one nor the other. A restored backup
/// (`recovery.signal`) begins a timeline of its own.
fn admit_primary(instance: &Instance) -> Result<(), ConfigureError> {
    let path = &instance.data_directory;
    let state = ControlData::read(path)?.state;
    let replayed_as_replica = match state {
        DatabaseState::InArchiveRecovery | DatabaseState::ShutDownInRecovery => {
            !path.join(RECOVERY_SIGNAL).exists()
        }
        DatabaseState::StartingUp
        | DatabaseState::ShutDown
        | DatabaseState::ShuttingDown
        | DatabaseState::InCrashRecovery
        | DatabaseState::InProduction => false,
    };
    if is_replica(instance) || replayed_as_replica {
        let path = path.clone();
        return Err(ConfigureError::NotPromoted { path, state });
    }
    Ok(())
}

/// Whether the data directory is a replica's.
pub(super) fn is_replica(instance: &Instance) -> bool {
    instance.data_directory.join(STANDBY_SIGNAL).exists()
}

/// Makes a former primary's data directory ready for a recovery without other sites.
pub(super) fn prepare_recovery(instance: &Instance) -> Result<(), ConfigureError> {
    strip_auto_conf(instance, false)?;
    sync_directory(&instance.data_directory)
}

/// Makes a data directory a replica's.
pub(super) fn signal_standby(instance: &Instance, directory: &Path) -> Result<(), ConfigureError> {
    replace(&directory.join(STANDBY_SIGNAL), b"", 0o600, Some(instance))
}

/// Takes out of what a backup tool restored what it says of the recovery.
pub(super) fn strip_restored(instance: &Instance, directory: &Path) -> Result<(), ConfigureError> {
    let path = directory.join(AUTO_CONF);
    strip(instance, &path, &OF_A_RESTORE).map(drop)
}

/// What a restore is told stays while it is under way.
fn strip_auto_conf(instance: &Instance, restores: bool) -> Result<(), ConfigureError> {
    let path = instance.data_directory.join(AUTO_CONF);
    if strip(instance, &path, &own_of(restores))? {
        tracing::warn!(file = %path.display(), "ALTER SYSTEM had set what is Baton's to set: taken out");
    }
    Ok(())
}

fn own_of(restores: bool) -> Vec<&'static str> {
    let stays = |name: &&&str| !(restores && is_target(name));
    OWN.iter().filter(stays).copied().collect()
}

/// Takes these settings out of a file of PostgreSQL's; whether there were any.
fn strip(instance: &Instance, path: &Path, names: &[&str]) -> Result<bool, ConfigureError> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(step("reading", path)(error)),
    };
    match without(&text, names) {
        Some(stripped) => replace(path, &stripped, 0o600, Some(instance)).map(|()| true),
        None => Ok(false),
    }
}

/// The file without the lines that set one of these; `None` if there are none. PostgreSQL writes the file,
/// one setting per line, and no value contains a newline.
fn without(text: &[u8], names: &[&str]) -> Option<Vec<u8>> {
    let is_own = |line: &&[u8]| {
        let line = line.trim_ascii_start();
        let end = line
            .iter()
            .position(|c| *c == b'=' || c.is_ascii_whitespace())
            .unwrap_or(line.len());
        names
            .iter()
            .any(|name| line[..end].eq_ignore_ascii_case(name.as_bytes()))
    };
    let lines = || text.split_inclusive(|c| *c == b'\n');
    let any = lines().any(|line| is_own(&line));
    any.then(|| {
        lines()
            .filter(|line| !is_own(line))
            .flatten()
            .copied()
            .collect()
    })
}

pub(super) fn sync_directory(path: &Path) -> Result<(), ConfigureError> {
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .map_err(step("syncing", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_batons_leaves_the_automatic_file() {
        let text = b"# head\nwork_mem = '8MB'\nPrimary_ConnInfo = 'host=evil'\nsynchronous_standby_names=''\nprimary_conninfo_x = 1\n";
        let kept = without(text, &own_of(false)).unwrap();
        assert_eq!(
            String::from_utf8(kept).unwrap(),
            "# head\nwork_mem = '8MB'\nprimary_conninfo_x = 1\n"
        );
        assert_eq!(without(b"work_mem = '8MB'\n", &OWN), None);
        let restored = b"restore_command = 'x'\nrecovery_end_command='y'\n";
        assert_eq!(without(restored, &OF_A_RESTORE), Some(Vec::new()));
    }

    #[test]
    fn a_restores_target_lasts_as_long_as_the_restore() {
        let text = b"recovery_target_time = '2026-01-01'\nrecovery_target_xid='7'\n";
        assert_eq!(without(text, &own_of(true)), None);
        assert_eq!(without(text, &own_of(false)), Some(Vec::new()));
    }

    #[test]
    fn no_more_is_kept_than_a_slot_may_keep() {
        for (most, kept) in [
            ("4GB", 256),
            ("64MB", 64),
            ("65536kB", 64),
            ("32", 32),
            ("-1", 256),
            ("1 TB", 256),
            ("x", 256),
        ] {
            assert_eq!(kept_megabytes(most), kept, "{most}");
        }
    }

    #[test]
    fn a_primary_says_who_may_come_in_before_anybody_else_does() {
        let serving = Serving::Primary {
            names: String::new(),
            replication: Replication {
                user: "re\"pl".to_owned(),
                require_tls: true,
                slot_wal_max: "1GB".to_owned(),
            },
        };
        assert_eq!(
            hba(&serving),
            [
                "hostssl replication \"re\"\"pl\" all scram-sha-256",
                "hostssl postgres \"re\"\"pl\" all scram-sha-256",
                "host all,replication \"re\"\"pl\" all reject",
            ]
        );
        assert!(hba(&Serving::Alone).is_empty());
    }
}
