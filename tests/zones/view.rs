//! What a site sees of the others, of the record and of its own PostgreSQL.

use baton::decide::zone::{
    Follower, Position, PostgresFacts, ProbeFacts, Serve, SlotFacts, ZoneSeen,
};
use baton::decide::{Incarnation, Lease, LeaseRecord, LeaseVersion, Postgres, Seen as Look};
use baton::postgres::Lsn;
use fencing::Mono;

use super::site::Site;
use super::world::World;

impl World {
    fn look<T>(&self, reachable: bool, value: T, age: u64) -> Look<T> {
        match reachable {
            true => Look::Known {
                value,
                at: Mono::from_millis(self.now.as_millis() - age),
            },
            false => Look::Unknown {
                since: self.now,
                cause: String::new(),
            },
        }
    }

    pub fn see(&self, index: usize) -> ZoneSeen {
        let site = &self.sites[index];
        let others = self.sites.iter().filter(|other| other.name != site.name);
        let leases = others.map(|other| {
            let lease = Lease {
                version: LeaseVersion(other.lease.to_string()),
                record: LeaseRecord::of_nobody(Incarnation(0)),
            };
            (other.name.clone(), self.look(site.store, Some(lease), 0))
        });
        let primary = self
            .record
            .as_ref()
            .map(|lease| self.index(&lease.record.primary));
        let answering = primary.filter(|primary| {
            let there = self.sites[*primary].postgres == Postgres::Running;
            *primary != index && there && self.connected(index, *primary)
        });
        let probe = answering.map(|primary| {
            let other = &self.sites[primary];
            let value = ProbeFacts {
                site: other.name.clone(),
                system: 1,
                in_recovery: other.replica,
                flushed: position(other),
                slot: Some(SLOT),
            };
            self.look(true, value, 0)
        });
        let running = site.postgres == Postgres::Running;
        ZoneSeen {
            record: self.look(site.store, self.record.clone(), 0),
            leases: leases.collect(),
            postgres: self.look(running, self.facts(index), 0),
            probe: probe.unwrap_or(Look::Unknown {
                since: self.now,
                cause: String::new(),
            }),
        }
    }

    fn facts(&self, index: usize) -> PostgresFacts {
        let site = &self.sites[index];
        let followers = site.flushed.iter().map(|(name, flushed)| {
            let lsn = Lsn(*flushed as u64);
            let follower = Follower {
                streaming: self.connected(index, self.index(name)),
                flushed: lsn,
                replayed: lsn,
            };
            (name.clone(), follower)
        });
        let heard = self.now.since(site.heard).as_millis();
        PostgresFacts {
            system: 1,
            in_recovery: site.replica,
            flushed: position(site),
            replayed: Lsn(site.log.len() as u64),
            names: Serve::Primary {
                need: site.names.0,
                sites: site.names.1.clone(),
            }
            .names(),
            receiving: site.receives.is_some(),
            heard_ms: Some(u64::try_from(heard).unwrap_or(u64::MAX)),
            delay_ms: None,
            followers: followers.collect(),
            slots: self
                .sites
                .iter()
                .map(|site| (site.name.clone(), SLOT))
                .collect(),
        }
    }
}

const SLOT: SlotFacts = SlotFacts {
    lost: false,
    from: Some(Lsn(0)),
    retained: 0,
};

pub fn position(site: &Site) -> Position {
    Position {
        timeline: site.timeline,
        lsn: Lsn(site.log.len() as u64),
    }
}
