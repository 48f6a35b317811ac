//! The drills of two sites: what is done, and what must follow.

use std::time::Duration;

/// One drill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ZoneScenario {
    /// Its name.
    pub name: &'static str,
    /// What is done.
    pub what: &'static str,
    /// What must follow.
    pub must: &'static str,
    /// How it is done.
    pub fault: ZoneFault,
    /// How often the primary moves to the other site. For each, the timelines must show a promotion.
    pub promotions: usize,
    /// The longest gap that passes. It holds the time after which a site is given up
    /// (`site_detection`); the drill proves that service returns, the benchmark how fast.
    pub max_gap: Duration,
}

/// How a drill breaks the system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZoneFault {
    /// SIGKILL to everything of the primary's site.
    Loss,
    /// The line gets slow, then slow and lossy; then the primary's site is lost while a failover is
    /// said to be safe.
    Latency,
    /// The primary's site loses the lease store and the other site, but not its clients.
    Partition,
    /// A partition; then a loss after which the old primary's log is no use for rewinding.
    Rejoin,
    /// SIGKILL to everything of the replica site's active.
    ReplicaHandover,
    /// The replica's site is away for longer than the primary keeps log for it.
    SlotOverflow,
}

/// All drills of two sites.
#[rustfmt::skip] // A table.
pub const SCENARIOS: [ZoneScenario; 6] = [
    ZoneScenario { name: "zone-loss", fault: ZoneFault::Loss, promotions: 1, max_gap: secs(45),
        what: "SIGKILL to the primary's whole site: target, members, PostgreSQL",
        must: "the other site is promoted; the lost one comes back as replica" },
    ZoneScenario { name: "zone-latency", fault: ZoneFault::Latency, promotions: 1, max_gap: secs(45),
        what: "300 ms, then 2 s with 5 % loss between the sites; the primary's site is lost while failover is safe",
        must: "always either safe, or said at once not to be, and why; nothing lost" },
    ZoneScenario { name: "zone-partition", fault: ZoneFault::Partition, promotions: 1, max_gap: secs(60),
        what: "the primary's site loses the lease store and the other site; its clients still reach it",
        must: "promotion; nothing acknowledged on the old side after it; it comes back as replica" },
    ZoneScenario { name: "rejoin", fault: ZoneFault::Rejoin, promotions: 2, max_gap: secs(60),
        what: "a partition; then a loss after which the old primary's log is gone",
        must: "the old primary comes back by pg_rewind; then by a new base backup" },
    ZoneScenario { name: "replica-handover", fault: ZoneFault::ReplicaHandover, promotions: 0, max_gap: secs(30),
        what: "SIGKILL to everything of the replica site's active",
        must: "its standby takes the replica over; the primary stays, no session breaks, the slot is kept" },
    ZoneScenario { name: "slot-overflow", fault: ZoneFault::SlotOverflow, promotions: 0, max_gap: secs(45),
        what: "the replica's site is away for more log than its slot may keep",
        must: "the slot is given up, the primary's disk does not fill, the replica is made anew" },
];

const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

impl ZoneScenario {
    /// How much log a slot may keep in this drill's own lab, if not the default.
    pub fn slot_wal_max(&self) -> Option<&'static str> {
        (self.fault == ZoneFault::SlotOverflow).then_some("64MB")
    }
}

/// The names of all drills of two sites.
pub fn names() -> impl Iterator<Item = &'static str> {
    SCENARIOS.iter().map(|scenario| scenario.name)
}

/// The drill of this name.
pub fn find(name: &str) -> Option<&'static ZoneScenario> {
    SCENARIOS.iter().find(|scenario| scenario.name == name)
}
