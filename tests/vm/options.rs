//! The arguments.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::backend::Commands;
use crate::kubernetes::guest::Arguments;

/// Runs Baton's cases between virtual machines. Use scripts/test-vm, which obtains a kernel.
#[derive(Parser)]
pub struct Program {
    #[command(subcommand)]
    pub mode: Mode,
}

#[derive(Subcommand)]
pub enum Mode {
    /// Boots the machines and runs the cases
    #[command(override_usage = "scripts/test-vm [OPTIONS]")]
    Run(Options),
    /// The same, already in namespaces of its own
    #[command(hide = true)]
    Inside(Options),
    /// In a machine: does what the program outside asks
    #[command(hide = true)]
    Agent,
    /// In a machine: commands through Baton's kernel backend
    #[command(hide = true)]
    Backend(Commands),
    /// In a machine: runs pods
    #[command(hide = true)]
    Kubelet(Arguments),
    /// In a machine: tells what the trace of the kernel's target tells
    #[command(hide = true)]
    Follow,
    /// In a machine: checks of the bridge's ublk devices
    #[command(hide = true)]
    Ublk,
}

#[derive(Args)]
pub struct Options {
    /// Folder with a kernel: usr/lib/modules/VERSION/vmlinuz and the modules beside it
    #[arg(long, hide = true)]
    pub kernel: PathBuf,
    /// Empty folder to mount a temporary filesystem on, seen by this program alone
    #[arg(long, hide = true)]
    pub scratch: PathBuf,
    /// Run the cases of the long form too
    #[arg(long)]
    pub all: bool,
    /// Run this case only; may be given more than once
    #[arg(long = "case", value_name = "NAME")]
    pub cases: Vec<String>,
    /// Name the cases and do nothing
    #[arg(long)]
    pub list: bool,
    /// Keep the machines after the cases; each line "MACHINE COMMAND" on standard input is run there
    #[arg(long)]
    pub keep: bool,
    /// Folder for report.json and, for a failure, the consoles
    #[arg(long, value_name = "FOLDER")]
    pub report: Option<PathBuf>,
    /// Do not try KVM
    #[arg(long)]
    pub no_kvm: bool,
}
