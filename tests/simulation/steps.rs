//! How a simulated member carries out the steps that `decide` orders, and its device and PostgreSQL.

use baton::decide::{Finished, Outcome as Ended, Step, StepId, VolumeFacts, Work};
use fencing::{Command, FenceSequence, Mono, StartSequence};

use crate::store::StoreAsk;
use crate::target::{Format, Io, What};
use crate::world::{Broken, Event, MS, Path, Pg, Purpose, Running, StepRun, StorePurpose, World};

pub fn failed(cause: &str) -> Ended {
    Ended::Failed {
        cause: cause.to_owned(),
    }
}

impl World {
    pub fn begin_step(&mut self, index: usize, step: Step) -> Result<(), String> {
        self.note(|| format!("member {} begins {} {:?}", index + 1, step.id.0, step.work));
        self.count_down_to_crash(index);
        let since = self.clock(index);
        let node = &mut self.nodes[index];
        if let Some(given_up) = node.step.take()
            && let Running::Fence(_) = given_up.running
        {
            node.permit = None;
        }
        let process = node.process;
        let id = step.id;
        let deadline = step.deadline;
        let work = step.work.clone();
        node.step = Some(StepRun {
            step,
            running: Running::Plain,
            io: None,
            hung: false,
            since,
        });
        let overdue = self.until(index, deadline);
        self.after(
            overdue,
            Event::StepDeadline {
                node: index,
                process,
                id,
            },
        );
        self.order(index, id, work, deadline)
    }

    fn count_down_to_crash(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        match node.crash_in_steps {
            Some(0) => {
                node.crash_in_steps = None;
                let delay = if self.rng.chance(50) {
                    0
                } else {
                    self.rng.range(0, 200 * MS)
                };
                self.faults
                    .push((0, crate::faults::Fault::Crash { node: index }));
                let fault = self.faults.len() - 1;
                self.after(delay, Event::Fault { index: fault });
            }
            Some(left) => node.crash_in_steps = Some(left - 1),
            None => {}
        }
    }

    fn order(
        &mut self,
        index: usize,
        id: StepId,
        work: Work,
        deadline: Mono,
    ) -> Result<(), String> {
        match work {
            Work::Seed { .. }
            | Work::Align { .. }
            | Work::Serve { .. }
            | Work::Reconfigure { .. }
            | Work::Promote { .. }
            | Work::KeepSlots { .. }
            | Work::StopToMove => Err("there is one site".to_owned()),
            Work::Register { epoch, flags } => {
                let (claim, limits) = self.claim(index, epoch, flags, None, deadline);
                let sequence = StartSequence::new(claim, limits);
                self.set_running(index, Running::Start(Box::new(sequence)));
                self.drive(index, id, None)
            }
            Work::Fence {
                epoch,
                flags,
                victim,
                former_gone,
            } => {
                crate::invariants::invariant_no_false_takeover(self, index)?;
                let (claim, limits) = self.claim(index, epoch, flags, former_gone, deadline);
                let expectation = self.expectation(victim);
                let sequence = FenceSequence::new(claim, expectation, limits);
                self.nodes[index].permit = None;
                self.set_running(index, Running::Fence(Box::new(sequence)));
                self.drive(index, id, None)
            }
            Work::Unregister => match self.nodes[index].key {
                Some(key) => {
                    self.send(index, What::Unregister(key.pack()), Purpose::Unregister(id));
                    Ok(())
                }
                None => self.end_step(index, id, failed("no key")),
            },
            Work::ClaimLease { expected, record } => {
                let ask = StoreAsk::CompareAndSet { expected, record };
                self.ask_store(index, ask, StorePurpose::Claim(id));
                Ok(())
            }
            Work::AnnounceClean { epoch, flags } => self.announce(index, id, epoch, flags),
            Work::Mount { epoch: _ } if self.broken != Broken::SkipVerify => {
                self.send(
                    index,
                    What::Reservation(Command::Report),
                    Purpose::Confirm(id),
                );
                Ok(())
            }
            Work::Mount { epoch: _ } => {
                self.mount(index);
                Ok(())
            }
            Work::RebuildDevice => {
                crate::invariants::invariant_nothing_left(&self.nodes[index])?;
                self.drop_device(index);
                self.done_within(index, id, 15, 80);
                Ok(())
            }
            Work::StartPostgres { epoch: _ } => {
                self.nodes[index].pg = Pg::Starting;
                self.done_within(index, id, 20, 150);
                Ok(())
            }
            Work::StopPostgres { mode: _ } => {
                self.nodes[index].pg = Pg::Stopping;
                self.done_within(index, id, 5, 60);
                Ok(())
            }
            Work::PrepareVolume | Work::Checkpoint | Work::Withdraw { epoch: _ } => {
                self.done_within(index, id, 1, 20);
                Ok(())
            }
            Work::Format { epoch: _ } => {
                self.target.format = Format::Unfinished;
                self.done_within(index, id, 30, 200);
                Ok(())
            }
            Work::Unmount => {
                self.done_within(index, id, 3, 20);
                Ok(())
            }
            Work::KillPostgres | Work::ShutdownFilesystem | Work::DropMount => {
                self.done_within(index, id, 1, 10);
                Ok(())
            }
        }
    }

    fn set_running(&mut self, index: usize, running: Running) {
        if let Some(run) = &mut self.nodes[index].step {
            run.running = running;
        }
    }

    fn done_within(&mut self, index: usize, id: StepId, low: u64, high: u64) {
        let delay = self.rng.range(low * MS, high * MS);
        let process = self.nodes[index].process;
        self.after(
            delay,
            Event::StepDone {
                node: index,
                process,
                id,
            },
        );
    }

    /// The mount begins to read, then writes for the first time.
    pub fn mount(&mut self, index: usize) {
        self.sessions += 1;
        let session = self.sessions;
        self.target.mounting.insert(session, false);
        self.nodes[index].mark = true;
        let io = self.submit(index, Io::Mount { session });
        self.nodes[index].device.mounting = Some(io);
        if let Some(run) = &mut self.nodes[index].step {
            run.io = Some(io);
        }
    }

    fn reaches_volume(&self, index: usize) -> bool {
        self.nodes[index].path == Path::Up && self.target.up
    }

    /// A local step is ready to end.
    pub fn step_done(&mut self, index: usize, id: StepId) -> Result<(), String> {
        let Some(run) = self.nodes[index]
            .step
            .as_ref()
            .filter(|run| run.step.id == id)
        else {
            return Ok(());
        };
        let work = run.step.work.clone();
        if self.nodes[index].bad_steps > 0 && self.rng.chance(50) {
            self.nodes[index].bad_steps -= 1;
            return match self.rng.chance(50) {
                true => self.end_step(index, id, failed("injected")),
                false => {
                    if let Some(run) = &mut self.nodes[index].step {
                        run.hung = true;
                    }
                    Ok(()) // Until its deadline.
                }
            };
        }
        match work {
            Work::Seed { .. }
            | Work::Align { .. }
            | Work::Serve { .. }
            | Work::Reconfigure { .. }
            | Work::Promote { .. }
            | Work::KeepSlots { .. }
            | Work::StopToMove => Err("there is one site".to_owned()),
            Work::PrepareVolume if self.reaches_volume(index) => {
                let facts = match self.target.format {
                    Format::Blank => VolumeFacts::Blank,
                    Format::Unfinished => VolumeFacts::Unfinished,
                    Format::Ours { clean } => VolumeFacts::Ours { clean },
                };
                self.end_step(index, id, Ended::Volume(facts))
            }
            Work::Format { epoch: _ } if self.reaches_volume(index) => {
                let holds = self.target.model.holds(self.nodes[index].host);
                let verified =
                    self.broken == Broken::SkipVerify || self.nodes[index].permit.is_some();
                if !holds || !verified {
                    return self.end_step(index, id, failed("no hold"));
                }
                self.target.format = Format::Ours { clean: true };
                self.end_step(index, id, Ended::Done)
            }
            Work::RebuildDevice if self.reaches_volume(index) => {
                let device = &mut self.nodes[index].device;
                device.made += 1;
                device.attached = true;
                device.shut = false;
                self.end_step(index, id, Ended::Done)
            }
            Work::PrepareVolume | Work::Format { .. } | Work::RebuildDevice => {
                self.end_step(index, id, failed("no path"))
            }
            Work::StartPostgres { epoch: _ } => self.start_postgres(index, id),
            Work::StopPostgres { mode: _ } => self.stop_postgres(index, id),
            Work::Unmount => self.unmount(index, id),
            Work::Checkpoint | Work::Withdraw { epoch: _ } => self.end_step(index, id, Ended::Done),
            Work::KillPostgres => {
                self.nodes[index].pg = Pg::Stopped;
                self.nodes[index].txn = None;
                self.end_step(index, id, Ended::Done)
            }
            Work::ShutdownFilesystem => {
                self.nodes[index].device.shut = true;
                self.end_step(index, id, Ended::Done)
            }
            Work::DropMount => {
                if self.nodes[index].device.mounting.is_some() {
                    self.done_within(index, id, 5, 20);
                    return Ok(());
                }
                self.nodes[index].device.mounted = None;
                self.end_step(index, id, Ended::Done)
            }
            Work::Register { .. }
            | Work::Unregister
            | Work::ClaimLease { .. }
            | Work::Fence { .. }
            | Work::Mount { .. }
            | Work::AnnounceClean { .. } => Ok(()),
        }
    }

    /// WAL replay, then the write that proves the start.
    fn start_postgres(&mut self, index: usize, id: StepId) -> Result<(), String> {
        let Some(session) = self.nodes[index].device.mounted else {
            self.nodes[index].pg = Pg::Stopped;
            return self.end_step(index, id, failed("not mounted"));
        };
        if self.nodes[index].bad_starts > 0 {
            self.nodes[index].bad_starts -= 1;
            self.nodes[index].pg = Pg::Stopped;
            return self.end_step(index, id, failed("injected"));
        }
        if session == self.target.newest {
            self.target.invariant_acknowledged_kept()?;
        }
        let mut waiting = self.nodes[index].device.outstanding.values();
        if waiting.any(|io| matches!(io, Io::Record { .. })) {
            // The page cache writes one block once at a time.
            self.done_within(index, id, 5, 20);
            return Ok(());
        }
        self.nodes[index].next_slot = self.target.end_of_log();
        self.begin_txn(index, session, true);
        Ok(())
    }

    fn stop_postgres(&mut self, index: usize, id: StepId) -> Result<(), String> {
        if self.nodes[index].device.outstanding.is_empty() {
            self.nodes[index].pg = Pg::Stopped;
            self.nodes[index].txn = None;
            return self.end_step(index, id, Ended::Stopped { clean: true });
        }
        self.done_within(index, id, 5, 20);
        Ok(())
    }

    fn unmount(&mut self, index: usize, id: StepId) -> Result<(), String> {
        let Some(session) = self.nodes[index].device.mounted else {
            return self.end_step(index, id, failed("not mounted"));
        };
        let device = &self.nodes[index].device;
        if !device.outstanding.is_empty() || device.shut {
            self.done_within(index, id, 3, 20);
            return Ok(());
        }
        let io = self.submit(index, Io::Flush { session });
        if let Some(run) = &mut self.nodes[index].step {
            run.io = Some(io);
        }
        Ok(())
    }

    pub fn step_overdue(&mut self, index: usize, id: StepId) -> Result<(), String> {
        let Some(run) = self.nodes[index]
            .step
            .as_ref()
            .filter(|run| run.step.id == id)
        else {
            return Ok(());
        };
        let blocked =
            !run.hung && matches!(run.step.work, Work::Unmount | Work::StopPostgres { .. });
        if self.nodes[index].device.mounting.is_some() {
            // The system call has not come back, and cannot be called back.
            return self.decide(index);
        }
        if matches!(run.running, Running::Fence(_)) {
            // The sequence ends itself; it may wait longer once it holds.
            return Ok(());
        }
        if blocked && self.rng.chance(30) {
            // A system call that does not come back: decide must cope.
            return self.decide(index);
        }
        self.end_step(index, id, Ended::Overdue)
    }

    pub fn end_step(&mut self, index: usize, id: StepId, outcome: Ended) -> Result<(), String> {
        let at = self.clock(index);
        let node = &mut self.nodes[index];
        if node.step.as_ref().is_none_or(|run| run.step.id != id) {
            return Ok(());
        }
        node.step = None;
        self.note(|| format!("member {} ends {} {outcome:?}", index + 1, id.0));
        self.nodes[index].seen.finished = Some(Finished { id, at, outcome });
        self.decide(index)
    }
}
