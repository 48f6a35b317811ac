//! Steps on the reservation.

use fencing::{Epoch, KeyFlags, Mailbox, Mono};
use nvme::Namespace;

use super::further::{FenceOrder, NotFenced};
use super::{Attachment, Changes, Done, Happening, Look, done, failed, whole};
use crate::clock;
use crate::decide::{Outcome, PermitFacts};

impl Attachment {
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

    pub(super) async fn fence(&self, order: FenceOrder) -> Done {
        // Before any command: a node on which the mark cannot be made must not fence anybody.
        if let Err(cause) = self.mark_owner() {
            return failed(cause);
        }
        let volume = &*self.carrier;
        match self.further.fence(&self.keeper, volume, &order).await {
            Ok(permit) => {
                let facts = PermitFacts::from(&permit);
                let ended = self
                    .looked((Outcome::Fenced(facts), Changes::default()))
                    .await;
                // Last of all: a fence that is given up before its end leaves no permit.
                self.keep_permit(permit);
                ended
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
        self.tell.say(Happening::Mailbox(self.mailbox().await));
        ended
    }

    /// Reads the reservation report once.
    pub async fn mailbox(&self) -> Look<Mailbox> {
        let bound = self.timings().command;
        let began = clock::now();
        let result = match tokio::time::timeout(bound, self.carrier.report()).await {
            Ok(Ok(report)) => Ok(Mailbox::read(&report, self.cluster)),
            Ok(Err(error)) => Err(self.with_paths(whole(error))),
            Err(_elapsed) => {
                let cause = format!("no reservation report within {bound:?}");
                Err(self.with_paths(cause))
            }
        };
        Look { result, began }
    }

    /// Why not, and what the kernel says of its paths.
    fn with_paths(&self, cause: String) -> String {
        let paths = self.carrier.paths();
        if paths.is_empty() {
            cause
        } else {
            format!("{cause}; {paths}")
        }
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
