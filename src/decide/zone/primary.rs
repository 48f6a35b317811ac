//! The site that the record names: its PostgreSQL is the primary, or becomes it.

use super::record::{ClusterLease, Degraded, Moving, SiteName, Sync};
use super::seen::{Data, PostgresFacts, Serve};
use super::{Judge, Move, Unsafe, ZoneReason, superseded};
use crate::decide::Postgres;

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

    /// The claim that every start and promotion rests on: this ownership is in the record, and what
    /// PostgreSQL will show is not taken for confirmed.
    /// A promotion by another owner than the record has begins a later timeline: the owner before may have
    /// begun one that is noted nowhere.
    fn claim(&mut self, lease: &ClusterLease, promotes: bool) -> Option<Move> {
        let (own, site) = (self.own(), self.config.site.clone());
        let record = &lease.record;
        let ours = record.owners.get(&site) == Some(&own);
        let claimed = ours && !record.sync.confirmed;
        (!claimed).then(|| {
            self.rewrite(lease, ZoneReason::Recording, |record| {
                record.owners.insert(site, own);
                record.sync.confirmed = false;
                record.newest_timeline += u32::from(promotes && !ours);
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
        if let Some(write) = self.claim(lease, false) {
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
        if let Some(write) = self.claim(lease, true) {
            return write;
        }
        Move::Promote(self.serving(&lease.record.sync))
    }

    /// How a primary runs that promises this.
    pub(super) fn serving(&self, sync: &Sync) -> Serve {
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
        if let Some(change) = self.promise(lease, serve, &facts, began) {
            return change;
        }
        match self.slots_wanted(&facts) {
            true => Move::KeepSlots,
            false => Move::Wait(self.told(&record.sync)),
        }
    }

    fn told(&self, sync: &Sync) -> ZoneReason {
        match (sync.need, sync.confirmed) {
            (0, _) => ZoneReason::NotInSync(sync.why.clone().unwrap_or(Degraded::NotYet)),
            (_, true) => ZoneReason::InSync,
            (_, false) => ZoneReason::AwaitingSync,
        }
    }

    /// Whether a slot is missing or lost, and was not looked after lately.
    fn slots_wanted(&self, facts: &PostgresFacts) -> bool {
        let patience = self.timings.sync_patience;
        let lately = self.memory.kept_slots;
        if lately.is_some_and(|at| !at.elapsed(patience, self.now)) {
            return false;
        }
        let others = self
            .config
            .sites
            .keys()
            .filter(|site| **site != self.config.site);
        others
            .map(|site| facts.slots.get(site))
            .any(|slot| slot.is_none_or(|slot| slot.lost))
    }

    /// The record with a planned move to that site, whose replica must keep up.
    pub fn begin_move(mut self, to: &SiteName) -> Result<(u64, Move), Unsafe> {
        let Some(Some(lease)) = self.record().map(|found| found.cloned()) else {
            return Err(Unsafe::RecordUnknown);
        };
        if self.config.sites.get(to) != Some(&true) {
            return Err(Unsafe::NotOffered(to.clone()));
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
