//! The drills: what is done, and what must follow.

use std::time::Duration;

/// One drill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scenario {
    /// Its name.
    pub name: &'static str,
    /// What is done.
    pub what: &'static str,
    /// What must follow.
    pub must: &'static str,
    /// How it is done.
    pub fault: Fault,
    /// What is checked, beside what holds for all: no acknowledged write lost, nothing duplicated,
    /// no write of a fenced host applied, filesystem and database clean, one active and a ready
    /// standby at the end.
    pub expect: Expect,
}

/// How a drill breaks the system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// An operator's switchover.
    Switchover,
    /// SIGTERM to the active member.
    Terminate,
    /// SIGKILL to everything of the active.
    KillSide,
    /// The kernel of the active's machine panics.
    Panic,
    /// SIGKILL to the active's postmaster.
    KillPostmaster,
    /// SIGSTOP to everything of the active, later SIGCONT.
    Freeze,
    /// The active loses its path to the target.
    CutStorage,
    /// The active loses the lease store and its peers.
    Isolate,
    /// Nobody reaches the lease store.
    LoseLease,
    /// The target is restarted with its reservations, then without.
    RestartTarget,
    /// The active side is killed and the target loses its volatile cache.
    LosePower,
}

/// What must follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expect {
    /// Who owns the volume at the end.
    pub owner: Owner,
    /// Whether the former owner must have been fenced, by the target's record.
    pub fenced: bool,
    /// Whether the target must have refused writes of the fenced host.
    pub refused_writes: bool,
    /// The longest gap that passes. Far above what is measured on an idle machine: the drill proves
    /// that service returns by itself, the benchmark how fast.
    pub max_gap: Duration,
}

/// Who owns the volume at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The former standby, with a greater epoch.
    Moved,
    /// The same member, with the same epoch.
    Same,
    /// Either, whatever the epoch.
    Either,
}

const fn moved(fenced: bool, refused_writes: bool, max_gap: u64) -> Expect {
    Expect {
        owner: Owner::Moved,
        fenced,
        refused_writes,
        max_gap: Duration::from_secs(max_gap),
    }
}

const fn stays(owner: Owner, max_gap: u64) -> Expect {
    let max_gap = Duration::from_secs(max_gap);
    Expect {
        owner,
        fenced: false,
        refused_writes: false,
        max_gap,
    }
}

/// All drills that one machine can do.
#[rustfmt::skip] // A table.
pub const SCENARIOS: [Scenario; 10] = [
    Scenario { name: "planned", fault: Fault::Switchover, expect: moved(true, false, 5),
        what: "switchover while writers hammer",
        must: "one gap, no error that a retry does not cure" },
    Scenario { name: "sigterm", fault: Fault::Terminate, expect: moved(true, false, 5),
        what: "the active gets SIGTERM, as from a pod delete",
        must: "as planned" },
    Scenario { name: "crash", fault: Fault::KillSide, expect: moved(true, false, 15),
        what: "SIGKILL to the whole active side: member, PostgreSQL, bridge",
        must: "take-over with verified fence" },
    Scenario { name: "postgres-crash", fault: Fault::KillPostmaster, expect: stays(Owner::Same, 15),
        what: "SIGKILL to the postmaster",
        must: "local restart, no take-over" },
    Scenario { name: "freeze", fault: Fault::Freeze, expect: moved(true, true, 20),
        what: "SIGSTOP to the whole active side past detection, then SIGCONT",
        must: "take-over; the zombie's writes are refused by the target; it comes back as standby" },
    Scenario { name: "storage-cut", fault: Fault::CutStorage, expect: moved(true, false, 30),
        what: "the active loses its path to the target",
        must: "take-over; the old side stops itself" },
    Scenario { name: "isolated", fault: Fault::Isolate, expect: moved(true, false, 20),
        what: "lease store and peers unreachable for the active, volume reachable",
        must: "clean handover through the volume's mailbox" },
    Scenario { name: "lease-outage", fault: Fault::LoseLease, expect: stays(Owner::Same, 2),
        what: "lease store gone for all",
        must: "no interruption at all" },
    Scenario { name: "target-restart", fault: Fault::RestartTarget, expect: stays(Owner::Either, 60),
        what: "the target restarts, with and without kept reservations",
        must: "no second writer, service returns" },
    Scenario { name: "power-loss", fault: Fault::LosePower, expect: moved(true, false, 20),
        what: "volatile cache lost together with the active",
        must: "every acknowledged write survives" },
];

/// Only where the kernel's own initiator queues what it cannot send. The frozen side is its path: the
/// rest of it goes on, but for the member, which would stop it.
pub const STORAGE_REPLAY: Scenario = Scenario {
    name: "storage-replay",
    what: "the active's kernel loses its path, queues its writes, and gets the path back",
    must: "take-over; the replayed writes are refused by the target; it comes back as standby",
    fault: Fault::Freeze,
    expect: moved(true, true, 20),
};

/// Only where every member has a kernel of its own.
pub const KERNEL_PANIC: Scenario = Scenario {
    name: "kernel-panic",
    what: "the kernel of the active's machine panics",
    must: "take-over with verified fence",
    fault: Fault::Panic,
    expect: moved(true, false, 15),
};

impl Scenario {
    /// Whether the target needs a volatile write cache for it.
    pub fn needs_cache(&self) -> bool {
        self.fault == Fault::LosePower
    }
}

/// The names of all drills.
pub fn names() -> impl Iterator<Item = &'static str> {
    SCENARIOS.iter().map(|scenario| scenario.name)
}

/// The drill of this name.
pub fn find(name: &str) -> Option<&'static Scenario> {
    SCENARIOS.iter().find(|scenario| scenario.name == name)
}
