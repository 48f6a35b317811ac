//! `baton run`: one member, until it is told to stop.

use std::path::PathBuf;
use std::process::ExitCode;

use crate::config::Config;

/// Run one member of a cluster
#[derive(clap::Args)]
pub struct Args {
    /// The member's configuration
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Only check the configuration and this machine, change nothing
    #[arg(long)]
    pub check: bool,
}

/// Checks everything that can be checked without touching the volume, then runs the member.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let config = Config::load_for_run(&args.config)?;
    if args.check {
        println!(
            "{}: member {} of {} can run here",
            args.config.display(),
            config.member,
            config.cluster
        );
        return Ok(ExitCode::SUCCESS);
    }
    anyhow::bail!("this build has no member loop")
}
