//! The site that the record names: its PostgreSQL is the primary, or becomes it.

use std::collections::BTreeSet;

use super::record::{ClusterLease, Degraded, Moving, Owner, SiteName, Sync, Synchronous};
use super::seen::{Data, PostgresFacts, Pursuit, Serve};
use super::{Judge, Move, Unsafe, ZoneReason, superseded};
use crate::decide::Postgres;
use crate::postgres::Lsn;

impl Judge<'_> {
    pub(super) fn primary(&mut self, lease: &ClusterLease) -> Move {
        let record = &lease.record;
        match self.situation.postgres {
            Postgres::Stopped => self.start_primary(lease),
            Postgres::Running => match self.memory.runs.clone() {
                Some((_, Serve::Replica { receive: false, .. })) => self.promote(lease),
                // Nobody promotes a site but its own active, which stops receiving first.
                Some((_, Serve::Replica { of, receive: true })) => {
                    Move::Reconfigure(Serve::Replica { of, receive: false })
                }
                Some((term, _)) if term != record.term => Move::Kill(superseded(record)),
                Some((_, serve)) => self.serve(lease, &serve),
                None => Move::Stop(ZoneReason::Changing),
            },
            Postgres::Starting | Postgres::Stopping | Postgres::Unknown => {
                Move::Wait(ZoneReason::Changing)
            }
        }
    }

    pub(super) fn own(&self) -> Owner {
        Owner {
            member: self.situation.member,
            epoch: self.situation.epoch,
        }
    }

    /// The claim that every start and promotion rests on: this ownership is in the record, and what
    /// PostgreSQL will show is not taken for confirmed.
    fn claim(&mut self, lease: &ClusterLease) -> Option<Move> {
        let own = self.own();
        let record = &lease.record;
        let claimed = record.owner == Some(own) && !record.sync.confirmed;
        (!claimed).then(|| {
            self.rewrite(lease, ZoneReason::Recording, |record| {
                record.owner = Some(own);
                record.sync.confirmed = false;
            })
        })
    }

    fn start_primary(&mut self, lease: &ClusterLease) -> Move {
        let record = &lease.record;
        if let Some(moving) = &record.moving {
            return self.stopped_to_move(lease, moving);
        }
        match self.memory.aligned {
            Some((term, Data::Primary)) if term == record.term => {}
            // Its promotion was recorded and is not done: it goes on as a replica until it is.
            Some((term, Data::Replica)) if term == record.term => {
                return Move::Start(Serve::Replica {
                    of: self.config.site.clone(),
                    receive: false,
                });
            }
            Some(_) | None => return Move::Align { reseed: false },
        }
        if let Some(write) = self.claim(lease) {
            return write;
        }
        Move::Start(self.serving(&record.sync))
    }

    /// Stopped in order: where, so that the other site takes over. Else, and after its time, this
    /// one takes back.
    fn stopped_to_move(&mut self, lease: &ClusterLease, moving: &Moving) -> Move {
        let why = ZoneReason::Moving(moving.to.clone());
        match (moving.stopped, self.memory.ended) {
            (Some(_), _) if !self.move_overdue() => Move::Wait(why),
            (None, Some(end)) => self.rewrite(lease, why, |record| {
                if let Some(moving) = &mut record.moving {
                    moving.stopped = Some(end);
                }
            }),
            (Some(_) | None, _) => {
                self.memory.ended = None;
                self.rewrite(lease, ZoneReason::Recording, |record| record.moving = None)
            }
        }
    }

    /// The other site has had its time to take over.
    fn move_overdue(&self) -> bool {
        let since = self.memory.wrote.unwrap_or(self.situation.proven_at);
        since.elapsed(self.timings.handover, self.now)
    }

    fn promote(&mut self, lease: &ClusterLease) -> Move {
        if let Some(write) = self.claim(lease) {
            return write;
        }
        Move::Promote(self.serving(&lease.record.sync))
    }

    /// How a primary runs that promises this.
    fn serving(&self, sync: &Sync) -> Serve {
        Serve::Primary {
            need: sync.need,
            sites: sync.sites.clone(),
        }
    }

    fn serve(&mut self, lease: &ClusterLease, serve: &Serve) -> Move {
        let Some(facts) = self.facts().cloned() else {
            return Move::Wait(self.told(&lease.record.sync));
        };
        if facts.in_recovery {
            return Move::Wait(ZoneReason::Changing);
        }
        let began = *self.memory.began.get_or_insert(facts.flushed.lsn);
        self.pursue(&facts);
        let record = &lease.record;
        if let Some(moving) = &record.moving {
            return Move::Stop(ZoneReason::Moving(moving.to.clone()));
        }
        let known = record.system == Some(facts.system);
        if !known || record.timeline != facts.flushed.timeline {
            let (system, timeline) = (facts.system, facts.flushed.timeline);
            return self.rewrite(lease, ZoneReason::Recording, |record| {
                record.system = Some(system);
                record.timeline = timeline;
                record.newest_timeline = record.newest_timeline.max(timeline);
            });
        }
        if self.slots_wanted(&facts) {
            return Move::KeepSlots;
        }
        let change = match record.sync.need {
            0 => self.promise(lease, serve, &facts),
            _ => self.keep_promise(lease, serve, &facts, began),
        };
        change.unwrap_or_else(|| Move::Wait(self.told(&record.sync)))
    }

    fn told(&self, sync: &Sync) -> ZoneReason {
        match (sync.need, sync.confirmed) {
            (0, _) => ZoneReason::NotInSync(sync.why.clone().unwrap_or(Degraded::NotYet)),
            (_, true) => ZoneReason::InSync,
            (_, false) => ZoneReason::AwaitingSync,
        }
    }

    fn slots_wanted(&self, facts: &PostgresFacts) -> bool {
        let others = self
            .config
            .sites
            .keys()
            .filter(|site| **site != self.config.site);
        others
            .map(|site| facts.slots.get(site))
            .any(|slot| slot.is_none_or(|slot| slot.lost))
    }

    /// Follows how far each site is: it must reach the log's end of one look within the patience.
    fn pursue(&mut self, facts: &PostgresFacts) {
        let end = facts.flushed.lsn;
        for site in self.config.sites.keys() {
            let flushed = facts.followers.get(site).map(|follower| follower.flushed);
            let known = self.memory.pursuits.get(site).copied();
            let next = match (known, flushed) {
                (Some(known), Some(flushed)) if flushed < known.goal => known,
                (Some(known), None) => known,
                (None, None) => Pursuit {
                    goal: end,
                    since: self.memory.since,
                },
                (_, Some(_)) => Pursuit {
                    goal: end,
                    since: self.now,
                },
            };
            self.memory.pursuits.insert(site.clone(), next);
        }
    }

    /// Whether a site has reached the log's end of a moment ago.
    fn keeps_up(&self, site: &SiteName) -> bool {
        let patience = self.timings.sync_patience;
        let pursuit = self.memory.pursuits.get(site);
        pursuit.is_some_and(|pursuit| !pursuit.since.elapsed(patience, self.now))
    }

    /// How many of these sites have flushed up to there.
    fn reached(&self, facts: &PostgresFacts, sites: &BTreeSet<SiteName>, goal: Lsn) -> usize {
        let has = |site: &&SiteName| {
            let follower = facts.followers.get(site);
            follower.is_some_and(|follower| follower.flushed >= goal)
        };
        sites.iter().filter(has).count()
    }

    /// Something is promised: it is confirmed when it holds, and taken back, in the record first,
    /// when too few sites keep up.
    fn keep_promise(
        &mut self,
        lease: &ClusterLease,
        serve: &Serve,
        facts: &PostgresFacts,
        began: Lsn,
    ) -> Option<Move> {
        let sync = &lease.record.sync;
        let wanted = self.serving(sync);
        if *serve != wanted {
            // The promise is as it was before this primary began; it is kept from the first commit.
            return Some(Move::Reconfigure(wanted));
        }
        let need = usize::from(sync.need);
        if !sync.confirmed && self.reached(facts, &sync.sites, began) >= need {
            return Some(self.rewrite(lease, ZoneReason::InSync, |record| {
                record.sync.confirmed = true;
            }));
        }
        let lagging: BTreeSet<_> = sync
            .sites
            .iter()
            .filter(|site| !self.keeps_up(site))
            .cloned()
            .collect();
        let enough = sync.sites.len() - lagging.len() >= need;
        if enough || self.config.synchronous == Synchronous::Required {
            return None;
        }
        let why = Degraded::Behind(lagging);
        Some(
            self.rewrite(lease, ZoneReason::NotInSync(why.clone()), |record| {
                record.sync = Sync::none(why);
            }),
        )
    }

    /// Nothing is promised: it is, in the record last, when enough sites keep up.
    fn promise(
        &mut self,
        lease: &ClusterLease,
        serve: &Serve,
        facts: &PostgresFacts,
    ) -> Option<Move> {
        let sites = self.config.candidates(&self.config.site);
        let need = self.config.quorum;
        let none = Serve::Primary {
            need: 0,
            sites: BTreeSet::new(),
        };
        let good = sites.iter().filter(|site| {
            let follower = facts.followers.get(*site);
            follower.is_some_and(|follower| follower.streaming) && self.keeps_up(site)
        });
        let able = good.count() >= usize::from(need)
            && need > 0
            && self.config.synchronous != Synchronous::Off;
        if !able {
            self.memory.named = None;
            return (*serve != none).then_some(Move::Reconfigure(none));
        }
        let wanted = Serve::Primary {
            need,
            sites: sites.clone(),
        };
        if *serve != wanted {
            self.memory.named = None;
            return Some(Move::Reconfigure(wanted));
        }
        let named = *self.memory.named.get_or_insert(facts.flushed.lsn);
        if self.reached(facts, &sites, named) < usize::from(need) {
            return None;
        }
        Some(self.rewrite(lease, ZoneReason::InSync, |record| {
            record.sync = Sync {
                need,
                sites,
                confirmed: true,
                why: None,
            };
        }))
    }

    /// The record with a planned move to that site, whose replica must keep up.
    pub fn begin_move(mut self, to: &SiteName) -> Result<(u64, Move), Unsafe> {
        let Some(Some(lease)) = self.record().map(|found| found.cloned()) else {
            return Err(Unsafe::RecordUnknown);
        };
        if self.config.sites.get(to) != Some(&true) {
            return Err(Unsafe::Never);
        }
        let follower = self.facts().and_then(|facts| facts.followers.get(to));
        let streaming = follower.is_some_and(|follower| follower.streaming);
        if !streaming || !self.keeps_up(to) {
            return Err(Unsafe::NotFollowing(to.clone()));
        }
        let (term, to) = (lease.record.term, to.clone());
        let why = ZoneReason::Moving(to.clone());
        let write = self.rewrite(&lease, why, |record| {
            record.moving = Some(Moving { to, stopped: None });
        });
        Ok((term, write))
    }
}
