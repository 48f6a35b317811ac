//! `baton reinit`: copies the primary's database anew to a replica's site.

use std::process::ExitCode;

use super::ask::Asking;
use crate::control::Request;

/// Copy the primary's database anew to the site of this member, which must be a replica's
///
/// Done when it has begun; `baton topology` shows when the site follows again. What is there now is kept
/// until the copy is complete.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    asking: Asking,
}

/// Asks the active of the site.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    args.asking.ask(&Request::Reinit)
}
