//! In a machine: Baton's target, and its bridge by the kernel's ublk driver, put to the test. One
//! line of notes each; the first thing that is wrong ends it with an error.

mod bridged;
mod durable;
mod ended;
mod latency;
mod refused;

use std::process::ExitCode;

use anyhow::{Context, Result};

use bridged::Ground;

/// Gives a note.
type Check = fn(&Ground) -> Result<String>;

/// What is checked, in order.
const CHECKS: [(&str, Check); 7] = [
    ("file system", durable::file_system),
    ("power loss", durable::power_loss),
    ("FUA and flush", durable::forced),
    ("discard", durable::discard),
    ("conflict", refused::conflict),
    ("SIGKILL under load", ended::killed),
    ("latency", latency::compared),
];

/// All checks.
pub fn run() -> Result<ExitCode> {
    baton::mount_namespace::enter_own()?;
    let ground = Ground::new()?;
    for (name, check) in CHECKS {
        let note = check(&ground).context(name)?;
        println!("{name}: {note}");
    }
    Ok(ExitCode::SUCCESS)
}
