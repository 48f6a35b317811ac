//! The initiator's handle, and the supervisor that keeps an association alive behind it.

use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout_at};

use super::association::Association;
use super::{ConnectError, Options};
use crate::bridge::{Backend, Unflushed};
use crate::{Error, Identified};

/// Whether there is a connection to the controller, and since when. Times are of this machine's
/// monotonic clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Path {
    /// Commands can be sent.
    Connected {
        /// CNTLID: which controller the subsystem gave.
        controller: u16,
        /// When the association was made.
        since: Instant,
        /// Counts the associations of this initiator, from 1.
        association: u64,
    },
    /// No commands can be sent; attempts go on in the background.
    Connecting {
        /// When the last association ended, or the initiator began.
        since: Instant,
        /// Why there is none: the latest failure, for people.
        cause: String,
    },
}

/// A connection to one namespace as one host, made again whenever it is lost.
///
/// Commands are those of [`crate::Namespace`]. Dropping it closes all connections.
pub struct Initiator {
    pub(super) options: Arc<Options>,
    current: watch::Receiver<Current>,
    path: watch::Receiver<Path>,
    supervisor: JoinHandle<()>,
    unflushed: Arc<OnceLock<Weak<dyn Unflushed>>>,
}

#[derive(Clone)]
struct Current {
    association: Option<Arc<Association>>,
    number: u64,
    /// When the association was made or lost.
    since: Instant,
    cause: Arc<str>,
}

impl Initiator {
    /// Makes the first connection, and fails if it fails: then nothing goes on in the background.
    pub async fn connect(options: Options) -> Result<Self, ConnectError> {
        let first = Association::connect(&options).await?;
        Ok(Self::begin(options, Some(first)))
    }

    /// Connects in the background from now on. Must be called within a tokio runtime.
    pub fn start(options: Options) -> Self {
        Self::begin(options, None)
    }

    fn begin(options: Options, first: Option<Association>) -> Self {
        let options = Arc::new(options);
        let now = Instant::now();
        let (current, current_seen) = watch::channel(Current {
            association: None,
            number: 0,
            since: now,
            cause: "not connected yet".into(),
        });
        let (path, path_seen) = watch::channel(Path::Connecting {
            since: now,
            cause: "not connected yet".to_owned(),
        });
        let unflushed = Arc::new(OnceLock::new());
        let mut supervisor = Supervisor {
            options: Arc::clone(&options),
            unflushed: Arc::clone(&unflushed),
            current,
            path,
            identity: None,
        };
        let first = first.map(|association| supervisor.publish(association));
        Self {
            options,
            current: current_seen,
            path: path_seen,
            supervisor: tokio::spawn(supervisor.run(first)),
            unflushed,
        }
    }

    /// The state of the path, to read and to wait for changes.
    pub fn path(&self) -> watch::Receiver<Path> {
        self.path.clone()
    }

    /// What this initiator was told.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Waits until commands can be sent, at most for `limit`.
    pub async fn connected(&self, limit: Duration) -> Result<(), Error> {
        let mut current = self.current.clone();
        let connected = current.wait_for(|current| current.association.is_some());
        match timeout_at(Instant::now() + limit, connected).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => self.association_for("Connect").map(|_| ()),
        }
    }

    /// The live association.
    pub(super) fn association_for(&self, command: &'static str) -> Result<Arc<Association>, Error> {
        let current = self.current.borrow();
        match &current.association {
            Some(association) => Ok(Arc::clone(association)),
            None => Err(Error::NoPath {
                command,
                cause: current.cause.to_string(),
            }),
        }
    }
}

impl Drop for Initiator {
    fn drop(&mut self) {
        self.supervisor.abort();
    }
}

impl Backend for Initiator {
    fn association(&self) -> u64 {
        self.current.borrow().number
    }

    fn repeat_on_reconnect(&self, unflushed: Weak<dyn Unflushed>) {
        if self.unflushed.set(unflushed).is_err() {
            tracing::error!(
                "one initiator serves one volume: the second one's writes are not kept"
            );
        }
    }

    async fn usable(&self, path_loss: Duration) -> bool {
        let mut current = self.current.clone();
        let since = current.borrow().since;
        let connected = current.wait_for(|current| current.association.is_some());
        matches!(timeout_at(since + path_loss, connected).await, Ok(Ok(_)))
    }
}

/// Owns the association; everybody else sees what it publishes.
struct Supervisor {
    options: Arc<Options>,
    unflushed: Arc<OnceLock<Weak<dyn Unflushed>>>,
    current: watch::Sender<Current>,
    path: watch::Sender<Path>,
    /// The namespace of the first association. Another one under the same number is not ours.
    identity: Option<Identified>,
}

impl Supervisor {
    async fn run(mut self, first: Option<Arc<Association>>) {
        let mut association = first;
        let mut backoff = Duration::ZERO;
        loop {
            if let Some(live) = association.take() {
                let born = Instant::now();
                let cause = live.watch(self.options.keep_alive).await;
                self.lost(&live, &cause);
                // One that ended at once counts as a failed attempt, or two sides that disagree
                // would connect without pause.
                if born.elapsed() > self.options.max_backoff {
                    backoff = Duration::ZERO;
                }
            }
            sleep(backoff).await;
            backoff = (backoff * 2).clamp(self.options.min_backoff, self.options.max_backoff);
            association = match self.attempt().await {
                Ok(made) => match self.repeat_unflushed(&made).await {
                    Ok(()) => Some(self.publish(made)),
                    Err(cause) => {
                        self.failed(cause);
                        None
                    }
                },
                Err(error) => {
                    self.failed(error.to_line());
                    None
                }
            };
        }
    }

    async fn attempt(&self) -> Result<Association, ConnectError> {
        let made = Association::connect(&self.options).await?;
        match &self.identity {
            Some(known) if !is_same_namespace(known, &made.identified) => {
                Err(ConnectError::Unusable {
                    detail: "it shows another namespace than before".to_owned(),
                })
            }
            _ => Ok(made),
        }
    }

    /// Makes again what the target's cache may have lost, while nobody else can use the association.
    /// An error means that this association is over, too.
    async fn repeat_unflushed(&self, made: &Association) -> Result<(), String> {
        let Some(unflushed) = self.unflushed.get().and_then(Weak::upgrade) else {
            return Ok(());
        };
        let deadline = self.options.command_deadline;
        let number = self.current.borrow().number + 1;
        let repeat = async {
            for change in unflushed.begin(number) {
                match made.make(change, deadline).await {
                    Ok(()) => {}
                    Err(error @ Error::Status { .. }) => return Ok(Err(error)),
                    Err(error) => return Err(error.to_string()),
                }
            }
            Ok(Ok(()))
        };
        let outcome = tokio::select! {
            outcome = repeat => outcome?,
            cause = made.watch(self.options.keep_alive) => return Err(cause),
        };
        unflushed.end(outcome);
        Ok(())
    }

    fn publish(&mut self, made: Association) -> Arc<Association> {
        let made = Arc::new(made);
        self.identity.get_or_insert_with(|| made.identified.clone());
        let since = Instant::now();
        let number = self.current.borrow().number + 1;
        self.current.send_replace(Current {
            association: Some(Arc::clone(&made)),
            number,
            since,
            cause: "".into(),
        });
        self.path.send_replace(Path::Connected {
            controller: made.controller,
            since,
            association: number,
        });
        tracing::info!(
            controller = made.controller,
            association = number,
            "connected"
        );
        made
    }

    fn lost(&self, association: &Association, cause: &str) {
        let since = Instant::now();
        self.current.send_modify(|current| {
            current.association = None;
            current.since = since;
            current.cause = cause.into();
        });
        self.path.send_replace(Path::Connecting {
            since,
            cause: cause.to_owned(),
        });
        // After publishing: who learns of the failure finds no association to try again on.
        association.end(cause);
        tracing::warn!(cause, "the path to the controller is lost");
    }

    fn failed(&self, cause: String) {
        self.current
            .send_modify(|current| current.cause = cause.as_str().into());
        self.path.send_if_modified(|path| match path {
            Path::Connecting { cause: known, .. } if *known != cause => {
                tracing::warn!(cause, "no path to the controller");
                known.clone_from(&cause);
                true
            }
            Path::Connecting { .. } | Path::Connected { .. } => false,
        });
    }
}

/// Whether both are the same namespace, as far as it can be known.
fn is_same_namespace(a: &Identified, b: &Identified) -> bool {
    let key = |i: &Identified| (i.nsid, i.nguid, i.uuid, i.block_size, i.blocks);
    key(a) == key(b)
}
