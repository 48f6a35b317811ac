//! In a machine: the kubelet.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::Args;
use kube::config::Kubeconfig;

use super::driver::Attached;
use crate::platform::api;
use crate::platform::kubelet::Kubelet;
use crate::platform::places::NodePlaces;

/// Whose kubelet, and where the storage is.
#[derive(Args)]
pub struct Arguments {
    #[arg(long)]
    node: String,
    /// With `kubelet.kubeconfig`; logs and containers go there
    #[arg(long)]
    directory: PathBuf,
    #[arg(long)]
    address: String,
    #[arg(long)]
    port: u16,
    #[arg(long)]
    subsystem: String,
}

/// Runs until it is killed.
pub fn kubelet(arguments: Arguments) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("start the runtime")?;
    runtime.block_on(async {
        let Arguments {
            node,
            directory,
            address,
            port,
            subsystem,
        } = arguments;
        let file = directory.join("kubelet.kubeconfig");
        let kubeconfig = std::fs::read_to_string(&file).context("read the kubeconfig")?;
        let kubelet = Kubelet {
            node,
            client: api::client(Kubeconfig::read_from(&file)?).await?,
            kubeconfig,
            logs: directory.join("logs"),
            driver: Box::new(Attached::new(address, port, subsystem)),
            places: NodePlaces {
                root: directory,
                run: PathBuf::from("/run/baton"),
                group: PathBuf::from("/sys/fs/cgroup"),
                host: PathBuf::from("/"),
            },
        };
        Arc::new(kubelet).run().await;
        Ok(ExitCode::SUCCESS)
    })
}
