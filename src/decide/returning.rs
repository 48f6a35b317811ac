//! Cleaning up: a member that starts, that lost the volume or that gave it away proves that nothing of
//! it can write any more before it may be standby (again). And its leaving.

use fencing::Epoch;

use super::action::{Action, Work};
use super::memory::Role;
use super::observation::{Mount, Outcome, Postgres};
use super::reason::Reason;
use super::turn::{Next, Turn};

impl Turn<'_> {
    pub(super) fn join(&mut self, shut: bool) -> Next {
        let shut = self.note_shut(shut);
        self.memory.role = Role::Joining { shut };
        let clean = !self.seen.local.former_writer;
        self.clean_up(shut, clean, Reason::CleaningUp)
    }

    pub(super) fn come_back(&mut self, why: Reason, epoch: Epoch, clean: bool, shut: bool) -> Next {
        let shut = self.note_shut(shut);
        self.memory.role = Role::Returning {
            why: why.clone(),
            epoch,
            clean,
            shut,
        };
        // A device that was never mounted has nothing queued.
        let clean = clean || self.memory.tainted.is_none();
        self.clean_up(shut, clean, why)
    }

    /// Whether the filesystem was shut down by now; a failed step waits for a while.
    fn note_shut(&mut self, shut: bool) -> bool {
        match self.ended.take() {
            None => shut,
            Some((Work::ShutdownFilesystem, Outcome::Done)) => true,
            Some((_, Outcome::Failed { .. } | Outcome::Overdue)) => {
                self.back_off(1);
                shut
            }
            Some(_) => shut,
        }
    }

    /// By the facts alone, in this order: no process, no mount, a new device.
    fn clean_up(&mut self, shut: bool, clean: bool, why: Reason) -> Next {
        let local = &self.seen.local;
        let waiting = if self.overdue() {
            Reason::StepStuck
        } else {
            why
        };
        let killing = self.is_under_way(&Work::KillPostgres);
        let shutting = self.is_under_way(&Work::ShutdownFilesystem);
        // What copies a database is no PostgreSQL, and ends with it.
        if local.postgres != Postgres::Stopped || self.is_copying() || killing {
            if !killing && self.backing_off().is_none() {
                self.begin(Work::KillPostgres);
            }
            return Next::Wait(waiting);
        }
        if local.mount != Mount::Unmounted && !shut {
            if !shutting && self.backing_off().is_none() {
                self.begin(Work::ShutdownFilesystem);
            }
            return Next::Wait(waiting);
        }
        if self.pending() {
            return Next::Wait(waiting);
        }
        if let Some(wait) = self.backing_off() {
            return wait;
        }
        if local.mount != Mount::Unmounted {
            self.begin(Work::DropMount);
            return Next::Wait(waiting);
        }
        if self.seen.stopping {
            return self.become_role(Role::Leaving);
        }
        if !self.device_clean() {
            if !clean {
                self.memory.former_gone = Some(self.now);
            }
            self.begin(Work::RebuildDevice);
            return Next::Wait(waiting);
        }
        self.memory.cleaned = self.now;
        if !clean && self.memory.former_gone.is_some() {
            // From now on, and not from the order on, is the former device proven gone.
            self.memory.former_gone = Some(self.now);
        }
        self.memory.tainted = None;
        self.become_role(Role::Standby)
    }

    pub(super) fn is_under_way(&self, work: &Work) -> bool {
        self.memory
            .issued
            .as_ref()
            .is_some_and(|issued| issued.work == *work)
    }

    /// SIGTERM, and nothing of the volume is left here: unregister, so that nobody counts on this
    /// standby. A hold is kept: it is what keeps older zombies out.
    pub(super) fn leave(&mut self) -> Next {
        if self.take_ended().is_some() {
            return self.become_role(Role::Stopped);
        }
        if self.pending() {
            return Next::Wait(Reason::Leaving);
        }
        if self.may_hold() || self.own_entry().is_none() {
            return self.become_role(Role::Stopped);
        }
        self.begin(Work::Unregister);
        Next::Wait(Reason::Leaving)
    }

    pub(super) fn stopped(&mut self) -> Next {
        self.actions.push(Action::Exit);
        Next::Wait(Reason::Left)
    }
}
