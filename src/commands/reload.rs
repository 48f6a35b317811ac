//! `baton reload`: PostgreSQL's settings read anew.

use std::process::ExitCode;

use crate::control::Request;

use super::ask::Asking;

/// Read PostgreSQL's parameters and access rules in the member's configuration anew
///
/// Of `member.toml` only `postgres.parameters` and `postgres.hba` are taken over; a file with a mistake
/// changes nothing. PostgreSQL takes up what it can while it runs, the rest at its next start (`baton
/// restart`). Each member reads its own file: reload all of them.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    asking: Asking,
}

/// Done when PostgreSQL has been told.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    args.asking.ask(&Request::Reload)
}
