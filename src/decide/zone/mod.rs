//! What a site's active does about the other sites: pure, as all of `decide`.
//!
//! ```text
//! cluster's record ┐
//! own PostgreSQL   ├─► judge() ─► Move: wait, write the record, align, start, reconfigure, promote, stop
//! sites' leases    │
//! probe            ┘
//! ```
//!
//! Sites never talk to each other but through the record and PostgreSQL's own connections. The rules:
//!
//! 1. PostgreSQL starts, and is told to run in another way, only after a compare-and-set on this very
//!    record under its own epoch, and never while an earlier one may still arrive: another is made
//!    first, in whose place the earlier one does not fit.
//! 2. What is promised is taken back in the record first, then at PostgreSQL; it is given at
//!    PostgreSQL first, then in the record.
//! 3. A site promotes itself by one compare-and-set that finds the promise unbroken, after so many
//!    sites have stopped to follow the old primary that it can get no acknowledgement any more.
//! 4. Who finds that another site was promoted kills its primary.

mod lost;
mod primary;
mod promise;
mod reason;
pub mod record;
mod replica;
pub mod seen;
#[cfg(test)]
mod tests;

use fencing::{Epoch, MemberId, Mono};

pub use reason::{Unsafe, ZoneReason};
pub use record::{
    ClusterLease, ClusterRecord, Degraded, How, Moving, Owner, Position, Promotion, SiteName, Sync,
    Synchronous,
};
pub use seen::{
    Asked, Data, Follower, Newest, PostgresFacts, ProbeFacts, Serve, SiteNumber, SlotFacts,
    Stopping, Urged, ZoneConfig, ZoneMemory, ZoneSeen,
};

use super::memory::{Span, Track};
use super::{LeaseVersion, Postgres, Seen, Timings};

/// What the site's active itself is doing.
#[derive(Clone, Copy, Debug)]
pub struct Situation {
    /// The member.
    pub member: MemberId,
    /// The epoch it owns.
    pub epoch: Epoch,
    /// When its hold was proven: an older reading of the record may miss what the owner before wrote.
    pub proven_at: Mono,
    /// When it last woke from a gap in its own looking.
    pub awake_since: Mono,
    /// PostgreSQL on this member.
    pub postgres: Postgres,
    /// No automatic failover.
    pub paused: bool,
}

/// What is to be done next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Move {
    /// Nothing.
    Wait(ZoneReason),
    /// Compare-and-set the record.
    Write {
        /// The version that must be found; `None`: there must be none.
        expected: Option<LeaseVersion>,
        /// The new record.
        record: Box<ClusterRecord>,
        /// Why.
        why: ZoneReason,
    },
    /// Bring the data directory in line with the record; PostgreSQL is stopped.
    Align {
        /// By a new base backup.
        reseed: bool,
    },
    /// Start PostgreSQL.
    Start(Serve),
    /// Let the running PostgreSQL go on in another way.
    Reconfigure(Serve),
    /// Make the running replica the primary.
    Promote(Serve),
    /// Make and clean up the other sites' replication slots.
    KeepSlots,
    /// Stop PostgreSQL in order, to go on as something else.
    Stop(ZoneReason),
    /// Kill PostgreSQL: it must not acknowledge anything any more.
    Kill(ZoneReason),
}

/// One judgement on its way.
pub struct Judge<'a> {
    /// The configuration.
    pub config: &'a ZoneConfig,
    /// Durations.
    pub timings: &'a Timings,
    /// What is seen.
    pub seen: &'a ZoneSeen,
    /// What this member is doing.
    pub situation: Situation,
    /// The memory, being written.
    pub memory: &'a mut ZoneMemory,
    /// Now.
    pub now: Mono,
}

impl<'a> Judge<'a> {
    /// What to do next.
    pub fn judge(mut self) -> Move {
        self.watch();
        if self.situation.postgres == Postgres::Stopped {
            self.memory.stopped_postgres();
        }
        let Some(found) = self.record() else {
            return Move::Wait(ZoneReason::RecordUnknown);
        };
        let Some(lease) = found else {
            return self.without_record();
        };
        let record = &lease.record;
        if self.outdated(record) {
            return self.with_older_record(lease);
        }
        self.memory.newest = Some(Newest::of(record));
        if self.in_flight(Some(&lease.version)) {
            return Move::Wait(ZoneReason::Recording);
        }
        if self.other_system(record) {
            return Move::Wait(ZoneReason::OtherSystem);
        }
        if self.overtaken(record) {
            return self.leave_to_successor(record);
        }
        let next = if record.primary == self.config.site {
            self.primary(lease)
        } else {
            self.replica(lease)
        };
        self.claimed_first(lease, next)
    }

    /// Nothing changes how PostgreSQL runs while a write of this owner's, whose outcome is not known,
    /// or of an earlier owner of this site may still arrive: a write that is in the record before
    /// takes its place.
    fn claimed_first(&mut self, lease: &ClusterLease, next: Move) -> Move {
        if !matches!(
            next,
            Move::Start(_) | Move::Reconfigure(_) | Move::Promote(_)
        ) {
            return next;
        }
        let own = self.own();
        let known = lease.record.owners.get(&self.config.site);
        if known == Some(&own) {
            self.memory.rival = None;
            let unresolved = self.wrote_over(Some(&lease.version));
            return match unresolved {
                true => self.rewrite(lease, ZoneReason::Recording, |_| {}),
                false => next,
            };
        }
        let site = self.config.site.clone();
        self.rewrite(lease, ZoneReason::Recording, |record| {
            record.owners.insert(site, own);
        })
    }

    /// Whether a greater epoch is in the record than this owner's: it was overtaken and is about to find
    /// that out at the volume. Where PostgreSQL does not run yet, the site may have a new volume instead,
    /// whose epochs begin again.
    fn overtaken(&mut self, record: &ClusterRecord) -> bool {
        let own = self.own();
        let other = record.owners.get(&self.config.site).copied();
        let Some(other) = other.filter(|other| other.epoch > own.epoch) else {
            return false;
        };
        self.memory.runs.is_some() || !self.outlasts(other)
    }

    /// An overtaken owner writes nothing, nor does it change how PostgreSQL runs: what it sees of its own
    /// PostgreSQL says nothing about what its successor's shows.
    fn leave_to_successor(&self, record: &ClusterRecord) -> Move {
        let runs = self.memory.runs.as_ref();
        let earlier = runs.is_some_and(|(term, serve)| {
            *term != record.term && !matches!(serve, Serve::Replica { .. })
        });
        match earlier {
            true => Move::Kill(superseded(record)),
            false => Move::Wait(ZoneReason::Changing),
        }
    }

    /// Whether a greater epoch than this owner's has stayed in the record without any further sign of its
    /// owner.
    fn outlasts(&mut self, other: Owner) -> bool {
        let now = self.now;
        let rival = self
            .memory
            .rival
            .take()
            .filter(|rival| rival.value == other);
        let rival = rival.unwrap_or(Track {
            value: other,
            since: now,
        });
        let since = rival.since.max(self.situation.awake_since);
        self.memory.rival = Some(rival);
        since.elapsed(self.timings.site_detection, now)
    }

    fn own(&self) -> Owner {
        Owner {
            member: self.situation.member,
            epoch: self.situation.epoch,
        }
    }

    /// Whether a primary of this member's must not acknowledge anything any more: another site was
    /// promoted.
    pub fn superseded_now(&self) -> Option<ZoneReason> {
        let record = &self.record()??.record;
        let other = record.primary != self.config.site && !self.outdated(record);
        (other && self.memory.leads(true)).then(|| superseded(record))
    }

    /// The record, if it was read lately enough to act on and after this member's hold was proven.
    fn record(&self) -> Option<Option<&'a ClusterLease>> {
        let (found, at) = self.seen.record.known_at()?;
        let fresh = !at.elapsed(self.timings.lease_age, self.now);
        (fresh && at > self.situation.proven_at).then_some(found.as_ref())
    }

    /// Whether a write that named this version is on its way.
    fn in_flight(&self, version: Option<&LeaseVersion>) -> bool {
        let patience = self.timings.lease_deadline + self.timings.observe;
        let wrote = self.memory.wrote;
        let lately = wrote.is_some_and(|wrote| !wrote.elapsed(patience, self.now));
        lately && self.wrote_over(version)
    }

    /// Whether this owner made a write that named this version: it did not arrive, or not yet.
    fn wrote_over(&self, version: Option<&LeaseVersion>) -> bool {
        let over = self.memory.wrote_over.as_ref();
        over.is_some_and(|named| named.as_ref() == version)
    }

    fn write(
        &mut self,
        expected: Option<LeaseVersion>,
        mut record: ClusterRecord,
        why: ZoneReason,
    ) -> Move {
        record.writes += 1;
        self.memory.wrote = Some(self.now);
        self.memory.wrote_over = Some(expected.clone());
        Move::Write {
            expected,
            record: Box::new(record),
            why,
        }
    }

    /// Writes the record that `change` makes of this one.
    fn rewrite(
        &mut self,
        lease: &ClusterLease,
        why: ZoneReason,
        change: impl FnOnce(&mut ClusterRecord),
    ) -> Move {
        let mut record = lease.record.clone();
        change(&mut record);
        self.write(Some(lease.version.clone()), record, why)
    }

    /// This member's PostgreSQL, as it was seen after it last changed how it runs.
    fn facts(&self) -> Option<&'a PostgresFacts> {
        let (facts, at) = self.seen.postgres.known_at()?;
        let fresh = !at.elapsed(self.timings.detection * 2, self.now);
        (fresh && at > self.memory.since).then_some(facts)
    }

    fn other_system(&self, record: &ClusterRecord) -> bool {
        let own = self.facts().map(|facts| facts.system);
        record.system.is_some() && own.is_some() && own != record.system
    }

    /// Takes in what was seen of the primary's site.
    pub(super) fn watch(&mut self) {
        for (site, seen) in &self.seen.leases {
            let Some((lease, at)) = seen.known_at() else {
                continue;
            };
            let version = lease.as_ref().map(|lease| lease.version.clone());
            let known = self.memory.leases.get(site);
            if known.is_none_or(|track| track.value != version) {
                let track = Track {
                    value: version,
                    since: at,
                };
                self.memory.leases.insert(site.clone(), track);
            }
        }
        let primary = self
            .seen
            .record
            .known()
            .and_then(|lease| Some(&lease.as_ref()?.record.primary));
        let read = primary.and_then(|site| Some(self.seen.leases.get(site)?.known_at()?.1));
        let gap = self.timings.lease_age;
        self.memory.reads = match (read, self.memory.reads) {
            (None, _) => None,
            (Some(at), Some(span)) if !span.last.elapsed(gap, at) => Some(Span {
                since: span.since,
                last: at.max(span.last),
            }),
            (Some(at), _) => Some(Span {
                since: at,
                last: at,
            }),
        };
        let lease = primary.and_then(|site| Some(self.memory.leases.get(site)?.since));
        let probe = self
            .seen
            .probe
            .known_at()
            .filter(|(probe, _)| Some(&probe.site) == primary && !probe.in_recovery)
            .map(|(_, at)| at);
        let heard = match &self.seen.postgres {
            Seen::Known { value, at } if value.receiving => {
                let age = value.heard_ms.unwrap_or(u64::MAX);
                Some(Mono::from_millis(at.as_millis().saturating_sub(age)))
            }
            Seen::Known { .. } | Seen::Unknown { .. } => None,
        };
        let newest = lease.into_iter().chain(probe).chain(heard).max();
        self.memory.alive = self.memory.alive.max(newest);
    }
}

/// Another site was promoted.
fn superseded(record: &ClusterRecord) -> ZoneReason {
    ZoneReason::Superseded {
        by: record.primary.clone(),
        term: record.term,
    }
}
