//! What an operator asks of PostgreSQL itself: a restart in place, a reload of its settings.
//!
//! A restart is the active's own: hold, mount and epoch stay, so it needs no fence. It is none of the
//! failures that `restart_budget` counts.

use super::action::{Action, StopMode, Work};
use super::ask::{Ask, RequestId};
use super::memory::{Ownership, RestartStage, Restarting, Role};
use super::observation::{Outcome, Postgres};
use super::reason::Reason;
use super::turn::{Next, Turn};

impl Turn<'_> {
    pub(super) fn begin_restart(&mut self, request: RequestId) -> Next {
        let stage = match self.seen.local.postgres {
            Postgres::Running => RestartStage::Checkpointing,
            // What an operator asks for does not wait for the next try.
            Postgres::Stopped => RestartStage::Starting,
            Postgres::Starting | Postgres::Stopping | Postgres::Unknown => RestartStage::Killing,
        };
        self.memory.not_before = self.now;
        self.enter_restart(Restarting { request, stage })
    }

    fn enter_restart(&mut self, restarting: Restarting) -> Next {
        self.memory.restarting = Some(restarting);
        Next::Again
    }

    /// One stage after the other; `ended` is the outcome of the stage's step.
    pub(super) fn restart_as_asked(
        &mut self,
        own: Ownership,
        restarting: Restarting,
        ended: Option<Outcome>,
    ) -> Next {
        let next = |stage| Restarting {
            stage,
            ..restarting
        };
        let running = self.seen.local.postgres == Postgres::Running;
        let epoch = own.epoch;
        match restarting.stage {
            RestartStage::Checkpointing => match ended {
                None if running => self.take_stage(Work::Checkpoint),
                // It only makes the stop shorter.
                None | Some(_) if self.config.routed => {
                    self.enter_restart(next(RestartStage::Withdrawing))
                }
                None | Some(_) => self.enter_restart(next(RestartStage::StoppingFast)),
            },
            RestartStage::Withdrawing => match ended {
                None => self.take_stage(Work::Withdraw { epoch }),
                // Who is not led away sees its connection close.
                Some(_) => self.enter_restart(next(RestartStage::StoppingFast)),
            },
            RestartStage::StoppingFast => {
                let mode = StopMode::Fast;
                let harder = next(RestartStage::StoppingImmediate);
                self.stop_to_restart(Work::StopPostgres { mode }, harder, ended)
            }
            RestartStage::StoppingImmediate => {
                let mode = StopMode::Immediate;
                let harder = next(RestartStage::Killing);
                self.stop_to_restart(Work::StopPostgres { mode }, harder, ended)
            }
            RestartStage::Killing => {
                self.stop_to_restart(Work::KillPostgres, next(RestartStage::Killing), ended)
            }
            RestartStage::Starting if self.config.zone.is_some() => match (running, &ended) {
                (true, _) => self.end_restart(restarting, true),
                (false, Some(Outcome::Failed { .. } | Outcome::Overdue)) => {
                    self.end_restart(restarting, false)
                }
                // More than a start may be to be done, and it is no start after a failure.
                (false, _) => {
                    self.memory.zone.at_rest = true;
                    self.serve_among_sites(own, ended)
                }
            },
            RestartStage::Starting => match ended {
                None => self.take_stage(Work::StartPostgres { epoch }),
                Some(_) => self.end_restart(restarting, running),
            },
        }
    }

    fn take_stage(&mut self, work: Work) -> Next {
        self.begin(work);
        Next::Wait(Reason::RestartingAsAsked)
    }

    fn stop_to_restart(&mut self, how: Work, harder: Restarting, ended: Option<Outcome>) -> Next {
        if self.seen.local.postgres == Postgres::Stopped {
            return self.enter_restart(Restarting {
                stage: RestartStage::Starting,
                ..harder
            });
        }
        match ended {
            None => self.take_stage(how),
            // Still there: the next harder way.
            Some(_) => self.enter_restart(harder),
        }
    }

    /// From here on PostgreSQL is the active's to keep up, as after any failure.
    fn end_restart(&mut self, restarting: Restarting, running: bool) -> Next {
        self.memory.restarting = None;
        if running {
            self.grant(restarting.request);
        } else {
            self.back_off(1);
            self.refuse(restarting.request, Reason::RestartFailed);
        }
        Next::Again
    }

    /// The volume is not this member's any more, or it is being given away.
    pub(super) fn give_up_restart(&mut self) {
        let Some(restarting) = self.memory.restarting else {
            return;
        };
        if !matches!(self.memory.role, Role::Active(_)) {
            self.memory.restarting = None;
            self.refuse(restarting.request, Reason::RestartFailed);
        }
    }

    /// An active tells its PostgreSQL, a standby will start its own with what it reads now.
    pub(super) fn reload(&mut self, request: RequestId, ask: Ask) {
        match self.memory.role {
            Role::Active(_) | Role::Standby => {
                self.memory.reloading = Some(request);
                self.actions.push(Action::Reload { request });
            }
            Role::Joining { .. }
            | Role::TakingOver(_)
            | Role::HandingOver(_)
            | Role::Returning { .. }
            | Role::Leaving
            | Role::Stopped => self.refuse(request, Reason::NotNow { ask }),
        }
    }
}
