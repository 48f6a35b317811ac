//! The way to the Kubernetes API, shared by the lease store, the routing and the call for an operator.
//!
//! Every request has a deadline, and what became of it is one of a few [`Failure`]s that callers can
//! act on. Nothing is tried again here: who asks knows whether that is safe.

mod call;
pub mod names;
mod request;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use kube::{Client, Config};
use tokio::sync::OnceCell;

pub use call::{Call, Need};
pub use request::{Failure, within};

/// How long a connection to the API server may take. Shorter than any request's deadline would
/// leave no time to try the next address.
const CONNECT: Duration = Duration::from_secs(5);

/// A client of the API server, made when it is first needed: a member starts, and an active goes on
/// serving, also where it cannot be made. Cheap to clone; clones share connections.
#[derive(Clone)]
pub struct Access {
    given: Option<Arc<Config>>,
    client: Arc<OnceCell<Client>>,
}

/// No client could be made.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// Neither `KUBECONFIG` nor a ServiceAccount says where the API server is.
    #[error(
        "neither KUBECONFIG nor a ServiceAccount of this pod says how to reach the API server: set KUBECONFIG, or automountServiceAccountToken"
    )]
    NotInferred(#[source] kube::config::InferConfigError),
    /// What they say cannot be used.
    #[error("the client of the API server cannot be made")]
    Unusable(#[source] kube::Error),
}

impl Access {
    /// By `KUBECONFIG` or `~/.kube/config`, else by the pod's ServiceAccount.
    pub fn infer() -> Self {
        Self {
            given: None,
            client: Arc::default(),
        }
    }

    /// By this configuration, with its time-outs replaced.
    pub fn given(config: Config) -> Self {
        Self {
            given: Some(Arc::new(config)),
            client: Arc::default(),
        }
    }

    /// The client.
    ///
    /// # Errors
    /// There is none yet; the next call tries again.
    pub async fn client(&self) -> Result<Client, AccessError> {
        self.client.get_or_try_init(|| self.make()).await.cloned()
    }

    async fn make(&self) -> Result<Client, AccessError> {
        let mut config = match &self.given {
            Some(config) => Config::clone(config),
            None => Config::infer().await.map_err(AccessError::NotInferred)?,
        };
        config.connect_timeout = Some(CONNECT);
        // A watch is silent for minutes; each request has its own deadline.
        config.read_timeout = None;
        // A second try of a write is the caller's decision, and each counts.
        config.default_retry = false;
        // Fails only where one is installed already, which is as good.
        let _installed = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
        Client::try_from(config).map_err(AccessError::Unusable)
    }
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let made = self.client.initialized();
        f.debug_struct("Access")
            .field("made", &made)
            .finish_non_exhaustive()
    }
}

/// What a pod knows of itself, by the downward API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodFacts {
    /// Its UID.
    pub uid: String,
    /// Its address, where PostgreSQL is reached.
    pub ip: IpAddr,
    /// The node it runs on.
    pub node: String,
}

/// An environment variable of the downward API is missing or wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PodFactsError {
    /// Not set.
    #[error(
        "the environment has no {variable}: set it by the downward API (valueFrom.fieldRef {field})"
    )]
    Missing {
        /// Its name.
        variable: &'static str,
        /// The field it is taken from.
        field: &'static str,
    },
    /// `POD_IP` is no address.
    #[error("POD_IP is {text:?}, which is no address: set it by the downward API (status.podIP)")]
    NoAddress {
        /// What it is.
        text: String,
    },
}

impl PodFacts {
    /// From `POD_UID`, `POD_IP` and `NODE_NAME`.
    ///
    /// # Errors
    /// One of them is missing or wrong.
    pub fn from_env() -> Result<Self, PodFactsError> {
        let read = |variable, field| {
            let value = std::env::var(variable).ok();
            value
                .filter(|text| !text.is_empty())
                .ok_or(PodFactsError::Missing { variable, field })
        };
        let uid = read("POD_UID", "metadata.uid")?;
        let text = read("POD_IP", "status.podIP")?;
        let node = read("NODE_NAME", "spec.nodeName")?;
        let ip = text
            .parse()
            .map_err(|_| PodFactsError::NoAddress { text })?;
        Ok(Self { uid, ip, node })
    }
}
