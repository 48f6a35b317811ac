//! The lease store: the record of who should own the site.
//!
//! It is advice, not a fence: who *may* write is decided by the reservation alone. So a store that
//! is away, damaged or slow must never look like one that says "nobody": every such case is an error,
//! which the observation shows as `Unknown`.
//!
//! There are two kinds: a locked file ([`file`]) and a Lease of the Kubernetes API ([`kubernetes`]).

mod cluster;
mod directory;
mod document;
pub mod file;
pub mod kubernetes;
mod watch;

use std::path::Path;

use fencing::{MemberId, Mono};
use serde::{Deserialize, Serialize};

use crate::config::{self, Config};
use crate::decide::{Incarnation, Lease, LeaseRecord, LeaseVersion};
use crate::kubernetes::Access;

pub use cluster::{ClusterReading, ClusterStore, ClusterWritten};
pub use document::Ownership;
pub use file::FileStore;
pub use kubernetes::KubernetesStore;
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

/// What was read, and as of when that is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// The record with its version; none if none was ever made.
    pub lease: Option<Lease>,
    /// The record was this one at that moment at the earliest: when the read began, or when the
    /// store last gave a sign that nothing has changed.
    pub at: Mono,
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
    #[error("the lease {store} belongs to cluster {cluster}, site {site}; correct {setting}")]
    Foreign {
        /// Which.
        store: String,
        /// Whose it is.
        cluster: String,
        /// Whose it is.
        site: String,
        /// The setting that names it.
        setting: &'static str,
    },
    /// The store answers, and says no. Nothing was changed.
    #[error("{attempt} of the lease {store} was refused ({answer}); {advice}")]
    Refused {
        /// Which.
        store: String,
        /// What was attempted.
        attempt: &'static str,
        /// What it says.
        answer: String,
        /// What to do about it.
        advice: String,
    },
    /// The answer was lost on the way. A write may have had its effect: read again to find out.
    #[error("the answer to {attempt} of the lease {store} was lost; its outcome is unknown")]
    Lost {
        /// Which.
        store: String,
        /// What was attempted.
        attempt: &'static str,
        /// How.
        #[source]
        source: std::io::Error,
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
            Self::Overdue { .. } | Self::Lost { .. } => true,
            Self::Unreachable { .. }
            | Self::Failed { .. }
            | Self::Damaged { .. }
            | Self::Refused { .. }
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
    /// A Lease of the Kubernetes API.
    Kubernetes(KubernetesStore),
}

impl LeaseStore {
    /// The store that the configuration names. Touches nothing yet.
    ///
    /// # Errors
    /// The operating system gives no thread.
    pub fn open(config: &Config, incarnation: Incarnation) -> std::io::Result<Self> {
        Self::open_by(config, incarnation, Access::infer())
    }

    /// As [`LeaseStore::open`], with a client of the Kubernetes API that others use as well.
    ///
    /// # Errors
    /// As [`LeaseStore::open`].
    pub fn open_by(
        config: &Config,
        incarnation: Incarnation,
        access: Access,
    ) -> std::io::Result<Self> {
        let place = match &config.lease {
            config::Lease::File { path } => path.to_string_lossy().into_owned(),
            config::Lease::Kubernetes { name, .. } => name.clone(),
        };
        Self::open_at(config, incarnation, access, &place, &config.site)
    }

    /// As [`LeaseStore::open_by`], of another register of this kind of store: `place` is its file, or
    /// the name of its Lease, `site` whose it is.
    ///
    /// # Errors
    /// As [`LeaseStore::open`].
    pub fn open_at(
        config: &Config,
        incarnation: Incarnation,
        access: Access,
        place: &str,
        site: &str,
    ) -> std::io::Result<Self> {
        let writer = Writer {
            name: config.member.clone(),
            member: config.number,
            incarnation,
        };
        match &config.lease {
            config::Lease::File { path: _ } => {
                FileStore::open(Path::new(place), &config.cluster, site, writer).map(Self::File)
            }
            config::Lease::Kubernetes { namespace, name: _ } => {
                let place = kubernetes::Place {
                    namespace: namespace.clone(),
                    name: place.to_owned(),
                    cluster: config.cluster.clone(),
                    site: site.to_owned(),
                };
                let store = KubernetesStore::open(place, writer, &config.timings, access);
                Ok(Self::Kubernetes(store))
            }
        }
    }

    /// What is there now.
    ///
    /// # Errors
    /// Every one means "unknown".
    pub async fn read(&self, deadline: Mono) -> Result<Reading, LeaseError> {
        match self {
            Self::File(store) => store.read(deadline).await,
            Self::Kubernetes(store) => store.read(deadline).await,
        }
    }

    /// What is known without asking more than the store can bear, for those who look again and again.
    /// It may be as old as 3/2 `lease_renew` and a request; after a request that failed nobody is
    /// asked for a while.
    ///
    /// # Errors
    /// Every one means "unknown".
    pub async fn known(&self, deadline: Mono) -> Result<Reading, LeaseError> {
        match self {
            Self::File(store) => store.read(deadline).await,
            Self::Kubernetes(store) => store.known(deadline).await,
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
            Self::Kubernetes(store) => store.write(expected, record, deadline).await,
        }
    }

    /// The changes of ownership, oldest first; the store keeps the newest hundred.
    ///
    /// # Errors
    /// Every one means "unknown".
    pub async fn history(&self, deadline: Mono) -> Result<Vec<Ownership>, LeaseError> {
        match self {
            Self::File(store) => store.history(deadline).await,
            Self::Kubernetes(store) => store.history(deadline).await,
        }
    }

    /// Its name, for messages.
    fn shown(&self) -> String {
        match self {
            Self::File(store) => store.shown(),
            Self::Kubernetes(store) => store.shown(),
        }
    }

    /// Says when the record may have changed. Call it within a runtime.
    pub fn watch(&self) -> LeaseWatch {
        match self {
            Self::File(store) => store.watch(),
            Self::Kubernetes(store) => store.watch(),
        }
    }
}
