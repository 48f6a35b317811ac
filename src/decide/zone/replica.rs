//! A site that the record does not name: its PostgreSQL follows, and takes over when it may.

use std::time::Duration;

use fencing::Mono;

use super::record::{ClusterLease, ClusterRecord, How, Position};
use super::seen::{Data, ProbeFacts, Serve, Urged};
use super::{Judge, Move, Unsafe, ZoneReason, superseded};
use crate::decide::{Postgres, Seen};

/// Attempts to rewind before a new base backup is made.
const REWINDS: u8 = 2;

impl Judge<'_> {
    pub(super) fn replica(&mut self, lease: &ClusterLease) -> Move {
        let record = &lease.record;
        let of = record.primary.clone();
        match self.situation.postgres {
            Postgres::Stopped => self.start_replica(lease),
            Postgres::Running => match self.memory.runs.clone() {
                Some((term, Serve::Replica { of: known, receive }))
                    if term == record.term && known == of =>
                {
                    self.follow(lease, receive)
                }
                Some((_, Serve::Replica { receive, .. })) if self.may_be_forced(record) => {
                    self.force(lease, receive)
                }
                Some((_, Serve::Replica { .. })) | None => Move::Stop(ZoneReason::Following(of)),
                Some((_, Serve::Primary { .. } | Serve::Alone)) => Move::Kill(superseded(record)),
            },
            Postgres::Starting | Postgres::Stopping | Postgres::Unknown => {
                Move::Wait(ZoneReason::Changing)
            }
        }
    }

    fn start_replica(&mut self, lease: &ClusterLease) -> Move {
        let record = &lease.record;
        let of = record.primary.clone();
        if self.may_be_forced(record) {
            let receive = false;
            return Move::Start(Serve::Replica { of, receive });
        }
        let aligned = self.memory.aligned == Some((record.term, Data::Replica));
        // What is here may be all there is.
        let silent = self.is_silent(self.timings.site_detection);
        self.memory.reseed &= !aligned || !silent;
        if !aligned && self.primary_replays(record) {
            return Move::Wait(ZoneReason::Following(of));
        }
        if !aligned || self.memory.reseed {
            let failed = self.memory.misaligned % (REWINDS + 1) == REWINDS;
            let anew = self.memory.reseed && !silent;
            let reseed = anew || (failed && self.primary_answers(record));
            return Move::Align { reseed };
        }
        let receive = !record.cuts.contains_key(&self.config.site);
        Move::Start(Serve::Replica { of, receive })
    }

    /// Whether the primary's site has shown no life for so long.
    fn is_silent(&self, patience: Duration) -> bool {
        let silent = self.silent_since();
        silent.is_some_and(|since| since.elapsed(patience, self.now))
    }

    /// An operator's word of a moment ago, for this term.
    fn urged(&self, record: &ClusterRecord) -> Option<Urged> {
        let urged = self.memory.urged?;
        let lately = !urged.at.elapsed(self.timings.promote, self.now);
        (lately && urged.term == record.term).then_some(urged)
    }

    /// Whether an operator has accepted a loss, and the primary's site is silent still.
    fn may_be_forced(&self, record: &ClusterRecord) -> bool {
        let urged = self.urged(record);
        urged.is_some_and(|urged| urged.allow_data_loss) && self.is_silent(self.timings.detection)
    }

    /// The primary's PostgreSQL answers as a primary.
    fn primary_answers(&self, record: &ClusterRecord) -> bool {
        self.probed(record).is_some_and(|probe| !probe.in_recovery)
    }

    /// The primary's PostgreSQL answers and is none yet: its promotion is on its way.
    fn primary_replays(&self, record: &ClusterRecord) -> bool {
        self.probed(record).is_some_and(|probe| probe.in_recovery)
    }

    /// What the PostgreSQL of the primary's site answered of late.
    fn probed(&self, record: &ClusterRecord) -> Option<&ProbeFacts> {
        let (probe, at) = self.seen.probe.known_at()?;
        let fresh = !at.elapsed(self.timings.detection, self.now);
        (fresh && probe.site == record.primary).then_some(probe)
    }

    fn follow(&mut self, lease: &ClusterLease, receive: bool) -> Move {
        let record = &lease.record;
        let site = &self.config.site;
        if self.may_be_forced(record) {
            return self.force(lease, receive);
        }
        let patience = match self.urged(record) {
            Some(_) => self.timings.detection,
            None => self.timings.site_detection,
        };
        let over = self.is_silent(patience);
        let end = record.moving.as_ref().filter(|moving| moving.to == *site);
        let end = end.and_then(|moving| moving.stopped);
        if let Some(end) = end
            && let Some(next) = self.take_the_primary(lease, receive, end, over)
        {
            return next;
        }
        if record.cuts.contains_key(site) {
            return self.cut_off(lease, receive, over);
        }
        if over {
            return match self.may_cut(record) {
                Ok(()) => self.cut(lease, receive),
                Err(why) if end.is_some() => Move::Wait(ZoneReason::NotSafe(why)),
                Err(why) => self.go_on(record, receive, ZoneReason::NotSafe(why)),
            };
        }
        self.note_gain();
        self.memory.reseed |= self.useless(record);
        if self.memory.reseed {
            return Move::Stop(ZoneReason::Seeding(record.primary.clone()));
        }
        let of = record.primary.clone();
        let following = self.facts().is_some_and(|facts| facts.receiving);
        let why = match following {
            true => ZoneReason::Following(of),
            false => ZoneReason::NotReceiving(of),
        };
        self.go_on(record, receive, why)
    }

    /// Receives, if it does not.
    fn go_on(&mut self, record: &ClusterRecord, receive: bool, why: ZoneReason) -> Move {
        self.memory.stopped = None;
        match receive && !self.memory.unsure {
            true => Move::Wait(why),
            false => Move::Reconfigure(Serve::Replica {
                of: record.primary.clone(),
                receive: true,
            }),
        }
    }

    fn stop_receiving(&self, record: &ClusterRecord) -> Move {
        Move::Reconfigure(Serve::Replica {
            of: record.primary.clone(),
            receive: false,
        })
    }

    /// Since when the primary's site gives no sign of life on any channel, by this member's own
    /// clock; `None` while its lease is not read without a gap.
    fn silent_since(&self) -> Option<Mono> {
        let reads = self.memory.reads?;
        if reads.last.elapsed(self.timings.lease_age, self.now) {
            return None;
        }
        let began = reads
            .since
            .max(self.situation.awake_since)
            .max(self.situation.proven_at);
        Some(self.memory.alive.map_or(began, |alive| alive.max(began)))
    }

    /// Whether this site may stop to follow the primary in order to be promoted.
    fn may_cut(&self, record: &ClusterRecord) -> Result<(), Unsafe> {
        if self.situation.paused {
            return Err(Unsafe::Paused);
        }
        record.promises(self.config, &self.config.site)?;
        match self.memory.lacks(self.facts().map(|facts| facts.flushed)) {
            Some(floor) => Err(Unsafe::Restored { floor }),
            None => Ok(()),
        }
    }

    /// Stops receiving, then says so in the record.
    fn cut(&mut self, lease: &ClusterLease, receive: bool) -> Move {
        let Some(position) = self.memory.stopped.filter(|_| !receive) else {
            return self.stop_receiving(&lease.record);
        };
        let site = self.config.site.clone();
        self.rewrite(lease, ZoneReason::CutOff, |record| {
            record.cuts.insert(site, position);
        })
    }

    fn cut_off(&mut self, lease: &ClusterLease, receive: bool, silent: bool) -> Move {
        let record = &lease.record;
        if receive {
            return self.stop_receiving(record);
        }
        let site = self.config.site.clone();
        if !silent && self.silent_since().is_some() {
            return self.rewrite(
                lease,
                ZoneReason::Following(record.primary.clone()),
                |record| {
                    record.cuts.remove(&site);
                },
            );
        }
        match self.may_be_promoted(record) {
            Ok(from) => self.be_promoted(lease, How::Failover, from),
            Err(why) => Move::Wait(ZoneReason::NotSafe(why)),
        }
    }

    /// Whether this site is the one to be promoted.
    fn may_be_promoted(&self, record: &ClusterRecord) -> Result<Position, Unsafe> {
        self.may_cut(record)?;
        if !record.cut_off() {
            let following = record.sync.sites.iter();
            let following = following.filter(|site| !record.cuts.contains_key(site));
            return Err(Unsafe::OthersFollow(following.cloned().collect()));
        }
        match record.furthest() {
            // It followed another timeline than this term's: it has nothing of this term.
            Some((_, at)) if at.timeline != record.timeline => Err(Unsafe::NoPosition),
            Some((site, at)) if *site == self.config.site => Ok(at),
            Some((site, at)) => Err(Unsafe::Behind {
                site: site.clone(),
                at,
            }),
            None => Err(Unsafe::NoPosition),
        }
    }

    fn be_promoted(&mut self, lease: &ClusterLease, how: How, from: Position) -> Move {
        let sync = self.promise_at_start();
        let site = self.config.site.clone();
        let record = lease.record.promoted(site, self.own(), how, from, sync);
        self.write(Some(lease.version.clone()), record, ZoneReason::Promoting)
    }

    /// A planned move: the old primary is shut down, and everything of it must be here. If it is not
    /// and the old primary's site is silent, `None`: then it is a failover like any other.
    fn take_the_primary(
        &mut self,
        lease: &ClusterLease,
        receive: bool,
        end: Position,
        silent: bool,
    ) -> Option<Move> {
        let Some(stopped) = self.memory.stopped.filter(|_| !receive) else {
            return Some(self.stop_receiving(&lease.record));
        };
        // Its last record begins there; what is beyond it is all of it. A promotion replays it first.
        if stopped.timeline == end.timeline && stopped.lsn > end.lsn {
            return Some(self.be_promoted(lease, How::Switchover, end));
        }
        (!silent).then(|| Move::Wait(ZoneReason::Moving(self.config.site.clone())))
    }

    /// An operator's failover that may lose something.
    fn force(&mut self, lease: &ClusterLease, receive: bool) -> Move {
        match self.memory.stopped.filter(|_| !receive) {
            None => self.stop_receiving(&lease.record),
            Some(from) => self.be_promoted(lease, How::DataLossAllowed, from),
        }
    }

    fn note_gain(&mut self) {
        let Some(facts) = self.facts() else {
            return;
        };
        let at = facts.flushed.lsn;
        if self.memory.gained.is_none_or(|(known, _)| known != at) {
            self.memory.gained = Some((at, self.now));
        }
    }

    /// Since when this replica gets no further: as long as it does, by what it has or from an archive, it may yet
    /// reach what the primary keeps. An archive may take its time.
    fn stands_still(&self) -> bool {
        let patience = match self.config.archive {
            true => self.timings.start,
            false => self.timings.site_detection,
        };
        let gained = self.memory.gained;
        gained.is_some_and(|(_, since)| since.elapsed(patience, self.now))
    }

    /// Whether the primary answers and this replica can never follow it from where it is.
    fn useless(&self, record: &ClusterRecord) -> bool {
        let (Some(facts), Seen::Known { value: probe, at }) = (self.facts(), &self.seen.probe)
        else {
            return false;
        };
        let patience = self.timings.site_detection;
        let settled = self.memory.since.elapsed(patience, self.now);
        if facts.receiving || !settled || !self.stands_still() || at.elapsed(patience, self.now) {
            return false;
        }
        let gone = probe.slot.is_some_and(|slot| {
            slot.lost || slot.from.is_some_and(|from| from > facts.flushed.lsn)
        });
        probe.site == record.primary && !probe.in_recovery && gone
    }

    /// Whether an operator may urge this site's promotion, and in which term.
    pub(in crate::decide) fn may_be_urged(
        &self,
        allow_data_loss: bool,
        detection: Duration,
    ) -> Result<u64, Unsafe> {
        let lease = match (self.record(), self.memory.newest) {
            (None, _) | (Some(None), None) => return Err(Unsafe::RecordUnknown),
            (Some(Some(lease)), _) if !self.outdated(&lease.record) => lease,
            // Nobody can tell whether the primary lives: there is no saying which it is.
            (Some(_), Some(newest)) if allow_data_loss => return Ok(self.term_by_word(newest) - 1),
            (Some(_), _) => return Err(Unsafe::RecordLost),
        };
        if !self.is_silent(detection) {
            return Err(Unsafe::PrimaryLives);
        }
        if !allow_data_loss {
            self.may_cut(&lease.record)?;
        }
        Ok(lease.record.term)
    }
}
