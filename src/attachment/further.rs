//! The `Fence` step: the reservation, and on top of it every further fence that is configured.
//!
//! Once the reservation is proven this host holds the volume, whatever becomes of the further fences.
//! The next try finds its own hold and no victim any more, so whoever must still be proven fenced is
//! written down on this node *before* the reservation's fence begins, and struck out when proven.

mod suspects;

use std::path::Path;
use std::time::Duration;

use fencing::{
    Epoch, FenceStopped, FenceUnverified, FurtherFences, KeyFlags, Mono, PermitLost, Suspect,
    WritePermit,
};
use nvme::Namespace;
use tokio::sync::Mutex;

use super::keeper::Keeper;
use crate::clock;
use crate::decide::{AbsenceEvidence, Timings, Victim};
use suspects::{Suspected, Suspects};

/// What a `Fence` step is to do.
pub(super) struct FenceOrder {
    /// The epoch to be owned.
    pub epoch: Epoch,
    /// What the key says meanwhile.
    pub flags: KeyFlags,
    /// What is expected to hold.
    pub victim: Victim,
    /// See `Claim::former_controllers_gone`.
    pub former_gone: Option<Mono>,
    /// Of the whole step.
    pub deadline: Mono,
}

/// Why a `Fence` step gives no permit.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotFenced {
    /// The reservation is not proven.
    #[error(transparent)]
    Reservation(#[from] FenceUnverified),
    /// It is; a further fence is not.
    #[error(transparent)]
    Further(#[from] FenceStopped),
    /// Whom to fence cannot be remembered, so nothing was begun.
    #[error("the list of those still to be fenced cannot be read or written")]
    Suspects(#[source] std::io::Error),
}

impl NotFenced {
    /// Another member won the volume: a race's end, not a failure.
    pub fn is_lost_race(&self) -> bool {
        match self {
            Self::Reservation(unverified) => unverified.is_lost_race(),
            Self::Further(FenceStopped::PermitLost(PermitLost::HeldByOther { .. })) => true,
            Self::Further(_) | Self::Suspects(_) => false,
        }
    }
}

/// The further fences of this member.
pub(super) struct Further {
    fences: FurtherFences,
    suspects: Suspects,
    timings: Timings,
}

impl Further {
    /// With these fences, and the list of suspects in this file.
    pub fn new(fences: FurtherFences, suspects: &Path, timings: Timings) -> Self {
        Self {
            fences,
            suspects: Suspects::in_file(suspects),
            timings,
        }
    }

    /// Fences, and proves every configured fence. SAFETY.md I14
    pub async fn fence(
        &self,
        keeper: &Mutex<Keeper>,
        volume: &impl Namespace,
        order: &FenceOrder,
    ) -> Result<WritePermit, NotFenced> {
        if self.fences.0.is_empty() {
            // Whoever takes the fences out of the configuration answers for those still on the list.
            self.suspects.forget();
            return Ok(self.reservation(keeper, order).await?);
        }
        if !is_unplanned(&order.victim) {
            return Ok(self.reservation(keeper, order).await?);
        }
        let suspected = self.remember(volume, &order.victim).await?;
        let permit = self.reservation(keeper, order).await?;
        let proven = self.prove(permit, suspected, volume, order.deadline);
        tokio::select! {
            biased;
            proven = proven => Ok(proven?),
            never = self.beat(keeper, order) => match never {},
        }
    }

    async fn reservation(
        &self,
        keeper: &Mutex<Keeper>,
        order: &FenceOrder,
    ) -> Result<WritePermit, FenceUnverified> {
        let FenceOrder {
            epoch,
            flags,
            victim,
            former_gone,
            deadline,
        } = *order;
        let mut keeper = keeper.lock().await;
        keeper
            .fence(epoch, flags, victim, former_gone, deadline)
            .await
    }

    /// Writes down whom this take-over must prove fenced, before anything makes the victim unknown.
    async fn remember(
        &self,
        volume: &impl Namespace,
        victim: &Victim,
    ) -> Result<Vec<Suspected>, NotFenced> {
        let mut suspected = self.suspects.read().map_err(NotFenced::Suspects)?;
        if !suspected.is_empty()
            && let Ok(Ok(report)) =
                tokio::time::timeout(self.timings.command, volume.report()).await
        {
            suspects::strike_returned(&mut suspected, &report);
        }
        if let Victim::Holder {
            host,
            member,
            epoch,
            clean: _,
        } = *victim
        {
            suspects::add(
                &mut suspected,
                Suspected {
                    host,
                    member,
                    epoch,
                },
            );
        }
        self.suspects
            .write(&suspected)
            .map_err(NotFenced::Suspects)?;
        Ok(suspected)
    }

    /// Proves one suspect after the other. The permit is gone with an error.
    async fn prove(
        &self,
        mut permit: WritePermit,
        mut suspected: Vec<Suspected>,
        volume: &impl Namespace,
        deadline: Mono,
    ) -> Result<WritePermit, FenceStopped> {
        // The last report must fit into the step as well.
        let deadline = deadline - self.timings.command;
        let since = permit.proven_at();
        while let Some(Suspected {
            host,
            member,
            epoch,
        }) = suspected.first().copied()
        {
            tracing::info!(%member, %epoch, "proving the fences beside the reservation");
            let suspect = Suspect {
                host,
                member,
                epoch,
                since,
            };
            permit = self
                .fences
                .prove(permit, &suspect, volume, &clock::now, deadline)
                .await?;
            suspected.remove(0);
            if let Err(error) = self.suspects.write(&suspected) {
                // It is proven once more at the next take-over.
                tracing::warn!(%error, "a proven suspect stays on the list");
            }
        }
        Ok(permit)
    }

    /// Beats while the further fences are at work, which may take longer than a detection: `decide`
    /// orders no beats during a fence, and a holder without beats looks dead. The keeper is held for
    /// one beat at a time.
    async fn beat(&self, keeper: &Mutex<Keeper>, order: &FenceOrder) -> std::convert::Infallible {
        let interval = self.timings.storage_beat.max(Duration::from_millis(1));
        loop {
            tokio::time::sleep(interval).await;
            if !self.timings.storage_beats {
                continue;
            }
            let say = async { keeper.lock().await.say(order.epoch, order.flags).await };
            match tokio::time::timeout(self.timings.command, say).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "the beat was not accepted"),
                Err(_elapsed) => tracing::debug!("the beat got no answer"),
            }
        }
    }
}

/// Whether somebody may be suspect: after an owner's `clean` nobody is, and an operator's word that
/// every owner has stopped is what a further fence would be asked for.
fn is_unplanned(victim: &Victim) -> bool {
    match victim {
        Victim::Holder { clean, .. } | Victim::Own { clean, .. } => !clean,
        Victim::Nobody(AbsenceEvidence::OperatorsWord) => false,
        Victim::Nobody(AbsenceEvidence::FirstStart | AbsenceEvidence::EveryOwnerStopped { .. }) => {
            true
        }
    }
}

#[cfg(test)]
mod tests;
