//! What a data directory is, and whether this member may start PostgreSQL on it.
//!
//! Read-only. Everything that PostgreSQL needs must lie on the fenced volume, or a take-over would
//! leave some of it behind, unfenced.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::control_data::{self, ControlData};
use crate::volume::{Beneath, Kind};

/// Settings that must be on, whoever turned them off.
const NEVER_OFF: [&str; 2] = ["fsync", "full_page_writes"];

/// The files in which somebody may have done so.
const SETTING_FILES: [&str; 2] = ["postgresql.conf", "postgresql.auto.conf"];

/// Longer than any `PG_VERSION`.
const VERSION_MAX_LEN: u64 = 64;

/// Longer than any file of settings that a person has written.
const SETTINGS_MAX_LEN: u64 = 4 << 20;

/// More tablespaces than any database has.
const TABLESPACES: usize = 10_000;

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
    #[error("{} holds no version of PostgreSQL", path.display())]
    Version {
        /// The file.
        path: PathBuf,
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
    #[error("{} leads to {target:?}: the write-ahead log must be on the volume; move it back into the data directory",
        path.display())]
    WalElsewhere {
        /// `pg_wal`.
        path: PathBuf,
        /// Where it leads.
        target: PathBuf,
    },
    /// A tablespace is elsewhere.
    #[error("tablespace {} leads to {target:?}, outside the volume; move its tables and drop it", path.display())]
    TablespaceElsewhere {
        /// The link in `pg_tblspc`.
        path: PathBuf,
        /// Where it leads.
        target: PathBuf,
    },
    /// A setting that loses acknowledged writes.
    #[error("{} turns {name} off: acknowledged writes would be lost; remove that line", path.display())]
    UnsafeSetting {
        /// The file.
        path: PathBuf,
        /// The setting.
        name: &'static str,
    },
}

impl DataDirectory {
    /// Looks at `directory` on the volume mounted at `volume_root`; `None` if there is none yet.
    ///
    /// # Errors
    /// It cannot be looked at, or PostgreSQL must not be started on it.
    pub fn read(volume_root: &Path, directory: &Path) -> Result<Option<Self>, DataDirectoryError> {
        let root = match Beneath::resolved(volume_root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            root => root.map_err(failed(volume_root))?,
        };
        let below = directory
            .strip_prefix(volume_root)
            .map_err(|_outside| failed(directory)(io::Error::other("it is not on the volume")))?;
        Self::look(&root, below)
    }

    /// Looks at the directory with the path `below` beneath the volume's root; `None` if there is none yet.
    ///
    /// # Errors
    /// As [`DataDirectory::read`].
    pub fn look(root: &Beneath, below: &Path) -> Result<Option<Self>, DataDirectoryError> {
        let version = below.join("PG_VERSION");
        let path = root.path().join(&version);
        let text = match root.read(&version, VERSION_MAX_LEN) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound && is_absent(root, below) => {
                return Ok(None);
            }
            Err(source) => return Err(DataDirectoryError::Read { path, source }),
        };
        let number = str::from_utf8(&text).ok().map(str::trim);
        let Some(major) = number.and_then(|number| number.parse().ok()) else {
            return Err(DataDirectoryError::Version { path });
        };
        let control =
            ControlData::look(root, below).map_err(|source| DataDirectoryError::Control {
                path: root.path().join(below),
                source,
            })?;
        refuse_links(root, below)?;
        refuse_unsafe_settings(root, below)?;
        Ok(Some(Self {
            major,
            control,
            replica: has_file(root, &below.join("standby.signal"))?,
            from_backup: has_file(root, &below.join("backup_label"))?,
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

fn failed(path: &Path) -> impl FnOnce(io::Error) -> DataDirectoryError {
    let path = path.to_owned();
    move |source| DataDirectoryError::Read { path, source }
}

/// Whether there is a regular file. What is neither that nor absent is refused: PostgreSQL would follow it.
fn has_file(root: &Beneath, file: &Path) -> Result<bool, DataDirectoryError> {
    let path = root.path().join(file);
    match root.kind(file).map_err(failed(&path))? {
        Kind::Absent => Ok(false),
        Kind::File => Ok(true),
        Kind::Directory | Kind::Link(_) | Kind::Other => {
            Err(failed(&path)(io::Error::other("this is no regular file")))
        }
    }
}

/// Whether there is nothing at all, so that `initdb` may make it. A directory with anything else in
/// it is not absent: somebody's data may have lost its `PG_VERSION`.
fn is_absent(root: &Beneath, below: &Path) -> bool {
    match root.names(below, 1) {
        Ok(names) => names.is_empty(),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

fn refuse_links(root: &Beneath, below: &Path) -> Result<(), DataDirectoryError> {
    let wal = below.join("pg_wal");
    let path = root.path().join(&wal);
    if let Kind::Link(target) = root.kind(&wal).map_err(failed(&path))? {
        return Err(DataDirectoryError::WalElsewhere { path, target });
    }
    let tablespaces = below.join("pg_tblspc");
    let path = root.path().join(&tablespaces);
    let names = root.names(&tablespaces, TABLESPACES + 1);
    let names = names.map_err(failed(&path))?;
    if names.len() > TABLESPACES {
        return Err(failed(&path)(io::Error::other("too many tablespaces")));
    }
    for name in names {
        let path = path.join(&name);
        // What is no link is a directory in place, made with allow_in_place_tablespaces: on the volume.
        let kind = root.kind(&tablespaces.join(name)).map_err(failed(&path))?;
        if let Kind::Link(target) = kind
            && !is_inside(root, &tablespaces, &target)
        {
            return Err(DataDirectoryError::TablespaceElsewhere { path, target });
        }
    }
    Ok(())
}

/// Whether a tablespace's link leads to a directory on the volume, through no further link. One that leads
/// nowhere is not provably inside either.
fn is_inside(root: &Beneath, tablespaces: &Path, target: &Path) -> bool {
    let below = match target.is_absolute() {
        true => target.strip_prefix(root.path()).map(Path::to_owned).ok(),
        false => Some(tablespaces.join(target)),
    };
    below.is_some_and(|below| matches!(root.kind(&below), Ok(Kind::Directory)))
}

/// The command line turns these settings on whatever the files say; that somebody turned them off
/// shows a wish that Baton does not grant, so it is refused, not silently overridden.
fn refuse_unsafe_settings(root: &Beneath, below: &Path) -> Result<(), DataDirectoryError> {
    for file in SETTING_FILES {
        let file = below.join(file);
        let path = root.path().join(&file);
        let text = match root.read(&file, SETTINGS_MAX_LEN) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(source) => return Err(DataDirectoryError::Read { path, source }),
        };
        for name in NEVER_OFF {
            if last_setting(&text, name).is_some_and(|value| !means_on(&value)) {
                return Err(DataDirectoryError::UnsafeSetting { path, name });
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
    use std::fs;
    use std::os::unix::fs::symlink;

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
    #[test]
    fn a_link_to_a_file_of_the_host_is_not_read_and_not_told() {
        let place = tempfile::tempdir().unwrap();
        let (root, host) = (place.path().join("root"), place.path().join("host"));
        let data = root.join("pgdata");
        fs::create_dir_all(data.join("global")).unwrap();
        fs::write(&host, "hunter2").unwrap();
        let refused = || {
            let error = DataDirectory::read(&root, &data).unwrap_err();
            let text = crate::attachment::whole(error);
            assert!(!text.contains("hunter2"), "{text}");
            text
        };
        let version = data.join("PG_VERSION");
        symlink(&host, &version).unwrap();
        assert!(refused().contains("symbolic link"));
        fs::remove_file(&version).unwrap();
        fs::write(&version, "hunter2").unwrap();
        assert!(refused().contains("no version"));
        fs::write(&version, "15\n").unwrap();
        symlink(&host, data.join("global/pg_control")).unwrap();
        assert!(refused().contains("symbolic link"));
        fs::rename(&data, place.path().join("moved")).unwrap();
        symlink(place.path().join("moved"), &data).unwrap();
        assert!(refused().contains("symbolic link"));
    }
}
