//! The simulated lease store: one record, compare-and-set.

use baton::decide::{Lease, LeaseRecord, LeaseVersion};

#[derive(Default)]
pub struct Store {
    pub lease: Option<Lease>,
    versions: u64,
}

/// What a member asks of it.
#[derive(Clone, Debug)]
pub enum StoreAsk {
    Read,
    CompareAndSet {
        expected: Option<LeaseVersion>,
        record: LeaseRecord,
    },
}

/// Whether the compare-and-set was carried out, and what the record is now.
#[derive(Clone, Debug)]
pub struct StoreAnswer {
    pub done: bool,
    pub lease: Option<Lease>,
}

impl Store {
    pub fn ask(&mut self, ask: &StoreAsk) -> StoreAnswer {
        let done = match ask {
            StoreAsk::Read => true,
            StoreAsk::CompareAndSet { expected, record } => {
                let found = self.lease.as_ref().map(|lease| &lease.version);
                let fits = found == expected.as_ref();
                if fits {
                    self.versions += 1;
                    let version = LeaseVersion(self.versions.to_string());
                    self.lease = Some(Lease {
                        version,
                        record: record.clone(),
                    });
                }
                fits
            }
        };
        StoreAnswer {
            done,
            lease: self.lease.clone(),
        }
    }
}
