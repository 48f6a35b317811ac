//! `baton-apiserver`: the stand-in as a program, for shells and for people with kubectl. It prints
//! one line of JSON with its address, writes a kubeconfig for the admin, takes commands for faults
//! on a unix socket, and ends with SIGTERM or SIGINT.

#![forbid(unsafe_code)]

use std::fs::OpenOptions;
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use apiserver::{ADMIN, Options, Server, control};
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

/// A Kubernetes API server in memory, for tests.
#[derive(Parser)]
struct Arguments {
    /// Where to listen; port 0 takes any free one.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Where to write the admin's kubeconfig.
    #[arg(long)]
    kubeconfig: PathBuf,
    /// Unix socket for faults, one JSON command a line, as {"outage":true}.
    #[arg(long)]
    control: Option<PathBuf>,
    /// Seconds between two bookmarks of a watch.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    bookmark_seconds: u64,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .init();
    let arguments = Arguments::parse();
    let mut term = signal(SignalKind::terminate()).context("await SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("await SIGINT")?;
    let server = Server::start(Options {
        address: arguments.listen,
        bookmark_interval: Duration::from_secs(arguments.bookmark_seconds),
        ..Options::default()
    })
    .await
    .context("start")?;
    write_private(
        &arguments.kubeconfig,
        &serde_json::to_string(&server.kubeconfig(ADMIN))?,
    )?;
    // Bound before the line is printed: who has read it can connect.
    let commands = match &arguments.control {
        Some(path) => Some(control::listen(path).context("listen for commands")?),
        None => None,
    };
    println!(
        "{}",
        serde_json::json!({
            "address": server.address().to_string(),
            "kubeconfig": arguments.kubeconfig,
            "control": arguments.control,
        })
    );
    let serve = async {
        match commands {
            Some(commands) => control::serve(commands, &server).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = interrupt.recv() => {}
        () = serve => {}
    }
    if let Some(path) = &arguments.control {
        std::fs::remove_file(path).context("remove the control socket")?;
    }
    Ok(())
}

/// A file that only its owner reads: it holds a token.
fn write_private(path: &Path, text: &str) -> anyhow::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options
        .open(path)
        .with_context(|| format!("write {}", path.display()))?;
    file.write_all(text.as_bytes())
        .with_context(|| format!("write {}", path.display()))
}
