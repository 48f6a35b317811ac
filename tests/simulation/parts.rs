//! What the simulated world is made of: events, commands on their way, members with their machines.

use std::collections::{BTreeMap, VecDeque};

use baton::decide::{Config, Heartbeat, Memory, Observation, Reason, Step, StepId};
use fencing::model::CommandId;
use fencing::{FenceSequence, Mono, Outcome, ReservationKey, StartSequence, WritePermit};
use nvme::HostId;

use crate::store::{StoreAnswer, StoreAsk};
use crate::target::{Io, Session, What};

#[derive(Clone, Debug)]
pub enum Event {
    /// The member's own timer.
    Wake {
        node: usize,
        process: u64,
    },
    PollMailbox {
        node: usize,
        process: u64,
    },
    PollLease {
        node: usize,
        process: u64,
    },
    Arrive {
        command: u64,
    },
    Finish {
        command: u64,
        id: CommandId,
    },
    Reply {
        command: u64,
        outcome: Outcome,
    },
    TimeOut {
        command: u64,
    },
    StoreArrive {
        node: usize,
        process: u64,
        ask: StoreAsk,
        purpose: StorePurpose,
        began: Mono,
    },
    StoreReply {
        node: usize,
        process: u64,
        answer: Option<StoreAnswer>,
        purpose: StorePurpose,
        began: Mono,
    },
    Message {
        to: usize,
        process: u64,
        heartbeat: Box<Heartbeat>,
    },
    /// A local step is done, or fails.
    StepDone {
        node: usize,
        process: u64,
        id: StepId,
    },
    StepDeadline {
        node: usize,
        process: u64,
        id: StepId,
    },
    SequenceTimer {
        node: usize,
        process: u64,
        id: StepId,
    },
    Client {
        node: usize,
        session: Session,
    },
    Writeback {
        node: usize,
        session: Session,
    },
    Platform {
        node: usize,
        process: u64,
    },
    Start {
        node: usize,
    },
    Thaw {
        node: usize,
        until: u64,
    },
    Fault {
        index: usize,
    },
    HealPath {
        node: usize,
    },
    /// The device's own connection comes back, later than the path.
    Reconnect {
        node: usize,
        process: u64,
    },
    HealLease {
        node: usize,
    },
    HealLink {
        from: usize,
        to: usize,
    },
    TargetUp,
    HealAll,
    Judge,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StorePurpose {
    Poll,
    Write,
    Claim(StepId),
}

/// How a host reaches the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    Up,
    /// Connections break and are refused.
    Refused,
    /// Packets vanish; what was sent may still arrive.
    Blackhole,
}

/// A command between a host and the target.
#[derive(Clone, Debug)]
pub struct Sent {
    pub node: usize,
    pub process: u64,
    pub what: What,
    pub purpose: Purpose,
    pub at: u64,
    /// Being carried out at the target.
    pub serving: bool,
}

#[derive(Clone, Debug)]
pub enum Purpose {
    Report { began: Mono },
    Beat { new: ReservationKey },
    Sequence(StepId),
    Announce { id: StepId, new: ReservationKey },
    Unregister(StepId),
    Confirm(StepId),
    Device { made: u64, io: u64 },
}

pub enum Running {
    Fence(Box<FenceSequence>),
    Start(Box<StartSequence>),
    Plain,
}

/// The step under way.
pub struct StepRun {
    pub step: Step,
    pub running: Running,
    /// The IO that it waits for.
    pub io: Option<u64>,
    /// Nothing of it goes on any more: at its deadline it ends.
    pub hung: bool,
    pub since: Mono,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pg {
    Stopped,
    Starting,
    Running,
    Stopping,
}

/// The block device of a member with the filesystem on it.
#[derive(Default)]
pub struct DeviceState {
    pub made: u64,
    pub attached: bool,
    pub outstanding: BTreeMap<u64, Io>,
    pub mounted: Option<Session>,
    /// A mount that has not come back: its first write.
    pub mounting: Option<u64>,
    /// `FS_IOC_SHUTDOWN`.
    pub shut: bool,
}

pub struct Txn {
    pub slot: usize,
    pub record: u64,
    pub io: u64,
    pub flushing: bool,
    /// It is the write that proves a start.
    pub proves_start: bool,
}

pub struct Node {
    pub host: HostId,
    pub config: Config,
    pub offset_ms: u64,
    pub ppm: i64,
    pub running: bool,
    pub process: u64,
    pub frozen_until: Option<u64>,
    pub deferred: Vec<Event>,
    pub memory: Memory,
    pub seen: Observation,
    pub reason: Reason,
    pub wake: u64,
    pub key: Option<ReservationKey>,
    pub beating: bool,
    pub reporting: bool,
    pub report_again: bool,
    pub lease_polling: bool,
    pub lease_writing: bool,
    pub step: Option<StepRun>,
    pub permit: Option<WritePermit>,
    /// Broken on purpose: a permit that nothing proved.
    pub pretended: Option<baton::decide::PermitFacts>,
    pub device: DeviceState,
    pub pg: Pg,
    pub txn: Option<Txn>,
    pub next_slot: usize,
    pub path: Path,
    pub lease_up: bool,
    /// Writes of an earlier process may be left.
    pub mark: bool,
    pub requests: VecDeque<baton::decide::Ask>,
    pub next_request: u64,
    /// PostgreSQL fails to start as often.
    pub bad_starts: u32,
    /// Local steps of this kind fail as often.
    pub bad_steps: u32,
    /// Crash when this many more steps have begun.
    pub crash_in_steps: Option<u64>,
    /// When it last proved a hold (true time), for the judge.
    pub exited: bool,
}
