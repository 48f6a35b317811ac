//! What must be known to run PostgreSQL: its programs, its places, its settings.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::unistd::User;
use serde::{Deserialize, Serialize};

/// The oldest major version of PostgreSQL that Baton runs.
pub const OLDEST_MAJOR: u32 = 14;

/// Where Debian, Ubuntu and the PGDG packages keep one directory per major version.
const DEBIAN_LIB: &str = "/usr/lib/postgresql";

/// PostgreSQL's programs of one version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Programs {
    /// The directory with `postgres` and `initdb`.
    pub bin_dir: PathBuf,
    /// The major version, 14 or later.
    pub major: u32,
    /// What `postgres --version` says.
    pub version: String,
}

/// Why PostgreSQL's programs cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ProgramsError {
    /// No usable version is installed.
    #[error(
        "no PostgreSQL {OLDEST_MAJOR} or newer in {DEBIAN_LIB}; install it, or name its directory in postgres.bin_dir"
    )]
    NoneInstalled,
    /// A program could not be run.
    #[error("running {} --version", program.display())]
    Run {
        /// The program.
        program: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It says something that is no version.
    #[error("{} --version says {output:?}, which is no version", program.display())]
    Unreadable {
        /// The program.
        program: PathBuf,
        /// What it said.
        output: String,
    },
    /// It is too old.
    #[error("{} is PostgreSQL {major}; {OLDEST_MAJOR} or newer is needed", bin_dir.display())]
    TooOld {
        /// The directory.
        bin_dir: PathBuf,
        /// Its major version.
        major: u32,
    },
}

impl Programs {
    /// Asks the programs in this directory for their version.
    pub fn in_directory(bin_dir: &Path) -> Result<Self, ProgramsError> {
        let program = bin_dir.join("postgres");
        let output = Command::new(&program)
            .arg("--version")
            .stdin(Stdio::null())
            .output()
            .map_err(|source| ProgramsError::Run {
                program: program.clone(),
                source,
            })?;
        let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        let Some(major) = major_of(&version) else {
            return Err(ProgramsError::Unreadable {
                program,
                output: version,
            });
        };
        if major < OLDEST_MAJOR {
            return Err(ProgramsError::TooOld {
                bin_dir: bin_dir.to_owned(),
                major,
            });
        }
        Ok(Self {
            bin_dir: bin_dir.to_owned(),
            major,
            version,
        })
    }

    /// The newest installed version, or exactly `major` where a data directory asks for it.
    pub fn detect(major: Option<u32>) -> Result<Self, ProgramsError> {
        let mut versions: Vec<u32> = std::fs::read_dir(DEBIAN_LIB)
            .into_iter()
            .flatten()
            .filter_map(Result::ok)
            .filter(|entry| entry.path().join("bin/postgres").exists())
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(|version| *version >= OLDEST_MAJOR && major.is_none_or(|m| m == *version))
            .collect();
        versions.sort_unstable();
        let newest = versions.pop().ok_or(ProgramsError::NoneInstalled)?;
        Self::in_directory(&Path::new(DEBIAN_LIB).join(newest.to_string()).join("bin"))
    }

    /// One of the programs.
    pub fn path(&self, name: &str) -> PathBuf {
        self.bin_dir.join(name)
    }
}

/// `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`; also `18beta1`, `17devel`.
fn major_of(version: &str) -> Option<u32> {
    let number = version.strip_prefix("postgres (PostgreSQL) ")?;
    let end = number
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(number.len());
    number[..end].parse().ok()
}

/// The operating system user that runs PostgreSQL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OsUser {
    /// Its name.
    pub name: String,
    /// Its user id, never 0.
    pub uid: u32,
    /// Its primary group.
    pub gid: u32,
}

/// Why a user cannot run PostgreSQL.
#[derive(Debug, thiserror::Error)]
pub enum OsUserError {
    /// The user database could not be read.
    #[error("looking up user {name:?}")]
    Lookup {
        /// The name.
        name: String,
        /// What the system said.
        #[source]
        source: nix::errno::Errno,
    },
    /// There is no such user.
    #[error("there is no user {name:?}; create it or set postgres.os_user")]
    Unknown {
        /// The name.
        name: String,
    },
    /// PostgreSQL refuses to run as root.
    #[error("user {name:?} is root, which PostgreSQL refuses; name another user")]
    Root {
        /// The name.
        name: String,
    },
}

impl OsUser {
    /// Looks a user up.
    pub fn look_up(name: &str) -> Result<Self, OsUserError> {
        let name = name.to_owned();
        match User::from_name(&name) {
            Err(source) => Err(OsUserError::Lookup { name, source }),
            Ok(None) => Err(OsUserError::Unknown { name }),
            Ok(Some(user)) if user.uid.is_root() => Err(OsUserError::Root { name }),
            Ok(Some(user)) => Ok(Self {
                name,
                uid: user.uid.as_raw(),
                gid: user.gid.as_raw(),
            }),
        }
    }
}

/// One member's PostgreSQL.
#[derive(Clone, Debug)]
pub struct Instance {
    /// The cluster's name, for PostgreSQL's `cluster_name`.
    pub cluster: String,
    /// The member's name, for the record of ownership.
    pub member: String,
    /// PostgreSQL's programs.
    pub programs: Programs,
    /// The user that runs it.
    pub user: OsUser,
    /// Where the volume is mounted.
    pub volume_root: PathBuf,
    /// The data directory, on the volume.
    pub data_directory: PathBuf,
    /// Where this member's configuration files and its log are; not on the volume.
    pub runtime_directory: PathBuf,
    /// Where the Unix socket is; not on the volume.
    pub socket_directory: PathBuf,
    /// The port for clients.
    pub port: u16,
    /// The addresses for clients.
    pub listen_addresses: String,
    /// Further settings.
    pub parameters: BTreeMap<String, String>,
    /// Lines for `pg_hba.conf`, after those that Baton needs itself.
    pub hba: Vec<String>,
    /// Commits may have to wait for other sites: `synchronous_commit` is on the command line, where
    /// `ALTER SYSTEM` cannot lower it. Of `parameters` only `remote_apply` counts, from a start on.
    pub synchronous: bool,
}

impl Instance {
    /// PostgreSQL's log.
    pub fn log_file(&self) -> PathBuf {
        self.runtime_directory.join("postgresql.log")
    }
}

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} on {}",
            self.programs.version,
            self.data_directory.display()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        let cases = [
            (
                "postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)",
                Some(15),
            ),
            ("postgres (PostgreSQL) 18beta1", Some(18)),
            ("postgres (PostgreSQL) 9.6.24", Some(9)),
            ("postgres (EnterpriseDB) 16", None),
            ("", None),
        ];
        for (text, major) in cases {
            assert_eq!(major_of(text), major, "{text}");
        }
    }

    #[test]
    fn users_that_cannot_run_it_are_refused() {
        assert!(matches!(
            OsUser::look_up("root"),
            Err(OsUserError::Root { .. })
        ));
        let unknown = OsUser::look_up("no-such-user-of-baton");
        assert!(
            matches!(unknown, Err(OsUserError::Unknown { .. })),
            "{unknown:?}"
        );
    }
}
