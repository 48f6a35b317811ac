//! `kubectl baton history`.

use std::process::ExitCode;

use super::super::reach::{Output, print_json, print_table};
use super::site::Site;

/// Shows the changes of ownership that the Lease has.
pub async fn show(site: &Site, output: Output) -> anyhow::Result<ExitCode> {
    let changes = site.look().await?.history()?;
    if output == Output::Json {
        print_json(&changes)?;
        return Ok(ExitCode::SUCCESS);
    }
    let rows: Vec<_> = changes
        .iter()
        .map(|change| {
            let how = if change.planned {
                "planned"
            } else {
                "unplanned"
            };
            [
                change.epoch.to_string(),
                change.name.clone(),
                how.to_owned(),
                change.at.to_string(),
            ]
        })
        .collect();
    print_table(["Epoch", "Owner", "Change", "Since"], &rows);
    Ok(ExitCode::SUCCESS)
}
