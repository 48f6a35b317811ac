//! `baton agent`: the privileged part of the members of one node.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use nvme::{HostId, HostIdentity, Nqn};
use tokio::signal::unix::{SignalKind, signal};

use crate::agent::{Agent, Node, Options, Platform};

/// Serve the members of one node: reservations, devices and mounts
///
/// Runs as root in a DaemonSet. When it ends nothing else does: its successor resumes the sessions.
#[derive(clap::Args)]
pub struct Args {
    /// This node's name in Kubernetes
    #[arg(long, env = "NODE_NAME", value_name = "NAME")]
    pub node: String,
    /// The socket for the members
    #[arg(
        long,
        value_name = "PATH",
        default_value = "/run/baton/agent/agent.sock"
    )]
    pub socket: PathBuf,
    /// Where filesystems are mounted, propagated into the pods
    #[arg(long, value_name = "DIR", default_value = "/run/baton/members")]
    pub members: PathBuf,
    /// Where sessions, locks and marks lie while the node is up
    #[arg(long, value_name = "DIR", default_value = "/run/baton/state")]
    pub state: PathBuf,
    /// The kubelet's directory
    #[arg(long, value_name = "DIR", default_value = "/var/lib/kubelet")]
    pub kubelet: PathBuf,
    /// Where the unified control group hierarchy is mounted
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/cgroup")]
    pub control_groups: PathBuf,
    /// The control group for bridges, which outlive the agent, below the root of the hierarchy
    #[arg(long, value_name = "PATH", default_value = "baton-bridges")]
    pub bridges: PathBuf,
    /// File with this node's NQN, for volumes that Baton's own initiator reaches
    #[arg(long, value_name = "FILE", default_value = "/etc/nvme/hostnqn")]
    pub host_nqn: PathBuf,
    /// File with this node's host identifier
    #[arg(long, value_name = "FILE", default_value = "/etc/nvme/hostid")]
    pub host_id: PathBuf,
    /// Where the kernel shows its devices
    #[arg(long, value_name = "DIR", default_value = "/sys")]
    pub sysfs: PathBuf,
    /// Seconds that the members of an earlier agent have to come back
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub resume_within: u64,
}

/// Serves until SIGTERM or SIGINT.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    if !nix::unistd::geteuid().is_root() {
        anyhow::bail!(
            "the agent must run as root: reservations, mounts and control groups need it"
        );
    }
    super::run::abort_on_panic();
    // Bridges end with the thread that started them: the runtime's own threads live as long as it does.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("start the runtime")?;
    let served = runtime.block_on(serve(args));
    // A system call that hangs on one volume must not keep the process.
    runtime.shutdown_background();
    served.map(|()| ExitCode::SUCCESS)
}

async fn serve(args: Args) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("catch SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("catch SIGINT")?;
    let host = HostIdentity {
        nqn: line::<Nqn>(&args.host_nqn)?,
        id: HostId(line(&args.host_id)?),
    };
    let node = Node {
        name: args.node,
        host,
        members: args.members,
        state: args.state,
        kubelet: args.kubelet,
        bridges: args.control_groups.join(args.bridges),
        control_groups: args.control_groups,
        sysfs: args.sysfs,
    };
    let client = kube::Client::try_default()
        .await
        .context("find the API server: in the pod's service account, or by KUBECONFIG")?;
    let platform = Platform::follow(client, node);
    let options = Options {
        socket: args.socket,
        resume_within: Duration::from_secs(args.resume_within),
    };
    let agent = Agent::new(options, platform)?;
    tokio::select! {
        ended = agent.serve() => Ok(ended?),
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
}

fn line<T>(path: &Path) -> anyhow::Result<T>
where
    T: std::str::FromStr,
    T::Err: std::error::Error + Send + Sync + 'static,
{
    let text = std::fs::read_to_string(path).with_context(|| {
        let path = path.display();
        format!(
            "read {path}: make it with `nvme gen-hostnqn`, and a UUID of the node for its hostid"
        )
    })?;
    text.trim()
        .parse()
        .with_context(|| format!("understand {}", path.display()))
}
