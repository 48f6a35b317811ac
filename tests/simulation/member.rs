//! One simulated member's process: the loop around the real `decide`, its observers and its signs of
//! life. The steps are in `steps.rs`.

use baton::decide::{
    Action, Answer, Ask, Device, Heartbeat, Incarnation, Life, Local, Memory, Mount, Observation,
    PermitFacts, Postgres, Reason, Request, RequestId, Running as RunningStep, Seen, Work, decide,
};

use crate::store::StoreAsk;
use crate::world::{DeviceState, Event, MS, Node, Path, Pg, StorePurpose, World};

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
            pretended: None,
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
            agent_away: None,
        },
        running: None,
        finished: None,
        request: None,
        stopping: false,
        zone: None,
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
        node.pretended = None;
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

    pub fn platform_says(&mut self, index: usize, life: Life) {
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

    pub fn facts(&mut self, index: usize) {
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
        local.permit = local.permit.or(node.pretended);
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
        if self.check_replay && self.decisions.is_multiple_of(61) {
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

    pub fn crossed_into_ownership(&mut self, index: usize, decision: &baton::decide::Decision) {
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

    pub fn carry_out(&mut self, index: usize, action: Action) -> Result<(), String> {
        match action {
            Action::WriteCluster { .. } | Action::RefreshCluster => {
                return Err("there is one site".to_owned());
            }
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
            Action::Reload { request } => self.note_answer(index, request, &Answer::Done),
            Action::Answer { request, answer } => self.note_answer(index, request, &answer),
            Action::Exit => {
                self.crash(index);
                self.nodes[index].exited = true;
                let delay = self.rng.range(100, 3000) * MS;
                self.after(delay, Event::Start { node: index });
            }
        }
        Ok(())
    }

    fn note_answer(&mut self, index: usize, request: RequestId, answer: &Answer) {
        let node = &mut self.nodes[index];
        if RequestId(node.next_request) == request {
            let ask = node.requests.pop_front();
            node.next_request += 1;
            self.note(|| format!("member {}: {ask:?} answered {answer:?}", index + 1));
        }
    }

    pub fn publish(&mut self, index: usize, heartbeat: &Heartbeat) {
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
