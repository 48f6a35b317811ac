//! Operators' requests: each is answered exactly once, done or refused with its reason.

use fencing::MemberId;

use super::action::Action;
use super::ask::{Answer, Ask, Request, RequestId};
use super::memory::{Role, Switching};
use super::observation::{LeaseRecord, RoleName};
use super::reason::Reason;
use super::turn::Turn;

/// A switchover that was asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    pub id: RequestId,
    pub to: Option<MemberId>,
}

impl Turn<'_> {
    /// The switchover that waits for this active, if there is one.
    pub(super) fn switchover_asked(&self) -> Option<Asked> {
        let Request { id, ask } = self.unanswered()?;
        match ask {
            Ask::Switchover { to } => Some(Asked { id, to }),
            Ask::Restart
            | Ask::Reload
            | Ask::Pause
            | Ask::Resume
            | Ask::OwnersStopped
            | Ask::SwitchoverSite { .. }
            | Ask::Failover { .. }
            | Ask::Reinit => None,
        }
    }

    /// The restart that waits for this active, if there is one.
    pub(super) fn restart_asked(&self) -> Option<RequestId> {
        let Request { id, ask } = self.unanswered()?;
        matches!(ask, Ask::Restart).then_some(id)
    }

    fn unanswered(&self) -> Option<Request> {
        let request = self.seen.request?;
        let answered = self.actions.iter().any(|action| {
            matches!(action, Action::Answer { request: id, answer: _ } if *id == request.id)
        });
        let on_its_way = self
            .memory
            .switching
            .is_some_and(|switching| switching.request == request.id)
            || self
                .memory
                .restarting
                .is_some_and(|restarting| restarting.request == request.id)
            || self.memory.reloading == Some(request.id)
            || self.between_sites(request.id);
        (!answered && !on_its_way).then_some(request)
    }

    /// To whom a switchover would go, or why it cannot.
    pub(super) fn preflight(&self, to: Option<MemberId>) -> Result<MemberId, Reason> {
        match to {
            Some(to) if to == self.me() => Err(Reason::AlreadyActive),
            Some(to) if !self.config.members.contains(&to) => Err(Reason::NoSuchMember),
            Some(_) | None => self.ready_peer(to).ok_or(Reason::NoReadyStandby),
        }
    }

    pub(super) fn refuse(&mut self, request: RequestId, reason: Reason) {
        let answer = Answer::Refused(Box::new(reason));
        self.actions.push(Action::Answer { request, answer });
    }

    pub(super) fn grant(&mut self, request: RequestId) {
        self.actions.push(Action::Answer {
            request,
            answer: Answer::Done,
        });
    }

    /// Everything that is asked and not a switchover of an active, and the switchover's end.
    pub(super) fn requests(&mut self) {
        if let Some(switching) = self.memory.switching {
            self.finish_switchover(switching);
        }
        self.give_up_restart();
        self.finish_between_sites();
        let Some(Request { id, ask }) = self.unanswered() else {
            return;
        };
        match ask {
            Ask::Switchover { to: _ } | Ask::Restart => self.refuse_elsewhere(id, ask),
            Ask::Reload => self.reload(id, ask),
            Ask::Pause => self.set_paused(id, true),
            Ask::Resume => self.set_paused(id, false),
            Ask::OwnersStopped => self.hear_operators_word(id, ask),
            Ask::SwitchoverSite { site } => self.move_to_site(id, site),
            Ask::Failover { allow_data_loss } => self.fail_over(id, allow_data_loss),
            Ask::Reinit => self.reinit(id),
        }
    }

    pub(super) fn refuse_elsewhere(&mut self, id: RequestId, ask: Ask) {
        match self.memory.role {
            Role::Active(_) => {} // Taken up as soon as no step is under way.
            Role::Standby => {
                let owner = self.memory.watch.owner.map(|track| track.value.0);
                let active = owner.filter(|owner| *owner != self.me());
                self.refuse(id, Reason::NotActive { active });
            }
            Role::Joining { .. }
            | Role::TakingOver(_)
            | Role::HandingOver(_)
            | Role::Returning { .. }
            | Role::Leaving
            | Role::Stopped => self.refuse(id, Reason::NotNow { ask }),
        }
    }

    /// Done when the new owner serves. Where it is not heard, holding has to do after a while.
    fn finish_switchover(&mut self, switching: Switching) {
        let owner = self.memory.watch.owner.map(|track| track.value);
        let Some((member, _, _)) = owner.filter(|owner| owner.1 > switching.epoch) else {
            let mut failed = matches!(self.memory.role, Role::Stopped);
            failed |= matches!(&self.memory.role, Role::Standby if owner.is_some());
            if failed {
                self.memory.switching = None;
                self.refuse(switching.request, Reason::HandoverFailed);
            }
            return;
        };
        let taken = switching.taken.unwrap_or(self.now);
        let patience = taken + self.timings().handover;
        let serves = self
            .peer(member)
            .is_some_and(|(peer, _)| peer.role == RoleName::Active);
        let came_back = member == self.me() && matches!(self.memory.role, Role::Active(_));
        self.memory.switching = Some(Switching {
            taken: Some(taken),
            ..switching
        });
        if came_back {
            self.memory.switching = None;
            self.refuse(switching.request, Reason::HandoverFailed);
        } else if serves || (self.peer(member).is_none() && self.now >= patience) {
            self.memory.switching = None;
            self.grant(switching.request);
        }
    }

    fn set_paused(&mut self, id: RequestId, paused: bool) {
        let Some(lease) = self.lease() else {
            self.refuse(id, Reason::LeaseUnreachable);
            return;
        };
        if lease.is_some_and(|lease| lease.record.paused == paused) {
            self.grant(id);
            return;
        }
        let record = match lease {
            Some(lease) => LeaseRecord {
                paused,
                ..lease.record.clone()
            },
            None => LeaseRecord {
                newest: self.memory.newest,
                paused,
                ..LeaseRecord::of_nobody(self.seen.local.incarnation)
            },
        };
        self.write_lease(lease.map(|lease| lease.version.clone()), record);
    }

    /// The word counts only while nobody holds and this host is registered: see `AbsenceEvidence`.
    fn hear_operators_word(&mut self, id: RequestId, ask: Ask) {
        let absent = self
            .mailbox()
            .is_ok_and(|(mailbox, _)| mailbox.holder == fencing::Holder::Nobody);
        if absent && self.memory.registered.is_some() && self.ready() {
            self.memory.owners_stopped = Some(self.now);
            self.wake = self.now;
            self.grant(id);
        } else {
            self.refuse(id, Reason::NotNow { ask });
        }
    }
}
