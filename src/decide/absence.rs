//! Nobody holds the reservation: the first start, or a target that forgot. Absence is danger; what
//! permits an acquire nevertheless is said at [`AbsenceEvidence`].

use fencing::{MemberId, Mono};

use super::action::{AbsenceEvidence, Victim};
use super::memory::Registered;
use super::observation::{Custody, Life};
use super::reason::{Evidence, Reason};
use super::turn::{Next, Turn};

impl Turn<'_> {
    pub(super) fn weigh_absence(&mut self) -> Next {
        let Some(registered) = self.memory.watch.absent else {
            return Next::Wait(Reason::Registering);
        };
        if let Some(wait) = self.absence_claimed_by_another() {
            return wait;
        }
        if self
            .memory
            .owners_stopped
            .is_some_and(|word| word >= registered.at)
        {
            return self.acquire(Evidence::OperatorsWord, AbsenceEvidence::OperatorsWord);
        }
        if self.never_in_service() {
            return self.weigh_first_start();
        }
        match self
            .config
            .peers()
            .find(|peer| !self.proven_stopped(*peer, &registered))
        {
            Some(unproven) => Next::Wait(Reason::ReservationAbsent { unproven }),
            None => {
                let since = self.quiet_since();
                let evidence = AbsenceEvidence::EveryOwnerStopped { since };
                self.acquire(Evidence::EveryOwnerStopped, evidence)
            }
        }
    }

    fn acquire(&mut self, evidence: Evidence, absence: AbsenceEvidence) -> Next {
        self.take_over_when_allowed(evidence, Victim::Nobody(absence))
    }

    /// Since when every peer is known to have nothing of the volume.
    fn quiet_since(&self) -> Mono {
        let since = |peer| {
            self.memory
                .watch
                .nothing
                .get(&peer)
                .copied()
                .unwrap_or(self.now)
        };
        self.config
            .peers()
            .map(since)
            .fold(self.memory.cleaned, Mono::max)
    }

    /// The lease store answers, and by its record no database ever was in service here.
    fn never_in_service(&self) -> bool {
        let lease = self.lease();
        !self.memory.watch.in_service
            && lease.is_some_and(|lease| lease.is_none_or(|lease| !lease.record.initialized))
    }

    /// Only the bootstrap member makes the database. The volume must be proven blank besides: a lost
    /// lease record alone does not make a volume new.
    fn weigh_first_start(&mut self) -> Next {
        let bootstrap = self.config.bootstrap;
        if bootstrap != self.me() {
            return Next::Wait(Reason::WaitingForBootstrap { bootstrap });
        }
        // Another cluster or site that is about to make its own database here, or has one.
        if self
            .mailbox()
            .is_ok_and(|(mailbox, _)| !mailbox.foreign.is_empty())
        {
            return Next::Wait(Reason::ForeignRegistrants);
        }
        self.acquire(Evidence::FirstStart, AbsenceEvidence::FirstStart)
    }

    /// Another member is about to acquire: let it, for a detection.
    fn absence_claimed_by_another(&mut self) -> Option<Next> {
        let record = &self.lease()??.record;
        let other = record.holder.filter(|holder| *holder != self.me())?;
        let claiming = self.peers().any(|peer| {
            peer.member == other && peer.custody == Custody::Held && peer.epoch >= record.epoch
        });
        claiming.then_some(Next::Wait(Reason::LeftTo { other: Some(other) }))
    }

    /// Whether this peer is proven to have nothing of the volume, by a statement that it made after
    /// this host's registration: it has heard a heartbeat that was sent later.
    fn proven_stopped(&self, peer: MemberId, registered: &Registered) -> bool {
        let platform = self
            .seen
            .platform
            .get(&peer)
            .and_then(|seen| seen.known_at());
        if platform.is_some_and(|(life, at)| *life == Life::Exited && at > registered.at) {
            return true;
        }
        let Some((heartbeat, _)) = self.peer(peer) else {
            return false;
        };
        let after = heartbeat.heard.get(&self.me()).is_some_and(|heard| {
            heard.incarnation == self.seen.local.incarnation
                && heard.sequence > registered.heartbeats
        });
        after && heartbeat.custody == Custody::Nothing
    }
}
