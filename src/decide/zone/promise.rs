//! What a primary promises of the other sites: given at PostgreSQL first, taken back in the record first.

use std::collections::BTreeSet;

use super::record::{ClusterLease, Degraded, SiteName, Sync, Synchronous};
use super::seen::{PostgresFacts, Pursuit, Serve};
use super::{Judge, Move, ZoneReason};
use crate::postgres::Lsn;

impl Judge<'_> {
    /// What a new primary at this site promises at first.
    pub(super) fn promise_at_start(&self) -> Sync {
        match self.config.synchronous {
            Synchronous::Required => self.of_all_candidates(),
            Synchronous::Preferred => Sync::none(Degraded::NotYet),
            Synchronous::Off => Sync::none(Degraded::Off),
        }
    }

    fn of_all_candidates(&self) -> Sync {
        Sync {
            need: self.config.quorum,
            sites: self.config.candidates(&self.config.site),
            confirmed: false,
            why: None,
        }
    }

    /// Follows how far each site is: it must reach the log's end of one look within the patience.
    pub(super) fn pursue(&mut self, facts: &PostgresFacts) {
        let end = facts.flushed.lsn;
        for site in self.config.sites.keys() {
            let flushed = facts.followers.get(site).map(|follower| follower.flushed);
            let known = self.memory.pursuits.get(site).copied();
            let before = known.map_or(Lsn(0), |known| known.told);
            let told = flushed.map_or(before, |flushed| flushed.max(before));
            let next = match (known, flushed) {
                (Some(known), Some(flushed)) if flushed < known.goal => Pursuit { told, ..known },
                (Some(known), None) => known,
                (None, None) => Pursuit {
                    goal: end,
                    since: self.memory.since,
                    told,
                },
                (_, Some(_)) => Pursuit {
                    goal: end,
                    since: self.now,
                    told,
                },
            };
            self.memory.pursuits.insert(site.clone(), next);
        }
    }

    /// Whether a site has reached the log's end of a moment ago.
    pub(super) fn keeps_up(&self, site: &SiteName) -> bool {
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

    /// What is to be promised now: of the sites that keep up, if they are enough.
    fn target(&self, sync: &Sync, facts: &PostgresFacts) -> Sync {
        if self.config.synchronous == Synchronous::Off || self.config.quorum == 0 {
            return Sync::none(Degraded::Off);
        }
        let all = self.of_all_candidates();
        let streams = |site: &SiteName| {
            let follower = facts.followers.get(site);
            follower.is_some_and(|follower| follower.streaming)
        };
        let kept: BTreeSet<_> = all
            .sites
            .iter()
            .filter(|site| self.keeps_up(site) && (sync.sites.contains(*site) || streams(site)))
            .cloned()
            .collect();
        if kept.len() >= usize::from(all.need) {
            return Sync { sites: kept, ..all };
        }
        match (self.config.synchronous, sync.need) {
            (Synchronous::Required, _) => all,
            (_, 0) => Sync::none(sync.why.clone().unwrap_or(Degraded::NotYet)),
            _ => Sync::none(Degraded::Behind(&sync.sites - &kept)),
        }
    }

    /// The next thing to do so that the promise is the one that fits; `None` where it is, or where the
    /// sites have yet to catch up.
    pub(super) fn promise(
        &mut self,
        lease: &ClusterLease,
        serve: &Serve,
        facts: &PostgresFacts,
        began: Lsn,
    ) -> Option<Move> {
        let sync = &lease.record.sync;
        let target = self.target(sync, facts);
        let wanted = self.serving(&target);
        if target.need == 0 && sync.need > 0 {
            let why = target.why.clone().unwrap_or(Degraded::NotYet);
            return Some(self.rewrite(lease, ZoneReason::NotInSync(why), |record| {
                record.sync = target;
            }));
        }
        if !target.keeps(sync) {
            return Some(self.rewrite(lease, ZoneReason::Recording, |record| {
                record.sync = record.sync.weaker(&target);
            }));
        }
        // Somebody else has changed for whom commits wait: what is promised may not hold.
        if ![serve.names(), wanted.names()].contains(&facts.names) && sync.confirmed {
            self.memory.began = None;
            return Some(self.rewrite(lease, ZoneReason::AwaitingSync, |record| {
                record.sync.confirmed = false;
            }));
        }
        if *serve != wanted || self.memory.unsure || facts.names != wanted.names() {
            self.memory.named = None;
            return Some(Move::Reconfigure(wanted));
        }
        let named = *self.memory.named.get_or_insert(facts.flushed.lsn);
        self.confirm(lease, facts, &target, began.max(named))
    }

    /// PostgreSQL does what is wanted: it is promised when enough sites have what was there before.
    fn confirm(
        &mut self,
        lease: &ClusterLease,
        facts: &PostgresFacts,
        target: &Sync,
        goal: Lsn,
    ) -> Option<Move> {
        let sync = &lease.record.sync;
        let same = (sync.need, &sync.sites) == (target.need, &target.sites);
        let kept = same && (sync.confirmed || sync.need == 0);
        if kept || self.reached(facts, &target.sites, goal) < usize::from(target.need) {
            return None;
        }
        let confirmed = Sync {
            confirmed: true,
            ..target.clone()
        };
        Some(self.rewrite(lease, ZoneReason::InSync, |record| record.sync = confirmed))
    }
}
