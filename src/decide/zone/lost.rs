//! The record is gone, or an older copy of it is there: nothing follows from it, until an operator says
//! which site leads.

use super::record::{ClusterLease, ClusterRecord, How, Position, Promotion};
use super::seen::{Data, Newest};
use super::{Judge, Move, ZoneReason};
use crate::decide::{LeaseVersion, Postgres};

/// How many writes a record that is made anew is ahead of the newest that its site knows: more than other
/// sites can have seen beyond that, whatever they did meanwhile.
const WRITES: u64 = 1 << 40;

/// How many terms it is ahead, where its site does not go on leading: no term of its own is that of a
/// primary which this site never heard of, whose data would be taken for its own.
const TERMS: u64 = 1 << 16;

/// How many timelines are left to promotions that this site never heard of. Each costs a file at the next
/// promotion.
const TIMELINES: u32 = 16;

impl Judge<'_> {
    /// Whether this is an older record than one that was seen before.
    pub(super) fn outdated(&self, record: &ClusterRecord) -> bool {
        self.memory
            .newest
            .is_some_and(|known| known.outdates(record))
    }

    /// Whether the record is gone, or an older copy.
    pub(in crate::decide) fn record_is_lost(&self) -> bool {
        match self.record() {
            None => false,
            Some(None) => self.memory.newest.is_some(),
            Some(Some(lease)) => self.outdated(&lease.record),
        }
    }

    /// There is none. The first site makes it, if there never was one.
    pub(super) fn without_record(&mut self) -> Move {
        if self.in_flight(None) {
            return Move::Wait(ZoneReason::Recording);
        }
        if let Some(newest) = self.memory.newest {
            return self.led_by_word(None, newest, ZoneReason::RecordLost);
        }
        // What is noted beside the data tells whether there was one.
        let stopped = self.situation.postgres == Postgres::Stopped;
        if stopped && self.memory.aligned.is_none() {
            return Move::Align { reseed: false };
        }
        if self.config.first != self.config.site {
            return Move::Wait(ZoneReason::WaitingForFirst(self.config.first.clone()));
        }
        let sync = self.promise_at_start();
        let record = ClusterRecord::first(self.config.site.clone(), sync);
        self.write(None, record, ZoneReason::Recording)
    }

    pub(super) fn with_older_record(&mut self, lease: &ClusterLease) -> Move {
        let version = Some(lease.version.clone());
        if self.in_flight(version.as_ref()) {
            return Move::Wait(ZoneReason::Recording);
        }
        match self.memory.newest {
            Some(newest) => self.led_by_word(version, newest, ZoneReason::RecordOlder),
            None => Move::Wait(ZoneReason::RecordOlder),
        }
    }

    /// A running primary serves on; a record is made anew only by an operator's word, at the site that
    /// shall lead.
    fn led_by_word(
        &mut self,
        expected: Option<LeaseVersion>,
        newest: Newest,
        why: ZoneReason,
    ) -> Move {
        let term = self.term_by_word(newest);
        let asked = self.memory.urged.is_some_and(|urged| {
            urged.allow_data_loss
                && urged.term + 1 == term
                && !urged.at.elapsed(self.timings.promote, self.now)
        });
        if !asked {
            return Move::Wait(why);
        }
        let record = self.anew(newest, term);
        self.write(expected, record, ZoneReason::Recording)
    }

    /// The term of a record that an operator has made anew: the same where this site led in the newest
    /// one, else one that no site has seen.
    pub(super) fn term_by_word(&self, newest: Newest) -> u64 {
        let led = match (&self.memory.runs, self.memory.aligned) {
            (Some((term, _)), Some((_, Data::Primary))) => Some(*term),
            (None, Some((term, Data::Primary))) => Some(term),
            _ => self.memory.led,
        };
        match led {
            Some(term) if term == newest.term => term,
            _ => newest.term + TERMS,
        }
    }

    fn anew(&self, newest: Newest, term: u64) -> ClusterRecord {
        let site = self.config.site.clone();
        let sync = self.promise_at_start();
        let mut record = ClusterRecord::first(site.clone(), sync);
        record.owners.insert(site.clone(), self.own());
        record.writes = newest.writes + WRITES;
        record.term = term;
        record.newest_timeline = newest.timeline + TIMELINES;
        record.history = vec![Promotion {
            term,
            site,
            how: How::DataLossAllowed,
            from: Position::default(),
        }];
        record
    }
}
