//! The HTTP API of a member: probes, documents and metrics for whoever asks, verbs for who may.
//!
//! ```text
//! probe, load balancer, Prometheus ─ GET ──┐                    ┌─ newest Status
//!                                          ├─ thread baton-api ─┤ Desk
//! operator ─ POST, TLS, bearer token ──────┘  (limits, access)  └─ ControlRequest ─► decide
//! ```
//!
//! Endpoints and status codes are Patroni's where both have the same thing. No policy: a verb goes the
//! way of `baton switchover`, and `decide` judges it. The API has a thread of its own, reads what the
//! loop published last, and asks through a bounded queue; whatever happens to it, the loop goes on.

mod access;
mod answer;
mod documents;
mod health;
pub mod metrics;
mod routes;
mod serve;
pub mod tls;
mod verbs;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use tokio::sync::{Semaphore, oneshot};

use crate::clock::{self, Mono};
use crate::config::{self, Endpoint};
use crate::control::Desk;
use access::Access;
pub use access::TOKEN_HEADER;
use serve::Encryption;

/// The name of the API's threads. A panic there ends one answer, not the member.
pub const THREAD: &str = "baton-api";

/// Threads that read journal and lease for `/history`.
const READERS: usize = 2;

/// Why the API cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The address is taken, or none of this machine's.
    #[error("listen at {listen} (api.listen)")]
    Listen {
        /// The setting.
        listen: Endpoint,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Certificate or key cannot be used.
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
    /// No thread or no event queue.
    #[error("start the API's thread")]
    Thread {
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The running API. Dropping it ends it, without waiting for anybody.
pub struct Api {
    address: SocketAddr,
    _stop: oneshot::Sender<()>,
}

/// What the handlers share.
struct Office {
    desk: Arc<Desk>,
    access: Access,
    /// One reader of the journal at a time: it may be some 30 MiB.
    history: Semaphore,
    /// When the API began: before the first decision nothing else says how long that takes.
    began: Mono,
}

impl Api {
    /// Listens and serves, in a thread of its own.
    ///
    /// # Errors
    /// The address, the certificate or the key cannot be used, or the system gives no thread.
    pub fn start(settings: &config::Api, desk: Arc<Desk>) -> Result<Self, ApiError> {
        let listen = || {
            let listener = TcpListener::bind((settings.listen.host(), settings.listen.port()))?;
            listener.set_nonblocking(true)?;
            Ok((listener.local_addr()?, listener))
        };
        let (address, listener) = listen().map_err(|source| ApiError::Listen {
            listen: settings.listen.clone(),
            source,
        })?;
        let encryption = settings.tls().map(Encryption::load).transpose()?;
        let office = Arc::new(Office {
            desk,
            access: Access::of(settings),
            history: Semaphore::new(1),
            began: clock::now(),
        });
        let router = routes::router(office);
        let thread = |source| ApiError::Thread { source };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .thread_name(THREAD)
            .max_blocking_threads(READERS)
            .build()
            .map_err(thread)?;
        let (stop, stopped) = oneshot::channel::<()>();
        let run = move || {
            runtime.block_on(async move {
                tokio::select! {
                    () = serve::run(listener, encryption, router) => {}
                    // Closed, not sent to.
                    _ = stopped => {}
                }
            });
            // A reader that hangs on a dead filesystem must not keep anybody.
            runtime.shutdown_background();
        };
        let named = std::thread::Builder::new().name(THREAD.to_owned());
        named.spawn(run).map_err(thread)?;
        tracing::info!(%address, tls = settings.tls().is_some(), "HTTP API");
        Ok(Self {
            address,
            _stop: stop,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}
