//! The same failover between virtual machines, over the Linux kernel's own NVMe/TCP.
//!
//! `scripts/test-vm` obtains a kernel and starts this program. It boots the machines `storage`,
//! `node-a` and `node-b` once, in namespaces of its own, and runs one case after another on them.
//! To add a case, see `cases/mod.rs`.

mod accelerator;
mod agent;
mod backend;
mod cases;
mod conformance;
mod console;
mod cpio;
mod drill;
mod exported;
mod initramfs;
mod isolate;
mod keep;
mod kernel;
mod kubernetes;
mod lease;
mod machine;
mod machines;
mod network;
mod nvmet;
mod options;
#[path = "../platform/mod.rs"]
mod platform;
mod qemu;
mod qmp;
mod report;
mod run;
mod ublk;

use std::process::ExitCode;

use clap::Parser;

use options::{Mode, Program};

fn main() -> ExitCode {
    let done = match Program::parse().mode {
        Mode::Run(options) => isolate::enter(&options),
        Mode::Inside(options) => isolate::settle(&options).and_then(|()| run::run(&options)),
        Mode::Agent => agent::guest::serve(),
        Mode::Backend(commands) => backend::run(&commands),
        Mode::Kubelet(arguments) => kubernetes::guest::kubelet(arguments),
        Mode::Follow => drill::follow::follow(),
        Mode::Ublk => ublk::run(),
    };
    done.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
