//! The simulated world: sites, links between them, the lease store, clients, faults, invariants.

use std::collections::BTreeSet;
use std::time::Duration;

use baton::decide::zone::{
    ClusterLease, ClusterRecord, How, Judge, Move, Owner, SiteName, Situation, Synchronous,
    ZoneConfig, ZoneReason, ZoneSeen,
};
use baton::decide::{LeaseVersion, Postgres, Seen as Look, Timings, Work};
use fencing::{Epoch, MemberId, Mono};

use super::broken::Broken;
use super::rng::Rng;
use super::site::{Entry, Site};

/// How long one run has faults, and how long it has none after that.
const FAULTS: Duration = Duration::from_secs(150);
const CALM: Duration = Duration::from_secs(120);
const TICK: Duration = Duration::from_millis(100);

/// What happened, so that nothing is proven by its absence.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    pub failovers: u64,
    pub switchovers: u64,
    pub degraded: u64,
    pub confirmed: u64,
    pub superseded: u64,
    pub withdrawn: u64,
    pub restored: u64,
    pub acknowledged: u64,
}

impl Seen {
    pub fn add(&mut self, other: &Self) {
        self.failovers += other.failovers;
        self.switchovers += other.switchovers;
        self.degraded += other.degraded;
        self.confirmed += other.confirmed;
        self.superseded += other.superseded;
        self.withdrawn += other.withdrawn;
        self.restored += other.restored;
        self.acknowledged += other.acknowledged;
    }
}

/// A compare-and-set on its way to the store.
struct Write {
    at: Mono,
    expected: Option<LeaseVersion>,
    record: ClusterRecord,
}

pub struct World {
    pub rng: Rng,
    pub broken: Broken,
    pub tell: bool,
    pub seen: Seen,
    pub now: Mono,
    pub sites: Vec<Site>,
    /// Acknowledged, or shown by a primary.
    pub promised: Vec<Entry>,
    /// Up to where that was checked, in which term.
    checked: (u64, usize),
    pub newest: Entry,
    timings: Timings,
    pub record: Option<ClusterLease>,
    versions: u64,
    writes: Vec<Write>,
    /// Pairs of sites without a connection.
    pub cut: BTreeSet<(usize, usize)>,
}

impl World {
    pub fn new(seed: u64, broken: Broken) -> Self {
        let mut rng = Rng::new(seed);
        let count = rng.range(2, 5) as usize;
        let names: Vec<_> = ["a", "b", "c", "d"][..count]
            .iter()
            .map(|name| SiteName((*name).to_owned()))
            .collect();
        let synchronous = match rng.range(0, 3) {
            0 => Synchronous::Required,
            _ => Synchronous::Preferred,
        };
        let quorum = rng.range(1, count as u64) as u8;
        let config = |site: &SiteName| ZoneConfig {
            site: site.clone(),
            sites: names.iter().map(|name| (name.clone(), true)).collect(),
            synchronous,
            quorum,
            first: names[0].clone(),
            archive: false,
        };
        let sites = names
            .iter()
            .map(|name| Site::new(name.clone(), config(name)));
        Self {
            sites: sites.collect(),
            rng,
            broken,
            tell: false,
            seen: Seen::default(),
            now: Mono::from_millis(10_000),
            promised: Vec::new(),
            checked: (0, 0),
            newest: 0,
            timings: Timings::default(),
            record: None,
            versions: 0,
            writes: Vec::new(),
            cut: BTreeSet::new(),
        }
    }

    pub fn say(&self, what: impl FnOnce() -> String) {
        if self.tell {
            println!("{:>8} {}", self.now.as_millis(), what());
        }
    }

    pub fn index(&self, name: &SiteName) -> usize {
        self.sites
            .iter()
            .position(|site| site.name == *name)
            .expect("a known site")
    }

    pub fn connected(&self, one: usize, other: usize) -> bool {
        !self.cut.contains(&(one.min(other), one.max(other)))
            && self.sites[one].up
            && self.sites[other].up
    }

    /// Runs to the end of the calm.
    pub fn run(&mut self) -> Result<(), String> {
        let faults = self.now + FAULTS;
        let end = faults + CALM;
        while self.now < end {
            self.now = self.now + TICK;
            match self.now < faults {
                true => self.fault(),
                false => self.heal(),
            }
            self.store();
            self.replicate(5);
            self.clients();
            self.steps();
            for index in 0..self.sites.len() {
                self.act(index);
            }
            self.check()?;
        }
        self.settled()
    }

    /// Every promised commit is where the record says that the primary is, or shall be.
    fn check(&mut self) -> Result<(), String> {
        let Some(lease) = &self.record else {
            return Ok(());
        };
        let primary = self.index(&lease.record.primary);
        let log = &self.sites[primary].log;
        // All of it where the primary has moved; else what is new.
        let from = match self.checked {
            (term, count) if term == lease.record.term => count,
            _ => 0,
        };
        let mut unchecked = self.promised[from..].iter();
        let lost = unchecked.find(|entry| log.binary_search(entry).is_err());
        self.checked = (lease.record.term, self.promised.len());
        match lost {
            Some(lost) => Err(format!(
                "{lost} was promised and is not at {}: {:?}",
                lease.record.primary, lease.record
            )),
            None => Ok(()),
        }
    }

    /// After the calm one site leads, commits are acknowledged, and the others follow.
    fn settled(&self) -> Result<(), String> {
        let record = self.record.as_ref().map(|lease| lease.record.clone());
        let leading: Vec<_> = self.sites.iter().filter(|site| site.leads()).collect();
        let [leader] = leading.as_slice() else {
            return Err(format!(
                "{} primaries at the end: {record:?}",
                leading.len()
            ));
        };
        let behind = |site: &&Site| site.log.len() + 50 < leader.log.len();
        if let Some(site) = self.sites.iter().find(behind) {
            return Err(format!("{} does not follow: {record:?}", site.name));
        }
        match record {
            Some(record) if record.sync.need > 0 && record.sync.confirmed => Ok(()),
            other => Err(format!("nothing is promised at the end: {other:?}")),
        }
    }

    /// Renewals, and the writes whose time has come.
    fn store(&mut self) {
        for site in &mut self.sites {
            if site.up && site.store && self.now.as_millis() % 1_000 < 100 {
                site.lease += 1;
            }
        }
        let due = |write: &Write| self.now >= write.at;
        let (due, later): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.writes).into_iter().partition(due);
        self.writes = later;
        for write in due {
            let found = self.record.as_ref().map(|lease| lease.version.clone());
            if found == write.expected {
                self.count(&write.record);
                self.say(|| format!("record {:?}", write.record));
                self.versions += 1;
                self.record = Some(ClusterLease {
                    version: LeaseVersion(self.versions.to_string()),
                    record: write.record,
                });
            }
        }
    }

    fn count(&mut self, next: &ClusterRecord) {
        let Some(before) = self.record.as_ref().map(|lease| &lease.record) else {
            return;
        };
        let how = next.history.last().map(|promotion| promotion.how);
        if next.term > before.term {
            self.seen.failovers += u64::from(how == Some(How::Failover));
            self.seen.switchovers += u64::from(how == Some(How::Switchover));
        } else {
            self.seen.degraded += u64::from(before.sync.need > 0 && next.sync.need == 0);
            self.seen.confirmed += u64::from(!before.sync.confirmed && next.sync.confirmed);
            self.seen.withdrawn += u64::from(next.cuts.len() < before.cuts.len());
        }
    }

    /// Replicas receive, `most` commits each, and tell how far they are.
    pub fn replicate(&mut self, most: usize) {
        for index in 0..self.sites.len() {
            let Some(of) = self.sites[index].receives else {
                continue;
            };
            let running = self.sites[index].postgres == Postgres::Running;
            if !running || !self.connected(index, of) || !self.sites[of].leads() {
                let name = self.sites[index].name.clone();
                self.sites[of].flushed.remove(&name);
                continue;
            }
            let source = std::mem::take(&mut self.sites[of].log);
            let timeline = self.sites[of].timeline;
            let site = &mut self.sites[index];
            let ours = site.log.len();
            // Entries grow: where the last one is the same, all are.
            let same = ours == 0 || source.get(ours - 1) == site.log.last();
            if same {
                site.heard = self.now;
                site.timeline = timeline;
                let till = ours.saturating_add(most).min(source.len());
                site.log.extend_from_slice(&source[ours..till]);
            }
            let (name, flushed) = (site.name.clone(), site.log.len());
            self.sites[of].log = source;
            if !same {
                continue; // Another history.
            }
            if most == usize::MAX || self.rng.chance(70) {
                self.sites[of].flushed.insert(name, flushed);
            }
        }
    }

    /// One commit a tick at every primary, and what it acknowledges.
    fn clients(&mut self) {
        for site in self.sites.iter_mut().filter(|site| site.leads()) {
            self.newest += 1;
            site.log.push(self.newest);
            site.waiting.push(site.log.len() - 1);
            let (need, names) = &site.names;
            let has = |index: usize| {
                let flushed = names.iter().filter_map(|name| site.flushed.get(name));
                flushed.filter(|flushed| **flushed > index).count() >= usize::from(*need)
            };
            let done = site.waiting.iter().take_while(|index| has(**index)).count();
            for index in site.waiting.drain(..done) {
                self.promised.push(site.log[index]);
                self.seen.acknowledged += 1;
            }
        }
    }

    pub fn judge(
        &mut self,
        index: usize,
        with: impl FnOnce(Judge<'_>) -> Option<Move>,
    ) -> Option<Move> {
        let mut seen = self.see(index);
        let site = &mut self.sites[index];
        let own = Owner {
            member: MemberId::new(1).expect("1 is a number"),
            epoch: Epoch::new(site.epoch).expect("a small number"),
        };
        deceive(self.broken, &mut seen, site, own);
        let judge = Judge {
            config: &site.config,
            timings: &self.timings,
            seen: &seen,
            situation: Situation {
                member: own.member,
                epoch: own.epoch,
                proven_at: site.proven_at,
                awake_since: site.proven_at,
                postgres: site.postgres,
                paused: false,
            },
            memory: &mut site.memory,
            now: self.now,
        };
        with(judge)
    }

    fn act(&mut self, index: usize) {
        if !self.sites[index].up {
            return;
        }
        let superseded = self.judge(index, |judge| judge.superseded_now().map(Move::Kill));
        let stays = self.broken == Broken::StaysPrimary;
        if superseded.is_some() && self.sites[index].postgres != Postgres::Stopped {
            self.seen.superseded += 1;
            if stays {
                return;
            }
            self.sites[index].stop();
            self.sites[index].step = None;
        }
        if self.sites[index].step.is_some() {
            return;
        }
        if let Some(next) = self.judge(index, |judge| Some(judge.judge())) {
            self.carry_out(index, next);
        }
    }

    pub fn carry_out(&mut self, index: usize, next: Move) {
        let epoch = Epoch::new(self.sites[index].epoch).expect("a small number");
        let record = self.record.as_ref().map(|lease| &lease.record);
        let (term, writes, primary) = record.map_or((0, 0, None), |record| {
            (record.term, record.writes, Some(record.primary.clone()))
        });
        let work = match next {
            Move::Wait(_) | Move::KeepSlots => return,
            Move::Write {
                expected,
                record,
                why: _,
            } => {
                return self.write(index, expected, *record);
            }
            Move::Align { reseed } => Work::Align {
                epoch,
                term,
                writes,
                primary: primary.unwrap_or(self.sites[index].name.clone()),
                reseed,
            },
            Move::Start(serve) => Work::Serve { epoch, serve },
            Move::Reconfigure(serve) => Work::Reconfigure { epoch, serve },
            Move::Promote(serve) => Work::Promote {
                epoch,
                term,
                writes,
                above: 0,
                serve,
            },
            Move::Stop(ZoneReason::Moving(_)) => Work::StopToMove,
            Move::Stop(_) | Move::Kill(_) => Work::KillPostgres,
        };
        self.begin(index, work);
    }

    /// A compare-and-set takes its time; one in twenty is lost on its way, some arrive long after.
    fn write(&mut self, index: usize, expected: Option<LeaseVersion>, mut record: ClusterRecord) {
        if !self.sites[index].store || self.rng.chance(5) {
            return;
        }
        let mut slow = 15;
        let before = self.record.as_ref().map(|lease| &lease.record);
        if let Some(before) = before.filter(|before| before.term == record.term) {
            if self.broken == Broken::SpeaksForOthers && !record.cuts.is_empty() {
                for site in &record.sync.sites {
                    record.cuts.entry(site.clone()).or_default();
                }
            }
            if self.broken == Broken::KeepsConfirmed && before.sync.confirmed {
                record.sync.confirmed |= record.sync.need > 0;
            }
            if self.broken == Broken::DegradesSilently && record.sync.need == 0 {
                record.sync = before.sync.clone();
                self.sites[index].names.0 = 0;
            }
            if self.broken == Broken::PostgresFirst && record.sync.need == 0 {
                self.sites[index].names.0 = 0;
                slow = 100;
            }
        }
        let late = if self.rng.chance(slow) { 20_000 } else { 800 };
        let at = self.now + Duration::from_millis(self.rng.range(0, late));
        self.writes.push(Write {
            at,
            expected,
            record,
        });
    }
}

/// What a member without one of the rules sees, or goes by.
fn deceive(broken: Broken, seen: &mut ZoneSeen, site: &mut Site, own: Owner) {
    let record = match &mut seen.record {
        Look::Known { value, .. } => value.as_mut().map(|lease| &mut lease.record),
        Look::Unknown { .. } => None,
    };
    match (broken, record, &mut seen.postgres) {
        (Broken::ForgetsOwners, Some(record), _) => {
            record.owners.insert(site.name.clone(), own);
        }
        // What was written over the old record is taken for done.
        (Broken::KeepsConfirmed, Some(record), _) if site.postgres == Postgres::Stopped => {
            record.sync.confirmed = false;
        }
        (Broken::TrustsFailure, _, Look::Known { value, .. }) => {
            site.memory.unsure = false;
            if let Some((_, serve)) = &site.memory.runs {
                value.names = serve.names();
            }
        }
        _ => {}
    }
}
