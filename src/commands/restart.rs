//! `baton restart`: PostgreSQL stopped and started again in place.

use std::process::ExitCode;
use std::time::Duration;

use crate::control::Request;

use super::ask::{ask, patience};
use super::reach::{OutputArgs, Reach};

/// Stop PostgreSQL and start it again on the active, and wait until it has committed a write
///
/// Ownership does not change, and no standby takes over. Refused where the member is not the active. With a
/// standby at hand, `baton switchover` serves again sooner.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    reach: Reach,
    /// How long to wait
    #[arg(long, default_value = "90s", value_parser = patience)]
    timeout: Duration,
    #[command(flatten)]
    output: OutputArgs,
}

/// Done when PostgreSQL has committed a write.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    ask(
        args.reach.client(args.timeout)?,
        &Request::Restart,
        args.output.output,
    )
}
