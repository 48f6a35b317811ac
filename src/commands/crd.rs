//! `baton crd`: the definition of the custom resource.

use std::process::ExitCode;

/// Print the definition of the Kubernetes resource BatonCluster as YAML
#[derive(clap::Args)]
pub struct Args {}

/// Prints it.
pub fn run(Args {}: Args) -> anyhow::Result<ExitCode> {
    print!("{}", crate::cluster::definition()?);
    Ok(ExitCode::SUCCESS)
}
