//! Faults that tests switch on and off. A switch acts at once, on connections that are open too.
//! All of them count requests instead of rolling dice, so a run repeats.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

/// What becomes of a client that is cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Partition {
    /// Packets vanish: connections stay, nothing is read and nothing answered. When it heals,
    /// what the client had sent arrives late, as after a real partition.
    Hang,
    /// Connections are closed as soon as the client shows itself.
    Cut,
}

/// Whether a connection is served just now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Serve,
    Stall,
    Cut,
}

/// A rule that answers some requests with an error instead of serving them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Errors {
    code: u16,
    every: u32,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Switches {
    pub outage: bool,
    blackhole: bool,
    partitions: BTreeMap<String, Partition>,
    pub latency: Duration,
    errors: Option<Errors>,
    conflicts: Option<u32>,
    pub no_bookmarks: bool,
    /// Watches send a bookmark whenever this number changes.
    pub bookmark_call: u64,
    /// A watch from a forgotten version is refused with HTTP 410 instead of an ERROR event.
    pub expired_by_http: bool,
}

impl Switches {
    /// What becomes of a connection; `who` is its user and client, as far as they are known.
    pub(crate) fn fate(&self, who: Option<&(String, String)>) -> Fate {
        if self.outage {
            return Fate::Cut;
        }
        if self.blackhole {
            return Fate::Stall;
        }
        let partition = who.and_then(|(user, client)| {
            self.partitions
                .get(user)
                .or_else(|| self.partitions.get(client))
        });
        match partition {
            None => Fate::Serve,
            Some(Partition::Hang) => Fate::Stall,
            Some(Partition::Cut) => Fate::Cut,
        }
    }
}

#[derive(Debug, Default)]
struct Counters {
    requests: u32,
    writes: u32,
    lost_replies: BTreeMap<String, u32>,
}

/// The switches of a running server. Clones switch the same server.
#[derive(Clone, Debug)]
pub struct Faults {
    switches: Arc<watch::Sender<Switches>>,
    counters: Arc<Mutex<Counters>>,
    compact: Arc<dyn Compact>,
}

/// The one fault that touches the store.
pub(crate) trait Compact: Send + Sync + std::fmt::Debug {
    /// Forgets the history of changes.
    fn compact(&self);
}

impl Faults {
    pub(crate) fn new(compact: Arc<dyn Compact>) -> Self {
        Self {
            switches: Arc::new(watch::Sender::new(Switches::default())),
            counters: Arc::default(),
            compact,
        }
    }

    /// Connections are refused and open ones closed, until switched off.
    pub fn outage(&self, on: bool) {
        self.switches.send_modify(|switches| switches.outage = on);
    }

    /// Connections are accepted, nothing is ever answered, open ones stall; until switched off,
    /// when everything that was sent arrives late.
    pub fn blackhole(&self, on: bool) {
        self.switches
            .send_modify(|switches| switches.blackhole = on);
    }

    /// Cuts one user or one client off (`RequestLog::user`, `RequestLog::client`); `None` heals.
    pub fn partition(&self, who: &str, how: Option<Partition>) {
        self.switches.send_modify(|switches| {
            match how {
                Some(how) => switches.partitions.insert(who.to_owned(), how),
                None => switches.partitions.remove(who),
            };
        });
    }

    /// Every request waits this long before it is served; zero switches it off.
    pub fn latency(&self, delay: Duration) {
        self.switches
            .send_modify(|switches| switches.latency = delay);
    }

    /// Every `every`th request is answered with `code` (429, 500, 503 …) instead of being
    /// served; 1 is all of them, 0 switches it off.
    pub fn errors(&self, code: u16, every: u32) {
        self.counters().requests = 0;
        self.switches.send_modify(|switches| {
            switches.errors = (every > 0).then_some(Errors { code, every });
        });
    }

    /// Every `every`th PUT or PATCH of an existing object is answered with 409 Conflict, and the
    /// object gets a new resourceVersion, as if somebody else had written it without changing
    /// anything; 0 switches it off.
    pub fn conflicts(&self, every: u32) {
        self.counters().writes = 0;
        self.switches.send_modify(|switches| {
            switches.conflicts = (every > 0).then_some(every);
        });
    }

    /// The next `count` writes of this user or client are carried out, but the connection breaks
    /// before the answer.
    pub fn lose_replies(&self, who: &str, count: u32) {
        self.counters().lost_replies.insert(who.to_owned(), count);
    }

    /// Forgets the history: watches and lists from any version so far are told 410 Expired,
    /// running watches end with it at their next event.
    pub fn expire_history(&self) {
        self.compact.compact();
    }

    /// Whether a new watch from a forgotten version is refused with HTTP 410 instead of being
    /// accepted and told so by an ERROR event. Real servers do either.
    pub fn expired_by_http(&self, on: bool) {
        self.switches
            .send_modify(|switches| switches.expired_by_http = on);
    }

    /// Watches send no bookmarks while this is on.
    pub fn no_bookmarks(&self, on: bool) {
        self.switches
            .send_modify(|switches| switches.no_bookmarks = on);
    }

    /// Every watch that allows bookmarks sends one now.
    pub fn bookmark_now(&self) {
        self.switches
            .send_modify(|switches| switches.bookmark_call += 1);
    }

    /// Switches everything off.
    pub fn clear(&self) {
        *self.counters() = Counters::default();
        self.switches.send_modify(|switches| {
            *switches = Switches {
                bookmark_call: switches.bookmark_call,
                ..Switches::default()
            };
        });
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Switches> {
        self.switches.subscribe()
    }

    /// The code that this request is to be answered with, if any.
    pub(crate) fn injected_error(&self) -> Option<u16> {
        let rule = self.switches.borrow().errors?;
        let mut counters = self.counters();
        counters.requests += 1;
        counters
            .requests
            .is_multiple_of(rule.every)
            .then_some(rule.code)
    }

    /// Whether this write is to lose against an invented one.
    pub(crate) fn injected_conflict(&self) -> bool {
        let Some(every) = self.switches.borrow().conflicts else {
            return false;
        };
        let mut counters = self.counters();
        counters.writes += 1;
        counters.writes.is_multiple_of(every)
    }

    /// Whether the answer to this write is to be lost.
    pub(crate) fn loses_reply(&self, user: &str, client: &str) -> bool {
        let mut counters = self.counters();
        for who in [user, client] {
            if let Some(left) = counters.lost_replies.get_mut(who).filter(|left| **left > 0) {
                *left -= 1;
                return true;
            }
        }
        false
    }

    fn counters(&self) -> MutexGuard<'_, Counters> {
        self.counters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
