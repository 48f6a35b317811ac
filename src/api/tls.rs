//! Certificate and key of the API.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{self, ServerConfig};

/// Why TLS cannot be spoken.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file holds nothing of the kind.
    #[error("cannot use {}: {what} ({source})", path.display())]
    File {
        /// The setting that names it.
        setting: &'static str,
        /// The file.
        path: PathBuf,
        /// What it must hold.
        what: &'static str,
        /// Why not.
        source: pem::Error,
    },
    /// The two do not fit together, or are of a kind that is not known.
    #[error("certificate and key cannot be used together ({source}); make them anew")]
    Pair {
        /// Why not.
        source: rustls::Error,
    },
}

impl TlsError {
    /// The setting to correct.
    pub fn setting(&self) -> &'static str {
        match self {
            Self::File { setting, .. } => setting,
            Self::Pair { source: _ } => "api.certificate_file",
        }
    }
}

/// Reads both. TLS 1.2 and 1.3, HTTP/1.1, no certificate of the client: it has a token.
///
/// # Errors
/// A file cannot be read or holds something else, or they do not fit together.
pub fn load(certificate: &Path, key: &Path) -> Result<Arc<ServerConfig>, TlsError> {
    let chain = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .and_then(|chain| match chain.is_empty() {
            true => Err(pem::Error::NoItemsFound),
            false => Ok(chain),
        })
        .map_err(file(
            "api.certificate_file",
            certificate,
            "must hold certificates in PEM",
        ))?;
    let key = PrivateKeyDer::from_pem_file(key).map_err(file(
        "api.key_file",
        key,
        "must hold a private key in PEM, not encrypted",
    ))?;
    let pair = |source| TlsError::Pair { source };
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(pair)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(pair)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn file(
    setting: &'static str,
    path: &Path,
    what: &'static str,
) -> impl FnOnce(pem::Error) -> TlsError {
    let path = path.to_owned();
    move |source| TlsError::File {
        setting,
        path,
        what,
        source,
    }
}

/// When a file was changed last; a file that cannot be looked at was changed never.
pub(super) fn changed(path: &Path) -> Option<std::time::SystemTime> {
    let found: io::Result<_> = std::fs::metadata(path).and_then(|file| file.modified());
    found.ok()
}
