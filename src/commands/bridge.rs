//! `baton bridge`: shows a namespace as a block device, for as long as its parent lives.
//!
//! A process of its own: whoever waits for I/O on the device must not be the one who serves it.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use nix::fcntl::{Flock, FlockArg};
use nvme::block;
use nvme::bridge::{Bridge, BridgeOptions, Driver};
use nvme::initiator::{Initiator, Options};
use nvme::{HostId, HostIdentity, Nqn};
use tokio::signal::unix::{SignalKind, signal};
use uuid::Uuid;

use crate::mount_namespace;

/// Show a namespace as a block device (internal: started by a member)
///
/// Prints {"device": "/dev/loopN", "connection": N} or {"device": "/dev/ublkbN", "ublk": {…}} when the device can be used. Ends, and takes the device away,
/// when its standard input ends, on SIGTERM or SIGINT, and when its parent dies, unless it shall outlive that. What was not
/// flushed until then is lost, as when a disk is pulled out.
#[derive(clap::Args)]
pub struct Args {
    /// Host and port of the target
    #[arg(long, value_name = "HOST:PORT")]
    pub address: String,
    /// The subsystem's name
    #[arg(long, value_name = "NQN")]
    pub subsystem: Nqn,
    /// The namespace within the subsystem
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub namespace_id: u32,
    /// This host's name
    #[arg(long, value_name = "NQN")]
    pub host_nqn: Nqn,
    /// This host's identifier, to which reservations belong
    #[arg(long, value_name = "UUID")]
    pub host_id: Uuid,
    /// Directory of this bridge; a lock on it keeps a second bridge away
    #[arg(long, value_name = "DIR")]
    pub directory: PathBuf,
    /// Keep-alive time-out in milliseconds: a silent path is noticed within it
    #[arg(long, value_name = "MS", default_value_t = 5000)]
    pub keep_alive_ms: u64,
    /// How long one command may take, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 10_000)]
    pub command_deadline_ms: u64,
    /// How long requests wait for a lost path before they fail, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 10_000)]
    pub path_loss_ms: u64,
    /// Live on when the parent dies: only SIGTERM, SIGINT and SIGKILL end it
    #[arg(long)]
    pub outlive: bool,
    /// Mounts below this directory are others': this process must not keep them alive
    #[arg(long, value_name = "DIR")]
    pub forget: Option<PathBuf>,
    /// What shows the block device
    #[arg(long, value_enum, default_value = "auto")]
    pub backend: BackendChoice,
    /// I/O queues, each with its own TCP connection
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub io_queues: u16,
    /// Ask for header digests
    #[arg(long)]
    pub header_digest: bool,
    /// Ask for data digests
    #[arg(long)]
    pub data_digest: bool,
}

impl Args {
    fn options(&self) -> Options {
        let host = HostIdentity {
            nqn: self.host_nqn.clone(),
            id: HostId(self.host_id),
        };
        let (address, subsystem) = (self.address.clone(), self.subsystem.clone());
        let mut options = Options::new(address, subsystem, self.namespace_id, host);
        options.keep_alive = Duration::from_millis(self.keep_alive_ms);
        options.command_deadline = Duration::from_millis(self.command_deadline_ms);
        options.io_queues = self.io_queues;
        options.digests.header = self.header_digest;
        options.digests.data = self.data_digest;
        options
    }
}

/// What shows the device, as an argument.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum BackendChoice {
    /// ublk where the kernel has it, else FUSE and loop
    Auto,
    /// The kernel's ublk driver
    Ublk,
    /// FUSE and a loop device
    Fuse,
}

impl From<BackendChoice> for Driver {
    fn from(choice: BackendChoice) -> Self {
        match choice {
            BackendChoice::Auto => Self::Auto,
            BackendChoice::Ublk => Self::Ublk,
            BackendChoice::Fuse => Self::Fuse,
        }
    }
}

/// Connects, attaches the device, and serves until told to stop.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    if !args.outlive {
        block::die_with_parent(nix::unistd::getppid()).context("tie the bridge to its parent")?;
    }
    if let Err(error) = block::become_io_flusher() {
        tracing::warn!(%error, "memory pressure may stall the bridge: it needs CAP_SYS_RESOURCE");
    }
    mount_namespace::enter_own()?;
    if let Some(directory) = &args.forget {
        mount_namespace::forget_below(directory)?;
    }
    let _lock = lock(&args.directory)?;
    // One thread does all: a request wakes nobody else on its way.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("make a runtime")?;
    let served = runtime.block_on(serve(&args));
    // The end of the process closes everything in the order that bridge/device.rs explains.
    runtime.shutdown_background();
    served.map(|()| ExitCode::SUCCESS)
}

fn lock(directory: &Path) -> anyhow::Result<Flock<File>> {
    std::fs::create_dir_all(directory)
        .with_context(|| format!("make the directory {}", directory.display()))?;
    // The directory itself is locked: nothing is left in it afterwards.
    let opened = File::open(directory)
        .with_context(|| format!("open the directory {}", directory.display()))?;
    Flock::lock(opened, FlockArg::LockExclusiveNonblock)
        .map_err(|(_, errno)| errno)
        .with_context(|| format!("lock {}: another bridge has it", directory.display()))
}

async fn serve(args: &Args) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("catch SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("catch SIGINT")?;
    let stop = async {
        tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
            () = input_ended(), if !args.outlive => "end of standard input",
        }
    };
    tokio::pin!(stop);
    let attach = attach(args);
    let mut bridge = tokio::select! {
        bridge = attach => bridge?,
        reason = &mut stop => {
            tracing::info!(reason, "stopped before the device was attached");
            return Ok(());
        }
    };
    let announcement = bridge.announcement();
    let line = serde_json::to_string(&announcement).context("write the device's name")?;
    let mut output = std::io::stdout();
    writeln!(output, "{line}").context("name the device on standard output")?;
    output
        .flush()
        .context("name the device on standard output")?;
    tokio::select! {
        reason = stop => {
            tracing::info!(reason, device = %bridge.device().display(), "the device goes away");
            bridge.close().await.context("take the device away")
        }
        () = bridge.ended() => {
            if let Err(error) = bridge.close().await {
                tracing::warn!(%error, "something of the device is left");
            }
            anyhow::bail!("the kernel ended the connection to the bridge")
        }
    }
}

async fn attach(args: &Args) -> anyhow::Result<Bridge> {
    let initiator = Initiator::connect(args.options())
        .await
        .context("connect to the volume")?;
    let options = BridgeOptions {
        path_loss: Duration::from_millis(args.path_loss_ms),
        name: format!("baton {}", args.subsystem),
        driver: args.backend.into(),
        directory: Some(args.directory.clone()),
    };
    Bridge::attach(Arc::new(initiator), options)
        .await
        .context("show the volume as a block device")
}

/// Waits for the end of standard input; what comes before it means nothing.
async fn input_ended() {
    let (ended, wait) = tokio::sync::oneshot::channel();
    // A thread of its own, which the end of the process takes along: neither epoll nor a
    // non-blocking read works for everything that may be standard input.
    let reader = std::thread::Builder::new()
        .name("stdin".to_owned())
        .spawn(move || {
            let outcome = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
            let _ = ended.send(outcome);
        });
    if let Err(error) = reader {
        tracing::warn!(%error, "standard input is not watched");
        return std::future::pending().await;
    }
    let _ = wait.await;
}
