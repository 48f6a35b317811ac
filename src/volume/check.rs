//! Checking a filesystem that recorded errors, and repairing what can be repaired without a choice.

use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

use fencing::WritePermit;
use serde::{Deserialize, Serialize};

/// What `e2fsck -p` found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Checked {
    /// Nothing wrong.
    Sound,
    /// Errors were corrected; nothing had to be chosen.
    Repaired,
    /// What is wrong needs a person's choice: it must not be mounted.
    Damaged {
        /// What `e2fsck` said.
        report: String,
    },
}

/// Why a filesystem was not checked.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// `e2fsck` could not be run.
    #[error("running e2fsck (install e2fsprogs)")]
    Run(#[source] io::Error),
    /// It failed for a reason of its own.
    #[error("e2fsck failed ({status}): {message}")]
    Failed {
        /// How it ended.
        status: std::process::ExitStatus,
        /// What it said.
        message: String,
    },
}

/// Checks the unmounted filesystem on `device`, replays its journal, and corrects what can be
/// corrected without a choice (`e2fsck -p`). Takes long on a large volume; blocks.
pub fn check(_permit: &WritePermit, device: &Path) -> Result<Checked, CheckError> {
    let output = Command::new("e2fsck")
        .arg("-p")
        .arg(device)
        .stdin(Stdio::null())
        .env("LC_ALL", "C")
        .output()
        .map_err(CheckError::Run)?;
    let said = || {
        let text = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
        String::from_utf8_lossy(&text).trim().to_owned()
    };
    // e2fsck(8): 1 corrected, 2 corrected and reboot (a mounted root), 4 left uncorrected.
    match output.status.code() {
        Some(0) => Ok(Checked::Sound),
        Some(1) => Ok(Checked::Repaired),
        Some(4) => Ok(Checked::Damaged { report: said() }),
        Some(_) | None => Err(CheckError::Failed {
            status: output.status,
            message: said(),
        }),
    }
}
