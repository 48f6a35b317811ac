//! `baton switchover`: a planned handover, done when the new active has committed a write.

use std::process::ExitCode;
use std::time::Duration;

use crate::control::Request;

use super::ask::{ask, patience};
use super::reach::{OutputArgs, Reach};

/// Hand the database over to a standby and wait until it serves there
///
/// Exits with 0 only when the new active has committed a write. With 1 it says what happened: refused
/// (nothing was changed), failed, or unknown because the time was up.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    reach: Reach,
    /// The standby to hand over to; without it, one that is ready
    #[arg(long, value_name = "MEMBER")]
    to: Option<String>,
    /// Move the primary to this site instead, with nothing lost; the member that is asked must be of
    /// the primary's site
    #[arg(long, value_name = "SITE", conflicts_with = "to")]
    site: Option<String>,
    /// How long to wait
    #[arg(long, default_value = "90s", value_parser = patience)]
    timeout: Duration,
    #[command(flatten)]
    output: OutputArgs,
}

/// Asks the member, which passes the request to the active where it is not it itself.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let client = args.reach.client(args.timeout)?;
    let request = match args.site {
        Some(site) => Request::SwitchoverSite { site },
        None => Request::Switchover { to: args.to },
    };
    ask(client, &request, args.output.output)
}
