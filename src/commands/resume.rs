//! `baton resume`: automatic take-overs again.

use std::process::ExitCode;
use std::time::Duration;

use crate::control::Request;

use super::ask::{ask, patience};
use super::reach::{OutputArgs, Reach};

/// Allow automatic take-overs again
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    reach: Reach,
    /// How long to wait
    #[arg(long, default_value = "10s", value_parser = patience)]
    timeout: Duration,
    #[command(flatten)]
    output: OutputArgs,
}

/// Done when the lease store has it.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    ask(
        args.reach.client(args.timeout)?,
        &Request::Resume,
        args.output.output,
    )
}
