//! How a simulated member carries out the steps that `decide` orders, and its device and PostgreSQL.

use baton::decide::{
    AbsenceEvidence, Finished, Outcome as Ended, PermitFacts, Step, StepId, Victim, VolumeFacts,
    Work,
};
use fencing::{
    Claim, Command, Epoch, Expectation, FenceSequence, KeyFlags, Limits, Mono, Outcome, OwnHold,
    Sequence, StartSequence, Step as SequenceStep,
};
use nvme::reservation::ChangePersistence;

use crate::store::StoreAsk;
use crate::target::{Format, Io, What, is_conflict};
use crate::world::{
    Broken, Event, MS, Path, Pg, Purpose, Running, StepRun, StorePurpose, Txn, World, cluster,
};

fn failed(cause: &str) -> Ended {
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
            Work::PrepareVolume | Work::Checkpoint => {
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

    fn claim(
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

    fn expectation(&self, victim: Victim) -> Expectation {
        use fencing::AbsenceEvidence as Absence;
        match victim {
            Victim::Holder {
                host,
                member,
                epoch,
                clean,
            } => Expectation::Holder(fencing::Victim {
                host,
                member,
                epoch,
                clean,
            }),
            Victim::Own {
                epoch: _,
                clean: true,
                quiet_since: _,
            } => Expectation::Ourselves(OwnHold::Clean),
            Victim::Own {
                epoch: _,
                clean: false,
                quiet_since,
            } => Expectation::Ourselves(OwnHold::QuietSince(quiet_since)),
            Victim::Nobody(evidence) => Expectation::Nobody(match evidence {
                AbsenceEvidence::FirstStart => Absence::NeverOwned,
                _ if self.broken == Broken::AbsenceIsPermission => Absence::NeverOwned,
                AbsenceEvidence::EveryOwnerStopped { since } => {
                    Absence::EveryOwnerStopped { since }
                }
                AbsenceEvidence::OperatorsWord => Absence::OperatorsWord,
            }),
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

    fn drive_start(
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

    fn sequence_waits(&mut self, index: usize, id: StepId, then: Mono) -> Result<(), String> {
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

    fn pretend_fenced(
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
                self.end_step(index, id, Ended::Fenced(facts))
            }
            None => self.end_step(index, id, failed("no key")),
        }
    }

    fn announce(
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
            self.nodes[index].permit = None;
            return self.end_step(index, id, failed("not confirmed"));
        }
        self.mount(index);
        Ok(())
    }

    /// The mount begins to read, then writes for the first time.
    fn mount(&mut self, index: usize) {
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
                false => Ok(()), // Hangs until its deadline.
            };
        }
        match work {
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
            Work::Checkpoint => self.end_step(index, id, Ended::Done),
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
        let blocked = matches!(run.step.work, Work::Unmount | Work::StopPostgres { .. });
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

    // Device and PostgreSQL.

    pub fn submit(&mut self, index: usize, io: Io) -> u64 {
        let id = self.fresh();
        let device = &mut self.nodes[index].device;
        device.outstanding.insert(id, io);
        let made = device.made;
        self.send(index, What::Io(io), Purpose::Device { made, io: id });
        id
    }

    /// The device sends again what it still has, after a connection was lost.
    pub fn resend(&mut self, index: usize) {
        let made = self.nodes[index].device.made;
        let on_the_way: Vec<u64> = self
            .commands
            .values()
            .filter(|sent| sent.node == index)
            .filter_map(|sent| match sent.purpose {
                Purpose::Device { made: _, io } => Some(io),
                _ => None,
            })
            .collect();
        let left: Vec<(u64, Io)> = self.nodes[index]
            .device
            .outstanding
            .iter()
            .filter(|(id, _)| !on_the_way.contains(id))
            .map(|(id, io)| (*id, *io))
            .collect();
        for (id, io) in left {
            self.send(index, What::Io(io), Purpose::Device { made, io: id });
        }
    }

    /// Process death: everything of the device that was not yet sent is gone.
    pub fn lose_device(&mut self, index: usize) {
        let device = &mut self.nodes[index].device;
        device.attached = false;
        device.outstanding.clear();
        device.mounted = None;
        device.mounting = None;
        device.shut = false;
    }

    fn drop_device(&mut self, index: usize) {
        let device = &mut self.nodes[index].device;
        device.attached = false;
        if self.broken != Broken::KeepDevice {
            device.outstanding.clear();
        }
    }

    pub fn device_replied(
        &mut self,
        index: usize,
        _made: u64,
        io: u64,
        outcome: Outcome,
    ) -> Result<(), String> {
        let Some(kind) = self.nodes[index].device.outstanding.remove(&io) else {
            return Ok(());
        };
        let done = outcome == Outcome::Done;
        if let Io::Mount { session } = kind {
            let device = &mut self.nodes[index].device;
            device.mounting = None;
            if done && !device.shut {
                device.mounted = Some(session);
                self.after(
                    MS,
                    Event::Writeback {
                        node: index,
                        session,
                    },
                );
            }
        }
        if !done && !is_conflict(&outcome) {
            return Err(format!("a device got {outcome:?}"));
        }
        if let Some(run) = self.nodes[index]
            .step
            .as_ref()
            .filter(|run| run.io == Some(io))
        {
            let id = run.step.id;
            return self.step_io(index, id, kind, done);
        }
        let node = &mut self.nodes[index];
        let Some(txn) = node.txn.take_if(|txn| txn.io == io) else {
            return if matches!(kind, Io::Mount { .. }) {
                self.decide(index)
            } else {
                Ok(())
            };
        };
        if !done {
            // A write error: PostgreSQL panics.
            node.pg = Pg::Stopped;
            if txn.proves_start {
                return self.end_starting(index, failed("write refused"));
            }
            return self.decide(index);
        }
        self.go_on(index, kind.session(), txn)
    }

    fn step_io(&mut self, index: usize, id: StepId, kind: Io, done: bool) -> Result<(), String> {
        match kind {
            Io::Mount { session: _ } if done => self.end_step(index, id, Ended::Done),
            Io::Flush { session: _ } if done => {
                self.nodes[index].device.mounted = None;
                self.nodes[index].mark = false;
                self.target.format = Format::Ours { clean: true };
                self.end_step(index, id, Ended::Unmounted { clean: true })
            }
            _ => self.end_step(index, id, failed("write refused")),
        }
    }

    fn go_on(&mut self, index: usize, session: u64, txn: Txn) -> Result<(), String> {
        if !txn.flushing {
            let io = self.submit(index, Io::Flush { session });
            self.nodes[index].txn = Some(Txn {
                io,
                flushing: true,
                ..txn
            });
            return Ok(());
        }
        self.target.acknowledge(txn.slot, session, txn.record);
        let node = &mut self.nodes[index];
        node.next_slot = txn.slot + 1;
        if self.healed.is_some() {
            self.committed_after_heal += 1;
        }
        if txn.proves_start {
            self.nodes[index].pg = Pg::Running;
            self.after(
                MS,
                Event::Client {
                    node: index,
                    session,
                },
            );
            return self.end_starting(index, Ended::Done);
        }
        Ok(())
    }

    fn end_starting(&mut self, index: usize, outcome: Ended) -> Result<(), String> {
        let starting = self.nodes[index]
            .step
            .as_ref()
            .filter(|run| matches!(run.step.work, Work::StartPostgres { .. }));
        match starting.map(|run| run.step.id) {
            Some(id) => self.end_step(index, id, outcome),
            None => self.decide(index),
        }
    }

    fn begin_txn(&mut self, index: usize, session: u64, proves_start: bool) {
        self.records += 1;
        let record = self.records;
        let slot = self.nodes[index].next_slot;
        let io = self.submit(
            index,
            Io::Record {
                session,
                slot,
                record,
            },
        );
        let txn = Txn {
            slot,
            record,
            io,
            flushing: false,
            proves_start,
        };
        self.nodes[index].txn = Some(txn);
    }

    /// A client commits.
    pub fn client(&mut self, index: usize, session: u64) -> Result<(), String> {
        let node = &self.nodes[index];
        if node.pg != Pg::Running || node.device.mounted != Some(session) {
            return Ok(());
        }
        if node.txn.is_none() {
            self.begin_txn(index, session, false);
        }
        let delay = self.rng.range(20, 200) * MS;
        self.after(
            delay,
            Event::Client {
                node: index,
                session,
            },
        );
        Ok(())
    }

    /// The kernel writes dirty pages back, with or without PostgreSQL.
    pub fn write_back(&mut self, index: usize, session: u64) {
        let device = &self.nodes[index].device;
        if !device.attached || device.shut || device.mounted != Some(session) {
            return;
        }
        if device.outstanding.len() < 8 {
            self.submit(index, Io::Page { session });
        }
        let delay = self.rng.range(30, 300) * MS;
        self.after(
            delay,
            Event::Writeback {
                node: index,
                session,
            },
        );
    }
}
