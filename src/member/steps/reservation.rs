//! Steps on the reservation and the lease.

use fencing::{Epoch, KeyFlags, Mono};

use super::{Done, Tools, done, failed, whole};
use crate::decide::{LeaseRecord, LeaseVersion, Outcome, PermitFacts};
use crate::member::event::{Changes, Event};
use crate::member::further::{FenceOrder, NotFenced};

impl Tools {
    pub(super) async fn register(&self, epoch: Epoch, flags: KeyFlags, deadline: Mono) -> Done {
        match self
            .keeper
            .lock()
            .await
            .register(epoch, flags, deadline)
            .await
        {
            Ok(_mailbox) => self.looked(done()).await,
            Err(refused) => failed(refused),
        }
    }

    pub(super) async fn unregister(&self) -> Done {
        match self.keeper.lock().await.unregister().await {
            Ok(()) => done(),
            Err(error) => failed(whole(error)),
        }
    }

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

    pub(super) async fn fence(&self, order: FenceOrder) -> Done {
        // Before any command: a node on which the mark cannot be made must not fence anybody.
        if let Err(cause) = self.mark_owner() {
            return failed(cause);
        }
        let volume = &*self.volume;
        match self.further.fence(&self.keeper, volume, &order).await {
            Ok(permit) => {
                let facts = PermitFacts {
                    epoch: permit.epoch(),
                    key: permit.key(),
                    proven_at: permit.proven_at(),
                };
                let changes = Changes {
                    permit: Some(permit),
                    ..Changes::default()
                };
                self.looked((Outcome::Fenced(facts), changes)).await
            }
            Err(not_fenced) => {
                let outcome = lost_or_failed(not_fenced);
                tracing::warn!(?outcome, "not fenced");
                self.looked((outcome, Changes::default())).await
            }
        }
    }

    pub(super) async fn announce_clean(&self, epoch: Epoch, flags: KeyFlags) -> Done {
        let flags = KeyFlags {
            clean: true,
            ..flags
        };
        match self.keeper.lock().await.say(epoch, flags).await {
            Ok(()) => {
                self.self_fence.disarm();
                self.looked(done()).await
            }
            Err(error) if error.outcome_unknown() => (Outcome::Overdue, Changes::default()),
            Err(error) => failed(whole(error)),
        }
    }

    /// Reads the mailbox before the step ends: the decision that follows sees what the step did.
    async fn looked(&self, ended: Done) -> Done {
        let look =
            crate::member::looks::mailbox(&self.volume, self.cluster, self.timings.command).await;
        let _closed = self.events.send(Event::Mailbox(look));
        ended
    }
}

/// A race that another won is an outcome of its own; everything else is "not fenced".
fn lost_or_failed(not_fenced: NotFenced) -> Outcome {
    if not_fenced.is_lost_race() {
        Outcome::FenceLost
    } else {
        Outcome::Failed {
            cause: whole(not_fenced),
        }
    }
}
