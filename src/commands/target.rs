//! `baton target`: serve files as namespaces over NVMe/TCP, with reservations and injected faults.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;

use anyhow::Context;
use nvme::Nqn;
use nvme::target::{DEFAULT_CACHE, DEFAULT_SUBSYSTEM, NamespaceConfig, Target, TargetConfig};
use tokio::signal::unix::{SignalKind, signal};
use uuid::Uuid;

/// Serve files as shared NVMe/TCP namespaces (for the lab and for tests)
///
/// Prints one line of JSON, {"listen":"ADDRESS:PORT"}, when hosts can connect. SIGTERM and SIGINT
/// write the cache back and end it; SIGKILL loses what hosts have not flushed.
#[derive(clap::Args)]
pub struct Args {
    /// Where to listen; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:4420")]
    listen: SocketAddr,
    /// A file to serve, as FILE[,size=2G][,block=512|4096][,uuid=UUID]; with a size it is created.
    /// Repeat for further namespaces
    #[arg(long = "namespace", value_name = "FILE[,…]", required = true)]
    namespaces: Vec<NamespaceArg>,
    /// The subsystem's NQN
    #[arg(long, value_name = "NQN", default_value = DEFAULT_SUBSYSTEM)]
    subsystem: Nqn,
    /// Where reservations are kept over a restart; without it they are lost
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
    /// A socket for faults and for the record: one JSON request a line, such as {"do":"status"}
    #[arg(long, value_name = "SOCKET")]
    control: Option<PathBuf>,
    /// Keep unflushed writes in memory, and lose them on {"do":"power_loss"} or SIGKILL
    #[arg(long, value_name = "SIZE", num_args = 0..=1, require_equals = true, default_missing_value = "64M")]
    volatile_cache: Option<Size>,
    /// Serve namespaces without reservations, as many targets do (Baton refuses them)
    #[arg(long)]
    no_reservations: bool,
}

/// A namespace of the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
struct NamespaceArg {
    path: PathBuf,
    size: Option<u64>,
    block_size: u32,
    uuid: Option<Uuid>,
}

/// A number of bytes: digits with an optional K, M, G or T (powers of 1024).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Size(u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let invalid = || format!("{text:?} is no size: write digits and K, M, G or T, as in 2G");
        let digits = text.trim_end_matches(['K', 'M', 'G', 'T']);
        let unit: u64 = match &text[digits.len()..] {
            "" => 1,
            "K" => 1 << 10,
            "M" => 1 << 20,
            "G" => 1 << 30,
            "T" => 1 << 40,
            _ => return Err(invalid()),
        };
        let number: u64 = digits.parse().map_err(|_| invalid())?;
        number.checked_mul(unit).map(Self).ok_or_else(invalid)
    }
}

impl FromStr for NamespaceArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(',');
        let path = parts
            .next()
            .filter(|path| !path.is_empty())
            .ok_or("the file is missing")?;
        let mut arg = Self {
            path: path.into(),
            size: None,
            block_size: 512,
            uuid: None,
        };
        for part in parts {
            match part.split_once('=') {
                Some(("size", size)) => arg.size = Some(size.parse::<Size>()?.0),
                Some(("block", "512")) => arg.block_size = 512,
                Some(("block", "4096")) => arg.block_size = 4096,
                Some(("uuid", uuid)) => {
                    arg.uuid = Some(uuid.parse().map_err(|_| format!("{uuid:?} is no UUID"))?);
                }
                _ => {
                    return Err(format!(
                        "{part:?} is unknown: use size=SIZE, block=512, block=4096 or uuid=UUID"
                    ));
                }
            }
        }
        Ok(arg)
    }
}

impl Args {
    fn config(self) -> TargetConfig {
        let cache = self
            .volatile_cache
            .map(|size| usize::try_from(size.0).unwrap_or(DEFAULT_CACHE));
        let namespace = |arg: NamespaceArg| NamespaceConfig {
            path: arg.path,
            size: arg.size,
            block_size: arg.block_size,
            uuid: arg.uuid,
            volatile_cache: cache,
            reservations: !self.no_reservations,
        };
        TargetConfig {
            listen: self.listen,
            subsystem: self.subsystem,
            namespaces: self.namespaces.into_iter().map(namespace).collect(),
            state: self.state,
            control: self.control,
        }
    }
}

/// Serves until a signal ends it.
///
/// # Errors
/// A file, the state, the address or the control socket cannot be used, or the last write-back fails.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        // Reads and writes run on these threads; a few more than cores let one wait for the disk.
        .worker_threads(4)
        .enable_all()
        .build()
        .context("start the runtime")?;
    runtime.block_on(serve(args.config()))
}

async fn serve(config: TargetConfig) -> anyhow::Result<ExitCode> {
    // Before the first line is printed: who reads it may send a signal at once.
    let mut terminate = signal(SignalKind::terminate()).context("wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("wait for SIGINT")?;
    let target = Target::start(config).await.context("start the target")?;
    println!("{}", serde_json::json!({"listen": target.address()}));
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    target
        .shutdown()
        .await
        .context("write the namespaces back")?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_are_read_from_the_command_line() {
        let full: NamespaceArg = "/v/ns,size=2G,block=4096".parse().unwrap();
        assert_eq!((full.size, full.block_size), (Some(2 << 30), 4096));
        let bare: NamespaceArg = "ns".parse().unwrap();
        assert_eq!((bare.size, bare.block_size, bare.uuid), (None, 512, None));
        for wrong in [
            "",
            ",size=1G",
            "ns,size=",
            "ns,size=1X",
            "ns,size=-1",
            "ns,block=513",
            "ns,x",
        ] {
            wrong.parse::<NamespaceArg>().unwrap_err();
        }
        assert!("99999999999T".parse::<Size>().is_err());
    }
}
