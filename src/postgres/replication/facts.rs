//! What one look at PostgreSQL tells about replication.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::postgres::Lsn;

/// A place in the history of a database system. Ordered by timeline first: use the order only between
/// timelines of which one is known to descend from the other.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Position {
    /// The timeline.
    pub timeline: u32,
    /// The place on it.
    pub lsn: Lsn,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on timeline {}", self.lsn, self.timeline)
    }
}

/// One look at this site's own PostgreSQL.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Whether it replays, as a replica does.
    pub in_recovery: bool,
    /// The system identifier.
    pub system: u64,
    /// The timeline of the write-ahead log that is written or received.
    pub timeline: u32,
    /// A primary: what is flushed. A replica: what is received and flushed, at least what is replayed.
    pub flushed: Lsn,
    /// What is replayed; on a primary the same as `flushed`.
    pub replayed: Lsn,
    /// `synchronous_standby_names` in force.
    pub names: String,
    /// Whether a WAL receiver process exists, connected or not.
    pub receiving: bool,
    /// The age of the last message from the primary by this server's clock; `None` without a connection.
    pub heard: Option<Duration>,
    /// The age of the last replayed commit; `None` on a primary, if all that was received is replayed, and if
    /// none was replayed since the start.
    pub replay_delay: Option<Duration>,
    /// Who receives from here under a name of Baton's through the slot of that name, by `application_name`.
    pub followers: BTreeMap<String, Follower>,
    /// Names of Baton's, in small letters, under which others receive: PostgreSQL counts them, and no letter's size.
    pub pretenders: BTreeSet<String>,
    /// Baton's own settings that an `ALTER SYSTEM` since the start has changed.
    pub overridden: BTreeSet<String>,
    /// The physical slots with a name of Baton's.
    pub slots: BTreeMap<String, Slot>,
}

impl Facts {
    /// The names under which somebody else receives than the site of that name, whose role is `user`.
    pub fn strangers(&self, user: &str) -> BTreeSet<&str> {
        let others = self.followers.iter();
        let others = others.filter(|(_, follower)| follower.user != user);
        let others = others.map(|(name, _)| name.as_str());
        self.pretenders
            .iter()
            .map(String::as_str)
            .chain(others)
            .collect()
    }
}

/// A replica that receives from here (`pg_stat_replication`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Follower {
    /// The role that it connects as.
    pub user: String,
    /// `startup`, `catchup`, `streaming`, `backup` or `stopping`.
    pub state: String,
    /// What was sent.
    pub sent: Lsn,
    /// What it has flushed.
    pub flushed: Lsn,
    /// What it has replayed.
    pub replayed: Lsn,
    /// `async`, `potential`, `sync` or `quorum`.
    pub sync_state: String,
    /// How long a recent commit took until it was flushed there; `None` when it is idle and has everything.
    pub flush_lag: Option<Duration>,
    /// How long a recent commit took until it was replayed there; `None` when it is idle and has everything.
    pub replay_lag: Option<Duration>,
    /// Microseconds since 1970 at which the connection began, by this server's clock: tells one connection from the next.
    pub started: u64,
}

/// Whether the write-ahead log that a slot needs is still there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WalStatus {
    /// Within `max_wal_size`.
    Reserved,
    /// Beyond `max_wal_size`, kept for this slot or another.
    Extended,
    /// Some may be removed at the next checkpoint; a replica that catches up at once keeps the slot.
    Unreserved,
    /// Some is removed: the slot is of no more use.
    Lost,
}

/// A physical slot (`pg_replication_slots`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    /// Whether a replica is connected to it.
    pub active: bool,
    /// Whether what it needs is there; `None` as long as nobody has used it and it reserves nothing.
    pub wal_status: Option<WalStatus>,
    /// The oldest position that is kept for it.
    pub restart: Option<Lsn>,
    /// How many bytes of write-ahead log are kept for it; 0 if none are.
    pub retained: u64,
    /// How many bytes may be written before it can be lost; `None` if it cannot, or is already.
    pub safe: Option<u64>,
}

/// What the PostgreSQL of another site says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// The system identifier.
    pub system: u64,
    /// The major version.
    pub major: u32,
    /// Whether it replays, as a replica does.
    pub in_recovery: bool,
    /// The timeline that it writes or receives.
    pub timeline: u32,
    /// A primary: what is flushed there. A replica: what it has received and flushed.
    pub position: Lsn,
    /// The asking site's slot there.
    pub slot: Option<Slot>,
}
