//! Making the data directory of a new database system.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use fencing::Licence;

use super::configuration::SUPERUSER;
use super::control_data::{self, ControlData};
use super::instance::Instance;

/// What is appended to the name of a data directory while it is being made.
const UNFINISHED: &str = ".initdb";

/// Why there is no data directory.
#[derive(Debug, thiserror::Error)]
pub enum InitdbError {
    /// There is one already.
    #[error("{} exists already and is not empty", path.display())]
    Exists {
        /// The data directory.
        path: PathBuf,
    },
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
    /// `initdb` failed.
    #[error("initdb failed ({status}): {message}")]
    Failed {
        /// How it ended.
        status: ExitStatus,
        /// What it said.
        message: String,
    },
    /// What it made has no usable control file.
    #[error("reading what initdb made")]
    Control(#[from] control_data::ReadError),
}

/// Makes a new database system with data checksums; blocks until it is durable.
///
/// It is made under another name and renamed when complete and synced, so that an interrupted
/// attempt is never taken for a database. What an earlier attempt left is removed: nothing under
/// that name ever served anybody.
pub fn initdb(_licence: &Licence, instance: &Instance) -> Result<ControlData, InitdbError> {
    let directory = &instance.data_directory;
    let unfinished = unfinished_name(directory);
    let step = |operation, path: &Path| {
        let path = path.to_owned();
        move |source| InitdbError::Step {
            operation,
            path,
            source,
        }
    };
    if fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(InitdbError::Exists {
            path: directory.clone(),
        });
    }
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished).map_err(step("removing", &unfinished))?;
    }
    if let Some(parent) = unfinished.parent() {
        fs::create_dir_all(parent).map_err(step("making", parent))?;
    }
    fs::create_dir(&unfinished).map_err(step("making", &unfinished))?;
    chown(
        &unfinished,
        Some(instance.user.uid),
        Some(instance.user.gid),
    )
    .map_err(step("giving away", &unfinished))?;
    fs::set_permissions(&unfinished, fs::Permissions::from_mode(0o700))
        .map_err(step("protecting", &unfinished))?;
    run(instance, &unfinished)?;
    // Order matters: the contents must be durable before they get the name that counts.
    sync(&instance.volume_root).map_err(step("syncing", &instance.volume_root))?;
    fs::rename(&unfinished, directory).map_err(step("renaming", &unfinished))?;
    sync(&instance.volume_root).map_err(step("syncing", &instance.volume_root))?;
    Ok(ControlData::read(directory)?)
}

fn unfinished_name(directory: &Path) -> PathBuf {
    let mut name = directory.as_os_str().to_owned();
    name.push(UNFINISHED);
    name.into()
}

fn sync(root: &Path) -> io::Result<()> {
    Ok(nix::unistd::syncfs(File::open(root)?)?)
}

/// What `initdb` said, without the warnings: when it fails on a full or broken volume, there is one
/// for each of the thousand files that it cannot remove.
fn what_failed(said: &str) -> String {
    let lines: Vec<_> = said
        .lines()
        .filter(|line| !line.to_lowercase().contains("warning:") && !line.trim().is_empty())
        .collect();
    lines.join("\n")
}

fn run(instance: &Instance, directory: &Path) -> Result<(), InitdbError> {
    let program = instance.programs.path("initdb");
    let output = Command::new(&program)
        .arg("--pgdata")
        .arg(directory)
        .args([
            "--username",
            SUPERUSER,
            "--data-checksums",
            "--encoding",
            "UTF8",
        ])
        // Order by code point: two members' C libraries may sort any other way differently, and an
        // index that one of them wrote would be wrong for the other.
        .args(["--locale", "C.UTF-8", "--lc-collate", "C"])
        .args(["--auth-local", "peer", "--auth-host", "scram-sha-256"])
        // One syncfs afterwards instead of an fsync per file.
        .arg("--no-sync")
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .env("LC_ALL", "C.UTF-8")
        .current_dir("/")
        .uid(instance.user.uid)
        .gid(instance.user.gid)
        .stdin(Stdio::null())
        .output()
        .map_err(|source| InitdbError::Step {
            operation: "running",
            path: program,
            source,
        })?;
    if output.status.success() {
        return Ok(());
    }
    Err(InitdbError::Failed {
        status: output.status,
        message: what_failed(&String::from_utf8_lossy(&output.stderr)),
    })
}
