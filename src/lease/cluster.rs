//! The cluster's record, which all sites share: a register of its own in the same kind of store as the
//! sites' leases. Of the lease's record that it is written in, only `cluster` is used.

use fencing::Mono;

use super::{LeaseError, LeaseStore, LeaseWatch, Reading, Written};
use crate::config::Config;
use crate::decide::zone::{ClusterLease, ClusterRecord};
use crate::decide::{Incarnation, Lease, LeaseRecord, LeaseVersion};
use crate::kubernetes::Access;

/// Whose register it is, in the place of a site's name, which this never is.
pub(super) const EVERY_SITE: &str = "*";

/// The store of the cluster's record. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ClusterStore {
    store: LeaseStore,
    incarnation: Incarnation,
}

/// What was read, and as of when that is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterReading {
    /// The record with its version; none if none was ever made.
    pub lease: Option<ClusterLease>,
    /// As [`Reading::at`].
    pub at: Mono,
}

/// How a compare-and-set ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClusterWritten {
    /// The record is stored and durable, as this version.
    Done(LeaseVersion),
    /// Another version was found; nothing was changed. This is what is there.
    Conflict(Option<Box<ClusterLease>>),
}

impl ClusterStore {
    /// The store that the configuration names at `place`. Touches nothing yet.
    ///
    /// # Errors
    /// The operating system gives no thread.
    pub fn open(
        config: &Config,
        incarnation: Incarnation,
        access: Access,
        place: &str,
    ) -> std::io::Result<Self> {
        let store = LeaseStore::open_at(config, incarnation, access, place, EVERY_SITE)?;
        Ok(Self { store, incarnation })
    }

    /// What is there now; see [`LeaseStore::read`].
    ///
    /// # Errors
    /// Every one means "unknown".
    pub async fn read(&self, deadline: Mono) -> Result<ClusterReading, LeaseError> {
        self.take(self.store.read(deadline).await?)
    }

    /// What is known; see [`LeaseStore::known`].
    ///
    /// # Errors
    /// Every one means "unknown".
    pub async fn known(&self, deadline: Mono) -> Result<ClusterReading, LeaseError> {
        self.take(self.store.known(deadline).await?)
    }

    /// Stores `record` if the version there is still `expected`; `None`: if there is none.
    ///
    /// # Errors
    /// Nothing was changed, unless [`LeaseError::may_have_written`].
    pub async fn write(
        &self,
        expected: Option<LeaseVersion>,
        record: ClusterRecord,
        deadline: Mono,
    ) -> Result<ClusterWritten, LeaseError> {
        let record = LeaseRecord {
            sequence: record.term,
            initialized: record.system.is_some(),
            cluster: Some(Box::new(record)),
            ..LeaseRecord::of_nobody(self.incarnation)
        };
        match self.store.write(expected, record, deadline).await? {
            Written::Done(version) => Ok(ClusterWritten::Done(version)),
            Written::Conflict(lease) => {
                let lease = lease.map(|lease| self.unwrap(lease)).transpose()?;
                Ok(ClusterWritten::Conflict(lease.map(Box::new)))
            }
        }
    }

    /// Says when the record may have changed. Call it within a runtime.
    pub fn watch(&self) -> LeaseWatch {
        self.store.watch()
    }

    fn take(&self, Reading { lease, at }: Reading) -> Result<ClusterReading, LeaseError> {
        let lease = lease.map(|lease| self.unwrap(lease)).transpose()?;
        Ok(ClusterReading { lease, at })
    }

    fn unwrap(&self, Lease { version, record }: Lease) -> Result<ClusterLease, LeaseError> {
        match record.cluster {
            Some(record) => Ok(ClusterLease {
                version,
                record: *record,
            }),
            None => Err(LeaseError::Damaged {
                store: self.store.shown(),
                what: "it is a site's lease, not a cluster's record".to_owned(),
            }),
        }
    }
}
