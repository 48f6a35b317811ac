//! A running server and what a test does with it.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use kube::config::{KubeConfigOptions, Kubeconfig};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose};
use serde_json::json;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::rustls::{self, ServerConfig};

use crate::api::Shared;
use crate::auth::{Identity, MASTERS};
use crate::clock;
use crate::connection::{self, Port};
use crate::faults::Faults;
use crate::http::Handler;
use crate::requests::RequestLog;
use crate::verbs::make_namespace;

/// The user that may do everything.
pub const ADMIN: &str = "admin";

/// How a server behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where it listens; port 0 takes any free one.
    pub address: SocketAddr,
    /// Time between two bookmarks of a watch; a real server sends them about once a minute.
    pub bookmark_interval: Duration,
    /// How long a watch lasts whose client does not say.
    pub watch_timeout: Duration,
    /// Changes that are remembered; a watch from before them is told 410 Expired.
    pub history: usize,
    /// Seed of uids, generated names and tokens.
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            bookmark_interval: Duration::from_secs(60),
            watch_timeout: Duration::from_secs(1800),
            history: 10_000,
            seed: 0,
        }
    }
}

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address that was wished for.
        address: SocketAddr,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// No certificate could be made.
    #[error("cannot make a certificate")]
    Certificate(#[source] rcgen::Error),
    /// The certificate cannot be used.
    #[error("cannot set up TLS")]
    Tls(#[source] rustls::Error),
}

/// A server; it ends when this is dropped.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    address: SocketAddr,
    ca: String,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    /// Starts a server with the namespaces `default` and `kube-system` in it.
    ///
    /// # Errors
    /// If it cannot listen, or make its certificate.
    pub async fn start(options: Options) -> Result<Self, StartError> {
        let listen = |source| StartError::Listen {
            address: options.address,
            source,
        };
        let port = Port::reserve(options.address).map_err(listen)?;
        let listener = port.listen().map_err(listen)?;
        let address = port.address;
        let (ca, tls) = certificate(address)?;
        let shared = Arc::new(Shared::new(&options));
        {
            let mut api = shared.lock();
            for namespace in ["default", "kube-system"] {
                make_namespace(&mut api, namespace, clock::now());
            }
        }
        let handler = Handler::new(Arc::clone(&shared));
        let task = tokio::spawn(connection::accept(port, listener, tls, handler));
        Ok(Self {
            shared,
            address,
            ca,
            task,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The certificate authority that clients have to trust, PEM.
    pub fn ca(&self) -> &str {
        &self.ca
    }

    /// A token, good as long as the server runs.
    pub fn token(&self, identity: Identity) -> String {
        let mut api = self.shared.lock();
        let token = api.secret();
        api.tokens.add(token.clone(), identity);
        token
    }

    /// A kubeconfig with a token of its own for a user: [`ADMIN`] may do everything, a service
    /// account is named `system:serviceaccount:<namespace>:<name>`.
    pub fn kubeconfig(&self, user: &str) -> Kubeconfig {
        self.kubeconfig_of(&identity(user), "default")
    }

    /// A kubeconfig with a token of its own for an identity.
    pub fn kubeconfig_of(&self, identity: &Identity, namespace: &str) -> Kubeconfig {
        let token = self.token(identity.clone());
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [{ "name": "test", "cluster": {
                "server": format!("https://{}", self.address),
                "certificate-authority-data": BASE64_STANDARD.encode(&self.ca),
            } }],
            "users": [{ "name": identity.user, "user": { "token": token } }],
            "contexts": [{ "name": "test", "context": {
                "cluster": "test", "user": identity.user, "namespace": namespace,
            } }],
        });
        serde_json::from_value(config).expect("made of literals of the right form")
    }

    /// A client of a user (see [`Server::kubeconfig`]). It does not repeat requests that were
    /// answered with 429, 503 or 504, as kube's clients otherwise do by themselves: tests see
    /// each answer.
    ///
    /// # Panics
    /// If the client library refuses the configuration; it is a test's to fail then.
    pub async fn client(&self, user: &str) -> kube::Client {
        self.client_of(&identity(user)).await
    }

    /// A client of an identity.
    ///
    /// # Panics
    /// As [`Server::client`].
    pub async fn client_of(&self, identity: &Identity) -> kube::Client {
        let kubeconfig = self.kubeconfig_of(identity, "default");
        let options = KubeConfigOptions::default();
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await;
        let mut config = config.expect("a kubeconfig made here is good");
        config.default_retry = false;
        kube::Client::try_from(config).expect("a kubeconfig made here is good")
    }

    /// The switches of the faults.
    pub fn faults(&self) -> Faults {
        self.shared.faults().clone()
    }

    /// Every request since the start, or since [`Server::forget_requests`], in the order in which
    /// they were answered.
    pub fn requests(&self) -> Vec<RequestLog> {
        self.reader().requests()
    }

    /// Empties the log of requests.
    pub fn forget_requests(&self) {
        self.reader().forget_requests();
    }

    /// What a task of its own needs of the server.
    pub(crate) fn reader(&self) -> Reader {
        Reader(Arc::clone(&self.shared))
    }
}

/// The log and the faults, without a hold on the server.
#[derive(Clone, Debug)]
pub(crate) struct Reader(Arc<Shared>);

impl Reader {
    pub(crate) fn faults(&self) -> &Faults {
        self.0.faults()
    }

    pub(crate) fn requests(&self) -> Vec<RequestLog> {
        self.0.requests().clone()
    }

    pub(crate) fn forget_requests(&self) {
        self.0.requests().clear();
    }
}

fn identity(user: &str) -> Identity {
    if user == ADMIN {
        return Identity::user(user, &[MASTERS]);
    }
    let account = user
        .strip_prefix("system:serviceaccount:")
        .and_then(|rest| rest.split_once(':'));
    match account {
        Some((namespace, name)) => Identity::service_account(namespace, name),
        None => Identity::user(user, &[]),
    }
}

/// A new authority and a certificate of it for the address.
fn certificate(address: SocketAddr) -> Result<(String, TlsAcceptor), StartError> {
    let made = || -> Result<_, rcgen::Error> {
        let mut params = CertificateParams::new(Vec::<String>::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, "apiserver test authority");
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let names = [
            address.ip().to_string(),
            "localhost".to_owned(),
            "kubernetes".to_owned(),
        ];
        let key = KeyPair::generate()?;
        let certificate = CertificateParams::new(names)?.signed_by(&key, &authority)?;
        Ok((authority.pem(), certificate, key))
    };
    let (ca, certificate, key) = made().map_err(StartError::Certificate)?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(StartError::Tls)?
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .map_err(StartError::Tls)?;
    Ok((ca, TlsAcceptor::from(Arc::new(config))))
}
