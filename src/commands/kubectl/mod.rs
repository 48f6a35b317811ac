//! `kubectl baton …`: this program under the name `kubectl-baton`. It uses the Kubernetes API only.
//!
//! What is shown comes from the BatonCluster, the site's Lease and the pods. What changes something is
//! asked of a member's HTTP API, through the API server's way to pods (`pods/proxy`), with the token of
//! `spec.api.tokenSecret`: the user needs no path into the pods' network, but the right to read that Secret
//! and to create `pods/proxy`.

mod drill;
mod history;
mod proxy;
mod site;
mod sites;
mod status;
mod verbs;

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Parser, Subcommand};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

use super::ask::patience;
use super::failover::Wanted;
use super::reach::OutputArgs;
use site::Site;

/// The file name under which the program is the plugin: kubectl finds `kubectl baton` by it.
const NAME: &str = "kubectl-baton";

/// See and move PostgreSQL clusters of Baton
///
/// Exit codes: 0 done, 1 failed, 2 wrong usage.
#[derive(Parser)]
#[command(name = NAME, bin_name = "kubectl baton", version, max_term_width = 100)]
struct Cli {
    /// The namespace; without it, that of the context
    #[arg(long, short, global = true)]
    namespace: Option<String>,
    /// The context of the kubeconfig; without it, the current one
    #[arg(long, global = true)]
    context: Option<String>,
    /// The kubeconfig; without it, KUBECONFIG or ~/.kube/config
    #[arg(long, global = true, value_name = "FILE")]
    kubeconfig: Option<std::path::PathBuf>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Show the sites and members of a cluster, who is active, and what somebody should know
    Status {
        /// The cluster
        cluster: String,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Hand the database over to a standby, or to another site, and wait until it serves there
    Switchover {
        /// The cluster
        cluster: String,
        /// The standby to hand over to; without it, one that is ready
        #[arg(long, value_name = "MEMBER")]
        to: Option<String>,
        /// Move the primary to this site instead, with nothing lost
        #[arg(long, value_name = "SITE", conflicts_with = "to")]
        site: Option<String>,
        /// How long to wait
        #[arg(long, default_value = "90s", value_parser = patience)]
        timeout: Duration,
    },
    /// Make another site the primary's, because the one that has it is lost
    ///
    /// Refused while that one shows any sign of life, and where acknowledged writes may be missing.
    Failover {
        /// The cluster
        cluster: String,
        #[command(flatten)]
        wanted: Wanted,
    },
    /// Stop automatic take-overs; the active goes on serving, switchovers still work
    Pause {
        /// The cluster
        cluster: String,
    },
    /// Allow automatic take-overs again
    Resume {
        /// The cluster
        cluster: String,
    },
    /// Show who owned the volume, since when and why
    History {
        /// The cluster
        cluster: String,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Hand the database over once and report what was seen of it
    Drill {
        /// The cluster
        cluster: String,
        /// How long to wait for the handover, and then for the old active to be back
        #[arg(long, default_value = "120s", value_parser = patience)]
        timeout: Duration,
        #[command(flatten)]
        output: OutputArgs,
    },
}

/// Whether the program was called by the plugin's name.
pub fn called(arguments: &mut impl Iterator<Item = std::ffi::OsString>) -> bool {
    let program = arguments.next();
    let name = program.as_deref().map(Path::new).and_then(Path::file_name);
    name.is_some_and(|name| name == NAME)
}

/// Does what was asked.
///
/// # Errors
/// Whatever could not be done.
pub fn run() -> anyhow::Result<ExitCode> {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let done = runtime.block_on(act(cli));
    runtime.shutdown_background();
    done
}

async fn act(cli: Cli) -> anyhow::Result<ExitCode> {
    let Cli {
        namespace,
        context,
        kubeconfig,
        verb,
    } = cli;
    let config = config(context, kubeconfig.as_deref()).await?;
    let namespace = namespace.unwrap_or_else(|| config.default_namespace.clone());
    let client = Client::try_from(config).context("make a client of the API server")?;
    let site = |cluster: &str| Site::new(client.clone(), &namespace, cluster);
    match verb {
        Verb::Status { cluster, output } => status::show(&site(&cluster), output.output).await,
        Verb::History { cluster, output } => history::show(&site(&cluster), output.output).await,
        Verb::Pause { cluster } => verbs::pause(&site(&cluster), true).await,
        Verb::Resume { cluster } => verbs::pause(&site(&cluster), false).await,
        Verb::Switchover {
            cluster,
            to: _,
            site: Some(to),
            timeout,
        } => verbs::switchover_site(&site(&cluster), &to, timeout).await,
        Verb::Switchover {
            cluster,
            to,
            site: None,
            timeout,
        } => verbs::switchover(&site(&cluster), to.as_deref(), timeout).await,
        Verb::Failover { cluster, wanted } => verbs::failover(&site(&cluster), &wanted).await,
        Verb::Drill {
            cluster,
            timeout,
            output,
        } => drill::drill(&site(&cluster), timeout, output.output).await,
    }
}

async fn config(context: Option<String>, file: Option<&Path>) -> anyhow::Result<Config> {
    if context.is_none() && file.is_none() {
        return Config::infer().await.context("find the API server");
    }
    let kubeconfig = match file {
        Some(file) => Kubeconfig::read_from(file),
        None => Kubeconfig::read(),
    };
    let options = KubeConfigOptions {
        context,
        ..KubeConfigOptions::default()
    };
    let kubeconfig = kubeconfig.context("read the kubeconfig")?;
    Config::from_custom_kubeconfig(kubeconfig, &options)
        .await
        .context("use the kubeconfig")
}
