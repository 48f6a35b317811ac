//! The simulated world: time, events, members with their machines, networks, the volume, the store.
//!
//! One thread, one queue of events, one source of chance: a seed determines everything. Times are in
//! microseconds of true time; every member sees them through its own drifting clock.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::time::Duration;

use baton::decide::{Config, Lease, TimingSettings, Timings};
use fencing::model::{DrainId, Quirks};
use fencing::{ClusterTag, MemberId, Mono};
use nvme::HostId;

use crate::faults::Fault;
use crate::rng::Rng;
use crate::store::{Store, StoreAnswer};
use crate::target::{Session, Target};

pub use crate::broken::Broken;
pub use crate::parts::{
    DeviceState, Event, Node, Path, Pg, Purpose, Running, Sent, StepRun, StorePurpose, Txn,
};

pub const MS: u64 = 1_000;
pub const SECOND: u64 = 1_000_000;

pub struct World {
    pub now: u64,
    pub rng: Rng,
    pub queue: BinaryHeap<Reverse<(u64, u64, usize)>>,
    pub events: Vec<Option<Event>>,
    free: Vec<usize>,
    order: u64,
    pub nodes: Vec<Node>,
    pub target: Target,
    pub store: Store,
    pub commands: BTreeMap<u64, Sent>,
    pub next_id: u64,
    pub draining: Vec<(DrainId, u64)>,
    /// Commands that left a host whose packets vanish.
    pub parked: Vec<u64>,
    pub cut: BTreeSet<(usize, usize)>,
    pub lossy: u64,
    pub slow: u64,
    pub late: u64,
    pub faults: Vec<(u64, Fault)>,
    pub platform: bool,
    pub broken: Broken,
    pub healed: Option<u64>,
    pub sessions: Session,
    pub records: u64,
    pub owners: Vec<(u64, usize)>,
    pub committed_after_heal: u64,
    pub trace: Option<Vec<String>>,
    pub decisions: u64,
    pub drain_wait: Duration,
    pub stop: bool,
    pub check_replay: bool,
    /// How often each kind of take-over, handover and stop happened.
    pub coverage: BTreeMap<String, u64>,
}

/// The result of one seed, or of many.
#[derive(Default)]
pub struct Outcomes {
    pub decisions: u64,
    pub takeovers: usize,
    pub acknowledged: usize,
    pub refused: u64,
    pub coverage: BTreeMap<String, u64>,
}

impl Outcomes {
    pub fn add(&mut self, other: Self) {
        let Self {
            decisions,
            takeovers,
            acknowledged,
            refused,
            coverage,
        } = other;
        self.decisions += decisions;
        self.takeovers += takeovers;
        self.acknowledged += acknowledged;
        self.refused += refused;
        for (what, count) in coverage {
            *self.coverage.entry(what).or_default() += count;
        }
    }
}

pub fn cluster() -> ClusterTag {
    ClusterTag::of("simulation")
}

/// Timings for a faster clock of the machinery, with detection as in production.
/// Those of a lease that is renewed rarely in every fourth world.
pub fn timings(rng: &mut Rng, seed: u64) -> Timings {
    let ms = Duration::from_millis;
    let rare = seed.is_multiple_of(4);
    let defaults = if rare {
        TimingSettings::kubernetes()
    } else {
        TimingSettings::default()
    };
    let settings = TimingSettings {
        storage_beats: rng.chance(90) || rare,
        keep_alive: ms(500),
        quiesce: ms(1000),
        command: ms(500),
        fence: ms(8000),
        path_loss_timeout: ms(5000),
        handover: ms(7000),
        lease_deadline: ms(500),
        retry: ms(rng.range(200, 1000)),
        rebuild: ms(3000),
        prepare: ms(1500),
        format: ms(3000),
        mount: ms(3000),
        start: ms(5000),
        checkpoint: ms(2000),
        stop_fast: ms(1500),
        stop_immediate: ms(800),
        kill: ms(1000),
        unmount: ms(2000),
        max_takeovers: 30,
        takeover_window: ms(60_000),
        restart_budget: 2,
        restart_window: ms(20_000),
        ..defaults
    };
    Timings::new(settings).expect("the simulation's timings fit")
}

impl World {
    pub fn new(seed: u64, broken: Broken) -> Self {
        let mut rng = Rng::new(seed);
        let count = [2, 2, 2, 3, 3, 4][rng.index(6)];
        let timings = timings(&mut rng, seed);
        let quirks = [Quirks::NONE, Quirks::NVMET_6_13, Quirks::SPDK][rng.index(3)];
        let persistent = rng.chance(60) && !quirks.volatile;
        let volatile = rng.chance(30);
        let drain_wait = timings.keep_alive * 3 + timings.quiesce;
        let mut world = Self {
            now: 0,
            queue: BinaryHeap::new(),
            events: Vec::new(),
            free: Vec::new(),
            order: 0,
            nodes: Vec::new(),
            target: Target::new(quirks, persistent, volatile),
            store: Store::default(),
            commands: BTreeMap::new(),
            next_id: 1,
            draining: Vec::new(),
            parked: Vec::new(),
            cut: BTreeSet::new(),
            lossy: 0,
            slow: 0,
            late: 0,
            faults: Vec::new(),
            platform: rng.chance(40),
            broken,
            healed: None,
            sessions: 0,
            records: 0,
            owners: Vec::new(),
            committed_after_heal: 0,
            trace: None,
            decisions: 0,
            drain_wait,
            stop: false,
            check_replay: seed.is_multiple_of(50),
            coverage: BTreeMap::new(),
            rng,
        };
        world.build_nodes(count, &timings, seed.is_multiple_of(3));
        world.plan_faults();
        world
    }

    fn build_nodes(&mut self, count: u8, timings: &Timings, routed: bool) {
        let members: BTreeSet<MemberId> = (1..=count).filter_map(MemberId::new).collect();
        for (index, member) in members.iter().enumerate() {
            let config = Config {
                member: *member,
                members: members.clone(),
                bootstrap: MemberId::new(1).expect("1 is a number"),
                timings: timings.clone(),
                routed,
                zone: None,
            };
            let ppm = self.rng.range(0, 10_000) as i64 - 5_000;
            let offset_ms = self.rng.range(1_000, 10_000_000);
            let host = HostId::from_bytes([index as u8 + 1; 16]);
            self.nodes.push(Node::new(host, config, offset_ms, ppm));
            let at = self.rng.range(0, 300) * MS;
            self.at(at, Event::Start { node: index });
        }
    }

    /// Runs to the end, or to the first broken invariant.
    pub fn run(&mut self) -> Result<Outcomes, String> {
        while let Some(Reverse((at, _, slot))) = self.queue.pop() {
            let Some(event) = self.events[slot].take() else {
                continue;
            };
            self.free.push(slot);
            self.now = at;
            self.handle(event)
                .map_err(|broken| format!("at {} ms: {broken}", at / MS))?;
            if self.stop {
                break;
            }
        }
        self.target.invariant_acknowledged_kept()?;
        Ok(Outcomes {
            decisions: self.decisions,
            takeovers: self.owners.len(),
            acknowledged: self.target.acknowledged.len(),
            refused: self.target.refused,
            coverage: std::mem::take(&mut self.coverage),
        })
    }

    pub fn after(&mut self, delay: u64, event: Event) {
        self.at(self.now + delay, event);
    }

    pub fn at(&mut self, at: u64, event: Event) {
        self.order += 1;
        let slot = match self.free.pop() {
            Some(slot) => {
                self.events[slot] = Some(event);
                slot
            }
            None => {
                self.events.push(Some(event));
                self.events.len() - 1
            }
        };
        self.queue
            .push(Reverse((at.max(self.now), self.order, slot)));
    }

    pub fn fresh(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    pub fn note(&mut self, text: impl FnOnce() -> String) {
        let now = self.now;
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:>9.3} {}", now as f64 / 1000.0, text()));
        }
    }

    /// The member's own clock.
    pub fn clock(&self, node: usize) -> Mono {
        let node = &self.nodes[node];
        let scaled = self.now as i128 * i128::from(1_000_000 + node.ppm) / 1_000_000_000;
        Mono::from_millis(node.offset_ms + scaled as u64)
    }

    /// True time until the member's clock shows `then`.
    pub fn until(&self, node: usize, then: Mono) -> u64 {
        let left = self.clock(node).until(then).as_millis() as i128;
        let ppm = i128::from(self.nodes[node].ppm);
        (left * 1_000_000_000 / (1_000_000 + ppm)) as u64 + MS / 2
    }

    /// Which process an event is for; `None` for the world itself.
    fn addressee(event: &Event) -> Option<(usize, Option<u64>)> {
        match event {
            Event::Wake { node, process }
            | Event::PollMailbox { node, process }
            | Event::PollLease { node, process }
            | Event::StoreReply { node, process, .. }
            | Event::StepDone { node, process, .. }
            | Event::StepDeadline { node, process, .. }
            | Event::SequenceTimer { node, process, .. }
            | Event::Reconnect { node, process }
            | Event::Message {
                to: node, process, ..
            } => Some((*node, Some(*process))),
            Event::Client { node, .. } | Event::Writeback { node, .. } => Some((*node, None)),
            Event::Arrive { .. }
            | Event::Finish { .. }
            | Event::Reply { .. }
            | Event::TimeOut { .. }
            | Event::StoreArrive { .. }
            | Event::Platform { .. }
            | Event::Start { .. }
            | Event::Thaw { .. }
            | Event::Fault { .. }
            | Event::HealPath { .. }
            | Event::HealLease { .. }
            | Event::HealLink { .. }
            | Event::TargetUp
            | Event::HealAll
            | Event::Judge => None,
        }
    }

    fn handle(&mut self, event: Event) -> Result<(), String> {
        let mut addressee = Self::addressee(&event);
        if let Event::Reply { command, .. } | Event::TimeOut { command } = &event {
            let Some(sent) = self.commands.get(command) else {
                return Ok(());
            };
            addressee = Some((sent.node, Some(sent.process)));
        }
        if let Some((node, process)) = addressee {
            let there = &mut self.nodes[node];
            if !there.running || process.is_some_and(|process| process != there.process) {
                return Ok(());
            }
            if there.frozen_until.is_some() {
                there.deferred.push(event);
                return Ok(());
            }
        }
        match event {
            Event::Wake { node, process: _ } => {
                if self.nodes[node].wake <= self.now {
                    return self.decide(node);
                }
                Ok(())
            }
            Event::PollMailbox { node, process } => {
                self.report(node);
                let observe = self.nodes[node].config.timings.observe.as_micros() as u64;
                self.after(observe, Event::PollMailbox { node, process });
                Ok(())
            }
            Event::PollLease { node, process } => {
                self.read_lease(node);
                let observe = self.nodes[node].config.timings.observe.as_micros() as u64;
                self.after(observe, Event::PollLease { node, process });
                Ok(())
            }
            Event::Arrive { command } => self.arrive(command),
            Event::Finish { command, id } => self.finish(command, id),
            Event::Reply { command, outcome } => self.replied(command, outcome),
            Event::TimeOut { command } => self.timed_out(command),
            Event::StoreArrive {
                node,
                process,
                ask,
                purpose,
                began,
            } => {
                self.store_arrive(node, process, &ask, purpose, began);
                Ok(())
            }
            Event::StoreReply {
                node,
                process: _,
                answer,
                purpose,
                began,
            } => self.store_replied(node, answer, purpose, began),
            Event::Message {
                to,
                process: _,
                heartbeat,
            } => self.heard(to, *heartbeat),
            Event::StepDone {
                node,
                process: _,
                id,
            } => self.step_done(node, id),
            Event::StepDeadline {
                node,
                process: _,
                id,
            } => self.step_overdue(node, id),
            Event::SequenceTimer {
                node,
                process: _,
                id,
            } => self.drive(node, id, None),
            Event::Client { node, session } => self.client(node, session),
            Event::Writeback { node, session } => {
                self.write_back(node, session);
                Ok(())
            }
            Event::Platform { node, process } => {
                self.platform_says_exited(node, process);
                Ok(())
            }
            Event::Start { node } => {
                self.start(node);
                Ok(())
            }
            Event::Thaw { node, until } => {
                self.thaw(node, until);
                Ok(())
            }
            Event::Fault { index } => self.strike(index),
            Event::Reconnect { node, process: _ } => {
                if self.nodes[node].path == Path::Up && self.target.up {
                    self.resend(node);
                }
                Ok(())
            }
            Event::HealPath { node } => {
                self.heal_path(node);
                Ok(())
            }
            Event::HealLease { node } => {
                self.nodes[node].lease_up = true;
                Ok(())
            }
            Event::HealLink { from, to } => {
                self.cut.remove(&(from, to));
                Ok(())
            }
            Event::TargetUp => {
                self.target_up();
                Ok(())
            }
            Event::HealAll => self.heal_all(),
            Event::Judge => self.judge(),
        }
    }
}

/// What the store's record says, for an observation.
pub fn lease_of(answer: &StoreAnswer) -> Option<Lease> {
    answer.lease.clone()
}
