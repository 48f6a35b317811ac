//! The channel between the members of a site: heartbeats and requests that one passes to another.
//!
//! ```text
//! member a                                   member b
//!   publish ─► outgoing task ══ TCP ══► incoming task ─► seen, messages ─► next
//!   next ◄─ seen, messages ◄─ incoming task ══ TCP ══ outgoing task ◄─ publish
//! ```
//!
//! Each member dials every other one and speaks only on the connection that it dialed. Both sides
//! prove that they know the shared secret, and every message is sealed ([`wire`]).
//!
//! A heartbeat is sent when the member's loop publishes one, and never repeated by a task: a loop
//! that hangs falls silent. What arrives is evidence for decisions; nothing here decides.

mod incoming;
mod outgoing;
mod seen;
mod wire;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fencing::{MemberId, Mono};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::clock;
use crate::config::{Config, Endpoint, PeerMember};
use crate::decide::{Answer, Ask, Heartbeat, Incarnation, Seen};

pub use seen::{Duplicate, Link, PeerView};
pub use wire::{LinkError, PROTOCOL_VERSION};

/// How many requests may wait for the loop or for a connection; more are refused.
const QUEUE: usize = 64;

/// What one member says to another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Message {
    /// How it is.
    Heartbeat(Heartbeat),
    /// An operator's request that was made at a member that cannot fulfil it.
    Ask {
        /// Quoted by the answer; unique within the asking incarnation.
        id: u64,
        /// What for.
        ask: Ask,
    },
    /// The answer to one.
    Answer {
        /// Which.
        id: u64,
        /// What.
        answer: Answer,
    },
}

/// Something that came from a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerEvent {
    /// A heartbeat came, or a connection came or went: look at [`PeerChannel::seen`].
    Changed,
    /// A message other than a heartbeat.
    Message {
        /// From whom.
        from: MemberId,
        /// Which run of it.
        incarnation: Incarnation,
        /// What.
        message: Message,
        /// When it arrived.
        at: Mono,
    },
}

/// Who this member is and what it shares with the others.
#[derive(Clone)]
pub struct Identity {
    /// The cluster's name.
    pub cluster: String,
    /// The site's name.
    pub site: String,
    /// The member's name.
    pub name: String,
    /// Its number.
    pub member: MemberId,
    /// This run of it.
    pub incarnation: Incarnation,
    /// The secret that all members share.
    pub secret: Secret,
}

/// The shared secret. Never printed.
#[derive(Clone)]
pub struct Secret(Arc<[u8]>);

impl Secret {
    /// The secret in a file, without white space at its ends.
    ///
    /// # Errors
    /// The file cannot be read, or what it holds is too short to be a secret.
    pub fn read(path: &Path) -> Result<Self, StartError> {
        let bytes = std::fs::read(path).map_err(|source| StartError::Secret {
            path: path.to_owned(),
            source,
        })?;
        let trimmed = bytes.trim_ascii();
        if trimmed.len() < crate::config::SECRET_MIN_BYTES {
            return Err(StartError::ShortSecret {
                path: path.to_owned(),
            });
        }
        Ok(Self(trimmed.into()))
    }

    /// The secret itself; at least 16 random bytes, or it can be guessed from recorded traffic.
    pub fn new(bytes: &[u8]) -> Self {
        Self(bytes.into())
    }
}

/// Why the channel cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The secret cannot be read.
    #[error("read the peers' secret {}", path.display())]
    Secret {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The secret is none.
    #[error("the peers' secret {} is too short: at least {} bytes", path.display(), crate::config::SECRET_MIN_BYTES)]
    ShortSecret {
        /// The file.
        path: PathBuf,
    },
    /// The address is taken or not this machine's.
    #[error(
        "listen for peers at {address}: set peer.listen to a free port of this node, or stop what \
         listens there"
    )]
    Listen {
        /// The address.
        address: Endpoint,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// A message that was not taken for sending.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SendError {
    /// No such peer.
    #[error("there is no member {0}")]
    Unknown(MemberId),
    /// Too many messages wait for the connection.
    #[error("member {0} takes no messages")]
    Full(MemberId),
}

/// How patient the channel is.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For a connection, a handshake or one message to go through.
    pub step: Duration,
    /// A connection that brings nothing for so long is dead.
    pub idle: Duration,
    /// The first wait before dialing again; doubled at each failure.
    pub retry_least: Duration,
    /// The longest such wait. A peer that comes back is heard after this at the latest.
    pub retry_most: Duration,
    /// A heartbeat older than this is not sent to a peer that connects.
    pub fresh: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            step: Duration::from_secs(1),
            idle: Duration::from_secs(10),
            retry_least: Duration::from_millis(50),
            retry_most: Duration::from_millis(500),
            fresh: Duration::from_millis(500),
        }
    }
}

/// A heartbeat with the time it was published.
#[derive(Clone, Debug)]
struct Published {
    heartbeat: Heartbeat,
    at: Mono,
}

/// The channel. Dropping it closes every connection.
pub struct PeerChannel {
    address: SocketAddr,
    started: Mono,
    heartbeat: watch::Sender<Option<Published>>,
    outgoing: BTreeMap<MemberId, mpsc::Sender<Message>>,
    seen: watch::Receiver<seen::All>,
    messages: mpsc::Receiver<PeerEvent>,
    _tasks: JoinSet<()>,
}

impl PeerChannel {
    /// Listens and begins to dial, as configured.
    ///
    /// # Errors
    /// No secret, or the address cannot be listened at.
    pub async fn start(config: &Config, incarnation: Incarnation) -> Result<Self, StartError> {
        let identity = Identity {
            cluster: config.cluster.clone(),
            site: config.site.clone(),
            name: config.member.clone(),
            member: config.number,
            incarnation,
            secret: Secret::read(&config.peer.secret_file)?,
        };
        let patience = Patience {
            fresh: config.timings.heartbeat * 2,
            ..Patience::default()
        };
        let listen = &config.peer.listen;
        let listener = TcpListener::bind((listen.host(), listen.port()))
            .await
            .map_err(|source| StartError::Listen {
                address: listen.clone(),
                source,
            })?;
        Self::start_with(identity, listener, config.peer.members.clone(), patience).map_err(
            |source| StartError::Listen {
                address: listen.clone(),
                source,
            },
        )
    }

    /// Starts on a listener that is already there.
    ///
    /// # Errors
    /// The listener has no address.
    pub fn start_with(
        identity: Identity,
        listener: TcpListener,
        members: Vec<PeerMember>,
        patience: Patience,
    ) -> std::io::Result<Self> {
        let address = listener.local_addr()?;
        let identity = Arc::new(identity);
        let (heartbeat, published) = watch::channel(None);
        let (seen_sender, seen) = watch::channel(seen::All::new(&members, clock::now()));
        let seen_sender = Arc::new(seen_sender);
        let (events, messages) = mpsc::channel(QUEUE);
        let mut tasks = JoinSet::new();
        let mut outgoing = BTreeMap::new();
        for member in members {
            let (sender, queue) = mpsc::channel(QUEUE);
            outgoing.insert(member.number, sender);
            let dialer = outgoing::Dialer {
                identity: Arc::clone(&identity),
                peer: member,
                patience,
                published: published.clone(),
                queue,
                seen: Arc::clone(&seen_sender),
            };
            tasks.spawn(dialer.run());
        }
        let acceptor = incoming::Acceptor {
            identity,
            members: outgoing.keys().copied().collect(),
            patience,
            seen: seen_sender,
            events,
        };
        tasks.spawn(acceptor.run(listener));
        let started = clock::now();
        Ok(Self {
            address,
            started,
            heartbeat,
            outgoing,
            seen,
            messages,
            _tasks: tasks,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sends this heartbeat to every peer that is connected, once.
    pub fn publish(&self, heartbeat: Heartbeat) {
        self.heartbeat.send_replace(Some(Published {
            heartbeat,
            at: clock::now(),
        }));
    }

    /// Queues a message for one peer. It is lost if the connection breaks: who sends it waits for an
    /// answer, with a deadline.
    ///
    /// # Errors
    /// There is no such peer, or it takes nothing.
    pub fn send(&self, to: MemberId, message: Message) -> Result<(), SendError> {
        let queue = self.outgoing.get(&to).ok_or(SendError::Unknown(to))?;
        queue.try_send(message).map_err(|_| SendError::Full(to))
    }

    /// Waits for the next event. Cancel-safe: nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> PeerEvent {
        tokio::select! {
            biased;
            Some(event) = self.messages.recv() => event,
            Ok(()) = self.seen.changed() => PeerEvent::Changed,
            // Both senders live in tasks that end with us.
            else => std::future::pending().await,
        }
    }

    /// What is known of every peer.
    pub fn seen(&self) -> BTreeMap<MemberId, PeerView> {
        self.seen.borrow().peers.clone()
    }

    /// Proof that another process uses this very member's number, while it is fresh.
    pub fn impostor(&self) -> Option<Duplicate> {
        self.seen.borrow().impostor.clone()
    }

    /// The newest heartbeat of every peer, as decisions take it. A peer that two processes claim to
    /// be is unknown.
    pub fn observation(&self) -> BTreeMap<MemberId, Seen<Heartbeat>> {
        let now = clock::now();
        let seen = self.seen.borrow();
        let entries = seen.peers.iter();
        entries
            .map(|(member, view)| (*member, view.observation(self.started, now)))
            .collect()
    }
}

#[cfg(test)]
mod tests;
