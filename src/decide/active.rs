//! The active: serves, checks its hold, starts PostgreSQL again, hands over when it must.

use fencing::MemberId;

use super::action::Work;
use super::memory::{HandoverStage, Ownership};
use super::observation::{Device, HandoverCause, Mount, Outcome, Postgres};
use super::reason::Reason;
use super::turn::{Next, Turn};

impl Turn<'_> {
    pub(super) fn active(&mut self, own: Ownership) -> Next {
        if let Some(why) = self.must_stop(own.epoch, own.proven_at) {
            return self.give_up(own.epoch, why);
        }
        let local = &self.seen.local;
        if local.mount != Mount::Mounted || local.device == Device::Absent {
            return self.give_up(own.epoch, Reason::MountLost);
        }
        if let Some(superseded) = self.superseded(own) {
            return superseded;
        }
        self.take_in_sites();
        let ended = self.take_ended();
        let starting = self.is_starting();
        if self.seen.stopping && self.is_copying() {
            // It may take hours; its programs end with it.
            self.begin(Work::KillPostgres);
        }
        if self.pending() && !(self.seen.stopping && starting) {
            let why = match self.memory.restarting {
                Some(_) => Reason::RestartingAsAsked,
                None => self.under_way(),
            };
            let overdue = self.overdue();
            return Next::Wait(if overdue { Reason::StepStuck } else { why });
        }
        if self.seen.stopping {
            let to = self.ready_peer(None);
            return self.hand_over(own, to, HandoverCause::Stopping);
        }
        if let Some(restarting) = self.memory.restarting {
            return self.restart_as_asked(own, restarting, ended);
        }
        if let Some(request) = self.restart_asked() {
            return self.begin_restart(request);
        }
        if let Some(request) = self.switchover_asked() {
            return self.switch_over(own, request);
        }
        if self.config.zone.is_some() {
            return self.serve_among_sites(own, ended);
        }
        match local.postgres {
            Postgres::Running => self.serve(own),
            Postgres::Stopped => self.restart(own, ended),
            Postgres::Starting | Postgres::Stopping | Postgres::Unknown => {
                // Nothing was ordered that explains this state: get to a known one.
                self.begin(Work::KillPostgres);
                Next::Wait(self.attempt())
            }
        }
    }

    pub(super) fn attempt(&self) -> Reason {
        let attempt = u32::try_from(self.memory.restarts.len()).unwrap_or(u32::MAX);
        Reason::RestartingPostgres { attempt }
    }

    pub(super) fn serve(&mut self, own: Ownership) -> Next {
        if let Some(to) = self.isolated() {
            return self.hand_over(own, Some(to), HandoverCause::Isolated);
        }
        if let Some(since) = self.path_lost(own.epoch, own.proven_at) {
            self.wake_at(since.max(self.memory.awake_since) + self.timings().detection);
            return Next::Wait(Reason::PathLost { since });
        }
        Next::Wait(Reason::Serving)
    }

    /// PostgreSQL is gone while mount and hold are fine: its business is this member's own.
    fn restart(&mut self, own: Ownership, ended: Option<Outcome>) -> Next {
        match ended {
            // It died and was swept up, or it was not running: first try, at once.
            None | Some(Outcome::Done) => {}
            Some(_) => self.back_off(1),
        }
        if let Some(wait) = self.backing_off() {
            return wait;
        }
        self.start_again(own, Work::StartPostgres { epoch: own.epoch })
    }

    /// Starts PostgreSQL within the budget; beyond it another member may try, else this one slowly.
    pub(super) fn start_again(&mut self, own: Ownership, start: Work) -> Next {
        let budget = self.timings().restart_budget as usize;
        if self.memory.restarts.len() >= budget {
            let to = self.ready_unfailed_peer().filter(|_| !self.memory.paused);
            if to.is_some() {
                self.memory.failed = Some(self.now);
                return self.hand_over(own, to, HandoverCause::PostgresFailed);
            }
            // Nobody else can do better: go on trying, slowly.
            self.memory.restarts.push(self.now);
            self.begin(start);
            return self.hold_up(Reason::PostgresKeepsFailing);
        }
        self.memory.restarts.push(self.now);
        self.begin(start);
        Next::Wait(self.attempt())
    }

    /// Neither lease store nor peers for `isolation`, but the volume shows a standby that is better
    /// connected: whom to hand over to.
    fn isolated(&mut self) -> Option<MemberId> {
        if self.memory.paused {
            return None;
        }
        let heard = self
            .seen
            .peers
            .values()
            .filter_map(|seen| Some(seen.known_at()?.1));
        let last = heard
            .chain(self.memory.watch.lease_last)
            .fold(self.memory.awake_since, fencing::Mono::max);
        let alone_at = last + self.timings().isolation;
        if self.now < alone_at {
            self.wake_at(alone_at);
            return None;
        }
        self.standby_on_the_volume(true)
    }

    /// A standby whose key says ready (and, if asked, that it reaches the lease store), and moves.
    pub(super) fn standby_on_the_volume(&self, reachable: bool) -> Option<MemberId> {
        let mailbox = self.mailbox().ok()?.0;
        let could = |entry: &&fencing::MemberEntry| {
            entry.host != self.seen.local.host
                && entry.key.flags.ready
                && (entry.key.flags.reachable || !reachable)
                && self.key_moves(entry)
        };
        mailbox
            .members
            .iter()
            .filter(could)
            .map(|entry| entry.key.member)
            .min()
    }

    fn hand_over(&mut self, own: Ownership, to: Option<MemberId>, cause: HandoverCause) -> Next {
        let stage = match self.seen.local.postgres {
            Postgres::Running => HandoverStage::Checkpointing,
            Postgres::Stopped => HandoverStage::Unmounting,
            Postgres::Starting | Postgres::Stopping | Postgres::Unknown => HandoverStage::Killing,
        };
        self.begin_handover(own.epoch, own.proven_at, to, cause, stage)
    }

    pub(super) fn switch_over(&mut self, own: Ownership, request: super::requests::Asked) -> Next {
        match self.preflight(request.to) {
            Ok(to) => {
                self.memory.switching = Some(super::memory::Switching {
                    request: request.id,
                    epoch: own.epoch,
                    taken: None,
                });
                self.hand_over(own, Some(to), HandoverCause::Operator)
            }
            Err(reason) => {
                self.refuse(request.id, reason);
                Next::Again
            }
        }
    }
}
