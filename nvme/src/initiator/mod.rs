//! An NVMe/TCP host in user space: one namespace of one subsystem, as one host identity.
//!
//! ```text
//! Initiator ── current ──► Association ──► admin queue   ──► TCP connection
//!     ▲                        │      └──► I/O queues    ──► a TCP connection each
//!     └── supervisor: connect, watch until it ends, back off, connect again …
//! ```
//!
//! A lost connection is made again in the background for as long as the [`Initiator`] lives. No
//! command is ever repeated here: one that was under way fails with an outcome that is unknown,
//! one that finds no connection fails at once, unsent. Dropping a command's future does not undo
//! it; its slot stays taken until the controller answers.

mod association;
mod commands;
mod discovery;
mod path;
mod queue;
mod slots;
#[cfg(test)]
mod tests;

use std::time::Duration;

use crate::pdu::Digests;
use crate::{HostIdentity, Nqn, Status};

pub use discovery::discover;
pub use path::{Initiator, Path};

/// Where to connect, as whom, and with which limits.
#[derive(Clone, Debug)]
pub struct Options {
    /// `host:port` of the subsystem's NVMe/TCP port; a name is resolved anew on each attempt.
    pub address: String,
    /// The subsystem.
    pub subsystem: Nqn,
    /// The namespace within it.
    pub namespace_id: u32,
    /// Who this host is. Reservations belong to its identifier.
    pub host: HostIdentity,
    /// Keep-alive time-out (KATO): the controller ends this host's commands when it has heard
    /// nothing for so long. A Keep Alive goes out each half of it and must be answered within half
    /// of it, so that a silent path is noticed within one KATO.
    pub keep_alive: Duration,
    /// I/O queues, each with a TCP connection of its own.
    pub io_queues: u16,
    /// Entries of each I/O queue, 2 to 1024; the controller may allow fewer.
    pub queue_depth: u16,
    /// The digests to ask for.
    pub digests: Digests,
    /// How long one command may take. After that its outcome is unknown, and the association is
    /// given up: only a new one tells whether the controller still lives.
    pub command_deadline: Duration,
    /// How long one attempt to connect may take, from TCP to Identify.
    pub connect_deadline: Duration,
    /// The wait before the second attempt to reconnect; the first comes at once. It doubles up to
    /// [`Options::max_backoff`].
    pub min_backoff: Duration,
    /// The longest wait between two attempts.
    pub max_backoff: Duration,
}

impl Options {
    /// Options with the usual limits: KATO 5 s, one queue of 128 entries, no digests, 10 s for a
    /// command, 3 s to connect, 20 ms to 1 s between attempts.
    pub fn new(address: String, subsystem: Nqn, namespace_id: u32, host: HostIdentity) -> Self {
        Self {
            address,
            subsystem,
            namespace_id,
            host,
            keep_alive: Duration::from_secs(5),
            io_queues: 1,
            queue_depth: 128,
            digests: Digests::default(),
            command_deadline: Duration::from_secs(10),
            connect_deadline: Duration::from_secs(3),
            min_backoff: Duration::from_millis(20),
            max_backoff: Duration::from_secs(1),
        }
    }
}

/// Why an attempt to connect failed.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No TCP connection.
    #[error("connect to {address}")]
    Tcp {
        /// Where to.
        address: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The peer did not shake hands as NVMe/TCP demands.
    #[error("initialize the connection to {address}: {detail}")]
    Handshake {
        /// Where to.
        address: String,
        /// What was wrong.
        detail: String,
    },
    /// A step of bringing the controller up failed.
    #[error("bring the controller up")]
    Command(#[source] crate::Error),
    /// The controller or the namespace is not one that can be used.
    #[error("the controller cannot be used: {detail}")]
    Unusable {
        /// Why.
        detail: String,
    },
    /// The attempt took too long.
    #[error("no connection to {address} within {deadline:?}")]
    Deadline {
        /// Where to.
        address: String,
        /// The limit.
        deadline: Duration,
    },
}

impl ConnectError {
    /// The status with which the controller refused Connect or a later step.
    pub fn status(&self) -> Option<Status> {
        match self {
            Self::Command(error) => error.status(),
            Self::Tcp { .. }
            | Self::Handshake { .. }
            | Self::Unusable { .. }
            | Self::Deadline { .. } => None,
        }
    }

    /// The error and its causes in one line, for people.
    pub fn to_line(&self) -> String {
        let mut line = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            line.push_str(": ");
            line.push_str(&error.to_string());
            cause = error.source();
        }
        line
    }
}
