//! `baton pause`: no automatic take-over from now on.

use std::process::ExitCode;

use crate::control::Request;

use super::ask::Asking;

/// Stop automatic take-overs; the active goes on serving, switchovers still work
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    asking: Asking,
}

/// Done when the lease store has it.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    args.asking.ask(&Request::Pause)
}
