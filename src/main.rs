//! Arguments, log set-up, exit codes. What a command does is in `commands/`.
#![forbid(unsafe_code)]

use std::io::IsTerminal;
use std::process::ExitCode;

use baton::commands::{self, Command, kubectl};
use baton::config::ConfigError;
use clap::{Parser, ValueEnum};
use tracing_subscriber::EnvFilter;

/// Zero-loss failover for PostgreSQL on shared NVMe/TCP block volumes.
///
/// Exit codes: 0 done, 1 failed, 2 bad configuration or usage.
#[derive(Parser)]
#[command(name = "baton", version, max_term_width = 100)]
struct Cli {
    /// How the log on standard error is written.
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Human, env = "BATON_LOG_FORMAT")]
    log_format: LogFormat,
    /// What is logged: a level, or a filter such as "info,baton::peer=debug".
    #[arg(
        long,
        global = true,
        value_name = "FILTER",
        default_value = "info",
        env = "BATON_LOG"
    )]
    log: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    /// For people.
    Human,
    /// One JSON object per line.
    Json,
}

/// The exit code for bad configuration or usage; clap uses the same.
const BAD_USAGE: u8 = 2;

fn main() -> ExitCode {
    if kubectl::called(&mut std::env::args_os()) {
        start_log(LogFormat::Human, EnvFilter::new("error"));
        return ended(kubectl::run());
    }
    let cli = Cli::parse();
    let filter = match EnvFilter::try_new(&cli.log) {
        Ok(filter) => filter,
        Err(error) => {
            eprintln!("baton: --log {:?}: {error}", cli.log);
            return ExitCode::from(BAD_USAGE);
        }
    };
    start_log(cli.log_format, filter);
    ended(commands::run(cli.command))
}

/// The exit code; an error is told.
fn ended(result: anyhow::Result<ExitCode>) -> ExitCode {
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("baton: {error:#}");
            ExitCode::from(if error.chain().any(|cause| cause.is::<ConfigError>()) {
                BAD_USAGE
            } else {
                1
            })
        }
    }
}

fn start_log(format: LogFormat, filter: EnvFilter) {
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Human => log
            .with_ansi(std::io::stderr().is_terminal())
            .with_target(false)
            .init(),
        LogFormat::Json => log
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .init(),
    }
}
