//! One simulated site: the memory of its active, its PostgreSQL, its volume.

use std::collections::{BTreeMap, BTreeSet};

use baton::decide::Postgres;
use baton::decide::zone::{Data, Position, SiteName, ZoneConfig, ZoneMemory};
use fencing::Mono;

use super::steps::Step;

/// One commit, anywhere.
pub type Entry = u64;

/// A site whose intra-site failovers are restarts of it.
pub struct Site {
    pub name: SiteName,
    pub config: ZoneConfig,
    pub memory: ZoneMemory,
    /// Its members live.
    pub up: bool,
    /// When it will be lost.
    pub doomed: Option<Mono>,
    /// It reaches the lease store.
    pub store: bool,
    pub epoch: u32,
    pub proven_at: Mono,
    /// Counts its lease's renewals.
    pub lease: u64,
    pub step: Option<Step>,
    pub postgres: Postgres,
    /// PostgreSQL replays.
    pub replica: bool,
    /// `synchronous_standby_names`.
    pub names: (u8, BTreeSet<SiteName>),
    /// From which site it receives.
    pub receives: Option<usize>,
    /// When it last heard from there.
    pub heard: Mono,
    /// The volume: the log, its timeline, and what the data directory is.
    pub log: Vec<Entry>,
    pub timeline: u32,
    pub state: Option<(u64, Data)>,
    /// What the copy must have received before it stands for the one before.
    pub floor: Option<Position>,
    /// What this primary knows of its followers.
    pub flushed: BTreeMap<SiteName, usize>,
    /// Commits that wait, by their index in the log.
    pub waiting: Vec<usize>,
}

impl Site {
    pub fn new(name: SiteName, config: ZoneConfig) -> Self {
        Self {
            name,
            config,
            memory: ZoneMemory::default(),
            up: true,
            doomed: None,
            store: true,
            epoch: 1,
            proven_at: Mono::ZERO,
            lease: 0,
            step: None,
            postgres: Postgres::Stopped,
            replica: false,
            names: (0, BTreeSet::new()),
            receives: None,
            heard: Mono::ZERO,
            log: Vec::new(),
            timeline: 1,
            state: None,
            floor: None,
            flushed: BTreeMap::new(),
            waiting: Vec::new(),
        }
    }

    /// PostgreSQL ends, whatever it was doing.
    pub fn stop(&mut self) {
        self.postgres = Postgres::Stopped;
        self.receives = None;
        self.waiting.clear();
        self.flushed.clear();
    }

    /// All of it is gone, but for the volume.
    pub fn lose(&mut self) {
        self.up = false;
        self.doomed = None;
        self.step = None;
        self.stop();
    }

    /// Another member, or another process, of the site owns the volume now.
    pub fn take_over(&mut self, now: Mono) {
        self.stop();
        self.step = None;
        self.epoch += 1;
        self.proven_at = now;
        self.memory = self.memory.mounted(now);
    }

    pub fn leads(&self) -> bool {
        self.up && self.postgres == Postgres::Running && !self.replica
    }
}
