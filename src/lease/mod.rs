//! The lease store: the record of who should own the site.
//!
//! It is advice, not a fence: who *may* write is decided by the reservation alone. So a store that
//! is away, damaged or slow must never look like one that says "nobody": every such case is an error,
//! which the observation shows as `Unknown`.
//!
//! Today there is one kind, a locked file ([`file`]); a Kubernetes Lease becomes another variant
//! of [`LeaseStore`].

mod directory;
mod document;
pub mod file;
mod watch;

use fencing::{MemberId, Mono};
use serde::{Deserialize, Serialize};

use crate::config::{Config, Store};
use crate::decide::{Incarnation, Lease, LeaseRecord, LeaseVersion};

pub use document::Ownership;
pub use file::FileStore;
pub use watch::LeaseWatch;

/// Who writes: kept in the record for people, and in its history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Writer {
    /// The member's name.
    pub name: String,
    /// Its number.
    pub member: MemberId,
    /// Which run of it.
    pub incarnation: Incarnation,
}

/// How a compare-and-set ended. A lost race is an outcome, not an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Written {
    /// The record is stored and durable, as this version.
    Done(LeaseVersion),
    /// Another version was found; nothing was changed. This is what is there.
    Conflict(Option<Lease>),
}

/// Why the store gave no answer. Whatever it is, it is never "there is no lease".
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// The store is away.
    #[error("the lease store {store} is unreachable")]
    Unreachable {
        /// Which.
        store: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A read or write failed and had no effect.
    #[error("{attempt} of the lease {store} failed, nothing was changed")]
    Failed {
        /// Which.
        store: String,
        /// What was attempted.
        attempt: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The record cannot be trusted.
    #[error(
        "the lease {store} is damaged ({what}); restore it from a copy, or, when every member of the site is stopped, remove it"
    )]
    Damaged {
        /// Which.
        store: String,
        /// How.
        what: String,
    },
    /// The record was there and is gone. Whoever removed it must say so by restarting the members.
    #[error("the lease {store} has vanished; it was there before")]
    Vanished {
        /// Which.
        store: String,
    },
    /// The record belongs to somebody else.
    #[error("the lease {store} belongs to cluster {cluster}, site {site}; correct lease.path")]
    Foreign {
        /// Which.
        store: String,
        /// Whose it is.
        cluster: String,
        /// Whose it is.
        site: String,
    },
    /// No answer by the deadline. A write may yet have its effect: read again to find out.
    #[error("the lease {store} did not answer {attempt} by the deadline; its outcome is unknown")]
    Overdue {
        /// Which.
        store: String,
        /// What was attempted.
        attempt: &'static str,
    },
}

impl LeaseError {
    /// Whether a write that ended with this error may have changed the record.
    pub fn may_have_written(&self) -> bool {
        match self {
            Self::Overdue { .. } => true,
            Self::Unreachable { .. }
            | Self::Failed { .. }
            | Self::Damaged { .. }
            | Self::Vanished { .. }
            | Self::Foreign { .. } => false,
        }
    }
}

/// The lease store of one site, as one member uses it. Cheap to clone.
#[derive(Clone, Debug)]
pub enum LeaseStore {
    /// A locked file.
    File(FileStore),
}

impl LeaseStore {
    /// The store that the configuration names. Touches nothing yet.
    ///
    /// # Errors
    /// The operating system gives no thread.
    pub fn open(config: &Config, incarnation: Incarnation) -> std::io::Result<Self> {
        let writer = Writer {
            name: config.member.clone(),
            member: config.number,
            incarnation,
        };
        match config.lease.store {
            Store::File => {
                FileStore::open(&config.lease.path, &config.cluster, &config.site, writer)
                    .map(Self::File)
            }
        }
    }

    /// The record with its version; none if none was ever made.
    ///
    /// # Errors
    /// Every one means "unknown".
    pub async fn read(&self, deadline: Mono) -> Result<Option<Lease>, LeaseError> {
        match self {
            Self::File(store) => store.read(deadline).await,
        }
    }

    /// Stores `record` if the version there is still `expected`; `None`: if there is none.
    ///
    /// # Errors
    /// Nothing was changed, unless [`LeaseError::may_have_written`].
    pub async fn write(
        &self,
        expected: Option<LeaseVersion>,
        record: LeaseRecord,
        deadline: Mono,
    ) -> Result<Written, LeaseError> {
        match self {
            Self::File(store) => store.write(expected, record, deadline).await,
        }
    }

    /// The changes of ownership, oldest first; the store keeps the newest hundred.
    ///
    /// # Errors
    /// Every one means "unknown".
    pub async fn history(&self, deadline: Mono) -> Result<Vec<Ownership>, LeaseError> {
        match self {
            Self::File(store) => store.history(deadline).await,
        }
    }

    /// Says when the record may have changed.
    pub fn watch(&self) -> LeaseWatch {
        match self {
            Self::File(store) => store.watch(),
        }
    }
}
