//! Each rule between sites by itself: what is seen, and the one move that follows.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use fencing::{Epoch, MemberId, Mono};

mod late;
mod lost;
mod primary;
mod replica;
mod restored;

use super::*;
use crate::decide::{Lease, LeaseRecord, LeaseVersion, Outcome, Work};
use crate::postgres::Lsn;

/// A site's active with everything that it sees.
struct Scene {
    config: ZoneConfig,
    timings: Timings,
    seen: ZoneSeen,
    memory: ZoneMemory,
    postgres: Postgres,
    paused: bool,
    now: Mono,
}

fn site(name: &str) -> SiteName {
    SiteName(name.to_owned())
}

fn sites(names: &[&str]) -> BTreeSet<SiteName> {
    names.iter().map(|name| site(name)).collect()
}

fn promised(names: &[&str], confirmed: bool) -> Sync {
    Sync {
        need: 1,
        sites: sites(names),
        confirmed,
        why: None,
    }
}

fn position(lsn: u64) -> Position {
    Position {
        timeline: 1,
        lsn: Lsn(lsn),
    }
}

fn facts(lsn: u64) -> PostgresFacts {
    let slot = SlotFacts {
        lost: false,
        from: Some(Lsn(0)),
        retained: 0,
    };
    PostgresFacts {
        system: 7,
        in_recovery: false,
        flushed: position(lsn),
        replayed: Lsn(lsn),
        names: String::new(),
        receiving: false,
        heard_ms: None,
        delay_ms: None,
        followers: BTreeMap::new(),
        slots: ["a", "b", "c"].map(|name| (site(name), slot)).into(),
    }
}

fn follower(flushed: u64) -> Follower {
    Follower {
        streaming: true,
        flushed: Lsn(flushed),
        replayed: Lsn(flushed),
    }
}

fn serve(need: u8, names: &[&str]) -> Serve {
    Serve::Primary {
        need,
        sites: sites(names),
    }
}

fn following(receive: bool) -> Serve {
    let of = site("a");
    Serve::Replica { of, receive }
}

impl Scene {
    /// Site `own` of a cluster of these; the primary is at `a` and promises `sync`.
    fn new(own: &str, names: &[&str], sync: Sync) -> Self {
        let mut record = ClusterRecord::first(site("a"), sync);
        record.system = Some(7);
        record.timeline = 1;
        record.owners.insert(site(own), owner());
        let at = Mono::from_millis(100_000);
        let others = names.iter().filter(|name| **name != own);
        let mut scene = Self {
            config: ZoneConfig {
                site: site(own),
                sites: names.iter().map(|name| (site(name), true)).collect(),
                synchronous: Synchronous::Preferred,
                quorum: 1,
                archive: false,
                first: site("a"),
            },
            timings: Timings::default(),
            seen: ZoneSeen {
                record: Seen::Unknown {
                    since: at,
                    cause: String::new(),
                },
                leases: others.map(|name| (site(name), unknown_lease(at))).collect(),
                postgres: unknown_facts(at),
                probe: Seen::Unknown {
                    since: at,
                    cause: String::new(),
                },
            },
            memory: ZoneMemory::default(),
            postgres: Postgres::Stopped,
            paused: false,
            now: at,
        };
        scene.record(record);
        scene
    }

    fn record(&mut self, record: ClusterRecord) {
        let version = LeaseVersion(format!("{record:?}"));
        let lease = ClusterLease { version, record };
        self.seen.record = Seen::Known {
            value: Some(lease),
            at: self.now,
        };
    }

    fn known(&self) -> ClusterRecord {
        let lease = self.seen.record.known().unwrap().as_ref().unwrap();
        lease.record.clone()
    }

    /// PostgreSQL runs so in term 1, and was looked at just now.
    fn runs(&mut self, serve: Serve, facts: PostgresFacts) {
        self.postgres = Postgres::Running;
        let data = match serve {
            Serve::Replica { .. } => Data::Replica,
            Serve::Primary { .. } | Serve::Alone => Data::Primary,
        };
        self.memory.aligned = Some((1, data));
        self.memory.runs = Some((1, serve));
        self.memory.since = Mono::from_millis(self.now.as_millis() - 10);
        self.looks(facts);
    }

    fn looks(&mut self, mut value: PostgresFacts) {
        if let Some((_, serve)) = &self.memory.runs {
            value.names = serve.names();
        }
        let at = self.now;
        self.seen.postgres = Seen::Known { value, at };
    }

    /// The other sites' leases are read, and are still of this version.
    fn lease(&mut self, version: &str) {
        for seen in self.seen.leases.values_mut() {
            *seen = Seen::Known {
                value: Some(Lease {
                    version: LeaseVersion(version.to_owned()),
                    record: LeaseRecord::of_nobody(crate::decide::Incarnation(1)),
                }),
                at: self.now,
            };
        }
    }

    /// Time goes by in steps in which everything is read again and nothing has changed, until
    /// something is to be written.
    fn pass(&mut self, time: Duration) -> Move {
        let until = self.now + time;
        let mut last = self.judge();
        while self.now < until {
            self.now = self.now + Duration::from_millis(500);
            self.reread();
            last = self.judge();
            if matches!(last, Move::Write { .. }) {
                break;
            }
        }
        last
    }

    fn reread(&mut self) {
        let now = self.now;
        if let Seen::Known { at, .. } = &mut self.seen.record {
            *at = now;
        }
        if let Seen::Known { at, .. } = &mut self.seen.postgres {
            *at = now;
        }
        for seen in self.seen.leases.values_mut() {
            if let Seen::Known { at, .. } = seen {
                *at = now;
            }
        }
    }

    fn judge(&mut self) -> Move {
        self.judging().judge()
    }

    fn judging(&mut self) -> Judge<'_> {
        Judge {
            config: &self.config,
            timings: &self.timings,
            seen: &self.seen,
            situation: Situation {
                member: MemberId::new(1).unwrap(),
                epoch: Epoch::new(3).unwrap(),
                proven_at: Mono::from_millis(1_000),
                awake_since: Mono::from_millis(1_000),
                postgres: self.postgres,
                paused: self.paused,
            },
            memory: &mut self.memory,
            now: self.now,
        }
    }

    /// The record that is to be written; the store takes it at once.
    fn written(&mut self, next: Move) -> ClusterRecord {
        let Move::Write { record, .. } = next else {
            panic!("nothing is written: {next:?}");
        };
        self.record((*record).clone());
        *record
    }

    fn does(&mut self, work: Work, outcome: &Outcome) {
        self.memory.take_in(&work, outcome, self.now);
        self.now = self.now + Duration::from_millis(10);
        self.reread();
    }
}

fn aligned(data: Data) -> Outcome {
    Outcome::Aligned { data, floor: None }
}

fn unknown_lease(since: Mono) -> Seen<Option<Lease>> {
    Seen::Unknown {
        since,
        cause: String::new(),
    }
}

fn unknown_facts(since: Mono) -> Seen<PostgresFacts> {
    Seen::Unknown {
        since,
        cause: String::new(),
    }
}

fn owner() -> Owner {
    Owner {
        member: MemberId::new(1).unwrap(),
        epoch: epoch(),
    }
}

fn epoch() -> Epoch {
    Epoch::new(3).unwrap()
}

#[test]
fn the_names_are_postgresqls() {
    assert_eq!(
        serve(1, &["b", "eu-west"]).names(),
        "ANY 1 (baton_b, baton_eu_west)"
    );
    assert_eq!(serve(0, &[]).names(), "");
}
