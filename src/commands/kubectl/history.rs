//! `kubectl baton history`.

use std::process::ExitCode;

use super::super::history::print_changes;
use super::super::reach::{Output, print_json};
use super::site::Site;

/// Shows the changes of ownership that the Lease has.
pub async fn show(site: &Site, output: Output) -> anyhow::Result<ExitCode> {
    let changes = site.look().await?.history()?;
    if output == Output::Json {
        print_json(&changes)?;
        return Ok(ExitCode::SUCCESS);
    }
    print_changes(&changes);
    Ok(ExitCode::SUCCESS)
}
