//! The peers' protocol: handshake and sealed messages.
//!
//! ```text
//! dialer                                   acceptor
//!   Hello{version, who, to, nonce}  ─────►
//!                                   ◄─────   Hello{version, who, to, nonce}
//!   HMAC(session, "dialer")         ─────►   checks it first: it says nothing to a stranger
//!                                   ◄─────   HMAC(session, "acceptor")
//!   frame 0, frame 1, …             ─────►
//! session = HMAC(secret, both Hellos as sent);  frame key = HMAC(session, "frames")
//! frame   = length of the body u32 | counter u64 | body | HMAC(frame key, counter, body)
//! ```
//!
//! Both nonces are in the session's key, so nothing recorded can be played again; the counter must go
//! up by one, so nothing within a session can either. Numbers are big-endian. The channel
//! is authentic, not secret: a heartbeat holds nothing that must be hidden.

use std::time::Duration;

use fencing::MemberId;
use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{Identity, Message, Secret};
use crate::decide::Incarnation;

/// Raised when members of two versions could misunderstand each other.
pub const PROTOCOL_VERSION: u32 = 1;

/// A Hello holds a few names. More from a stranger is not read.
const HELLO_MAX_BYTES: usize = 1024;

/// A heartbeat takes less than a kilobyte; a site has at most 255 members.
pub(super) const BODY_MAX_BYTES: usize = 64 * 1024;

/// SHA-256's.
const MAC_BYTES: usize = 32;

type Key = [u8; MAC_BYTES];

/// Why a connection failed.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The network.
    #[error("the connection failed: {0}")]
    Io(std::io::Error),
    /// The other side closed it.
    #[error("the other side closed the connection")]
    Closed,
    /// No answer in time.
    #[error("no answer within {0:?}")]
    Overdue(Duration),
    /// The other side speaks another version.
    #[error(
        "the other side speaks protocol version {theirs}, this one {PROTOCOL_VERSION}; upgrade the older one"
    )]
    Version {
        /// Its version.
        theirs: u32,
    },
    /// The other side belongs to another cluster or site.
    #[error("the other side belongs to cluster {cluster}, site {site}; correct peer.members")]
    Foreign {
        /// Its cluster.
        cluster: String,
        /// Its site.
        site: String,
    },
    /// The other side is another member than was expected.
    #[error("the other side says that it is member {found}; correct peer.members")]
    WrongMember {
        /// Who it says it is.
        found: MemberId,
    },
    /// The other side does not know the secret.
    #[error(
        "the other side does not know the secret; peer.secret_file must be the same everywhere"
    )]
    NotAuthentic,
    /// A message was changed, repeated or left out on the way.
    #[error("a message was changed, repeated or left out on the way")]
    Tampered,
    /// A message is larger than allowed.
    #[error("a message of {0} bytes is larger than allowed")]
    Oversize(usize),
    /// A message makes no sense.
    #[error("a message makes no sense: {0}")]
    Malformed(String),
}

impl From<std::io::Error> for LinkError {
    fn from(error: std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::UnexpectedEof {
            Self::Closed
        } else {
            Self::Io(error)
        }
    }
}

/// What each side says first.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Hello {
    pub version: u32,
    pub cluster: String,
    pub site: String,
    pub from: MemberId,
    pub name: String,
    pub incarnation: Incarnation,
    /// Whom the dialer wants to reach; the acceptor answers to whoever dialed.
    pub to: Option<MemberId>,
    pub nonce: [u8; 32],
}

/// The part of a Hello that every version understands.
#[derive(Deserialize)]
struct AnyHello {
    version: u32,
}

impl Hello {
    pub fn new(identity: &Identity, to: Option<MemberId>) -> Self {
        Self {
            version: PROTOCOL_VERSION,
            cluster: identity.cluster.clone(),
            site: identity.site.clone(),
            from: identity.member,
            name: identity.name.clone(),
            incarnation: identity.incarnation,
            to,
            nonce: rand::random(),
        }
    }

    fn encode(&self) -> Result<Vec<u8>, LinkError> {
        serde_json::to_vec(self).map_err(malformed)
    }

    fn decode(bytes: &[u8]) -> Result<Self, LinkError> {
        let AnyHello { version } = serde_json::from_slice(bytes).map_err(malformed)?;
        if version != PROTOCOL_VERSION {
            return Err(LinkError::Version { theirs: version });
        }
        serde_json::from_slice(bytes).map_err(malformed)
    }

    /// Whether the other side belongs here at all.
    fn check(&self, identity: &Identity) -> Result<(), LinkError> {
        if self.cluster != identity.cluster || self.site != identity.site {
            let (cluster, site) = (self.cluster.clone(), self.site.clone());
            return Err(LinkError::Foreign { cluster, site });
        }
        Ok(())
    }
}

fn malformed(error: impl std::fmt::Display) -> LinkError {
    LinkError::Malformed(error.to_string())
}

fn mac(key: &[u8], parts: &[&[u8]]) -> Hmac<Sha256> {
    // HMAC takes a key of any length (RFC 2104, 2); the fallback is never reached.
    let mut mac =
        Hmac::<Sha256>::new_from_slice(key).unwrap_or_else(|_| Hmac::new(&Default::default()));
    for part in parts {
        mac.update(part);
    }
    mac
}

fn derive(key: &[u8], parts: &[&[u8]]) -> Key {
    mac(key, parts).finalize().into_bytes().into()
}

/// The session's key. Lengths keep the two Hellos apart.
fn session(Secret(secret): &Secret, dialer: &[u8], acceptor: &[u8]) -> Key {
    let lengths = [dialer.len() as u64, acceptor.len() as u64].map(u64::to_be_bytes);
    derive(
        secret,
        &[
            b"baton peer channel 1",
            &lengths[0],
            dialer,
            &lengths[1],
            acceptor,
        ],
    )
}

const DIALER_PROOF: &[u8] = b"dialer";
const ACCEPTOR_PROOF: &[u8] = b"acceptor";
const FRAMES: &[u8] = b"frames";

async fn send_hello(stream: &mut (impl AsyncWrite + Unpin), hello: &[u8]) -> Result<(), LinkError> {
    let length = u16::try_from(hello.len()).map_err(|_| LinkError::Oversize(hello.len()))?;
    stream.write_all(&length.to_be_bytes()).await?;
    stream.write_all(hello).await?;
    Ok(())
}

async fn receive_hello(stream: &mut (impl AsyncRead + Unpin)) -> Result<Vec<u8>, LinkError> {
    let length = usize::from(stream.read_u16().await?);
    if length > HELLO_MAX_BYTES {
        return Err(LinkError::Oversize(length));
    }
    let mut hello = vec![0; length];
    stream.read_exact(&mut hello).await?;
    Ok(hello)
}

async fn check_proof(
    stream: &mut (impl AsyncRead + Unpin),
    session: &Key,
    whose: &[u8],
) -> Result<(), LinkError> {
    let mut proof = Key::default();
    match stream.read_exact(&mut proof).await {
        Ok(_) => {}
        // The other side did not like our Hello or proof, most likely for want of the same secret.
        Err(_) if whose == ACCEPTOR_PROOF => return Err(LinkError::NotAuthentic),
        Err(error) => return Err(error.into()),
    }
    mac(session, &[whose])
        .verify_slice(&proof)
        .map_err(|_| LinkError::NotAuthentic)
}

/// The dialer's side of the handshake; who answered.
pub(super) async fn dial<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    identity: &Identity,
    to: MemberId,
) -> Result<Sealer, LinkError> {
    let ours = Hello::new(identity, Some(to)).encode()?;
    send_hello(stream, &ours).await?;
    let theirs = receive_hello(stream).await?;
    let hello = Hello::decode(&theirs)?;
    hello.check(identity)?;
    if hello.from != to {
        return Err(LinkError::WrongMember { found: hello.from });
    }
    let session = session(&identity.secret, &ours, &theirs);
    stream.write_all(&derive(&session, &[DIALER_PROOF])).await?;
    check_proof(stream, &session, ACCEPTOR_PROOF).await?;
    Ok(Sealer {
        key: derive(&session, &[FRAMES]),
        counter: 0,
    })
}

/// The acceptor's side of the handshake; who dialed.
pub(super) async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    identity: &Identity,
) -> Result<(Hello, Opener), LinkError> {
    let theirs = receive_hello(stream).await?;
    let decoded = Hello::decode(&theirs);
    // Another version gets our Hello as well: so both sides can say what is wrong.
    let to = decoded.as_ref().ok().map(|hello| hello.from);
    let ours = Hello::new(identity, to).encode()?;
    send_hello(stream, &ours).await?;
    let hello = decoded?;
    hello.check(identity)?;
    let session = session(&identity.secret, &theirs, &ours);
    check_proof(stream, &session, DIALER_PROOF).await?;
    if hello.to != Some(identity.member) {
        return Err(LinkError::WrongMember { found: hello.from });
    }
    stream
        .write_all(&derive(&session, &[ACCEPTOR_PROOF]))
        .await?;
    Ok((
        hello,
        Opener {
            key: derive(&session, &[FRAMES]),
            counter: 0,
        },
    ))
}

/// Seals the dialer's messages.
pub(super) struct Sealer {
    key: Key,
    counter: u64,
}

impl Sealer {
    /// The bytes of the next frame.
    pub fn seal(&mut self, message: &Message) -> Result<Vec<u8>, LinkError> {
        let body = serde_json::to_vec(message).map_err(malformed)?;
        if body.len() > BODY_MAX_BYTES {
            return Err(LinkError::Oversize(body.len()));
        }
        let counter = self.counter.to_be_bytes();
        self.counter += 1;
        // In range by the check above.
        let mut frame = (body.len() as u32).to_be_bytes().to_vec();
        frame.extend_from_slice(&counter);
        frame.extend_from_slice(&body);
        frame.extend_from_slice(&derive(&self.key, &[&counter, &body]));
        Ok(frame)
    }
}

/// Opens them again.
pub(super) struct Opener {
    key: Key,
    counter: u64,
}

impl Opener {
    /// Reads the next message. Not cancel-safe: a connection whose read was given up is closed.
    pub async fn receive(
        &mut self,
        stream: &mut (impl AsyncRead + Unpin),
    ) -> Result<Message, LinkError> {
        let length = usize::try_from(stream.read_u32().await?).unwrap_or(usize::MAX);
        if length > BODY_MAX_BYTES {
            return Err(LinkError::Oversize(length));
        }
        let counter = stream.read_u64().await?;
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await?;
        let mut seal = Key::default();
        stream.read_exact(&mut seal).await?;
        let authentic = mac(&self.key, &[&counter.to_be_bytes(), &body])
            .verify_slice(&seal)
            .is_ok();
        if !authentic || counter != self.counter {
            return Err(LinkError::Tampered);
        }
        self.counter += 1;
        serde_json::from_slice(&body).map_err(malformed)
    }
}
