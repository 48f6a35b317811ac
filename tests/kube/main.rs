//! The whole system on Kubernetes: an API server, nodes with their agents, real PostgreSQL in pods.
//!
//! `scripts/test-kube` starts this program. The API server is the stand-in of the crate `apiserver`, or any
//! real one that `KUBECONFIG` names; this program plays scheduler, kubelets and kube-proxy through the API
//! alone, so no case relies on which it is. Everything lives in namespaces of its own and ends with it.
//! To add a case, see `cases/mod.rs`.

#![allow(
    clippy::disallowed_methods,
    reason = "a program that plays a platform has a clock and waits of its own"
)]

mod api;
mod cases;
mod door;
mod isolate;
mod node;
mod options;
#[path = "../platform/mod.rs"]
mod platform;
mod pooler;
mod report;
mod run;
mod storage;
mod usage;
mod world;

use std::process::ExitCode;

use clap::Parser;

use options::{Mode, Program};
use platform::{container, kubelet, manifests, network, places, proxy, scheduler};

fn main() -> ExitCode {
    let done = match Program::parse().mode {
        Mode::Run(options) => isolate::enter(&options),
        Mode::Inside(options) => isolate::settle(&options).and_then(|()| run::run(&options)),
    };
    done.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
