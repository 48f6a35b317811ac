//! TLS to the PostgreSQL of another site, by libpq's rules for `sslmode`.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::config::SslMode;
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::client::WebPkiServerVerifier;
use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::crypto::{
    CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature,
};
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, InvalidDnsNameError, ServerName, UnixTime};
use tokio_rustls::rustls::server::VerifierBuilderError;
use tokio_rustls::rustls::{
    self, CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};

/// Why TLS cannot be spoken as configured.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// libpq knows no such mode.
    #[error("{mode:?} is no sslmode of libpq")]
    Mode {
        /// What was given.
        mode: String,
    },
    /// The server's certificate cannot be verified without another one to verify it by.
    #[error("sslmode {mode} needs a root certificate")]
    NoRoot {
        /// The mode.
        mode: String,
    },
    /// The file holds no certificate.
    #[error("{} must hold certificates in PEM", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: pem::Error,
    },
    /// A certificate is of no use.
    #[error("no certificate can be verified by {}", path.display())]
    Root {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: VerifierBuilderError,
    },
    /// TLS itself is not available.
    #[error("preparing TLS")]
    Rustls(#[from] rustls::Error),
}

/// How much of the server's certificate is verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verify {
    Nothing,
    Chain,
    ChainAndName,
}

/// How to speak TLS for an `sslmode`.
pub(super) struct Tls {
    /// Whether to speak it at all. libpq's `allow` means here what `prefer` does.
    pub mode: SslMode,
    pub connect: MakeTls,
}

/// As libpq does: `require` verifies the chain if there is a root certificate.
pub(super) fn of(sslmode: &str, root: Option<&Path>) -> Result<Tls, TlsError> {
    let (mode, verify) = match (sslmode, root) {
        ("disable", _) => (SslMode::Disable, Verify::Nothing),
        ("allow" | "prefer", _) => (SslMode::Prefer, Verify::Nothing),
        ("require", None) => (SslMode::Require, Verify::Nothing),
        ("require" | "verify-ca", Some(_)) => (SslMode::Require, Verify::Chain),
        ("verify-full", Some(_)) => (SslMode::Require, Verify::ChainAndName),
        (mode @ ("verify-ca" | "verify-full"), None) => {
            let mode = mode.to_owned();
            return Err(TlsError::NoRoot { mode });
        }
        (mode, _) => {
            let mode = mode.to_owned();
            return Err(TlsError::Mode { mode });
        }
    };
    let provider = Arc::new(ring::default_provider());
    let chain = match (verify, root) {
        (Verify::Chain | Verify::ChainAndName, Some(path)) => {
            Some(chain_verifier(path, &provider)?)
        }
        (_, _) => None,
    };
    let verifier = Arc::new(Verifier {
        verify,
        chain,
        provider: Arc::clone(&provider),
    });
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    let connect = MakeTls(TlsConnector::from(Arc::new(config)));
    Ok(Tls { mode, connect })
}

fn chain_verifier(
    path: &Path,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<WebPkiServerVerifier>, TlsError> {
    let certificates = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|source| TlsError::File {
            path: path.to_owned(),
            source,
        })?;
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates);
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider))
        .build()
        .map_err(|source| TlsError::Root {
            path: path.to_owned(),
            source,
        })
}

/// Verifies as much as the mode says. The handshake's signature is verified always: it proves that the server
/// has the certificate's key.
#[derive(Debug)]
struct Verifier {
    verify: Verify,
    chain: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(chain) = &self.chain else {
            return match self.verify {
                Verify::Nothing => Ok(ServerCertVerified::assertion()),
                Verify::Chain | Verify::ChainAndName => Err(CertificateError::UnknownIssuer.into()),
            };
        };
        let verified =
            chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        match verified {
            // The name is looked at last: the chain is in order.
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if self.verify == Verify::Chain => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, known)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, known)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// Makes TLS connections for `tokio_postgres`.
#[derive(Clone)]
pub(super) struct MakeTls(TlsConnector);

/// Makes one TLS connection.
pub(super) struct OneTls {
    connector: TlsConnector,
    name: ServerName<'static>,
}

impl<S> MakeTlsConnect<S> for MakeTls
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    type Stream = Encrypted<S>;
    type TlsConnect = OneTls;
    type Error = InvalidDnsNameError;

    fn make_tls_connect(&mut self, domain: &str) -> Result<OneTls, InvalidDnsNameError> {
        Ok(OneTls {
            connector: self.0.clone(),
            name: ServerName::try_from(domain)?.to_owned(),
        })
    }
}

impl<S> TlsConnect<S> for OneTls
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    type Stream = Encrypted<S>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Encrypted<S>>> + Send>>;

    fn connect(self, stream: S) -> Self::Future {
        Box::pin(async move {
            let stream = self.connector.connect(self.name, stream).await?;
            Ok(Encrypted(Box::new(stream)))
        })
    }
}

/// A connection under TLS. Without channel binding: the certificate's verification is what `sslmode` asks for.
pub(super) struct Encrypted<S>(Box<tokio_rustls::client::TlsStream<S>>);

impl<S: AsyncRead + AsyncWrite + Unpin> TlsStream for Encrypted<S> {
    fn channel_binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Encrypted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Encrypted<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_libpqs() {
        for mode in ["disable", "allow", "prefer", "require"] {
            assert!(of(mode, None).is_ok(), "{mode}");
        }
        for mode in ["verify-ca", "verify-full"] {
            let refused = of(mode, None).err();
            assert!(matches!(refused, Some(TlsError::NoRoot { .. })), "{mode}");
        }
        assert!(matches!(of("on", None), Err(TlsError::Mode { .. })));
        let empty = of("require", Some(Path::new("/dev/null"))).err();
        assert!(matches!(empty, Some(TlsError::Root { .. })), "{empty:?}");
    }
}
