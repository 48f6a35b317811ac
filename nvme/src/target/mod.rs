//! An NVMe/TCP target in user space: one subsystem with file-backed namespaces, reservations that
//! can survive a power loss, a volatile write cache that really loses what was not flushed, fault
//! injection, and a record that would show a fence that did not hold.
//!
//! ```text
//! connection ─► admin ─► controller
//!      │                                      ┌► reservation (table, pure)
//!      └─────► io ────► namespace ── begin ───┤
//!                          │                  └► in flight, audit
//!                          └─ apply ► storage ► cache, file
//! ```

mod admin;
pub mod audit;
pub mod cache;
mod connection;
pub mod control;
mod controller;
pub mod faults;
mod io;
mod namespace;
pub mod persistence;
pub mod reservation;
pub mod storage;
mod subsystem;
mod transfer;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};
use uuid::Uuid;

use crate::{Nqn, Status};
use control::Request;
use namespace::Shared;
use persistence::StateFile;
use storage::Storage;
use subsystem::Subsystem;

/// MDTS: 2^8 pages of 4 KiB.
const MAX_TRANSFER_EXPONENT: u8 = 8;
/// Most bytes that one command moves.
pub const MAX_TRANSFER: u32 = 4096 << MAX_TRANSFER_EXPONENT;
/// Most data in the capsule of an I/O command: a write up to this size saves a round trip.
pub const IN_CAPSULE_MAX: u32 = 64 * 1024;
/// Connections at once.
const CONNECTIONS_MAX: usize = 1024;
/// The name of the subsystem where none is configured.
pub const DEFAULT_SUBSYSTEM: &str = "nqn.2026-11.dev.baton:lab";
/// Bytes of the volatile write cache where nothing else is said.
pub const DEFAULT_CACHE: usize = 64 * 1024 * 1024;

/// A command's completion on its way to the host.
#[derive(Clone, Debug)]
pub(crate) struct Done {
    id: u16,
    result: u64,
    status: Status,
    data: Bytes,
}

impl Done {
    fn status(id: u16, status: Status) -> Self {
        Self {
            id,
            result: 0,
            status,
            data: Bytes::new(),
        }
    }

    fn result(id: u16, result: u64) -> Self {
        Self {
            result,
            ..Self::status(id, Status::SUCCESS)
        }
    }

    fn data(id: u16, data: Bytes) -> Self {
        Self {
            data,
            ..Self::status(id, Status::SUCCESS)
        }
    }
}

/// A namespace to serve.
#[derive(Clone, Debug)]
pub struct NamespaceConfig {
    /// The file.
    pub path: PathBuf,
    /// Its size in bytes; the file is created if absent. `None`: the file must exist.
    pub size: Option<u64>,
    /// Logical block size in bytes: 512 or 4096.
    pub block_size: u32,
    /// Its UUID; by default one that depends on the subsystem's name and the namespace's number.
    pub uuid: Option<Uuid>,
    /// Bytes of a volatile write cache; `None` for none.
    pub volatile_cache: Option<usize>,
    /// Whether it has reservations. Without them, its RESCAP is 0 and their commands are unknown.
    pub reservations: bool,
}

impl NamespaceConfig {
    /// A namespace on this file with blocks of 512 bytes, reservations and no volatile cache.
    pub fn new(path: impl Into<PathBuf>, size: Option<u64>) -> Self {
        Self {
            path: path.into(),
            size,
            block_size: 512,
            uuid: None,
            volatile_cache: None,
            reservations: true,
        }
    }
}

/// What a target is to serve.
#[derive(Clone, Debug)]
pub struct TargetConfig {
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The subsystem's name.
    pub subsystem: Nqn,
    /// The namespaces, numbered from 1.
    pub namespaces: Vec<NamespaceConfig>,
    /// Where reservations are kept over a power loss; `None`: they are not (PTPL unsupported).
    pub state: Option<PathBuf>,
    /// Path of the control socket; a stale socket there is replaced.
    pub control: Option<PathBuf>,
}

impl TargetConfig {
    /// One namespace of the default subsystem on 127.0.0.1, any port; nothing is kept over a restart.
    pub fn local(namespace: NamespaceConfig) -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            subsystem: default_subsystem(),
            namespaces: vec![namespace],
            state: None,
            control: None,
        }
    }
}

/// [`DEFAULT_SUBSYSTEM`] as a name.
pub fn default_subsystem() -> Nqn {
    match DEFAULT_SUBSYSTEM.parse() {
        Ok(nqn) => nqn,
        Err(_) => unreachable!("the constant is a valid NQN"),
    }
}

/// Why a target does not start. Nothing listens then.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A block size that is not served.
    #[error("namespace {nsid}: the block size must be 512 or 4096 bytes, not {block_size}")]
    BlockSize {
        /// The namespace's number.
        nsid: u32,
        /// The size asked for.
        block_size: u32,
    },
    /// A namespace's file.
    #[error("namespace {nsid}")]
    Namespace {
        /// The namespace's number.
        nsid: u32,
        /// Why.
        #[source]
        source: storage::OpenError,
    },
    /// The kept reservations.
    #[error(transparent)]
    State(#[from] persistence::LoadError),
    /// The address.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The control socket.
    #[error("cannot open the control socket {}", path.display())]
    Control {
        /// Its path.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

/// A running target. Dropping it ends all connections at once, as a killed process would, without
/// writing the volatile cache back.
pub struct Target {
    subsystem: Arc<Subsystem>,
    tasks: Vec<JoinHandle<()>>,
}

impl Target {
    /// Opens everything and listens.
    pub async fn start(config: TargetConfig) -> Result<Self, StartError> {
        let state = config
            .state
            .as_deref()
            .map(StateFile::open)
            .transpose()?
            .map(Arc::new);
        let mut namespaces = BTreeMap::new();
        for (nsid, namespace) in (1..).zip(&config.namespaces) {
            let shared = open_namespace(&config.subsystem, nsid, namespace, state.clone())?;
            namespaces.insert(nsid, Arc::new(shared));
        }
        let failed = |source| StartError::Listen {
            address: config.listen,
            source,
        };
        let listener = TcpListener::bind(config.listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let control = config.control.map(open_control).transpose()?;
        let subsystem = Arc::new(Subsystem::new(config.subsystem, address, namespaces));
        let mut tasks = vec![tokio::spawn(accept(listener, Arc::clone(&subsystem)))];
        if let Some(socket) = control {
            tasks.push(tokio::spawn(control::serve(socket, Arc::clone(&subsystem))));
        }
        Ok(Self { subsystem, tasks })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.subsystem.address
    }

    /// Does what a request on the control socket would do.
    pub async fn control(&self, request: Request) -> Value {
        control::handle(&self.subsystem, request).await
    }

    /// Ends all connections and writes everything back.
    pub async fn shutdown(mut self) -> std::io::Result<()> {
        for task in self.tasks.drain(..) {
            task.abort();
            // Aborted, which is no failure.
            let _ = task.await;
        }
        let subsystem = Arc::clone(&self.subsystem);
        let synced = tokio::task::spawn_blocking(move || {
            subsystem.namespaces.values().try_for_each(|ns| ns.sync())
        });
        synced
            .await
            .unwrap_or_else(|error| Err(std::io::Error::other(error)))
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

fn open_namespace(
    subsystem: &Nqn,
    nsid: u32,
    config: &NamespaceConfig,
    state: Option<Arc<StateFile>>,
) -> Result<Shared, StartError> {
    let block_size = config.block_size;
    if block_size != 512 && block_size != 4096 {
        return Err(StartError::BlockSize { nsid, block_size });
    }
    let storage = Storage::open(&config.path, config.size, block_size, config.volatile_cache)
        .map_err(|source| StartError::Namespace { nsid, source })?;
    let derived =
        |what: &str| Uuid::from_u128(stable_hash(format!("{subsystem}/{nsid}/{what}").as_bytes()));
    let uuid = config.uuid.unwrap_or_else(|| derived("uuid"));
    let nguid = config.uuid.unwrap_or_else(|| derived("nguid"));
    // What an earlier life with reservations has kept does not count without them.
    let kept = state.filter(|_| config.reservations);
    let shared = Shared::new(nsid, block_size, (uuid, nguid), storage, kept);
    Ok(shared.with_reservations(config.reservations))
}

/// FNV-1a with 128 bits: the same for the same bytes in every version of Baton.
fn stable_hash(bytes: &[u8]) -> u128 {
    const OFFSET: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    bytes.iter().fold(OFFSET, |hash, byte| {
        (hash ^ u128::from(*byte)).wrapping_mul(PRIME)
    })
}

fn open_control(path: PathBuf) -> Result<UnixListener, StartError> {
    use std::os::unix::fs::{FileTypeExt, PermissionsExt};
    let failed = |source| StartError::Control {
        path: path.clone(),
        source,
    };
    if let Ok(found) = std::fs::symlink_metadata(&path)
        && found.file_type().is_socket()
    {
        std::fs::remove_file(&path).map_err(failed)?;
    }
    let listener = UnixListener::bind(&path).map_err(failed)?;
    let private = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(&path, private).map_err(failed)?;
    Ok(listener)
}

/// Accepts connections; they end with this task.
async fn accept(listener: TcpListener, subsystem: Arc<Subsystem>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut faults = subsystem.faults.subscribe();
    let mut connections = JoinSet::new();
    loop {
        // Cut off from everybody, the target does not even see who connects.
        let _ = faults.wait_for(|f| !f.is_blackholed_for_all()).await;
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of file descriptors, or the peer is gone already: others may still come.
                tracing::warn!(%error, "accepting a connection failed");
                tokio::task::yield_now().await;
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            tracing::warn!(
                limit = CONNECTIONS_MAX,
                "too many connections: one was refused"
            );
            continue;
        };
        let subsystem = Arc::clone(&subsystem);
        connections.spawn(async move {
            connection::serve(stream, subsystem).await;
            drop(place);
        });
    }
}
