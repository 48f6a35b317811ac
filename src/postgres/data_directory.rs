//! What a data directory is, and whether this member may start PostgreSQL on it.
//!
//! Read-only. Everything that PostgreSQL needs must lie on the fenced volume, or a take-over would
//! leave some of it behind, unfenced.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::control_data::{self, ControlData};

/// Settings that must be on, whoever turned them off.
const NEVER_OFF: [&str; 2] = ["fsync", "full_page_writes"];

/// The files in which somebody may have done so.
const SETTING_FILES: [&str; 2] = ["postgresql.conf", "postgresql.auto.conf"];

/// A data directory that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataDirectory {
    /// PostgreSQL's major version, from `PG_VERSION`.
    pub major: u32,
    /// What the control file says.
    pub control: ControlData,
    /// Whether PostgreSQL will start as a replica (`standby.signal`).
    pub replica: bool,
    /// Whether it is a base backup that was not started yet (`backup_label`).
    pub from_backup: bool,
}

/// Why PostgreSQL must not be started on a data directory.
#[derive(Debug, thiserror::Error)]
pub enum DataDirectoryError {
    /// A file could not be read.
    #[error("reading {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The control file is missing or damaged.
    #[error("{} is no usable data directory", path.display())]
    Control {
        /// The data directory.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: control_data::ReadError,
    },
    /// `PG_VERSION` is not a number.
    #[error("{} holds {found:?}, which is no version of PostgreSQL", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// What it holds.
        found: String,
    },
    /// Another major version than the programs'.
    #[error(
        "the data is of PostgreSQL {data}, the programs are of {programs}; install PostgreSQL {data} or run pg_upgrade"
    )]
    OtherVersion {
        /// The data's major version.
        data: u32,
        /// The programs' major version.
        programs: u32,
    },
    /// Another database system.
    #[error(
        "the data has system identifier {found}, expected {expected}: it is another database; attach the right volume"
    )]
    OtherSystem {
        /// What was expected.
        expected: u64,
        /// What was found.
        found: u64,
    },
    /// The write-ahead log is elsewhere.
    #[error("{} leads to {}: the write-ahead log must be on the volume; move it back into the data directory",
        path.display(), target.display())]
    WalElsewhere {
        /// `pg_wal`.
        path: PathBuf,
        /// Where it leads.
        target: PathBuf,
    },
    /// A tablespace is elsewhere.
    #[error("tablespace {} leads to {}, outside the volume; move its tables and drop it", path.display(), target.display())]
    TablespaceElsewhere {
        /// The link in `pg_tblspc`.
        path: PathBuf,
        /// Where it leads.
        target: PathBuf,
    },
    /// A setting that loses acknowledged writes.
    #[error("{} sets {name} = {value}: acknowledged writes would be lost; remove it", path.display())]
    UnsafeSetting {
        /// The file.
        path: PathBuf,
        /// The setting.
        name: &'static str,
        /// Its value.
        value: String,
    },
}

impl DataDirectory {
    /// Looks at `directory` on the volume mounted at `volume_root`; `None` if there is none yet.
    pub fn read(volume_root: &Path, directory: &Path) -> Result<Option<Self>, DataDirectoryError> {
        let version = directory.join("PG_VERSION");
        let text = match fs::read_to_string(&version) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound && is_absent(directory) => {
                return Ok(None);
            }
            Err(source) => {
                return Err(DataDirectoryError::Read {
                    path: version,
                    source,
                });
            }
        };
        let Ok(major) = text.trim().parse() else {
            return Err(DataDirectoryError::Version {
                path: version,
                found: text,
            });
        };
        let control =
            ControlData::read(directory).map_err(|source| DataDirectoryError::Control {
                path: directory.to_owned(),
                source,
            })?;
        refuse_links(volume_root, directory)?;
        refuse_unsafe_settings(directory)?;
        Ok(Some(Self {
            major,
            control,
            replica: directory.join("standby.signal").exists(),
            from_backup: directory.join("backup_label").exists(),
        }))
    }

    /// Whether it is the database system that is expected.
    pub fn admit_system(&self, expected: u64) -> Result<(), DataDirectoryError> {
        let found = self.control.system_identifier;
        match expected == found {
            true => Ok(()),
            false => Err(DataDirectoryError::OtherSystem { expected, found }),
        }
    }

    /// Whether these programs may run it, as the database system that is expected (if known).
    pub fn admit(
        &self,
        programs_major: u32,
        expected_system: Option<u64>,
    ) -> Result<(), DataDirectoryError> {
        if self.major != programs_major {
            return Err(DataDirectoryError::OtherVersion {
                data: self.major,
                programs: programs_major,
            });
        }
        expected_system.map_or(Ok(()), |expected| self.admit_system(expected))
    }
}

/// Whether there is nothing at all, so that `initdb` may make it. A directory with anything else in
/// it is not absent: somebody's data may have lost its `PG_VERSION`.
fn is_absent(directory: &Path) -> bool {
    match fs::read_dir(directory) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

fn refuse_links(volume_root: &Path, directory: &Path) -> Result<(), DataDirectoryError> {
    let read = |path: &Path| {
        let path = path.to_owned();
        move |source| DataDirectoryError::Read { path, source }
    };
    let root = fs::canonicalize(volume_root).map_err(read(volume_root))?;
    let wal = directory.join("pg_wal");
    if let Ok(target) = fs::read_link(&wal) {
        return Err(DataDirectoryError::WalElsewhere { path: wal, target });
    }
    let tablespaces = directory.join("pg_tblspc");
    for entry in fs::read_dir(&tablespaces).map_err(read(&tablespaces))? {
        let path = entry.map_err(read(&tablespaces))?.path();
        let Ok(target) = fs::read_link(&path) else {
            // A directory in place, made with allow_in_place_tablespaces: on the volume.
            continue;
        };
        // A link that leads nowhere is not provably inside either.
        let inside = fs::canonicalize(&path).is_ok_and(|real| real.starts_with(&root));
        if !inside {
            return Err(DataDirectoryError::TablespaceElsewhere { path, target });
        }
    }
    Ok(())
}

/// The command line turns these settings on whatever the files say; that somebody turned them off
/// shows a wish that Baton does not grant, so it is refused, not silently overridden.
fn refuse_unsafe_settings(directory: &Path) -> Result<(), DataDirectoryError> {
    for file in SETTING_FILES {
        let path = directory.join(file);
        let text = match fs::read(&path) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(source) => return Err(DataDirectoryError::Read { path, source }),
        };
        for name in NEVER_OFF {
            if let Some(value) = last_setting(&text, name).filter(|value| !means_on(value)) {
                return Err(DataDirectoryError::UnsafeSetting { path, name, value });
            }
        }
    }
    Ok(())
}

/// The value of the last line that sets `name`; the syntax is `name [=] value [# comment]`.
fn last_setting(text: &str, name: &str) -> Option<String> {
    let lines = text.lines().rev().map(str::trim_start);
    for line in lines.filter(|line| !line.starts_with('#')) {
        let end = line
            .find(|c: char| c == '=' || c.is_whitespace())
            .unwrap_or(line.len());
        if !line[..end].eq_ignore_ascii_case(name) {
            continue;
        }
        let value = line[end..].trim_start_matches(|c: char| c == '=' || c.is_whitespace());
        let value = value.split('#').next().unwrap_or_default().trim();
        return Some(value.trim_matches('\'').to_owned());
    }
    None
}

/// PostgreSQL takes any unambiguous beginning of `on`, `true` and `yes`, and 1.
fn means_on(value: &str) -> bool {
    let value = value.to_ascii_lowercase();
    !value.is_empty()
        && (value == "on"
            || value == "1"
            || "true".starts_with(&value)
            || "yes".starts_with(&value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_found_as_postgres_would() {
        let cases = [
            ("", None),
            ("#fsync = off", None),
            ("fsync=off", Some("off")),
            ("  FSync = 'off'  # faster", Some("off")),
            ("fsync off", Some("off")),
            ("fsync = off\nfsync = on", Some("on")),
            ("fsync_extra = off", None),
        ];
        for (text, value) in cases {
            assert_eq!(last_setting(text, "fsync").as_deref(), value, "{text}");
        }
    }

    #[test]
    fn only_true_is_on() {
        for value in ["on", "true", "t", "YES", "1"] {
            assert!(means_on(value), "{value}");
        }
        for value in ["off", "o", "false", "0", "no", "", "2"] {
            assert!(!means_on(value), "{value}");
        }
    }

    #[test]
    fn an_empty_directory_is_absent_and_a_damaged_one_is_not() {
        let root = tempfile::tempdir().unwrap();
        let data = root.path().join("pgdata");
        assert!(matches!(DataDirectory::read(root.path(), &data), Ok(None)));
        fs::create_dir(&data).unwrap();
        assert!(matches!(DataDirectory::read(root.path(), &data), Ok(None)));
        fs::create_dir(data.join("base")).unwrap();
        let damaged = DataDirectory::read(root.path(), &data);
        assert!(
            matches!(damaged, Err(DataDirectoryError::Read { .. })),
            "{damaged:?}"
        );
        fs::write(data.join("PG_VERSION"), "fifteen\n").unwrap();
        let damaged = DataDirectory::read(root.path(), &data);
        assert!(
            matches!(damaged, Err(DataDirectoryError::Version { .. })),
            "{damaged:?}"
        );
        fs::write(data.join("PG_VERSION"), "15\n").unwrap();
        let damaged = DataDirectory::read(root.path(), &data);
        assert!(
            matches!(damaged, Err(DataDirectoryError::Control { .. })),
            "{damaged:?}"
        );
    }
}
