//! `baton run`: one member, until it is told to stop.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;

use crate::api;
use crate::config::Config;
use crate::member;
use crate::mount_namespace;
use crate::node_lock::{NodeLock, Owner};

/// Threads of the runtime. A step may read a few bytes from the volume; should the volume freeze
/// there, the other thread carries the beats' end to the loop.
const WORKERS: usize = 2;

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
    let node_lock = match config.volume() {
        Some(volume) => {
            let lock = NodeLock::take(Owner::of(&config, volume))?;
            mount_namespace::enter_own()?;
            Some(lock)
        }
        // The agent has the lock, and mounts where this process sees it.
        None => None,
    };
    abort_on_panic();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .build()
        .context("start the runtime")?;
    let code = runtime.block_on(member::run(&args.config, config, node_lock.as_ref()));
    // A system call that hangs on the volume must not keep the process.
    runtime.shutdown_background();
    Ok(code?)
}

/// A task that panicked would leave its step for ever unfinished. The end of the process is a state
/// that everything is prepared for: PostgreSQL and the bridge end with a member, and the standby takes over;
/// an agent is started again and resumes its sessions.
/// The HTTP API has no step: there a panic ends one answer.
pub(super) fn abort_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        if std::thread::current().name() != Some(api::THREAD) {
            std::process::abort();
        }
    }));
}
