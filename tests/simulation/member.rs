//! One simulated member's process: the loop around the real `decide`, its observers and its signs of
//! life. The steps are in `steps.rs`.

use baton::decide::{
    Action, Ask, Custody, Device, Heard, Heartbeat, Incarnation, Life, Local, Memory, Mount,
    Observation, PermitFacts, Postgres, Reason, Request, RequestId, Running as RunningStep, Seen,
    Work, decide,
};
use fencing::{Command, KeyFlags, Mailbox, Outcome};
use nvme::ReservationReport;
use nvme::reservation::ChangePersistence;

use crate::store::{StoreAnswer, StoreAsk};
use crate::target::{Accepted, What};
use crate::world::{
    Broken, DeviceState, Event, MS, Node, Path, Pg, Purpose, Running, Sent, StorePurpose, World,
    cluster,
};

impl Node {
    pub fn new(
        host: nvme::HostId,
        config: baton::decide::Config,
        offset_ms: u64,
        ppm: i64,
    ) -> Self {
        let seen = blank(&config, host, 0, fencing::Mono::ZERO, false);
        Self {
            host,
            config,
            offset_ms,
            ppm,
            running: false,
            process: 0,
            frozen_until: None,
            deferred: Vec::new(),
            memory: Memory::default(),
            seen,
            reason: baton::decide::Reason::CleaningUp,
            wake: 0,
            key: None,
            beating: false,
            reporting: false,
            report_again: false,
            lease_polling: false,
            lease_writing: false,
            step: None,
            permit: None,
            device: DeviceState::default(),
            pg: Pg::Stopped,
            txn: None,
            next_slot: 0,
            path: Path::Up,
            lease_up: true,
            mark: false,
            requests: Default::default(),
            next_request: 1,
            bad_starts: 0,
            bad_steps: 0,
            crash_in_steps: None,
            exited: false,
        }
    }
}

fn blank(
    config: &baton::decide::Config,
    host: nvme::HostId,
    process: u64,
    now: fencing::Mono,
    former_writer: bool,
) -> Observation {
    let unknown = || "not read yet".to_owned();
    let peers = config.peers();
    Observation {
        mailbox: Seen::Unknown {
            since: now,
            cause: unknown(),
        },
        lease: Seen::Unknown {
            since: now,
            cause: unknown(),
        },
        peers: peers
            .map(|peer| {
                (
                    peer,
                    Seen::Unknown {
                        since: now,
                        cause: unknown(),
                    },
                )
            })
            .collect(),
        platform: Default::default(),
        local: Local {
            incarnation: Incarnation(process),
            host,
            device: Device::Absent,
            mount: Mount::Unmounted,
            postgres: Postgres::Stopped,
            former_writer,
            permit: None,
        },
        running: None,
        finished: None,
        request: None,
        stopping: false,
    }
}

impl World {
    /// A process begins.
    pub fn start(&mut self, index: usize) {
        if self.nodes[index].running {
            return;
        }
        let process = self.fresh();
        let now = self.clock(index);
        let node = &mut self.nodes[index];
        node.running = true;
        node.exited = false;
        node.process = process;
        node.frozen_until = None;
        node.deferred.clear();
        node.memory = Memory::default();
        node.seen = blank(&node.config, node.host, process, now, node.mark);
        node.key = None;
        node.beating = false;
        node.reporting = false;
        node.report_again = false;
        node.lease_polling = false;
        node.lease_writing = false;
        node.step = None;
        node.permit = None;
        node.device = DeviceState::default();
        node.pg = Pg::Stopped;
        node.txn = None;
        self.platform_says(index, Life::Running);
        if self.platform {
            for other in 0..self.nodes.len() {
                let life = if self.nodes[other].running {
                    Life::Running
                } else {
                    Life::Exited
                };
                let member = self.nodes[other].config.member;
                if other != index {
                    let known = Seen::Known {
                        value: life,
                        at: now,
                    };
                    self.nodes[index].seen.platform.insert(member, known);
                }
            }
        }
        self.note(|| format!("member {} starts as process {process}", index + 1));
        self.after(
            0,
            Event::PollMailbox {
                node: index,
                process,
            },
        );
        self.after(
            0,
            Event::PollLease {
                node: index,
                process,
            },
        );
        self.nodes[index].wake = self.now;
        self.after(
            0,
            Event::Wake {
                node: index,
                process,
            },
        );
    }

    /// The whole process tree dies: member, bridge, PostgreSQL. The private mount goes with it.
    pub fn crash(&mut self, index: usize) {
        if !self.nodes[index].running {
            return;
        }
        self.note(|| format!("member {} dies", index + 1));
        let process = self.nodes[index].process;
        let node = &mut self.nodes[index];
        node.running = false;
        node.frozen_until = None;
        node.deferred.clear();
        node.pg = Pg::Stopped;
        node.txn = None;
        node.step = None;
        node.permit = None;
        node.requests.clear();
        self.lose_device(index);
        if self.platform {
            let delay = self.rng.range(20, 800) * MS;
            self.after(
                delay,
                Event::Platform {
                    node: index,
                    process,
                },
            );
        }
    }

    pub fn platform_says_exited(&mut self, index: usize, process: u64) {
        let node = &self.nodes[index];
        if !node.running && node.process == process {
            self.platform_says(index, Life::Exited);
        }
    }

    fn platform_says(&mut self, index: usize, life: Life) {
        if !self.platform {
            return;
        }
        let member = self.nodes[index].config.member;
        for other in 0..self.nodes.len() {
            if other != index && self.nodes[other].running {
                let at = self.clock(other);
                let known = Seen::Known { value: life, at };
                self.nodes[other].seen.platform.insert(member, known);
                self.nodes[other].wake = self.now;
                let process = self.nodes[other].process;
                self.after(
                    0,
                    Event::Wake {
                        node: other,
                        process,
                    },
                );
            }
        }
    }

    pub fn thaw(&mut self, index: usize, until: u64) {
        if self.nodes[index].frozen_until != Some(until) {
            return;
        }
        self.note(|| format!("member {} thaws", index + 1));
        self.nodes[index].frozen_until = None;
        let deferred = std::mem::take(&mut self.nodes[index].deferred);
        for event in deferred {
            self.after(0, event);
        }
    }

    fn facts(&mut self, index: usize) {
        let now = self.clock(index);
        let node = &mut self.nodes[index];
        let local = &mut node.seen.local;
        local.device = match node.device.attached {
            true => Device::Attached {
                made: node.device.made,
            },
            false => Device::Absent,
        };
        let in_time = node.step.as_ref().is_some_and(|run| {
            matches!(run.step.work, Work::Mount { .. }) && run.step.deadline > now
        });
        local.mount = match (node.device.mounted, node.device.mounting) {
            (_, Some(_)) if !in_time => Mount::Stuck,
            (Some(_), _) | (_, Some(_)) => Mount::Mounted,
            (None, None) => Mount::Unmounted,
        };
        local.postgres = match node.pg {
            Pg::Stopped => Postgres::Stopped,
            Pg::Starting => Postgres::Starting,
            Pg::Running => Postgres::Running,
            Pg::Stopping => Postgres::Stopping,
        };
        local.permit = node.permit.as_ref().map(|permit| PermitFacts {
            epoch: permit.epoch(),
            key: permit.key(),
            proven_at: permit.proven_at(),
        });
        node.seen.running = node.step.as_ref().map(|run| RunningStep {
            id: run.step.id,
            since: run.since,
        });
        let waiting = node.requests.front().copied();
        node.seen.request = waiting.map(|ask| Request {
            id: RequestId(node.next_request),
            ask,
        });
    }

    /// Calls the real `decide` and carries out what it says.
    pub fn decide(&mut self, index: usize) -> Result<(), String> {
        self.facts(index);
        let now = self.clock(index);
        let twisted = self.twisted_view(index);
        let node = &self.nodes[index];
        let seen = twisted.as_ref().unwrap_or(&node.seen);
        let decision = decide(&node.config, &node.memory, seen, now);
        self.decisions += 1;
        if self.check_replay && self.decisions % 61 == 0 {
            crate::invariants::invariant_replay(&node.config, &node.memory, seen, now, &decision)?;
        }
        crate::invariants::invariant_one_hazard(&decision, self.nodes[index].step.is_some())?;
        if self.nodes[index].reason != decision.reason {
            self.note(|| format!("member {}: {}", index + 1, decision.reason));
        }
        self.crossed_into_ownership(index, &decision);
        let node = &mut self.nodes[index];
        node.memory = decision.memory;
        node.reason = decision.reason;
        let wake = self.now + self.until(index, decision.wake);
        let node = &mut self.nodes[index];
        node.wake = wake;
        let process = node.process;
        self.at(
            wake,
            Event::Wake {
                node: index,
                process,
            },
        );
        for action in decision.actions {
            self.carry_out(index, action)?;
        }
        Ok(())
    }

    fn crossed_into_ownership(&mut self, index: usize, decision: &baton::decide::Decision) {
        use baton::decide::Role;
        let was = matches!(self.nodes[index].memory.role, Role::Active(_));
        if !was && matches!(decision.memory.role, Role::Active(_)) {
            self.owners.push((self.now, index));
        }
        if self.nodes[index].reason == decision.reason {
            return;
        }
        let text = match &decision.reason {
            Reason::TakingOver { evidence, .. } => format!("take-over: {evidence:?}"),
            Reason::HandingOver { cause, .. } => format!("handover: {cause:?}"),
            other => format!("{other:?}"),
        };
        let cut = text.find(|c: char| !(c.is_alphanumeric() || c == ':' || c == ' ' || c == '-'));
        let name = text[..cut.unwrap_or(text.len())].trim().to_owned();
        let name = match &decision.reason {
            Reason::TakingOver {
                evidence: baton::decide::Evidence::Clean { cause, .. },
                ..
            } => {
                format!("{name} {cause:?}")
            }
            _ => name,
        };
        *self.coverage.entry(name).or_default() += 1;
    }

    /// What a member with a broken rule sees.
    fn twisted_view(&self, index: usize) -> Option<Observation> {
        let node = &self.nodes[index];
        match self.broken {
            Broken::Nothing | Broken::SkipVerify | Broken::KeepDevice => None,
            Broken::IgnoreBeats => {
                let mut seen = node.seen.clone();
                if let Seen::Known { value, at: _ } = &mut seen.mailbox {
                    for entry in &mut value.members {
                        if entry.host != node.host {
                            entry.key.beat = fencing::Beat::ZERO;
                        }
                    }
                    if let fencing::Holder::Member(entry) = &mut value.holder
                        && entry.host != node.host
                    {
                        entry.key.beat = fencing::Beat::ZERO;
                    }
                }
                Some(seen)
            }
            Broken::AbsenceIsPermission => {
                let mut seen = node.seen.clone();
                let nobody = seen
                    .mailbox
                    .known()
                    .is_some_and(|mailbox| mailbox.holder == fencing::Holder::Nobody);
                if nobody {
                    let at = self.clock(index);
                    for peer in node.config.peers() {
                        let heartbeat = self.a_lie(index, peer);
                        seen.peers.insert(
                            peer,
                            Seen::Known {
                                value: heartbeat,
                                at,
                            },
                        );
                    }
                }
                Some(seen)
            }
        }
    }

    /// "I have nothing of the volume", which nobody said.
    fn a_lie(&self, index: usize, peer: fencing::MemberId) -> Heartbeat {
        let node = &self.nodes[index];
        let heard = Heard {
            incarnation: Incarnation(node.process),
            sequence: u64::MAX,
        };
        Heartbeat {
            member: peer,
            incarnation: Incarnation(0),
            sequence: 1,
            role: baton::decide::RoleName::Standby,
            epoch: node.memory.newest,
            custody: Custody::Nothing,
            ready: false,
            reachable: true,
            volume: true,
            failed: false,
            stuck: false,
            handover: None,
            heard: [(node.config.member, heard)].into(),
        }
    }

    fn carry_out(&mut self, index: usize, action: Action) -> Result<(), String> {
        match action {
            Action::Begin(step) => self.begin_step(index, step)?,
            Action::Beat { epoch, flags } => self.beat(index, epoch, flags),
            Action::WriteLease {
                expected,
                record,
                deadline: _,
            } => {
                if !self.nodes[index].lease_writing {
                    self.nodes[index].lease_writing = true;
                    let ask = StoreAsk::CompareAndSet { expected, record };
                    self.ask_store(index, ask, StorePurpose::Write);
                }
            }
            Action::Publish(heartbeat) => self.publish(index, &heartbeat),
            Action::Refresh { mailbox, lease } => {
                if mailbox {
                    self.report(index);
                }
                if lease {
                    self.read_lease(index);
                }
            }
            Action::PublishRole { .. } => {}
            Action::Answer { request, answer } => {
                let node = &mut self.nodes[index];
                if RequestId(node.next_request) == request {
                    let ask = node.requests.pop_front();
                    node.next_request += 1;
                    self.note(|| format!("member {}: {ask:?} answered {answer:?}", index + 1));
                }
            }
            Action::Exit => {
                self.crash(index);
                self.nodes[index].exited = true;
                let delay = self.rng.range(100, 3000) * MS;
                self.after(delay, Event::Start { node: index });
            }
        }
        Ok(())
    }

    fn publish(&mut self, index: usize, heartbeat: &Heartbeat) {
        for to in 0..self.nodes.len() {
            if to == index || self.cut.contains(&(index, to)) || !self.nodes[to].running {
                continue;
            }
            if self.lossy > 0 && self.rng.chance(self.lossy) {
                continue;
            }
            let mut delay = self.rng.range(50, 2_000);
            if self.late > 0 && self.rng.chance(self.late) {
                delay = self.rng.range(1, 3_000) * MS;
            }
            let process = self.nodes[to].process;
            let heartbeat = Box::new(heartbeat.clone());
            self.after(
                delay,
                Event::Message {
                    to,
                    process,
                    heartbeat,
                },
            );
        }
    }

    /// Within one incarnation an older heartbeat never replaces a newer one.
    pub fn heard(&mut self, to: usize, heartbeat: Heartbeat) -> Result<(), String> {
        let at = self.clock(to);
        let known = self.nodes[to].seen.peers.get(&heartbeat.member);
        let stale = known.and_then(|seen| seen.known()).is_some_and(|known| {
            (known.incarnation, known.sequence) >= (heartbeat.incarnation, heartbeat.sequence)
        });
        if stale {
            return Ok(());
        }
        let member = heartbeat.member;
        self.nodes[to].seen.peers.insert(
            member,
            Seen::Known {
                value: heartbeat,
                at,
            },
        );
        self.decide(to)
    }

    // The volume's mailbox.

    pub fn report(&mut self, index: usize) {
        if self.nodes[index].reporting {
            self.nodes[index].report_again = true;
            return;
        }
        self.nodes[index].reporting = true;
        let began = self.clock(index);
        self.send(
            index,
            What::Reservation(Command::Report),
            Purpose::Report { began },
        );
    }

    pub fn reported(
        &mut self,
        index: usize,
        outcome: Outcome,
        began: fencing::Mono,
    ) -> Result<(), String> {
        self.nodes[index].reporting = false;
        match outcome {
            Outcome::Report(report) => self.read_report(index, &report, began),
            Outcome::Done | Outcome::Refused(_) | Outcome::NotSent | Outcome::Unknown => {
                let seen = &mut self.nodes[index].seen.mailbox;
                if let Seen::Known { .. } = seen {
                    *seen = Seen::Unknown {
                        since: began,
                        cause: "no report".to_owned(),
                    };
                }
            }
        }
        if std::mem::take(&mut self.nodes[index].report_again) {
            self.report(index);
        }
        self.decide(index)
    }

    fn read_report(&mut self, index: usize, report: &ReservationReport, began: fencing::Mono) {
        let node = &mut self.nodes[index];
        let mailbox = Mailbox::read(report, cluster());
        let fencing = node
            .step
            .as_ref()
            .is_some_and(|run| !matches!(run.running, Running::Plain));
        if !node.beating && !fencing {
            node.key = mailbox.of_host(node.host).map(|entry| entry.key);
        }
        node.seen.mailbox = Seen::Known {
            value: mailbox,
            at: began,
        };
    }

    fn beat(&mut self, index: usize, epoch: fencing::Epoch, flags: KeyFlags) {
        let node = &mut self.nodes[index];
        let Some(current) = node.key.filter(|_| !node.beating) else {
            return;
        };
        let new = current.saying(epoch, flags);
        node.beating = true;
        let persistence = ChangePersistence::Unchanged;
        let command = Command::Replace {
            current,
            new,
            persistence,
        };
        self.send(index, What::Reservation(command), Purpose::Beat { new });
    }

    pub fn beaten(&mut self, index: usize, new: fencing::ReservationKey, outcome: &Outcome) {
        let node = &mut self.nodes[index];
        node.beating = false;
        if *outcome == Outcome::Done {
            node.key = Some(new);
        }
        self.report(index);
    }

    // The lease store.

    pub fn read_lease(&mut self, index: usize) {
        if !self.nodes[index].lease_polling {
            self.nodes[index].lease_polling = true;
            self.ask_store(index, StoreAsk::Read, StorePurpose::Poll);
        }
    }

    pub fn ask_store(&mut self, index: usize, ask: StoreAsk, purpose: StorePurpose) {
        let began = self.clock(index);
        let node = &self.nodes[index];
        let process = node.process;
        let deadline = node.config.timings.lease_deadline.as_micros() as u64;
        let lost = !node.lease_up || self.rng.chance(self.lossy / 2);
        if lost {
            // Sometimes only the answer is lost.
            if self.rng.chance(30) && self.nodes[index].lease_up {
                let _ = self.store.ask(&ask);
            }
            let reply = Event::StoreReply {
                node: index,
                process,
                answer: None,
                purpose,
                began,
            };
            self.after(deadline, reply);
            return;
        }
        let delay = self.rng.range(200, 4_000);
        self.after(
            delay,
            Event::StoreArrive {
                node: index,
                process,
                ask,
                purpose,
                began,
            },
        );
    }

    pub fn store_arrive(
        &mut self,
        node: usize,
        process: u64,
        ask: &StoreAsk,
        purpose: StorePurpose,
        began: fencing::Mono,
    ) {
        let answer = Some(self.store.ask(ask));
        let delay = self.rng.range(200, 4_000);
        self.after(
            delay,
            Event::StoreReply {
                node,
                process,
                answer,
                purpose,
                began,
            },
        );
    }

    pub fn store_replied(
        &mut self,
        index: usize,
        answer: Option<StoreAnswer>,
        purpose: StorePurpose,
        began: fencing::Mono,
    ) -> Result<(), String> {
        let node = &mut self.nodes[index];
        let newer = node.seen.lease.known_at().is_none_or(|(_, at)| began >= at);
        match &answer {
            Some(answer) if newer => {
                let value = crate::world::lease_of(answer);
                node.seen.lease = Seen::Known { value, at: began };
            }
            Some(_) => {}
            None => {
                if let Seen::Known { .. } = node.seen.lease {
                    let cause = "no answer".to_owned();
                    node.seen.lease = Seen::Unknown {
                        since: began,
                        cause,
                    };
                }
            }
        }
        match purpose {
            StorePurpose::Poll => node.lease_polling = false,
            StorePurpose::Write => node.lease_writing = false,
            StorePurpose::Claim(id) => {
                use baton::decide::Outcome as Ended;
                let outcome = match answer {
                    Some(answer) if answer.done => Ended::Done,
                    Some(_) => Ended::ClaimLost,
                    None => Ended::Overdue,
                };
                return self.end_step(index, id, outcome);
            }
        }
        self.decide(index)
    }

    // The way to the target and back.

    pub fn send(&mut self, index: usize, what: What, purpose: Purpose) -> u64 {
        let id = self.fresh();
        let node = &self.nodes[index];
        let sent = Sent {
            node: index,
            process: node.process,
            what,
            purpose,
            at: self.now,
            serving: false,
        };
        let io = matches!(sent.what, What::Io(_));
        let timeout = node.config.timings.command.as_micros() as u64;
        let path = node.path;
        self.commands.insert(id, sent);
        let latency = self.rng.range(30, 400);
        match path {
            Path::Up if self.target.up => {
                if !io && self.lossy > 0 && self.rng.chance(self.lossy / 3) {
                    self.parked.push(id); // Lost for now, perhaps for ever.
                } else {
                    self.after(latency, Event::Arrive { command: id });
                }
            }
            Path::Up | Path::Refused if io => {
                self.commands.remove(&id); // It stays in the device's queue.
            }
            Path::Up | Path::Refused => {
                self.after(
                    latency,
                    Event::Reply {
                        command: id,
                        outcome: Outcome::NotSent,
                    },
                );
            }
            Path::Blackhole => self.parked.push(id),
        }
        if !io {
            self.after(timeout, Event::TimeOut { command: id });
        }
        id
    }

    pub fn arrive(&mut self, id: u64) -> Result<(), String> {
        if !self.target.up {
            return Ok(());
        }
        let Some(sent) = self.commands.get_mut(&id) else {
            return Ok(());
        };
        let host = self.nodes[sent.node].host;
        sent.serving = true;
        let what = sent.what.clone();
        match self.target.accept(host, &what, self.now) {
            Accepted::Answer(outcome) => self.answer(id, outcome),
            Accepted::Draining(drain) => self.draining.push((drain, id)),
            Accepted::Began(began) => {
                let mut service = self.rng.range(20, 300);
                if self.slow > 0 && self.rng.chance(self.slow) {
                    service = self.rng.range(1, 950) * MS;
                }
                self.after(
                    service,
                    Event::Finish {
                        command: id,
                        id: began,
                    },
                );
            }
        }
        Ok(())
    }

    /// A write takes effect.
    pub fn finish(&mut self, id: u64, began: fencing::model::CommandId) -> Result<(), String> {
        let mut alive = self.target.model.in_flight().any(|(id, ..)| id == began);
        alive &= self.target.up;
        if !alive {
            return Ok(()); // The target went down under it.
        }
        let io = match self.commands.get(&id).map(|sent| &sent.what) {
            Some(What::Io(io)) => *io,
            Some(_) | None => return Ok(()),
        };
        self.target.apply(&io)?;
        let drained = self.target.model.finish(began);
        self.answer(id, Outcome::Done);
        for drain in drained {
            let waiting = self
                .draining
                .iter()
                .position(|(waiting, _)| *waiting == drain);
            if let Some(at) = waiting {
                let (_, command) = self.draining.remove(at);
                self.answer(command, Outcome::Done);
            }
        }
        Ok(())
    }

    fn answer(&mut self, id: u64, outcome: Outcome) {
        let Some(sent) = self.commands.get_mut(&id) else {
            return;
        };
        sent.serving = false;
        let io = matches!(sent.what, What::Io(_));
        let path = self.nodes[sent.node].path;
        let lost = path != Path::Up || (!io && self.lossy > 0 && self.rng.chance(self.lossy / 3));
        if lost {
            if io {
                self.commands.remove(&id);
            }
            return;
        }
        let latency = self.rng.range(30, 400);
        self.after(
            latency,
            Event::Reply {
                command: id,
                outcome,
            },
        );
    }

    pub fn timed_out(&mut self, id: u64) -> Result<(), String> {
        let Some(sent) = self.commands.get(&id) else {
            return Ok(());
        };
        // It may still arrive and be carried out; only nobody waits for it.
        let (node, purpose) = (sent.node, sent.purpose.clone());
        self.conclude(node, purpose, Outcome::Unknown, id)
    }

    pub fn replied(&mut self, id: u64, outcome: Outcome) -> Result<(), String> {
        let Some(sent) = self.commands.remove(&id) else {
            return Ok(());
        };
        self.conclude(sent.node, sent.purpose, outcome, id)
    }

    fn conclude(
        &mut self,
        node: usize,
        purpose: Purpose,
        outcome: Outcome,
        id: u64,
    ) -> Result<(), String> {
        if outcome == Outcome::Unknown
            && let Some(sent) = self.commands.get_mut(&id)
        {
            sent.process = 0; // The answer, should it come, is nobody's.
        }
        match purpose {
            Purpose::Report { began } => self.reported(node, outcome, began),
            Purpose::Beat { new } => {
                self.beaten(node, new, &outcome);
                Ok(())
            }
            Purpose::Sequence(step) => self.drive(node, step, Some(outcome)),
            Purpose::Announce { id, new } => self.announced(node, id, new, &outcome),
            Purpose::Unregister(step) => {
                use baton::decide::Outcome as Ended;
                let ended = match outcome {
                    Outcome::Done => Ended::Done,
                    _ => Ended::Failed {
                        cause: String::new(),
                    },
                };
                self.end_step(node, step, ended)
            }
            Purpose::Confirm(step) => self.confirmed(node, step, outcome),
            Purpose::Device { made, io } => self.device_replied(node, made, io, outcome),
        }
    }

    pub fn ask(&mut self, index: usize, ask: Ask) {
        if !self.nodes[index].running {
            return;
        }
        self.nodes[index].requests.push_back(ask);
        self.nodes[index].wake = self.now;
        let process = self.nodes[index].process;
        self.after(
            0,
            Event::Wake {
                node: index,
                process,
            },
        );
    }
}
