//! Signs of life: which channel moved when, by this member's own clock, and what silence is.
//!
//! Only the holder's own signs count, and only reading that had no gap proves a silence.

use fencing::{Holder, Mailbox, MemberEntry, MemberId, Mono};
use nvme::HostId;

use super::action::Victim;
use super::memory::{Registered, Span, Track};
use super::observation::{Custody, Heartbeat, LeaseVersion, RoleName, Seen};
use super::turn::Turn;

/// How well the time in question was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Read {
    /// Not at all, or not lately.
    Not,
    /// Only since then.
    BeganAt(Mono),
    /// For long enough, since then, but not to its end.
    EndsBefore(Mono),
    /// Wholly.
    Covers,
}

impl Turn<'_> {
    /// Takes in what was seen. First thing in every decision.
    pub(super) fn watch(&mut self) {
        self.notice_own_gap();
        self.watch_mailbox();
        self.watch_lease();
        self.watch_peers();
        self.forget_the_past();
    }

    /// A member that did not look for a while knows nothing about that while.
    fn notice_own_gap(&mut self) {
        let gap = self.timings().sample_gap;
        let frozen = self
            .memory
            .looked
            .is_none_or(|looked| self.now.since(looked) > gap);
        if frozen {
            self.memory.awake_since = self.now;
            self.refresh(true, true);
        }
        self.memory.looked = Some(self.now);
    }

    fn watch_mailbox(&mut self) {
        let gap = self.timings().sample_gap;
        let Seen::Known { value, at } = &self.seen.mailbox else {
            self.memory.watch.mailbox = None;
            self.memory.watch.absent = None;
            return;
        };
        if !lengthen(&mut self.memory.watch.mailbox, *at, gap) {
            return;
        }
        let keys = &mut self.memory.watch.keys;
        keys.retain(|host, _| value.of_host(*host).is_some());
        for entry in &value.members {
            let raw = entry.key.pack();
            let track = keys.entry(entry.host).or_insert(Track {
                value: raw,
                since: *at,
            });
            if track.value != raw {
                *track = Track {
                    value: raw,
                    since: *at,
                };
            }
        }
        self.watch_registration(value, *at);
        if value.holder == Holder::Nobody {
            self.watch_absence();
        } else {
            self.memory.watch.absent = None;
        }
        if let Holder::Member(holder) = value.holder {
            let owner = (holder.key.member, holder.key.epoch, holder.key.flags.clean);
            self.memory.newest = self.memory.newest.max(holder.key.epoch);
            if self
                .memory
                .watch
                .owner
                .is_none_or(|track| track.value != owner)
            {
                self.memory.watch.owner = Some(Track {
                    value: owner,
                    since: *at,
                });
            }
        } else {
            self.memory.watch.owner = None;
        }
    }

    /// A registration that a later report does not show is lost.
    fn watch_registration(&mut self, mailbox: &Mailbox, at: Mono) {
        let host = self.seen.local.host;
        let gone = mailbox.of_host(host).is_none();
        if gone
            && self
                .memory
                .registered
                .is_some_and(|registered| at > registered.at)
        {
            self.memory.registered = None;
        }
    }

    /// What peers say of themselves counts from here on: nobody holds, this host is registered, and
    /// neither has changed since, as far as looking without a gap can tell.
    fn watch_absence(&mut self) {
        let Some(registered) = self.memory.registered else {
            self.memory.watch.absent = None;
            return;
        };
        let unbroken = self.memory.watch.mailbox.map(|span| span.since);
        let stands = |absent: &Registered| {
            absent.at >= registered.at && unbroken.is_some_and(|since| absent.at >= since)
        };
        if !self.memory.watch.absent.as_ref().is_some_and(stands) {
            let heartbeats = self.memory.heartbeats;
            self.memory.watch.absent = Some(Registered {
                at: self.now,
                heartbeats,
            });
        }
    }

    fn watch_lease(&mut self) {
        let gap = self.timings().sample_gap;
        let Seen::Known { value, at } = &self.seen.lease else {
            self.memory.watch.lease_read = None;
            return;
        };
        if !lengthen(&mut self.memory.watch.lease_read, *at, gap) {
            return;
        }
        let watch = &mut self.memory.watch;
        watch.lease_last = Some(*at);
        let version: Option<LeaseVersion> = value.as_ref().map(|lease| lease.version.clone());
        if watch
            .lease
            .as_ref()
            .is_none_or(|track| track.value != version)
        {
            watch.lease = Some(Track {
                value: version,
                since: *at,
            });
        }
        if let Some(lease) = value {
            self.memory.newest = self
                .memory
                .newest
                .max(lease.record.epoch)
                .max(lease.record.newest);
            self.memory.paused = lease.record.paused;
        }
    }

    fn watch_peers(&mut self) {
        for (member, seen) in &self.seen.peers {
            let Some((heartbeat, at)) = seen.known_at() else {
                continue;
            };
            self.memory.newest = self.memory.newest.max(heartbeat.epoch);
            if heartbeat.custody == Custody::Nothing {
                self.memory.watch.nothing.entry(*member).or_insert(at);
            } else {
                self.memory.watch.nothing.remove(member);
            }
            if speaks_as_owner(heartbeat) {
                self.memory.watch.alive.insert(*member, at);
            }
        }
    }

    fn forget_the_past(&mut self) {
        let (now, timings) = (self.now, self.timings());
        self.memory
            .takeovers
            .retain(|at| !at.elapsed(timings.takeover_window, now));
        self.memory
            .restarts
            .retain(|at| !at.elapsed(timings.restart_window, now));
    }

    /// The owner's last sign of life on any channel; at the earliest the beginning of the watch.
    pub(super) fn last_sign(&self, owner: &MemberEntry) -> Mono {
        self.last_sign_of(owner.host, owner.key.member)
    }

    fn last_sign_of(&self, host: HostId, member: MemberId) -> Mono {
        let watch = &self.memory.watch;
        let storage = watch.keys.get(&host).map(|track| track.since);
        let leased = self.seen.lease.known().and_then(Option::as_ref);
        let lease = leased
            .filter(|lease| lease.record.holder == Some(member))
            .and(watch.lease.as_ref())
            .map(|track| track.since);
        let peer = watch.alive.get(&member).copied();
        [storage, lease, peer]
            .into_iter()
            .flatten()
            .fold(self.memory.awake_since, Mono::max)
    }

    /// How well a channel that does not depend on the peers was read up to now: it must reach back for
    /// a whole detection, and its newest read must have begun at `end` or later.
    pub(super) fn read_without_gap(&self, end: Mono) -> Read {
        let timings = self.timings();
        let storage = self.memory.watch.mailbox.filter(|_| timings.storage_beats);
        let lease = self.memory.watch.lease_read;
        let spans = [storage, lease.filter(|_| timings.lease_shows_silence())];
        let fresh = spans
            .into_iter()
            .flatten()
            .filter(|span| !span.last.elapsed(timings.sample_gap, self.now))
            .map(|span| Span {
                since: span.since.max(self.memory.awake_since),
                ..span
            });
        let mut best = Read::Not;
        for span in fresh {
            let read = if !span.since.elapsed(timings.detection, self.now) {
                Read::BeganAt(span.since)
            } else if span.last < end {
                Read::EndsBefore(span.since)
            } else {
                Read::Covers
            };
            best = best.max(read);
        }
        best
    }

    /// Whether an owner that was taken for silent has given a sign after all, or may have given one
    /// while this member did not look.
    pub(super) fn spoke_again(&self, victim: &Victim, last: Mono) -> bool {
        let Victim::Holder {
            host,
            member,
            epoch: _,
            clean: _,
        } = victim
        else {
            return false;
        };
        self.last_sign_of(*host, *member) > last
    }

    /// Whether the key of this host has moved within the detection.
    pub(super) fn key_moves(&self, entry: &MemberEntry) -> bool {
        let detection = self.timings().detection;
        let track = self.memory.watch.keys.get(&entry.host);
        track.is_some_and(|track| !track.since.elapsed(detection, self.now))
    }
}

/// Whether this heartbeat is a sign of life of an owner that gets on. One that is cleaning up after an
/// ownership may still have processes that hang on the volume: it says itself that it serves nobody.
fn speaks_as_owner(heartbeat: &Heartbeat) -> bool {
    let owns = match heartbeat.role {
        RoleName::TakingOver | RoleName::Active | RoleName::HandingOver => true,
        RoleName::Joining | RoleName::Standby | RoleName::Returning | RoleName::Stopped => false,
    };
    owns && heartbeat.custody == Custody::Held && !heartbeat.stuck
}

/// Adds a read to the span, or begins a new one after a gap. Whether the read was a new one.
fn lengthen(span: &mut Option<Span>, at: Mono, gap: std::time::Duration) -> bool {
    match span {
        Some(span) if at < span.last => false,
        Some(span) if at.since(span.last) <= gap => {
            span.last = at;
            true
        }
        Some(_) | None => {
            *span = Some(Span {
                since: at,
                last: at,
            });
            true
        }
    }
}
