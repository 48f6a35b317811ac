//! What this process knows of the Lease, and as of when. Pure: the time is an argument.
//!
//! Answers of requests and events of the watch arrive in any order. An older version never takes a
//! newer one's place, as far as the server's numbering tells; what a request finds that
//! began later is the truth whatever its number, for a store can be restored from a copy.

use std::sync::Arc;
use std::time::Duration;

use fencing::Mono;
use k8s_openapi::api::coordination::v1::Lease as Object;

use super::object::{Document, Owner, Trouble};
use crate::backoff;
use crate::decide::LeaseVersion;
use crate::lease::Reading;
use crate::lease::cluster::EVERY_SITE;

/// The pause after a request that failed, doubled with each further one up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(4);

/// How the object was learnt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// It was asked for, or written: the moment is the request's beginning.
    Request,
    /// The watch says it: the moment is the event's arrival.
    Watch,
}

/// What is known. `None` within: there is no Lease.
#[derive(Clone, Debug)]
struct Known {
    found: Option<Arc<Result<Document, Trouble>>>,
    version: Option<LeaseVersion>,
    at: Mono,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Cache {
    owner: Owner,
    known: Option<Known>,
    /// Nothing older counts: a write may have had its effect since.
    floor: Mono,
    /// A site's Lease was there once: from then on its absence is an error. The cluster's record tells by
    /// itself how old it is: that it is gone is for those to judge who know it.
    seen: bool,
    /// Requests that failed in a row, why the last one did, and when the next may be made.
    failed: Option<(u32, String, Mono)>,
}

impl Cache {
    pub fn new(owner: Owner) -> Self {
        Self {
            owner,
            known: None,
            floor: Mono::ZERO,
            seen: false,
            failed: None,
        }
    }

    /// Whether it was there once and must still be.
    pub fn seen(&self) -> bool {
        self.seen
    }

    /// Takes in what was found. Whether it was news.
    pub fn take(&mut self, object: Option<Object>, at: Mono, source: Source) -> bool {
        let version = object.as_ref().map(super::object::version);
        if source == Source::Request {
            self.failed = None;
        }
        self.seen |= object.is_some() && self.owner.site != EVERY_SITE;
        if let Some(known) = &mut self.known {
            let behind = is_older(version.as_ref(), known.version.as_ref());
            let late = at <= known.at || source == Source::Watch;
            if late && behind {
                return false;
            }
            if version == known.version {
                known.at = known.at.max(at);
                return false;
            }
            if at < known.at && source == Source::Request && object.is_none() {
                // It was not there yet.
                return false;
            }
        }
        let at = self.known.as_ref().map_or(at, |known| known.at.max(at));
        let found = object.map(|object| Arc::new(Document::read(object, &self.owner)));
        self.known = Some(Known { found, version, at });
        true
    }

    /// The watch says that this object was removed. Whether it was the one that is known: it may
    /// have been made anew meanwhile.
    pub fn removed(&mut self, object: &Object, at: Mono) -> bool {
        let uid = object.metadata.uid.as_deref().unwrap_or_default();
        let known = self
            .version()
            .and_then(|version| version.0.rsplit_once(':'));
        let same = known.is_some_and(|(known, _)| known == uid);
        same && self.take(None, at, Source::Watch)
    }

    /// The watch is alive and has nothing new to say.
    pub fn unchanged(&mut self, at: Mono) {
        if let Some(known) = &mut self.known {
            known.at = known.at.max(at);
        }
    }

    /// A write that began then may have had its effect, or may yet have it.
    pub fn uncertain(&mut self, since: Mono) {
        self.floor = self.floor.max(since);
    }

    /// A request failed. `jitter` is from 0 to 1.
    pub fn failed(&mut self, why: String, now: Mono, jitter: f64) {
        let times = self.failed.as_ref().map_or(0, |(times, _, _)| *times);
        let next = now + backoff::pause(FIRST_PAUSE, LONGEST_PAUSE, times, jitter);
        self.failed = Some((times.saturating_add(1), why, next));
    }

    /// Why the last request failed, while the next one has to wait.
    pub fn pausing(&self, now: Mono) -> Option<&str> {
        let (_, why, next) = self.failed.as_ref()?;
        (now < *next).then_some(why)
    }

    /// What is known, unless it is older than `oldest` or in doubt.
    pub fn reading(&self, oldest: Mono) -> Option<Result<Reading, Trouble>> {
        let known = self.known.as_ref()?;
        (known.at >= oldest && known.at > self.floor).then(|| self.newest())?
    }

    /// What is known, however old.
    pub fn newest(&self) -> Option<Result<Reading, Trouble>> {
        let known = self.known.as_ref()?;
        let lease = match &known.found {
            None if self.seen => return Some(Err(Trouble::Vanished)),
            None => None,
            Some(found) => match found.as_ref() {
                Ok(document) => Some(document.lease()),
                Err(trouble) => return Some(Err(trouble.clone())),
            },
        };
        let at = known.at;
        Some(Ok(Reading { lease, at }))
    }

    /// The document with exactly this version, if it is the one that is known.
    pub fn document(&self, version: &LeaseVersion) -> Option<Arc<Result<Document, Trouble>>> {
        let known = self.known.as_ref()?;
        let found = known.found.as_ref()?;
        (known.version.as_ref() == Some(version)).then(|| Arc::clone(found))
    }

    /// The newest version that is known, from wherever.
    pub fn version(&self) -> Option<&LeaseVersion> {
        self.known.as_ref()?.version.as_ref()
    }
}

/// Whether both are versions of the same object, numbered, and the first number is smaller.
fn is_older(one: Option<&LeaseVersion>, other: Option<&LeaseVersion>) -> bool {
    let parts = |version: &LeaseVersion| {
        let (uid, number) = version.0.rsplit_once(':')?;
        Some((uid.to_owned(), number.parse::<u128>().ok()?))
    };
    let parts = (one.and_then(parts), other.and_then(parts));
    matches!(parts, (Some((a, x)), Some((b, y))) if a == b && x < y)
}
