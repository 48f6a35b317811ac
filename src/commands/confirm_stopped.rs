//! `baton confirm-stopped`: an operator's word where the reservation is gone and nothing else proves
//! that every earlier owner is stopped.

use std::process::ExitCode;

use crate::control::Request;

use super::ask::Asking;

/// Vouch that every earlier owner of the volume is stopped, where Baton asks for it
///
/// After a target lost its reservations nobody can be fenced by it. If one of the earlier owners is
/// still running when you say this, two servers write to one volume and the database is destroyed.
#[derive(clap::Args)]
pub struct Args {
    /// Yes: every other member's PostgreSQL is stopped and its machine cannot write
    #[arg(long, required = true)]
    every_owner_is_stopped: bool,
    #[command(flatten)]
    asking: Asking,
}

/// Done when the member has taken the word; the take-over follows.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    args.asking.ask(&Request::OwnersStopped)
}
