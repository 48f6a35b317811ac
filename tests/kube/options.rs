//! The arguments.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// Runs Baton's cases on Kubernetes. Use scripts/test-kube.
#[derive(Parser)]
pub struct Program {
    #[command(subcommand)]
    pub mode: Mode,
}

#[derive(Subcommand)]
pub enum Mode {
    /// Makes the nodes and runs the cases
    #[command(override_usage = "scripts/test-kube [OPTIONS]")]
    Run(Options),
    /// The same, already in namespaces of its own
    #[command(hide = true)]
    Inside(Options),
}

#[derive(Args)]
pub struct Options {
    /// Empty folder to mount a temporary filesystem on, seen by this program alone
    #[arg(long, hide = true)]
    pub scratch: PathBuf,
    /// The directory with PostgreSQL's programs
    #[arg(long, hide = true)]
    pub postgres: PathBuf,
    /// A kubeconfig of a real API server; without it the stand-in is started
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Run the cases of the long form too
    #[arg(long)]
    pub all: bool,
    /// Run this case only; may be given more than once
    #[arg(long = "case", value_name = "NAME")]
    pub cases: Vec<String>,
    /// Name the cases and do nothing
    #[arg(long)]
    pub list: bool,
    /// Folder for report.json and the logs
    #[arg(long, value_name = "FOLDER")]
    pub report: Option<PathBuf>,
}
