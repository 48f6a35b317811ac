//! `baton controller`: makes and keeps the objects of clusters on Kubernetes.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

use crate::controller::{self, Election, Options};

use super::ask::patience;

/// Make and keep the pods and services of every BatonCluster
///
/// Several may run: one acts, the others wait for its Lease. Members do not need it to fail over.
/// The API server is found by KUBECONFIG, or by the ServiceAccount of the pod.
#[derive(clap::Args)]
pub struct Args {
    /// The namespace of the Lease by which one of several is chosen
    #[arg(long, env = "POD_NAMESPACE", default_value = "baton-system")]
    namespace: String,
    /// Who this is among several: the pod's name
    #[arg(long, env = "POD_NAME", value_name = "NAME")]
    identity: Option<String>,
    /// How long the chosen one must be silent before another takes over
    #[arg(long, default_value = "15s", value_parser = patience, value_name = "TIME")]
    lease_duration: Duration,
    /// Look after the clusters of this namespace only; without it, of all
    #[arg(long, value_name = "NAMESPACE")]
    only_namespace: Option<String>,
}

/// Runs until SIGTERM or SIGINT.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(act(args))?;
    runtime.shutdown_background();
    Ok(ExitCode::SUCCESS)
}

async fn act(args: Args) -> anyhow::Result<()> {
    let Args {
        namespace,
        identity,
        lease_duration,
        only_namespace,
    } = args;
    let client = kube::Client::try_default()
        .await
        .context("find the API server by KUBECONFIG or by the pod's ServiceAccount")?;
    let (mut terminate, mut interrupt) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    let stop = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    let election = Election {
        namespace,
        // Two of one name would both believe that they hold the Lease.
        identity: identity.unwrap_or_else(|| format!("baton-{}", uuid::Uuid::new_v4())),
        duration: lease_duration,
    };
    let options = Options {
        election,
        only_namespace,
    };
    controller::run(client, options, stop).await;
    Ok(())
}
