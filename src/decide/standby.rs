//! The standby: waits, registered and attached, until there is evidence that it must take over.

use fencing::{Holder, Mailbox, MemberEntry, MemberId, Mono};
use nvme::ReservationType;

use super::action::{Victim, Work};
use super::memory::{Role, TakeOver, TakeOverPhase};
use super::observation::{Custody, HandoverCause, Life, Outcome, RoleName};
use super::reason::{Evidence, Reason};
use super::turn::{Next, Turn};
use super::watch::Read;

impl Turn<'_> {
    pub(super) fn standby(&mut self) -> Next {
        if self.seen.stopping && !self.pending() {
            return self.become_role(Role::Leaving);
        }
        if self.custody() != Custody::Nothing {
            // Its device went away, or something of an earlier life turned up after all.
            let epoch = self.memory.newest;
            return self.give_up(epoch, Reason::CleaningUp);
        }
        if let Some(outcome) = self.take_ended() {
            self.registered(&outcome);
        }
        let (mailbox, at) = match self.mailbox() {
            Ok(read) => read,
            Err(since) => return Next::Wait(Reason::VolumeUnseen { since }),
        };
        if let Some(wait) = self.register_first(mailbox, at) {
            return wait;
        }
        if at <= self.memory.watch.read_after {
            return Next::Wait(Reason::VolumeUnseen { since: at });
        }
        self.weigh(mailbox)
    }

    /// Takes in how the registering ended.
    fn registered(&mut self, outcome: &Outcome) {
        if *outcome == Outcome::Done {
            let heartbeats = self.memory.heartbeats;
            self.memory.registered = Some(super::memory::Registered {
                at: self.now,
                heartbeats,
            });
            self.memory.owners_stopped = None;
        } else {
            self.back_off(1);
        }
        self.refresh(true, false);
    }

    /// A standby is registered by this very process, or it registers now.
    fn register_first(&mut self, mailbox: &Mailbox, at: Mono) -> Option<Next> {
        let host = self.seen.local.host;
        let own = mailbox.of_host(host);
        if let Some(other) = own
            .map(|entry| entry.key.member)
            .filter(|other| *other != self.me())
        {
            return Some(Next::Wait(Reason::SharedHostIdentity { other }));
        }
        // A key that holds is not touched: replacing it would look like the owner's sign of life.
        if own.is_some_and(|entry| entry.holder) || self.memory.registered.is_some() {
            let unread = self
                .memory
                .registered
                .is_some_and(|registered| at <= registered.at);
            return unread.then_some(Next::Wait(Reason::Registering));
        }
        if self.pending() {
            return Some(Next::Wait(Reason::Registering));
        }
        // Not even a registration is left on somebody else's volume.
        if matches!(mailbox.holder, Holder::Foreign(foreign) if foreign.host != host) {
            return Some(Next::Wait(Reason::ForeignHolder));
        }
        if let Some(wait) = self.backing_off() {
            return Some(wait);
        }
        let epoch = self.memory.newest;
        let flags = self.key_flags();
        self.begin(Work::Register { epoch, flags });
        Some(Next::Wait(Reason::Registering))
    }

    /// Who holds, and what follows.
    fn weigh(&mut self, mailbox: &Mailbox) -> Next {
        let ours = matches!(
            mailbox.reservation,
            None | Some(ReservationType::WriteExclusive)
        );
        match mailbox.holder {
            Holder::Member(owner) if ours => {
                if owner.host == self.seen.local.host {
                    self.weigh_own_hold(&owner)
                } else {
                    self.weigh_owner(&owner)
                }
            }
            Holder::Nobody => self.weigh_absence(),
            Holder::Member(_) | Holder::Foreign(_) | Holder::Several(_) | Holder::Missing => {
                Next::Wait(Reason::ForeignHolder)
            }
        }
    }

    /// This host holds from an earlier process, or from a fence that was not proven. Another ready
    /// member is faster (it need not wait for this host's old commands), so it goes first.
    fn weigh_own_hold(&mut self, owner: &MemberEntry) -> Next {
        let epoch = owner.key.epoch;
        let clean = owner.key.flags.clean;
        let since = self
            .memory
            .watch
            .owner
            .map_or(self.now, |track| track.since);
        let patience = since.max(self.memory.awake_since) + self.timings().detection * 2;
        let other = self.ready_peer(None).filter(|_| self.now < patience);
        if other.is_some() {
            self.wake_at(patience);
            return Next::Wait(Reason::LeftTo { other });
        }
        let quiet_since = since.max(self.memory.cleaned);
        let victim = Victim::Own {
            epoch,
            clean,
            quiet_since,
        };
        self.take_over_when_allowed(Evidence::OwnHold { clean }, victim)
    }

    fn weigh_owner(&mut self, owner: &MemberEntry) -> Next {
        if let Some(until) = self.former_writes_until() {
            self.wake_at(until);
            return Next::Wait(Reason::NotReady { until });
        }
        let member = owner.key.member;
        let epoch = owner.key.epoch;
        let notice = self.clean_notice(member, epoch);
        let clean = owner.key.flags.clean || notice.is_some();
        let victim = Victim::Holder {
            host: owner.host,
            member,
            epoch,
            clean,
        };
        if clean {
            let chosen = notice.and_then(|notice| notice.to);
            let left = match chosen {
                Some(chosen) if chosen == self.me() => None,
                Some(_) => self.left_to_the_chosen(owner, chosen),
                None => self.claimed_by_another(owner),
            };
            if let Some(wait) = left {
                return wait;
            }
            let cause = notice.map(|notice| notice.cause);
            return self.take_over_when_allowed(Evidence::Clean { by: member, cause }, victim);
        }
        if let Some(wait) = self.claimed_by_another(owner) {
            return wait;
        }
        match self.death_of(owner) {
            Ok(evidence) => self.take_over_when_allowed(evidence, victim),
            Err(reason) => {
                if matches!(reason, Reason::OwnerLives { .. }) {
                    self.memory.claims_lost = 0;
                }
                Next::Wait(reason)
            }
        }
    }

    /// The owner asked for another standby: give that one the time of a detection.
    fn left_to_the_chosen(
        &mut self,
        owner: &MemberEntry,
        chosen: Option<MemberId>,
    ) -> Option<Next> {
        let other = chosen.filter(|chosen| *chosen != self.me())?;
        let since = self.clean_since(owner);
        let patience = since.max(self.memory.awake_since) + self.timings().detection;
        (self.now < patience).then(|| {
            self.wake_at(patience);
            Next::Wait(Reason::LeftTo { other: Some(other) })
        })
    }

    /// When the owner was first seen clean, by key or by heartbeat; now, if only just.
    fn clean_since(&mut self, owner: &MemberEntry) -> Mono {
        let value = (owner.key.member, owner.key.epoch);
        match self.memory.watch.clean {
            Some(track) if track.value == value => track.since,
            Some(_) | None => {
                self.memory.watch.clean = Some(super::memory::Track {
                    value,
                    since: self.now,
                });
                self.now
            }
        }
    }

    /// Another standby has claimed the lease: it has the time of a detection since its last word.
    /// One that is heard to be taking over has as long as it gets on with it.
    fn claimed_by_another(&mut self, owner: &MemberEntry) -> Option<Next> {
        let busy = self.peers().find(|peer| {
            peer.role == RoleName::TakingOver
                && peer.member != owner.key.member
                && peer.epoch > owner.key.epoch
                && !peer.stuck
        });
        if let Some(peer) = busy {
            return Some(Next::Wait(Reason::LeftTo {
                other: Some(peer.member),
            }));
        }
        let record = &self.lease()??.record;
        let other = record.holder.filter(|holder| {
            *holder != self.me() && *holder != owner.key.member && record.epoch > owner.key.epoch
        })?;
        let since = self.memory.watch.lease.as_ref()?.since;
        let patience = since.max(self.memory.awake_since) + self.timings().detection;
        (self.now < patience).then(|| {
            self.wake_at(patience);
            Next::Wait(Reason::LeftTo { other: Some(other) })
        })
    }

    /// Positive proof that the owner is gone, or the silence of all channels; else why not.
    fn death_of(&mut self, owner: &MemberEntry) -> Result<Evidence, Reason> {
        let member = owner.key.member;
        let exited = self
            .seen
            .platform
            .get(&member)
            .and_then(|seen| seen.known());
        if exited == Some(&Life::Exited) {
            return Ok(Evidence::Exited { owner: member });
        }
        if let Some((heartbeat, _)) = self.peer(member)
            && heartbeat.custody != Custody::Held
            && heartbeat.epoch >= owner.key.epoch
        {
            return Ok(Evidence::Relinquished { owner: member });
        }
        let detection = self.timings().detection;
        let last = self.last_sign(owner);
        self.wake_at(last + detection);
        if !last.elapsed(detection, self.now) {
            let epoch = owner.key.epoch;
            return Err(Reason::OwnerLives {
                owner: member,
                epoch,
            });
        }
        // The silence itself must have been read to its end, not only the time before.
        match self.read_without_gap(last + detection) {
            Read::Covers => Ok(Evidence::Silence {
                owner: member,
                last,
            }),
            Read::EndsBefore(since) => {
                self.refresh(true, true);
                Err(Reason::Watching {
                    owner: member,
                    since: Some(since),
                })
            }
            Read::BeganAt(since) => {
                self.wake_at(since + detection);
                Err(Reason::Watching {
                    owner: member,
                    since: Some(since),
                })
            }
            Read::Not => Err(Reason::Watching {
                owner: member,
                since: None,
            }),
        }
    }

    /// Takes over unless the operator paused, a limit is reached or a failure is too fresh.
    pub(super) fn take_over_when_allowed(&mut self, evidence: Evidence, victim: Victim) -> Next {
        let asked = was_asked_for(&evidence);
        if self.memory.paused && !asked {
            return Next::Wait(Reason::Paused);
        }
        let count = self.recent_takeovers();
        if count >= self.timings().max_takeovers && !asked {
            return Next::Wait(Reason::TakeoversExhausted { count });
        }
        if let Some(wait) = self.backing_off() {
            return wait;
        }
        let Some(epoch) = self.memory.newest.next() else {
            return Next::Wait(Reason::EpochsExhausted);
        };
        if counts_towards_the_limit(&evidence) {
            self.memory.takeovers.push(self.now);
        }
        let phase = match evidence {
            Evidence::FirstStart => TakeOverPhase::Inspecting,
            Evidence::Clean { .. }
            | Evidence::Exited { .. }
            | Evidence::Relinquished { .. }
            | Evidence::Silence { .. }
            | Evidence::OwnHold { .. }
            | Evidence::EveryOwnerStopped
            | Evidence::OperatorsWord => TakeOverPhase::Claiming,
        };
        self.memory.newest = epoch;
        let takeover = TakeOver {
            epoch,
            evidence,
            victim,
            phase,
            proven_at: None,
        };
        self.become_role(Role::TakingOver(takeover))
    }
}

/// Whether a person asked for this very take-over, or it takes the volume from nobody else.
fn was_asked_for(evidence: &Evidence) -> bool {
    match evidence {
        Evidence::Clean {
            by: _,
            cause: Some(HandoverCause::Operator),
        }
        | Evidence::OperatorsWord
        | Evidence::OwnHold { .. }
        | Evidence::FirstStart => true,
        Evidence::Clean { by: _, cause: _ }
        | Evidence::Exited { .. }
        | Evidence::Relinquished { .. }
        | Evidence::Silence { .. }
        | Evidence::EveryOwnerStopped => false,
    }
}

/// Whether it could be part of a duel or of a volume that is passed round because nobody can serve.
pub(super) fn counts_towards_the_limit(evidence: &Evidence) -> bool {
    match evidence {
        Evidence::Clean { by: _, cause } => match cause {
            Some(HandoverCause::PostgresFailed | HandoverCause::TakeOverFailed) => true,
            Some(HandoverCause::Operator | HandoverCause::Stopping | HandoverCause::Isolated)
            | None => false,
        },
        Evidence::Silence { .. } | Evidence::Relinquished { .. } => true,
        Evidence::Exited { .. }
        | Evidence::OwnHold { .. }
        | Evidence::FirstStart
        | Evidence::EveryOwnerStopped
        | Evidence::OperatorsWord => false,
    }
}
