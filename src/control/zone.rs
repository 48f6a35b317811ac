//! The sites of a cluster, as one of their actives sees them: roles, lag, what is promised, and whether
//! a failover now would be safe.

use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::decide::zone::{
    ClusterRecord, Position, PostgresFacts, Serve, SiteName, Sync, Unsafe, ZoneConfig, ZoneSeen,
};
use crate::decide::{Memory, Observation, Postgres};
use crate::postgres::Lsn;
use crate::postgres::replication::Progress;

/// What this member's PostgreSQL is among the sites.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServingAs {
    /// It accepts writes.
    Primary,
    /// It follows another site's.
    Replica,
    /// It does not run here.
    Nothing,
}

/// Whether a site could be promoted now without a loss.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// It could.
    pub safe: bool,
    /// Why, in one sentence.
    pub why: String,
}

/// One site.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiteStatus {
    /// Its name.
    pub name: String,
    /// The record says that the primary is there.
    pub primary: bool,
    /// It may ever run the primary.
    pub may_lead: bool,
    /// It has stopped to follow the primary.
    pub cut: bool,
    /// How long ago its lease last changed; `None` for this site, and where it is unknown.
    pub lease_ms: Option<u64>,
    /// It streams from the primary. `None` where this member cannot know.
    pub streaming: Option<bool>,
    /// How many bytes of log it is behind the primary. `None` where this member cannot know.
    pub lag_bytes: Option<u64>,
    /// How much log the primary keeps for it, in bytes.
    pub slot_retained: Option<u64>,
    /// Its slot no longer keeps what it needs.
    pub slot_lost: Option<bool>,
    /// Whether it could be promoted now; `None` for the primary's own.
    pub failover: Option<Verdict>,
}

/// The sites, as one member sees them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ZoneStatus {
    /// The cluster's record can be read.
    pub reachable: bool,
    /// Why not.
    pub cause: Option<String>,
    /// The term; 0 without a record.
    pub term: u64,
    /// The site that runs the primary.
    pub primary: Option<String>,
    /// PostgreSQL here.
    pub serving_as: ServingAs,
    /// What is promised.
    pub sync: Option<Sync>,
    /// How far this member's PostgreSQL is: written, or received and flushed.
    pub position: Option<Position>,
    /// How far behind the primary this replica is, in bytes of log.
    pub lag_bytes: Option<u64>,
    /// How much older than now its newest replayed commit is; 0 where all is replayed.
    pub lag_ms: Option<u64>,
    /// A replica that has replayed up to within `replication.max_lag`: readers may be led here.
    pub readable: bool,
    /// How far a copy of the primary's database to this site is, while one is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copying: Option<Progress>,
    /// Whether a failover now, to any site, would be safe.
    pub failover: Verdict,
    /// All sites.
    pub sites: Vec<SiteStatus>,
}

/// Why the record cannot be used although it is there.
const OLDER: &str = "an older copy of it has taken its place";

impl ZoneStatus {
    /// Whether commits wait for this site, as is promised.
    pub fn waited_for(&self, site: &str) -> bool {
        let sync = self.sync.as_ref();
        sync.is_some_and(|sync| {
            sync.need > 0 && sync.confirmed && sync.sites.iter().any(|known| known.0 == site)
        })
    }

    /// The sites of this moment; none for a cluster of one.
    pub fn of(
        config: &Config,
        memory: &Memory,
        observation: &Observation,
        copying: Option<&Progress>,
    ) -> Option<Self> {
        let replication = config.replication.as_ref()?;
        let zone = config.zone()?;
        let seen = observation.zone.as_deref()?;
        let found = seen
            .record
            .known()
            .and_then(|lease| Some(&lease.as_ref()?.record));
        // Nothing follows from a copy that is older than what was read before.
        let newest = memory.zone.newest;
        let older = |record: &ClusterRecord| newest.is_some_and(|newest| newest.outdates(record));
        let record = found.filter(|record| !older(record));
        let running = observation.local.postgres == Postgres::Running;
        let serving_as = serving_as(memory, running);
        let facts = seen.postgres.known().filter(|_| running);
        let lag_bytes = match serving_as {
            ServingAs::Replica => lag(seen, facts),
            ServingAs::Primary | ServingAs::Nothing => None,
        };
        let leads = serving_as == ServingAs::Primary;
        let follows = serving_as == ServingAs::Replica;
        let cause = match &seen.record {
            crate::decide::Seen::Unknown { cause, .. } => Some(cause.clone()),
            crate::decide::Seen::Known { .. } => (found != record).then(|| OLDER.to_owned()),
        };
        let lacking = |site: &SiteName| lacking(site, &zone, memory, facts);
        let sites = zone.sites.keys().map(|site| {
            let own = lag_bytes.filter(|_| *site == zone.site);
            let known = facts.filter(|_| leads);
            Self::site(site, &zone, memory, record, known, own).unless_lacking(lacking(site))
        });
        let sites: Vec<_> = sites.collect();
        Some(Self {
            reachable: cause.is_none(),
            cause,
            term: record.map_or(0, |record| record.term),
            primary: record.map(|record| record.primary.0.clone()),
            serving_as,
            sync: record.map(|record| record.sync.clone()),
            position: facts.map(|facts| facts.flushed),
            lag_bytes,
            lag_ms: facts.and_then(|facts| replayed_age(facts, serving_as)),
            readable: follows && within(seen, facts, replication.max_lag),
            copying: copying.cloned(),
            failover: match record {
                Some(_) => best(sites.iter().filter_map(|site| site.failover.clone())),
                None => cluster_verdict(None, &zone),
            },
            sites,
        })
    }

    fn site(
        site: &SiteName,
        zone: &ZoneConfig,
        memory: &Memory,
        record: Option<&ClusterRecord>,
        primary_facts: Option<&PostgresFacts>,
        own: Option<u64>,
    ) -> SiteStatus {
        let primary = record.is_some_and(|record| record.primary == *site);
        let from_here = primary_facts.filter(|_| !primary);
        let follower = from_here.map(|facts| facts.followers.get(site));
        let slot = from_here.and_then(|facts| facts.slots.get(site));
        let end = from_here.map(|facts| facts.flushed.lsn.0);
        let lease = memory.zone.leases.get(site);
        let now = memory.looked;
        SiteStatus {
            name: site.0.clone(),
            primary,
            may_lead: zone.sites.get(site) == Some(&true),
            cut: record.is_some_and(|record| record.cuts.contains_key(site)),
            lease_ms: lease.zip(now).map(|(lease, now)| {
                u64::try_from(now.since(lease.since).as_millis()).unwrap_or(u64::MAX)
            }),
            streaming: follower.map(|follower| follower.is_some_and(|one| one.streaming)),
            lag_bytes: own.or(follower
                .flatten()
                .zip(end)
                .map(|(follower, end)| end.saturating_sub(follower.flushed.0))),
            slot_retained: slot.map(|slot| slot.retained),
            slot_lost: slot.map(|slot| slot.lost),
            failover: record
                .filter(|_| !primary)
                .map(|record| verdict(record, zone, site)),
        }
    }
}

impl SiteStatus {
    /// What the record promises of this site is not there, although the record says so.
    fn unless_lacking(mut self, floor: Option<Position>) -> Self {
        if let (Some(verdict), Some(floor)) = (&mut self.failover, floor)
            && verdict.safe
        {
            *verdict = Verdict {
                safe: false,
                why: Unsafe::Restored { floor }.to_string(),
            };
        }
        self
    }
}

fn serving_as(memory: &Memory, running: bool) -> ServingAs {
    match &memory.zone.runs {
        Some((_, Serve::Primary { .. } | Serve::Alone)) if running => ServingAs::Primary,
        Some((_, Serve::Replica { .. })) if running => ServingAs::Replica,
        Some(_) | None => ServingAs::Nothing,
    }
}

/// How far this replica is behind what the primary said last.
fn lag(seen: &ZoneSeen, facts: Option<&PostgresFacts>) -> Option<u64> {
    let end = seen.probe.known()?.flushed.lsn.0;
    Some(end.saturating_sub(facts?.flushed.lsn.0))
}

/// Whether what readers see here, which is what is replayed, is so close to what the primary said last.
fn within(seen: &ZoneSeen, facts: Option<&PostgresFacts>, max_lag: u64) -> bool {
    let probe = seen.probe.known();
    probe.zip(facts).is_some_and(|(probe, facts)| {
        let behind = probe.flushed.lsn.0.saturating_sub(facts.replayed.0);
        behind <= max_lag
    })
}

fn replayed_age(facts: &PostgresFacts, serving_as: ServingAs) -> Option<u64> {
    match serving_as {
        ServingAs::Replica => Some(facts.delay_ms.unwrap_or(0)),
        ServingAs::Primary | ServingAs::Nothing => None,
    }
}

/// Whether this site, and no other condition, could be promoted by what the record says.
pub(crate) fn verdict(record: &ClusterRecord, zone: &ZoneConfig, site: &SiteName) -> Verdict {
    match record.promises(zone, site) {
        Ok(()) => Verdict {
            safe: true,
            why: match record.sync.sites.len() {
                1 => format!("every acknowledged write is on site {site}"),
                _ => {
                    "every acknowledged write is on enough sites, the furthest of which is promoted"
                        .to_owned()
                }
            },
        },
        Err(why) => Verdict {
            safe: false,
            why: why.to_string(),
        },
    }
}

/// Whether a failover to any site but the primary's would lose nothing, by what the record says.
pub(crate) fn cluster_verdict(record: Option<&ClusterRecord>, zone: &ZoneConfig) -> Verdict {
    let Some(record) = record else {
        return Verdict {
            safe: false,
            why: "the cluster's record cannot be read, or was not made yet".to_owned(),
        };
    };
    let others = zone.sites.keys().filter(|site| **site != record.primary);
    best(others.map(|site| verdict(record, zone, site)))
}

/// A cluster is as well off as the site that is best off.
fn best(verdicts: impl Iterator<Item = Verdict>) -> Verdict {
    let best = verdicts.reduce(|best, next| if best.safe || !next.safe { best } else { next });
    best.unwrap_or_else(|| Verdict {
        safe: false,
        why: "there is no other site".to_owned(),
    })
}

/// What a site must receive before its copy stands for the one that it replaced: this site by the mark in its copy,
/// another by what it had told this primary before.
fn lacking(
    site: &SiteName,
    zone: &ZoneConfig,
    memory: &Memory,
    facts: Option<&PostgresFacts>,
) -> Option<Position> {
    if *site == zone.site {
        return memory.zone.lacks(facts.map(|facts| facts.flushed));
    }
    let told = memory.zone.pursuits.get(site)?.told;
    let (facts, flushed) = (facts?, facts?.followers.get(site)?.flushed);
    // A connection that has just begun has said nothing yet.
    (flushed != Lsn(0) && flushed < told).then_some(Position {
        timeline: facts.flushed.timeline,
        lsn: told,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use fencing::Mono;

    use super::*;
    use crate::decide::Seen;
    use crate::decide::zone::seen::Pursuit;
    use crate::decide::zone::{Follower, ProbeFacts, Synchronous};

    const END: u64 = 1 << 30;

    fn known<T>(value: T) -> Seen<T> {
        let at = Mono::from_millis(1);
        Seen::Known { value, at }
    }

    fn at(lsn: u64) -> Position {
        let lsn = Lsn(lsn);
        Position { timeline: 1, lsn }
    }

    fn facts(replayed: u64) -> PostgresFacts {
        PostgresFacts {
            system: 7,
            in_recovery: true,
            flushed: at(END),
            replayed: Lsn(replayed),
            names: String::new(),
            receiving: true,
            heard_ms: Some(0),
            delay_ms: None,
            followers: BTreeMap::new(),
            slots: BTreeMap::new(),
        }
    }

    #[test]
    fn a_copy_that_lacks_something_is_not_said_to_be_safe() {
        let (a, b) = (SiteName("a".to_owned()), SiteName("b".to_owned()));
        let zone = |site: &SiteName| ZoneConfig {
            site: site.clone(),
            sites: [(a.clone(), true), (b.clone(), true)].into(),
            synchronous: Synchronous::Required,
            quorum: 1,
            first: a.clone(),
            archive: false,
        };
        let mut memory = Memory::default();
        let site = |memory: &Memory, own: &SiteName, facts: Option<&PostgresFacts>| {
            let sync = Sync {
                need: 1,
                sites: [b.clone()].into(),
                confirmed: true,
                why: None,
            };
            let (zone, record) = (zone(own), ClusterRecord::first(a.clone(), sync));
            let status = ZoneStatus::site(&b, &zone, memory, Some(&record), None, None);
            let status = status.unless_lacking(lacking(&b, &zone, memory, facts));
            best(status.failover.into_iter()).safe
        };
        let here = facts(END);
        assert!(site(&memory, &b, Some(&here)));
        memory.zone.floor = Some(at(END + 1));
        assert!(!site(&memory, &b, Some(&here)) && !site(&memory, &b, None));
        memory.zone.floor = Some(at(END));
        assert!(site(&memory, &b, Some(&here)));

        let told = |lsn| Pursuit {
            goal: Lsn(END),
            since: Mono::from_millis(1),
            told: Lsn(lsn),
        };
        let mut there = facts(END);
        for (flushed, before, safe) in [(0, 100, true), (99, 100, false), (100, 100, true)] {
            let follower = Follower {
                streaming: true,
                flushed: Lsn(flushed),
                replayed: Lsn(flushed),
            };
            there.followers.insert(b.clone(), follower);
            memory.zone.pursuits.insert(b.clone(), told(before));
            assert_eq!(
                site(&memory, &a, Some(&there)),
                safe,
                "{flushed} of {before}"
            );
        }
    }

    #[test]
    fn readers_are_led_to_what_is_replayed_not_to_what_is_received() {
        let mut seen = ZoneSeen {
            record: known(None),
            leases: BTreeMap::new(),
            postgres: Seen::Unknown {
                since: Mono::from_millis(0),
                cause: String::new(),
            },
            probe: known(ProbeFacts {
                site: SiteName("a".to_owned()),
                system: 7,
                in_recovery: false,
                flushed: at(END),
                slot: None,
            }),
        };
        let max = 16 << 20;
        assert!(within(&seen, Some(&facts(END - max)), max));
        assert!(!within(&seen, Some(&facts(END - max - 1)), max));
        assert!(!within(&seen, None, max));
        seen.probe = Seen::Unknown {
            since: Mono::from_millis(2),
            cause: String::new(),
        };
        assert!(
            !within(&seen, Some(&facts(END)), max),
            "how far it is unknown"
        );
    }
}
