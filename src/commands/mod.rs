//! The commands of `baton`, one file each: `pub struct Args` and
//! `pub fn run(args: Args) -> anyhow::Result<ExitCode>`. A command that needs a tokio runtime makes
//! it itself, because `run` must leave the mount namespace before any other thread exists.
//!
//! To add one: a `pub mod` line and a line in `subcommands!`; its help is the doc comment of `Args`.

use std::process::ExitCode;

pub mod agent;
mod ask;
pub mod bridge;
pub mod confirm_stopped;
pub mod controller;
pub mod crd;
pub mod doctor;
pub mod drill;
pub mod failover;
pub mod history;
pub mod kubectl;
pub mod lab;
pub mod pause;
pub mod postgres_init;
mod reach;
pub mod reinit;
pub mod reload;
pub mod replay;
pub mod restart;
pub mod resume;
pub mod run;
pub mod status;
pub mod switchover;
pub mod target;
pub mod topology;

macro_rules! subcommands {
    ($($(#[$attribute:meta])* $name:ident = $module:ident,)*) => {
        /// What `baton` is asked to do.
        #[derive(clap::Subcommand)]
        #[allow(missing_docs, reason = "the doc comment of each Args is the command's help")]
        pub enum Command {
            $($(#[$attribute])* $name($module::Args),)*
        }

        /// Does what was asked.
        ///
        /// # Errors
        /// Whatever the command could not do; a `ConfigError` anywhere in the chain means exit code 2.
        pub fn run(command: Command) -> anyhow::Result<ExitCode> {
            match command {
                $(Command::$name(args) => $module::run(args),)*
            }
        }
    };
}

subcommands! {
    Agent = agent,
    #[command(hide = true)]
    Bridge = bridge,
    Drill = drill,
    #[command(hide = true)]
    PostgresInit = postgres_init,
    Doctor = doctor,
    Lab = lab,
    Run = run,
    Status = status,
    Switchover = switchover,
    Failover = failover,
    Reinit = reinit,
    Topology = topology,
    Restart = restart,
    Reload = reload,
    Pause = pause,
    Resume = resume,
    History = history,
    ConfirmStopped = confirm_stopped,
    Controller = controller,
    Crd = crd,
    Replay = replay,
    Target = target,
}
