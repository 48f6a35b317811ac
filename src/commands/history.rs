//! `baton history`: who owned the site, since when and why, and what each change took.

use std::process::ExitCode;
use std::time::Duration;

use crate::clock;
use crate::config::Config;
use crate::control::{self, Ownerships, Reply, Request};
use crate::decide::Incarnation;
use crate::lease::{LeaseStore, Ownership};

use super::reach::{Output, OutputArgs, Reach, print_json, print_table};

/// How long the member may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Show the changes of ownership with their reasons and what each step took
///
/// With --config it works while the member is stopped, too.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    reach: Reach,
    /// How many of the newest steps to show
    #[arg(long, default_value_t = 40)]
    steps: usize,
    #[command(flatten)]
    output: OutputArgs,
}

/// Reads lease and journal, itself where it knows the configuration.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let history = match args.reach.config()? {
        Some(config) => read(&config)?,
        None => ask(&args.reach)?,
    };
    let known = history.lease_error.is_none();
    match args.output.output {
        Output::Json => print_json(&history)?,
        Output::Text => print(&history, args.steps),
    }
    Ok(if known {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn read(config: &Config) -> anyhow::Result<Ownerships> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()?;
    let lease = LeaseStore::open(config, Incarnation(0))?;
    let deadline = clock::now() + config.timings.lease_deadline;
    let history = runtime.block_on(control::history(config, &lease, deadline));
    runtime.shutdown_background();
    Ok(history)
}

fn ask(reach: &Reach) -> anyhow::Result<Ownerships> {
    let mut client = reach.client(PATIENCE)?;
    client.send(&Request::History)?;
    match client.receive()? {
        Reply::History(history) => Ok(history),
        other => anyhow::bail!("the member answered something else: {other:?}"),
    }
}

fn print(history: &Ownerships, steps: usize) {
    let Ownerships {
        changes,
        lease_error,
        steps: all,
        journal,
    } = history;
    print_changes(changes);
    if let Some(error) = lease_error {
        println!("the changes are unknown: {error}");
    }
    println!("\nSteps of this member ({}):", journal.display());
    let newest = &all[all.len().saturating_sub(steps)..];
    let rows: Vec<_> = newest
        .iter()
        .map(|step| {
            let took = step.took_ms.map_or("-".to_owned(), |ms| format!("{ms} ms"));
            let outcome = step.outcome.clone().unwrap_or_else(|| "-".to_owned());
            let outcome = outcome.chars().take(40).collect();
            [
                step.at.to_string(),
                step.epoch.to_string(),
                step.name.clone(),
                took,
                outcome,
                step.why.clone(),
            ]
        })
        .collect();
    print_table(["At", "Epoch", "Step", "Took", "Outcome", "Why"], &rows);
}

/// The changes of ownership, as a table.
pub(super) fn print_changes(changes: &[Ownership]) {
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
}
