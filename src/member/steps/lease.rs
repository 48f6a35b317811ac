//! Steps on the lease.

use fencing::Mono;

use super::{Done, Tools};
use crate::decide::{LeaseRecord, LeaseVersion};
use crate::member::event::{Changes, Event};

impl Tools {
    pub(super) async fn claim_lease(
        &self,
        expected: Option<LeaseVersion>,
        record: LeaseRecord,
        deadline: Mono,
    ) -> Done {
        let (look, outcome) = self.write_lease(expected, record, deadline).await;
        // Before the step's end, so that the decision that follows sees the new version.
        let _closed = self.events.send(Event::Lease(look));
        (outcome, Changes::default())
    }
}
