//! Taking over: claim, fence, prepare, mount, start. Every step rests on the one before it.

use fencing::Epoch;

use super::action::{Victim, Work};
use super::memory::{HandoverStage, Ownership, Role, TakeOver, TakeOverPhase};
use super::observation::{
    Device, HandoverCause, LeaseRecord, Mount, Outcome, Postgres, VolumeFacts,
};
use super::reason::{Evidence, Reason};
use super::standby::counts_towards_the_limit;
use super::turn::{Next, Turn};

/// After so many refused claims in a row the fence decides alone who wins. The evidence was weighed
/// anew each time; what touches the record again and again is neither the owner nor another claim.
const CLAIMS: u8 = 3;

impl Turn<'_> {
    pub(super) fn take_over(&mut self, takeover: TakeOver) -> Next {
        let evidence = takeover.evidence.clone();
        let reason = Reason::TakingOver {
            evidence,
            epoch: takeover.epoch,
        };
        let lost = takeover
            .proven_at
            .and_then(|at| self.must_stop(takeover.epoch, at));
        if let Some(why) = lost {
            return self.give_up(takeover.epoch, why);
        }
        if takeover.proven_at.is_some() && self.seen.local.device == Device::Absent {
            return self.give_up(takeover.epoch, Reason::MountLost);
        }
        if self.seen.stopping && self.is_copying() {
            // It may take hours; its programs end with it.
            self.begin(Work::KillPostgres);
        }
        // That a copy was ended says nothing of what it should have become.
        let killed = matches!(self.ended, Some((Work::KillPostgres, _)));
        let copied = takeover.phase == TakeOverPhase::Formatting;
        let ended = self.take_ended().filter(|_| !(killed && copied));
        let starting = self.is_under_way(&Work::StartPostgres {
            epoch: takeover.epoch,
        });
        if ended.is_none() && self.pending() && !(self.seen.stopping && starting) {
            return Next::Wait(if self.overdue() {
                Reason::StepStuck
            } else {
                reason
            });
        }
        if self.seen.stopping && ended.is_none() {
            return self.break_off(&takeover);
        }
        if ended.is_none()
            && let Some(wait) = self.backing_off()
        {
            return wait;
        }
        match takeover.phase {
            TakeOverPhase::Inspecting => self.inspect(takeover, reason, ended),
            TakeOverPhase::Claiming => self.claim(takeover, reason, ended),
            TakeOverPhase::Fencing => self.fence(takeover, reason, ended),
            TakeOverPhase::Preparing => self.prepare(takeover, reason, ended),
            TakeOverPhase::Formatting => self.format(takeover, reason, ended),
            TakeOverPhase::Mounting => self.mount(takeover, reason, ended),
            TakeOverPhase::Starting => self.start(takeover, reason, ended),
        }
    }

    fn enter_phase(&mut self, takeover: TakeOver, phase: TakeOverPhase) -> Next {
        self.become_role(Role::TakingOver(TakeOver { phase, ..takeover }))
    }

    /// First start: nothing may be on the volume before anybody acquires it.
    fn inspect(&mut self, takeover: TakeOver, reason: Reason, ended: Option<Outcome>) -> Next {
        match ended {
            None => {
                self.begin(Work::PrepareVolume);
                Next::Wait(reason)
            }
            Some(Outcome::Volume(VolumeFacts::Blank | VolumeFacts::Unfinished)) => {
                self.enter_phase(takeover, TakeOverPhase::Claiming)
            }
            Some(Outcome::Volume(VolumeFacts::Ours { clean: _ })) => {
                // Not a first start after all: other evidence is needed.
                self.memory.watch.in_service = true;
                self.become_role(Role::Standby)
            }
            Some(Outcome::Volume(VolumeFacts::Foreign { what: _ })) => {
                self.memory.role = Role::Standby;
                self.hold_up(Reason::VolumeForeign)
            }
            Some(_) => {
                self.back_off(1);
                self.become_role(Role::Standby)
            }
        }
    }

    /// The lease follows the volume, it does not gate it: a store that does not answer is passed over.
    fn claim(&mut self, takeover: TakeOver, reason: Reason, ended: Option<Outcome>) -> Next {
        match ended {
            None => match self.lease() {
                None => self.enter_phase(takeover, TakeOverPhase::Fencing),
                Some(_) if self.memory.claims_lost >= CLAIMS => {
                    self.enter_phase(takeover, TakeOverPhase::Fencing)
                }
                Some(lease) => {
                    let expected = lease.map(|lease| lease.version.clone());
                    let record = self.lease_record(takeover.epoch, lease.map(|l| &l.record));
                    self.begin(Work::ClaimLease { expected, record });
                    Next::Wait(reason)
                }
            },
            // The newer record may be another's claim or the owner's own word: weigh it again.
            Some(Outcome::ClaimLost) => {
                self.memory.claims_lost = self.memory.claims_lost.saturating_add(1);
                if counts_towards_the_limit(&takeover.evidence) {
                    // Nothing was taken.
                    self.memory.takeovers.pop();
                }
                self.refresh(true, true);
                self.become_role(Role::Standby)
            }
            Some(_) => self.enter_phase(takeover, TakeOverPhase::Fencing),
        }
    }

    /// This member's record for an epoch that it claims or owns.
    pub(super) fn lease_record(&self, epoch: Epoch, before: Option<&LeaseRecord>) -> LeaseRecord {
        let newest = before.map_or(epoch, |record| record.newest.max(record.epoch).max(epoch));
        LeaseRecord {
            epoch,
            newest,
            holder: Some(self.me()),
            incarnation: self.seen.local.incarnation,
            sequence: before.map_or(0, |record| record.sequence + 1),
            clean: false,
            planned: self.is_planned(epoch, before),
            initialized: before.is_some_and(|record| record.initialized),
            paused: before.map_or(self.memory.paused, |record| record.paused),
            cluster: None,
        }
    }

    /// Whether this epoch began with an owner that had said `clean`.
    fn is_planned(&self, epoch: Epoch, before: Option<&LeaseRecord>) -> bool {
        match (&self.memory.role, before) {
            (Role::TakingOver(takeover), _) => match takeover.victim {
                Victim::Holder { clean, .. } | Victim::Own { clean, .. } => clean,
                Victim::Nobody(_) => false,
            },
            (_, Some(record)) => record.epoch == epoch && record.planned,
            (_, None) => false,
        }
    }

    fn fence(&mut self, takeover: TakeOver, reason: Reason, ended: Option<Outcome>) -> Next {
        match ended {
            None => {
                if let Evidence::Silence { owner: _, last } = takeover.evidence
                    && self.spoke_again(&takeover.victim, last)
                {
                    // While the lease was being claimed: not silent after all.
                    return self.become_role(Role::Standby);
                }
                self.memory.claims_lost = 0;
                let flags = self.key_flags();
                let (epoch, victim) = (takeover.epoch, takeover.victim);
                let former_gone = self.memory.former_gone;
                self.begin(Work::Fence {
                    epoch,
                    flags,
                    victim,
                    former_gone,
                });
                Next::Wait(reason)
            }
            Some(Outcome::Fenced(permit)) if permit.epoch == takeover.epoch => {
                self.memory.owners_stopped = None;
                let proven_at = Some(permit.proven_at);
                self.enter_phase(
                    TakeOver {
                        proven_at,
                        ..takeover
                    },
                    TakeOverPhase::Preparing,
                )
            }
            Some(Outcome::FenceLost) => {
                self.refresh(true, true);
                self.memory.watch.read_after = self.now;
                self.memory.role = Role::Standby;
                Next::Wait(Reason::RaceLost)
            }
            Some(_) => {
                // SAFETY: an unknown outcome is "not fenced". If it had its effect after all, the
                // next report shows this host as holder, and that is weighed on its own.
                self.refresh(true, true);
                self.memory.watch.read_after = self.now;
                self.back_off(1);
                self.memory.role = Role::Standby;
                Next::Wait(Reason::FenceUnverified)
            }
        }
    }

    fn prepare(&mut self, takeover: TakeOver, reason: Reason, ended: Option<Outcome>) -> Next {
        match ended {
            None => {
                self.begin(Work::PrepareVolume);
                Next::Wait(reason)
            }
            Some(Outcome::Volume(VolumeFacts::Ours { clean: _ })) => {
                self.enter_phase(takeover, TakeOverPhase::Mounting)
            }
            Some(Outcome::Volume(VolumeFacts::Blank | VolumeFacts::Unfinished)) => {
                if self.may_format(&takeover) {
                    return self.enter_phase(takeover, TakeOverPhase::Formatting);
                }
                self.hold_up(Reason::VolumeBlank)
            }
            Some(Outcome::Volume(VolumeFacts::Foreign { what: _ })) => {
                self.hold_up(Reason::VolumeForeign)
            }
            Some(_) => self.failed_here(&takeover),
        }
    }

    /// A blank volume is formatted at the first start, or where an earlier first start broke off: the
    /// lease must say that no database ever was in service.
    fn may_format(&self, takeover: &TakeOver) -> bool {
        let lease = self.lease().flatten();
        takeover.evidence == Evidence::FirstStart
            || lease.is_some_and(|lease| !lease.record.initialized)
    }

    fn format(&mut self, takeover: TakeOver, reason: Reason, ended: Option<Outcome>) -> Next {
        match ended {
            None => match self.first_data(&takeover) {
                Ok(work) => {
                    self.taint();
                    self.begin(work);
                    Next::Wait(reason)
                }
                Err(why) => Next::Wait(why),
            },
            Some(Outcome::Done) => self.enter_phase(takeover, TakeOverPhase::Mounting),
            Some(_) => {
                self.memory.restarts.push(self.now);
                self.memory.role = Role::TakingOver(TakeOver {
                    phase: TakeOverPhase::Preparing,
                    ..takeover
                });
                if self.memory.restarts.len() > self.timings().restart_budget as usize {
                    return self.hold_up(Reason::CannotFormat);
                }
                self.back_off(1);
                Next::Again
            }
        }
    }

    fn mount(&mut self, takeover: TakeOver, reason: Reason, ended: Option<Outcome>) -> Next {
        match ended {
            // A mount that failed and is there all the same: what is on it was not admitted.
            None if self.seen.local.mount != Mount::Unmounted => {
                self.give_up(takeover.epoch, Reason::MountLost)
            }
            // The executor found it void, or lost it: prove the hold again, from the beginning.
            None if !self.has_permit(takeover.epoch) => {
                self.give_up(takeover.epoch, Reason::FenceUnverified)
            }
            None => {
                self.taint();
                self.begin(Work::Mount {
                    epoch: takeover.epoch,
                });
                Next::Wait(reason)
            }
            Some(Outcome::Done) => {
                self.memory.zone = self.memory.zone.mounted(self.now);
                self.enter_phase(takeover, TakeOverPhase::Starting)
            }
            Some(_) => self.failed_here(&takeover),
        }
    }

    fn start(&mut self, takeover: TakeOver, reason: Reason, ended: Option<Outcome>) -> Next {
        let postgres = self.seen.local.postgres;
        match ended {
            // With several sites more than a start is to be done: the active does all of it.
            None if self.config.zone.is_some() && postgres == Postgres::Stopped => {
                let proven_at = takeover.proven_at.unwrap_or(self.now);
                self.become_role(Role::Active(Ownership {
                    epoch: takeover.epoch,
                    proven_at,
                }))
            }
            Some(Outcome::Done) if postgres == Postgres::Running => {
                self.memory.failed = None;
                let proven_at = takeover.proven_at.unwrap_or(self.now);
                self.become_role(Role::Active(Ownership {
                    epoch: takeover.epoch,
                    proven_at,
                }))
            }
            Some(Outcome::Done) | None => {
                // `Done` without a running PostgreSQL ended a kill, or it died at once.
                if postgres == Postgres::Stopped {
                    self.begin(Work::StartPostgres {
                        epoch: takeover.epoch,
                    });
                } else {
                    self.begin(Work::KillPostgres);
                }
                Next::Wait(reason)
            }
            Some(_) => self.failed_here(&takeover),
        }
    }

    fn has_permit(&self, epoch: Epoch) -> bool {
        self.seen
            .local
            .permit
            .is_some_and(|permit| permit.epoch == epoch)
    }

    /// From here on this device's queues may have writes: it must not acquire a second time.
    fn taint(&mut self) {
        if let Device::Attached { made } = self.seen.local.device {
            self.memory.tainted = Some(made);
        }
    }

    /// The volume is ours and cannot be brought into service: try again within the budget, then let
    /// another member try that has not failed itself, else go on trying. Never pass it round.
    fn failed_here(&mut self, takeover: &TakeOver) -> Next {
        self.memory.restarts.push(self.now);
        let tries = self.memory.restarts.len();
        if tries <= self.timings().restart_budget as usize {
            self.back_off(1);
            return Next::Wait(Reason::Retrying {
                at: self.memory.not_before,
            });
        }
        let to = self.ready_unfailed_peer().filter(|_| !self.memory.paused);
        if to.is_none() {
            return self.hold_up(Reason::PostgresKeepsFailing);
        }
        self.memory.failed = Some(self.now);
        self.hand_over_from_here(takeover, to, HandoverCause::TakeOverFailed)
    }

    /// SIGTERM during a take-over: before the fence nothing is ours; after it, it is given away.
    fn break_off(&mut self, takeover: &TakeOver) -> Next {
        if takeover.proven_at.is_none() {
            return self.become_role(Role::Standby);
        }
        let to = self.ready_peer(None);
        self.hand_over_from_here(takeover, to, HandoverCause::Stopping)
    }

    fn hand_over_from_here(
        &mut self,
        takeover: &TakeOver,
        to: Option<fencing::MemberId>,
        cause: HandoverCause,
    ) -> Next {
        let local = &self.seen.local;
        let gone = (local.postgres, local.mount) == (Postgres::Stopped, Mount::Unmounted);
        if gone && self.memory.tainted.is_some() {
            // A mount that failed may have written: that is not `clean`.
            return self.give_up(takeover.epoch, Reason::HandoverFailed);
        }
        let stage = match (local.postgres, local.mount) {
            (Postgres::Stopped, Mount::Unmounted) => HandoverStage::Announcing,
            (Postgres::Stopped, Mount::Mounted | Mount::Stuck) => HandoverStage::Unmounting,
            (
                Postgres::Starting | Postgres::Running | Postgres::Stopping | Postgres::Unknown,
                _,
            ) => HandoverStage::Killing,
        };
        let proven_at = takeover.proven_at.unwrap_or(self.now);
        self.begin_handover(takeover.epoch, proven_at, to, cause, stage)
    }
}
