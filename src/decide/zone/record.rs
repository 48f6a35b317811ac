//! The cluster's record: which site runs the primary, and what was promised about the others.
//!
//! One register with compare-and-set in the lease store, shared by all sites. All of a cluster's
//! safety between sites is in the order in which it is changed (SAFETY.md, "Between sites").

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use fencing::{Epoch, MemberId};
use serde::{Deserialize, Serialize};

use super::{Unsafe, ZoneConfig};
use crate::decide::LeaseVersion;
pub use crate::postgres::replication::Position;
use crate::postgres::replication::name_of;

/// The name of a site, as the configuration has it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SiteName(pub String);

impl fmt::Display for SiteName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl SiteName {
    /// What its replication slot and `application_name` are called.
    pub fn in_postgres(&self) -> String {
        name_of(&self.0)
    }
}

/// Whether commits wait for other sites.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Synchronous {
    /// Always, even if that means waiting for ever.
    Required,
    /// As long as enough sites keep up; it degrades with a reason, never silently.
    #[default]
    Preferred,
    /// Never. A site's loss may lose what was acknowledged.
    Off,
}

/// Why commits do not wait for other sites although they should.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Degraded {
    /// No replica has caught up since the cluster or this primary began.
    NotYet,
    /// These sites did not keep up.
    Behind(BTreeSet<SiteName>),
    /// The configuration says `off`.
    Off,
}

/// What is promised: while `need` is not 0 and `confirmed`, every commit that was acknowledged in this
/// term is flushed on at least `need` of `sites`. So is what was shown, but for a commit whose client
/// cancelled its wait: PostgreSQL shows it then, with a warning instead of an acknowledgement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sync {
    /// On how many; 0: nothing is promised.
    pub need: u8,
    /// Of these.
    pub sites: BTreeSet<SiteName>,
    /// They have everything that the primary showed when it began. What PostgreSQL shows after a
    /// crash while commits were waiting may be on no other site.
    pub confirmed: bool,
    /// Why nothing is promised, with `need` 0.
    pub why: Option<Degraded>,
}

impl Sync {
    /// Nothing is promised.
    pub fn none(why: Degraded) -> Self {
        Self {
            need: 0,
            sites: BTreeSet::new(),
            confirmed: false,
            why: Some(why),
        }
    }

    /// Whether PostgreSQL, when it keeps this, keeps `other` too.
    pub fn keeps(&self, other: &Self) -> bool {
        other.need == 0 || (self.need >= other.need && self.sites.is_subset(&other.sites))
    }

    /// What both this and `other` keep, confirmed as this is.
    pub fn weaker(&self, other: &Self) -> Self {
        Self {
            need: self.need.min(other.need),
            sites: self.sites.union(&other.sites).cloned().collect(),
            confirmed: self.confirmed,
            why: None,
        }
    }
}

/// A planned move of the primary to another site.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moving {
    /// To which.
    pub to: SiteName,
    /// Where the shutdown checkpoint of the old primary begins, the last record of its log, once it
    /// is shut down in order.
    pub stopped: Option<Position>,
}

/// How the primary came to a site.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum How {
    /// The first start of the cluster.
    First,
    /// A planned switchover.
    Switchover,
    /// The old primary's site was lost, and nothing with it.
    Failover,
    /// An operator accepted that something may be lost.
    DataLossAllowed,
}

/// One change of the primary's site.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promotion {
    /// The term that began.
    pub term: u64,
    /// The new primary's site.
    pub site: SiteName,
    /// How.
    pub how: How,
    /// Up to where the new primary had received the old one's log.
    pub from: Position,
}

/// An ownership of a site's volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The member.
    pub member: MemberId,
    /// Its epoch.
    pub epoch: Epoch,
}

/// How many promotions are remembered.
const HISTORY_MAX: usize = 50;

/// The record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterRecord {
    /// Counts the writes: a record with fewer than one has seen is an old copy.
    pub writes: u64,
    /// Counts the changes of the primary's site, from 1.
    pub term: u64,
    /// The site whose active shall run the primary. Only a site's own active names it.
    pub primary: SiteName,
    /// The ownerships under which the sites' PostgreSQLs run: written before they do, so that
    /// whatever an earlier owner of the site wrote and may yet arrive does not fit any more.
    pub owners: BTreeMap<SiteName, Owner>,
    /// PostgreSQL's system identifier, once it is known.
    pub system: Option<u64>,
    /// The primary's timeline in this term; 0 until it has said.
    pub timeline: u32,
    /// The greatest timeline of all terms, that of the promotion under way among them: it begins
    /// this one or a greater one, also where it never heard of the one before.
    pub newest_timeline: u32,
    /// What is promised.
    pub sync: Sync,
    /// Sites that have stopped to follow this term's primary, and where. None of them follows it
    /// again before it has taken its name out here.
    pub cuts: BTreeMap<SiteName, Position>,
    /// A planned move on its way.
    pub moving: Option<Moving>,
    /// The changes so far, oldest first.
    pub history: Vec<Promotion>,
}

impl ClusterRecord {
    /// The very first record.
    pub fn first(site: SiteName, sync: Sync) -> Self {
        let first = Promotion {
            term: 1,
            site: site.clone(),
            how: How::First,
            from: Position::default(),
        };
        Self {
            writes: 0,
            term: 1,
            primary: site,
            owners: BTreeMap::new(),
            system: None,
            timeline: 0,
            newest_timeline: 0,
            sync,
            cuts: BTreeMap::new(),
            moving: None,
            history: vec![first],
        }
    }

    /// The record after `site`, which has received up to `from`, became the primary's, by `owner`.
    pub fn promoted(
        &self,
        site: SiteName,
        owner: Owner,
        how: How,
        from: Position,
        sync: Sync,
    ) -> Self {
        let term = self.term + 1;
        let mut history = self.history.clone();
        history.push(Promotion {
            term,
            site: site.clone(),
            how,
            from,
        });
        let surplus = history.len().saturating_sub(HISTORY_MAX);
        history.drain(..surplus);
        let mut owners = self.owners.clone();
        owners.insert(site.clone(), owner);
        Self {
            writes: self.writes,
            term,
            primary: site,
            owners,
            system: self.system,
            timeline: 0,
            newest_timeline: self.newest_timeline.max(self.timeline) + 1,
            sync,
            cuts: BTreeMap::new(),
            moving: None,
            history,
        }
    }

    /// Whether `site` may be promoted by what is promised; the paused are not asked here.
    ///
    /// # Errors
    /// Why not.
    pub fn promises(&self, config: &ZoneConfig, site: &SiteName) -> Result<(), Unsafe> {
        let sync = &self.sync;
        if config.sites.get(site) != Some(&true) {
            return Err(Unsafe::Never);
        }
        if sync.need == 0 {
            return Err(Unsafe::NotInSync(sync.why.clone()));
        }
        if !sync.sites.contains(site) {
            return Err(Unsafe::NotSynchronous);
        }
        if !sync.confirmed {
            return Err(Unsafe::Unconfirmed);
        }
        Ok(())
    }

    /// Whether the primary can get no acknowledgement any more: too few of the sites that its
    /// commits wait for have not stopped to follow it. Then the furthest of those that have
    /// stopped has every acknowledged commit: each is on `need` of `sites`, and fewer than
    /// `need` of them have not stopped.
    pub fn cut_off(&self) -> bool {
        let Sync {
            need,
            sites,
            confirmed,
            why: _,
        } = &self.sync;
        let following = sites
            .iter()
            .filter(|site| !self.cuts.contains_key(site))
            .count();
        *need > 0 && *confirmed && following < usize::from(*need)
    }

    /// The site that has received furthest among those that commits wait for and that have stopped
    /// to follow; the first by name of equals.
    pub fn furthest(&self) -> Option<(&SiteName, Position)> {
        let stopped = self
            .cuts
            .iter()
            .filter(|(site, _)| self.sync.sites.contains(site));
        stopped
            .map(|(site, position)| (site, *position))
            .max_by(|one, other| one.1.cmp(&other.1).then(other.0.cmp(one.0)))
    }
}

/// The record with the version that a compare-and-set names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterLease {
    /// What the compare-and-set must find.
    pub version: LeaseVersion,
    /// The record.
    pub record: ClusterRecord,
}
