//! The sites of a cluster, as one of their actives sees them: roles, lag, what is promised, and whether
//! a failover now would be safe.

use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::decide::zone::{
    ClusterRecord, Position, PostgresFacts, Serve, SiteName, Sync, ZoneConfig, ZoneSeen,
};
use crate::decide::{Memory, Observation, Postgres};
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
            failover: cluster_verdict(record, &zone),
            sites: zone
                .sites
                .keys()
                .map(|site| {
                    let own = lag_bytes.filter(|_| *site == zone.site);
                    Self::site(site, &zone, memory, record, facts.filter(|_| leads), own)
                })
                .collect(),
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
    let mut verdicts: Vec<_> = others.map(|site| verdict(record, zone, site)).collect();
    verdicts.sort_by_key(|verdict| !verdict.safe);
    verdicts.into_iter().next().unwrap_or(Verdict {
        safe: false,
        why: "there is no other site".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use fencing::Mono;

    use super::*;
    use crate::decide::Seen;
    use crate::decide::zone::ProbeFacts;
    use crate::postgres::Lsn;

    const END: u64 = 1 << 30;

    fn known<T>(value: T) -> Seen<T> {
        let at = Mono::from_millis(1);
        Seen::Known { value, at }
    }

    fn at(lsn: u64) -> Position {
        let lsn = Lsn(lsn);
        Position { timeline: 1, lsn }
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
        let facts = |replayed| PostgresFacts {
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
