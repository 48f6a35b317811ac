//! The real fence and start sequences, driven through the simulated wire.

use baton::decide::{Outcome as Ended, PermitFacts, StepId, Victim, Work};
use fencing::{
    Claim, Command, Epoch, Expectation, KeyFlags, Limits, Mono, Outcome, Sequence,
    Step as SequenceStep,
};
use nvme::reservation::ChangePersistence;

use crate::steps::failed;
use crate::target::What;
use crate::world::{Broken, Event, Purpose, Running, World, cluster};

impl World {
    pub fn claim(
        &self,
        index: usize,
        epoch: Epoch,
        flags: KeyFlags,
        former_controllers_gone: Option<Mono>,
        deadline: Mono,
    ) -> (Claim, Limits) {
        let node = &self.nodes[index];
        let timings = &node.config.timings;
        let claim = Claim {
            host: node.host,
            cluster: cluster(),
            member: node.config.member,
            epoch,
            flags,
            former_controllers_gone,
        };
        let limits = Limits {
            deadline,
            retry_pause: timings.retry / 10,
            drain_wait: Some(self.drain_wait),
            beat: timings.storage_beat,
            verify_within: timings.command,
            require_persistence: self.target.persistent,
        };
        (claim, limits)
    }

    pub fn expectation(&self, victim: Victim) -> Expectation {
        match victim {
            Victim::Nobody(_) if self.broken == Broken::AbsenceIsPermission => {
                Expectation::Nobody(fencing::AbsenceEvidence::NeverOwned)
            }
            Victim::Holder { .. } | Victim::Own { .. } | Victim::Nobody(_) => victim.into(),
        }
    }

    /// One step further in the sequence of a fence or a registration.
    pub fn drive(
        &mut self,
        index: usize,
        id: StepId,
        outcome: Option<Outcome>,
    ) -> Result<(), String> {
        let now = self.clock(index);
        let skip = self.broken == Broken::SkipVerify;
        let node = &mut self.nodes[index];
        let Some(run) = node.step.as_mut().filter(|run| run.step.id == id) else {
            return Ok(());
        };
        let Work::Fence { epoch, .. } = run.step.work else {
            return self.drive_start(index, id, outcome, now);
        };
        let Running::Fence(sequence) = &mut run.running else {
            return Ok(());
        };
        match sequence.next(now, outcome) {
            SequenceStep::Send(command) => {
                if skip
                    && command == Command::Report
                    && let Some(io) = run.io
                {
                    // Broken on purpose: whatever became of the preempt, it is taken for a fence.
                    let _ = io;
                    return self.pretend_fenced(index, id, epoch, now);
                }
                if let Command::PreemptAndAbort { .. } | Command::Acquire { .. } = command {
                    run.io = Some(0);
                }
                if let Command::Replace { new, .. } = command {
                    node.key = Some(new);
                }
                self.send(index, What::Reservation(command), Purpose::Sequence(id));
                Ok(())
            }
            SequenceStep::WaitUntil(then) => self.sequence_waits(index, id, then),
            SequenceStep::Proven(permit) => {
                let facts = PermitFacts {
                    epoch: permit.epoch(),
                    key: permit.key(),
                    proven_at: permit.proven_at(),
                };
                let text = format!("{permit:?}");
                node.key = Some(permit.key());
                node.permit = Some(permit);
                self.note(|| format!("member {} proves {text}", index + 1));
                self.end_step(index, id, Ended::Fenced(facts))
            }
            SequenceStep::Unproven(unproven) => {
                self.note(|| format!("member {} unproven: {unproven:?}", index + 1));
                let ended = match unproven.is_lost_race() {
                    true => Ended::FenceLost,
                    false => failed("unproven"),
                };
                self.end_step(index, id, ended)
            }
        }
    }

    pub fn drive_start(
        &mut self,
        index: usize,
        id: StepId,
        outcome: Option<Outcome>,
        now: Mono,
    ) -> Result<(), String> {
        let node = &mut self.nodes[index];
        let Some(run) = &mut node.step else {
            return Ok(());
        };
        let Running::Start(sequence) = &mut run.running else {
            return Ok(());
        };
        match sequence.next(now, outcome) {
            SequenceStep::Send(command) => {
                self.send(index, What::Reservation(command), Purpose::Sequence(id));
                Ok(())
            }
            SequenceStep::WaitUntil(then) => self.sequence_waits(index, id, then),
            SequenceStep::Proven(registered) => {
                node.key = Some(registered.key);
                self.end_step(index, id, Ended::Done)
            }
            SequenceStep::Unproven(refused) => {
                self.note(|| format!("member {} not registered: {refused:?}", index + 1));
                self.end_step(index, id, failed("not registered"))
            }
        }
    }

    pub fn sequence_waits(&mut self, index: usize, id: StepId, then: Mono) -> Result<(), String> {
        let process = self.nodes[index].process;
        let delay = self.until(index, then);
        self.after(
            delay,
            Event::SequenceTimer {
                node: index,
                process,
                id,
            },
        );
        Ok(())
    }

    pub fn pretend_fenced(
        &mut self,
        index: usize,
        id: StepId,
        epoch: Epoch,
        now: Mono,
    ) -> Result<(), String> {
        match self.nodes[index].key {
            Some(key) => {
                let facts = PermitFacts {
                    epoch,
                    key,
                    proven_at: now,
                };
                self.nodes[index].pretended = Some(facts);
                self.end_step(index, id, Ended::Fenced(facts))
            }
            None => self.end_step(index, id, failed("no key")),
        }
    }

    pub fn announce(
        &mut self,
        index: usize,
        id: StepId,
        epoch: Epoch,
        flags: KeyFlags,
    ) -> Result<(), String> {
        let Some(current) = self.nodes[index].key else {
            return self.end_step(index, id, failed("no key"));
        };
        let new = current.saying(
            epoch,
            KeyFlags {
                clean: true,
                ..flags
            },
        );
        let persistence = ChangePersistence::Unchanged;
        let command = Command::Replace {
            current,
            new,
            persistence,
        };
        self.send(
            index,
            What::Reservation(command),
            Purpose::Announce { id, new },
        );
        Ok(())
    }

    pub fn announced(
        &mut self,
        index: usize,
        id: StepId,
        new: fencing::ReservationKey,
        outcome: &Outcome,
    ) -> Result<(), String> {
        let ended = match outcome {
            Outcome::Done => {
                self.nodes[index].key = Some(new);
                Ended::Done
            }
            Outcome::Unknown => Ended::Overdue,
            Outcome::Refused(_) | Outcome::NotSent | Outcome::Report(_) => failed("refused"),
        };
        self.end_step(index, id, ended)
    }

    pub fn confirmed(&mut self, index: usize, id: StepId, outcome: Outcome) -> Result<(), String> {
        let node = &self.nodes[index];
        let Some(run) = node.step.as_ref().filter(|run| run.step.id == id) else {
            return Ok(());
        };
        let Work::Mount { epoch } = run.step.work else {
            return Ok(());
        };
        let good = match (&outcome, &node.permit) {
            (Outcome::Report(report), Some(permit)) => {
                permit.epoch() == epoch && permit.confirm(report).is_ok()
            }
            _ => false,
        };
        if !good {
            // A report that shows another owner ends the permit; one that is lost does not.
            if let Outcome::Report(_) = outcome {
                self.nodes[index].permit = None;
            }
            return self.end_step(index, id, failed("not confirmed"));
        }
        self.mount(index);
        Ok(())
    }
}
