//! `baton reinit`: copies the primary's database anew to a replica's site.

use std::process::ExitCode;
use std::time::Duration;

use super::ask::{ask, patience};
use super::reach::{OutputArgs, Reach};
use crate::control::Request;

/// Copy the primary's database anew to the site of this member, which must be a replica's
///
/// Done when it has begun; `baton topology` shows when the site follows again. What is there now is kept
/// until the copy is complete.
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

/// Asks the active of the site.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    ask(
        args.reach.client(args.timeout)?,
        &Request::Reinit,
        args.output.output,
    )
}
