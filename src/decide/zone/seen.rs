//! What a site's active sees of the other sites, and remembers of it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use fencing::Mono;
use serde::{Deserialize, Serialize};

use super::record::{ClusterLease, ClusterRecord, Owner, Position, SiteName, Synchronous};
use crate::decide::memory::{Span, Track};
use crate::decide::{Lease, LeaseVersion, Outcome, RequestId, Seen, Work};
use crate::postgres::Lsn;

/// What of the configuration the decisions between sites rest on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ZoneConfig {
    /// This member's site.
    pub site: SiteName,
    /// All sites, this one among them, and whether each may ever run the primary.
    pub sites: BTreeMap<SiteName, bool>,
    /// Whether commits wait for other sites.
    pub synchronous: Synchronous,
    /// For how many (`ANY n`).
    pub quorum: u8,
    /// The site that makes the database at the very first start.
    pub first: SiteName,
    /// There is an archive from which a replica fetches what the primary does not keep any more.
    #[serde(default)]
    pub archive: bool,
}

/// A site in a request: the how-manieth of the configured ones by name, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SiteNumber(pub u8);

impl ZoneConfig {
    /// The site of this number.
    pub fn numbered(&self, number: SiteNumber) -> Option<&SiteName> {
        self.sites.keys().nth(number.0.into())
    }

    /// The number of a site.
    pub fn number_of(&self, site: &str) -> Option<SiteNumber> {
        let index = self.sites.keys().position(|known| known.0 == site)?;
        u8::try_from(index).ok().map(SiteNumber)
    }

    /// The sites that may run the primary, but for this one: `primary`.
    pub fn candidates(&self, primary: &SiteName) -> BTreeSet<SiteName> {
        let others = self
            .sites
            .iter()
            .filter(|(site, may)| **may && *site != primary);
        others.map(|(site, _)| site.clone()).collect()
    }
}

/// How PostgreSQL runs on this site's volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Serve {
    /// As the primary of a cluster of one site.
    #[default]
    Alone,
    /// As the primary; commits wait for `need` of `sites`, for none with 0.
    Primary {
        /// How many.
        need: u8,
        /// Of which.
        sites: BTreeSet<SiteName>,
    },
    /// As a replica.
    Replica {
        /// Of the primary at this site.
        of: SiteName,
        /// Whether it receives from there.
        receive: bool,
    },
}

impl Serve {
    /// A primary whose commits wait for no other site.
    pub fn waiting_for_none() -> Self {
        Self::Primary {
            need: 0,
            sites: BTreeSet::new(),
        }
    }

    /// `synchronous_standby_names`; empty but for a primary whose commits wait.
    pub fn names(&self) -> String {
        match self {
            Self::Primary { need, sites } if *need > 0 => {
                let names: Vec<_> = sites.iter().map(SiteName::in_postgres).collect();
                format!("ANY {need} ({})", names.join(", "))
            }
            Self::Primary { .. } | Self::Replica { .. } | Self::Alone => String::new(),
        }
    }
}

/// What the data directory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Data {
    /// A primary's; it may be started as one.
    Primary,
    /// A replica's: to become a primary it must be promoted.
    Replica,
}

/// What another site's PostgreSQL, or this one's, knows of a follower.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Follower {
    /// It streams (and does not catch up, or wait).
    pub streaming: bool,
    /// What it has flushed.
    pub flushed: Lsn,
    /// What it has replayed.
    pub replayed: Lsn,
}

/// A replication slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotFacts {
    /// It no longer keeps what its site needs.
    pub lost: bool,
    /// From where the log is kept; `None` where it never was used.
    pub from: Option<Lsn>,
    /// How much log it keeps, in bytes.
    pub retained: u64,
}

/// One look at this member's own PostgreSQL.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PostgresFacts {
    /// The system identifier.
    pub system: u64,
    /// It replays.
    pub in_recovery: bool,
    /// What is flushed: of its own log, or of what it received.
    pub flushed: Position,
    /// What is replayed; on a primary as `flushed`.
    pub replayed: Lsn,
    /// `synchronous_standby_names` in force.
    pub names: String,
    /// A WAL receiver runs.
    pub receiving: bool,
    /// How long ago it heard from the primary, in milliseconds.
    pub heard_ms: Option<u64>,
    /// By how much the newest replayed commit is older than now, in milliseconds.
    pub delay_ms: Option<u64>,
    /// The sites that follow.
    pub followers: BTreeMap<SiteName, Follower>,
    /// Their slots.
    pub slots: BTreeMap<SiteName, SlotFacts>,
}

/// One look at the primary's PostgreSQL from another site.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeFacts {
    /// The site that was asked.
    pub site: SiteName,
    /// The system identifier.
    pub system: u64,
    /// It replays: no primary.
    pub in_recovery: bool,
    /// What it has flushed.
    pub flushed: Position,
    /// The slot of the asking site.
    pub slot: Option<SlotFacts>,
}

/// What is seen between sites.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ZoneSeen {
    /// The cluster's record; `Known(None)` where the store answers and has none.
    pub record: Seen<Option<ClusterLease>>,
    /// The leases of the other sites.
    pub leases: BTreeMap<SiteName, Seen<Option<Lease>>>,
    /// This member's own PostgreSQL.
    pub postgres: Seen<PostgresFacts>,
    /// The primary's PostgreSQL, where that is another site's.
    pub probe: Seen<ProbeFacts>,
}

/// What is remembered of a primary's follower.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pursuit {
    /// What it must reach next.
    pub goal: Lsn,
    /// Since when it has not.
    pub since: Mono,
    /// The most that it has ever told this primary to have: less than that is another copy.
    #[serde(default)]
    pub told: Lsn,
}

/// The steps of stopping a primary that moves to another site.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stopping {
    /// Not begun, or not wanted.
    #[default]
    Not,
    /// The checkpoint before is done.
    Checkpointed,
    /// Clients are led away.
    Withdrawn,
    /// It did not stop in order within its time.
    Overdue,
}

/// The newest record that is known of, here or by what is noted beside the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Newest {
    /// How many writes it had seen.
    pub writes: u64,
    /// Its term.
    pub term: u64,
    /// Its greatest timeline; 0 where that is not noted.
    pub timeline: u32,
}

impl Newest {
    /// Whether that record is an older one.
    pub fn outdates(self, record: &ClusterRecord) -> bool {
        record.writes < self.writes
    }

    /// What is known of this record.
    pub fn of(record: &ClusterRecord) -> Self {
        Self {
            writes: record.writes,
            term: record.term,
            timeline: record.newest_timeline,
        }
    }
}

/// An operator's failover.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Urged {
    /// The request to answer.
    pub request: RequestId,
    /// The term in which it was asked.
    pub term: u64,
    /// The operator accepts that acknowledged writes may be lost.
    pub allow_data_loss: bool,
    /// When. It is an answer to what was seen then, and not for ever.
    pub at: Mono,
}

/// An operator's move of the primary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// The request to answer.
    pub request: RequestId,
    /// To which site.
    pub to: SiteName,
    /// The term in which it was asked.
    pub term: u64,
    /// When.
    pub at: Mono,
}

impl Urged {
    /// Whether a step that began then is one of those that this word asks for.
    pub fn has_begun(&self, work: &Work, began: Mono, holds: Duration) -> bool {
        let leaves = matches!(
            work,
            Work::Serve {
                serve: Serve::Replica { receive: false, .. },
                ..
            } | Work::Reconfigure {
                serve: Serve::Replica { receive: false, .. },
                ..
            }
        );
        leaves && began >= self.at && !self.at.elapsed(holds, began)
    }
}

impl ZoneMemory {
    /// A step that began then is over. A start may take longer than an operator's word `holds`: it does not
    /// expire by what it asked for itself.
    pub(in crate::decide) fn worked(
        &mut self,
        work: &Work,
        began: Mono,
        now: Mono,
        holds: Duration,
    ) {
        if let Some(urged) = &mut self.urged
            && urged.has_begun(work, began, holds)
        {
            urged.at = urged.at + now.since(began);
        }
    }

    /// Whether PostgreSQL here is the primary, as far as is known; with one site, `several` false,
    /// always.
    pub fn leads(&self, several: bool) -> bool {
        !several || matches!(self.runs, Some((_, Serve::Primary { .. } | Serve::Alone)))
    }

    /// The memory at a mount: what was known of the data directory is not known any more.
    pub fn mounted(&self, now: Mono) -> Self {
        Self {
            since: now,
            at_rest: true,
            leases: self.leases.clone(),
            reads: self.reads,
            alive: self.alive,
            newest: self.newest,
            ..Self::default()
        }
    }
}

impl ZoneMemory {
    /// What this copy lacks still of what the one before it may have acknowledged: it must have received up to
    /// there, and `received` says how far it is. A greater timeline is one that this cluster began later, under
    /// whose primary the copy before was none any more.
    pub fn lacks(&self, received: Option<Position>) -> Option<Position> {
        let reached = self.stopped.or(received);
        self.floor
            .filter(|floor| reached.is_none_or(|reached| reached < *floor))
    }

    /// What was known of a running PostgreSQL is over.
    pub(super) fn stopped_postgres(&mut self) {
        self.runs = None;
        self.unsure = false;
        self.began = None;
        self.named = None;
        self.stopping = Stopping::Not;
        self.pursuits.clear();
    }

    /// Takes in how a step ended that changes how PostgreSQL runs, or what its data directory is.
    pub fn take_in(&mut self, work: &Work, outcome: &Outcome, now: Mono) {
        let aligned = self.aligned.map_or(0, |(term, _)| term);
        match (work, outcome) {
            (Work::Align { term, .. }, Outcome::Aligned { data, floor }) => {
                self.aligned = Some((*term, *data));
                self.floor = *floor;
                self.misaligned = 0;
                self.reseed = false;
            }
            (Work::Align { .. }, Outcome::RecordOlder { known, data }) => {
                self.newest = self.newest.max(Some(*known));
                self.led = (*data == Data::Primary).then_some(known.term);
            }
            (Work::Align { .. }, Outcome::CopyNeeded { .. }) => self.reseed = true,
            // Which copy it is now has to be looked at again.
            (Work::Align { .. }, _) => {
                self.aligned = None;
                self.misaligned = self.misaligned.saturating_add(1);
            }
            (Work::Serve { serve, .. }, Outcome::Done) => {
                self.runs = Some((aligned, serve.clone()));
                self.unsure = false;
                self.since = now;
                self.stopped = None;
                self.ended = None;
            }
            (Work::Reconfigure { serve, .. }, Outcome::Reconfigured { position }) => {
                let term = self.runs.as_ref().map_or(aligned, |(term, _)| *term);
                self.runs = Some((term, serve.clone()));
                self.unsure = false;
                self.since = now;
                self.named = None;
                self.stopped = *position;
            }
            // It may have come into force, or may yet.
            (Work::Reconfigure { .. }, _) => {
                self.unsure = true;
                self.named = None;
                self.stopped = None;
            }
            (Work::Promote { term, serve, .. }, Outcome::Done) => {
                self.aligned = Some((*term, Data::Primary));
                self.runs = Some((*term, serve.clone()));
                self.unsure = false;
                self.since = now;
                self.began = None;
                self.stopped = None;
            }
            (Work::KeepSlots { .. }, _) => self.kept_slots = Some(now),
            (Work::StopToMove, Outcome::ShutDown { at }) => self.ended = Some(*at),
            (Work::StopToMove, _) => self.stopping = Stopping::Overdue,
            (Work::Checkpoint, _) => self.stopping = Stopping::Checkpointed,
            (Work::Withdraw { .. }, _) => self.stopping = Stopping::Withdrawn,
            _ => {}
        }
    }
}

/// What a member remembers between two decisions about sites.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ZoneMemory {
    /// The term with which the data directory was brought in line, and what it is, since it was
    /// mounted.
    pub aligned: Option<(u64, Data)>,
    /// What the copy that the data directory is must have received before everything is there that this
    /// site ever acknowledged.
    #[serde(default)]
    pub floor: Option<Position>,
    /// How PostgreSQL was started, or told to run since, and in which term; `None` while it is
    /// stopped.
    pub runs: Option<(u64, Serve)>,
    /// It was told to run in another way, and it is not known whether it does.
    pub unsure: bool,
    /// When PostgreSQL was started, promoted, or told to run in another way.
    pub since: Mono,
    /// The log's end when this primary began: what it showed then must be on the other sites.
    pub began: Option<Lsn>,
    /// The log's end when `synchronous_standby_names` last came into force.
    pub named: Option<Lsn>,
    /// The followers of this primary.
    pub pursuits: BTreeMap<SiteName, Pursuit>,
    /// The versions of the other sites' leases.
    pub leases: BTreeMap<SiteName, Track<Option<LeaseVersion>>>,
    /// The reads of the primary's lease without a gap.
    pub reads: Option<Span>,
    /// The primary's newest sign of life on any channel.
    pub alive: Option<Mono>,
    /// Where this site stopped to receive.
    pub stopped: Option<Position>,
    /// When the record was last written.
    pub wrote: Option<Mono>,
    /// The version that the last write named: until another is seen, it may be on its way.
    pub wrote_over: Option<Option<LeaseVersion>>,
    /// The newest record that is known of.
    pub newest: Option<Newest>,
    /// The term in which the data was the primary's, where the record that was read is older.
    pub led: Option<u64>,
    /// The ownership of this site that the record names and is not this one, and since when.
    pub rival: Option<Track<Owner>>,
    /// When the other sites' slots were last looked after.
    pub kept_slots: Option<Mono>,
    /// Attempts to bring the data directory in line that failed since the last success.
    pub misaligned: u8,
    /// How far this replica is, and since when it has not got any further.
    #[serde(default)]
    pub gained: Option<(Lsn, Mono)>,
    /// The data directory is of no use for following: a new base backup is needed.
    pub reseed: bool,
    /// Where the log of a primary ends that was stopped in order.
    pub ended: Option<Position>,
    /// PostgreSQL is stopped because that was ordered: its next start is none after a failure.
    pub at_rest: bool,
    /// How far an ordered stop is.
    pub stopping: Stopping,
    /// An operator's failover that is on its way.
    pub urged: Option<Urged>,
    /// An operator's move to another site that is on its way.
    pub moving: Option<Asked>,
}
