//! Handing over: checkpoint, lead clients away, stop, unmount, announce, wait to be preempted.

use fencing::{Epoch, MemberId, Mono};

use super::action::{StopMode, Work};
use super::hold::Hold;
use super::memory::{Handover, HandoverStage, Role};
use super::observation::{HandoverCause, Mount, Outcome, Postgres, RoleName};
use super::reason::Reason;
use super::turn::{Next, Turn};

/// How many times an unmount or an announcement may fail before the volume is let go the hard way.
const TRIES: u8 = 3;

impl Turn<'_> {
    pub(super) fn begin_handover(
        &mut self,
        epoch: Epoch,
        proven_at: Mono,
        to: Option<MemberId>,
        cause: HandoverCause,
        stage: HandoverStage,
    ) -> Next {
        self.memory.not_before = self.now;
        self.become_role(Role::HandingOver(Handover {
            epoch,
            proven_at,
            to,
            cause,
            stage,
            failures: 0,
            clean_since: None,
        }))
    }

    pub(super) fn handing_over(&mut self, handover: Handover) -> Next {
        if handover.stage == HandoverStage::Waiting {
            return self.await_takeover(handover);
        }
        if let Some(why) = self.must_stop(handover.epoch, handover.proven_at) {
            return self.give_up(handover.epoch, why);
        }
        let ended = self.take_ended();
        let reason = Reason::HandingOver {
            cause: handover.cause,
            to: handover.to,
        };
        if ended.is_none() {
            // A kill does not wait for the step whose process it kills.
            let kill = handover.stage == HandoverStage::Killing;
            if self.pending() && (!kill || self.is_under_way(&Work::KillPostgres)) {
                let stuck = self.overdue();
                return Next::Wait(if stuck { Reason::StepStuck } else { reason });
            }
            if let Some(wait) = self.backing_off() {
                return wait;
            }
        }
        match handover.stage {
            HandoverStage::Checkpointing => match ended {
                None if self.seen.local.postgres == Postgres::Running => {
                    self.order(Work::Checkpoint, reason)
                }
                // A checkpoint only makes the stop shorter: its failure changes nothing.
                None | Some(_) if self.config.routed => {
                    self.enter_stage(handover, HandoverStage::Withdrawing)
                }
                None | Some(_) => self.enter_stage(handover, HandoverStage::StoppingFast),
            },
            HandoverStage::Withdrawing => {
                let epoch = handover.epoch;
                match ended {
                    None => self.order(Work::Withdraw { epoch }, reason),
                    // Who is not led away sees its connection close: that must not stop a handover.
                    Some(_) => self.enter_stage(handover, HandoverStage::StoppingFast),
                }
            }
            HandoverStage::StoppingFast => {
                let stop = Work::StopPostgres {
                    mode: StopMode::Fast,
                };
                self.stop(
                    handover,
                    stop,
                    HandoverStage::StoppingImmediate,
                    ended,
                    reason,
                )
            }
            HandoverStage::StoppingImmediate => {
                let stop = Work::StopPostgres {
                    mode: StopMode::Immediate,
                };
                self.stop(handover, stop, HandoverStage::Killing, ended, reason)
            }
            HandoverStage::Killing => self.stop(
                handover,
                Work::KillPostgres,
                HandoverStage::Killing,
                ended,
                reason,
            ),
            HandoverStage::Unmounting => self.unmount(handover, ended, reason),
            HandoverStage::Announcing => self.announce(handover, ended, reason),
            HandoverStage::Waiting => self.await_takeover(handover),
        }
    }

    fn order(&mut self, work: Work, reason: Reason) -> Next {
        self.begin(work);
        Next::Wait(reason)
    }

    fn enter_stage(&mut self, handover: Handover, stage: HandoverStage) -> Next {
        self.become_role(Role::HandingOver(Handover {
            stage,
            failures: 0,
            ..handover
        }))
    }

    fn stop(
        &mut self,
        handover: Handover,
        how: Work,
        otherwise: HandoverStage,
        ended: Option<Outcome>,
        reason: Reason,
    ) -> Next {
        if self.seen.local.postgres == Postgres::Stopped {
            return self.enter_stage(handover, HandoverStage::Unmounting);
        }
        match ended {
            None => self.order(how, reason),
            // Still there: the next harder way.
            Some(_) => self.enter_stage(handover, otherwise),
        }
    }

    fn unmount(&mut self, handover: Handover, ended: Option<Outcome>, reason: Reason) -> Next {
        if self.seen.local.postgres != Postgres::Stopped {
            return self.enter_stage(handover, HandoverStage::Killing);
        }
        match ended {
            Some(Outcome::Unmounted { clean: true })
                if self.seen.local.mount == Mount::Unmounted =>
            {
                self.enter_stage(handover, HandoverStage::Announcing)
            }
            // Not every write is known to be on the volume, or to be over: `clean` would be a lie.
            Some(Outcome::Unmounted { clean: false })
                if self.seen.local.mount == Mount::Unmounted =>
            {
                self.give_up(handover.epoch, Reason::HandoverFailed)
            }
            Some(_) => self.count_failure(handover),
            None => self.order(Work::Unmount, reason),
        }
    }

    fn announce(&mut self, handover: Handover, ended: Option<Outcome>, reason: Reason) -> Next {
        match ended {
            Some(Outcome::Done) => {
                // Everything after this moment may be the new owner's doing.
                self.refresh(true, false);
                let clean_since = Some(self.now);
                let stage = HandoverStage::Waiting;
                self.become_role(Role::HandingOver(Handover {
                    stage,
                    clean_since,
                    ..handover
                }))
            }
            Some(_) => self.count_failure(handover),
            None => {
                let flags = self.key_flags();
                self.order(
                    Work::AnnounceClean {
                        epoch: handover.epoch,
                        flags,
                    },
                    reason,
                )
            }
        }
    }

    fn count_failure(&mut self, handover: Handover) -> Next {
        let failures = handover.failures + 1;
        if failures >= TRIES {
            return self.give_up(handover.epoch, Reason::HandoverFailed);
        }
        self.refresh(true, false);
        self.back_off(1);
        self.become_role(Role::HandingOver(Handover {
            failures,
            ..handover
        }))
    }

    /// Clean: the volume is anybody's who fences this host's key.
    fn await_takeover(&mut self, handover: Handover) -> Next {
        let waiting = Reason::AwaitingTakeover { to: handover.to };
        let since = handover.clean_since.unwrap_or(self.now);
        let next = match self.hold(handover.epoch, handover.proven_at) {
            Hold::LostTo(Some(by)) if by != self.me() => Some(Reason::TakenOver { by }),
            Hold::LostTo(_) | Hold::Vanished => Some(Reason::HoldLost { to: None }),
            Hold::Confirmed | Hold::PathLost(_) => {
                let patience = since + self.timings().handover;
                self.wake_at(patience);
                (self.now >= patience || self.may_leave_alone(&handover, since))
                    .then_some(Reason::NotTaken)
            }
        };
        match next {
            None => Next::Wait(waiting),
            Some(_) if self.seen.stopping => self.become_role(Role::Stopped),
            Some(why) => {
                let epoch = handover.epoch;
                self.become_role(Role::Returning {
                    why,
                    epoch,
                    clean: true,
                    shut: false,
                })
            }
        }
    }

    /// SIGTERM, and nobody was ready: leave as soon as the lease says clean, or cannot be written.
    fn may_leave_alone(&mut self, handover: &Handover, since: Mono) -> bool {
        if !self.seen.stopping || handover.to.is_some() {
            return false;
        }
        let written = self
            .lease()
            .flatten()
            .is_some_and(|lease| lease.record.holder == Some(self.me()) && lease.record.clean);
        let patience = since + self.timings().lease_deadline + self.timings().command;
        self.wake_at(patience);
        written || self.now >= patience
    }

    /// A peer that says it could take over now: this one if asked for, else the first that has not
    /// failed lately, else the first; from the volume's mailbox where no peer is heard.
    pub(super) fn ready_peer(&self, wanted: Option<MemberId>) -> Option<MemberId> {
        let fits = |member: MemberId| wanted.is_none_or(|wanted| wanted == member);
        let heard = self
            .peers()
            .filter(|peer| fits(peer.member) && peer.ready && peer.role == RoleName::Standby)
            .min_by_key(|peer| (peer.failed, peer.member))
            .map(|peer| peer.member);
        // A key may be older than what its owner says: one that leaves is not ready any more.
        let silent = |member: MemberId| !self.peers().any(|peer| peer.member == member);
        heard.or_else(|| {
            self.standby_on_the_volume(false)
                .filter(|member| fits(*member) && silent(*member))
        })
    }

    /// A peer that could take over and has not failed itself lately.
    pub(super) fn ready_unfailed_peer(&self) -> Option<MemberId> {
        self.peers()
            .filter(|peer| peer.ready && !peer.failed && peer.role == RoleName::Standby)
            .map(|peer| peer.member)
            .min()
    }
}
