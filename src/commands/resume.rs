//! `baton resume`: automatic take-overs again.

use std::process::ExitCode;

use crate::control::Request;

use super::ask::Asking;

/// Allow automatic take-overs again
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    asking: Asking,
}

/// Done when the lease store has it.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    args.asking.ask(&Request::Resume)
}
