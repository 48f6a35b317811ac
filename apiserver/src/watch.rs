//! Watches: a cursor into the history of changes. A watch that falls behind the history, or
//! begins before it, ends with an ERROR event that carries a 410 `Status`, as in the real server.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use serde_json::{Value, json};
use tokio::sync::watch::Receiver;
use tokio::time::{Instant, Interval, MissedTickBehavior};

use crate::api::Shared;
use crate::faults::Switches;
use crate::http::Body;
use crate::kinds::Kind;
use crate::refusal::Refusal;
use crate::store::select::Selector;
use crate::store::{Change, ChangeKind, TooOld};
use crate::verbs::present;

/// Annotation of the bookmark that ends the initial events.
const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

/// How a watch begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    /// With the changes after this version.
    After(u64),
    /// With everything that is there, as ADDED.
    Everything {
        /// Whether a bookmark tells where that ends.
        marked: bool,
    },
}

/// What a watch asks for.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub kind: Arc<Kind>,
    pub version: String,
    pub namespace: Option<String>,
    pub selector: Selector,
    pub start: Start,
    pub bookmarks: bool,
    /// Only metadata is wanted.
    pub metadata_only: bool,
    pub timeout: Option<Duration>,
}

struct Running {
    shared: Arc<Shared>,
    plan: Plan,
    /// Everything up to this version was told.
    told: u64,
    ready: VecDeque<Bytes>,
    newest: Receiver<u64>,
    switches: Receiver<Switches>,
    bookmark_call: u64,
    interval: Interval,
    until: Instant,
    over: bool,
}

/// The events of a watch as the body of its answer.
pub(crate) fn events(shared: Arc<Shared>, plan: Plan) -> Body {
    let running = Running::begin(shared, plan);
    let frames = stream::unfold(running, |mut running| async move {
        let bytes = running.next().await?;
        Some((Ok::<_, Infallible>(Frame::data(bytes)), running))
    });
    StreamBody::new(frames).boxed_unsync()
}

/// The refusal of a version that is forgotten.
pub(crate) fn too_old(old: TooOld) -> Refusal {
    Refusal::Expired(format!(
        "too old resource version: {} ({})",
        old.wanted, old.oldest
    ))
}

impl Running {
    fn begin(shared: Arc<Shared>, plan: Plan) -> Self {
        let timeout = plan.timeout.unwrap_or(shared.watch_timeout);
        let mut interval = tokio::time::interval_at(
            Instant::now() + shared.bookmark_interval,
            shared.bookmark_interval,
        );
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut switches = shared.faults().subscribe();
        let bookmark_call = switches.borrow_and_update().bookmark_call;
        let newest = shared.lock().store.subscribe();
        let mut running = Self {
            newest,
            switches,
            bookmark_call,
            interval,
            until: Instant::now() + timeout,
            told: 0,
            ready: VecDeque::new(),
            over: false,
            shared,
            plan,
        };
        running.first();
        running
    }

    fn first(&mut self) {
        match self.plan.start {
            Start::After(version) => self.told = version,
            Start::Everything { marked } => {
                let api = self.shared.lock();
                let listed = api
                    .store
                    .list(&self.plan.kind.id, self.plan.namespace.as_deref());
                let present: Vec<Arc<Value>> = listed
                    .map(|(_, object)| Arc::clone(object))
                    .filter(|object| self.plan.selector.matches(object))
                    .collect();
                self.told = api.store.version();
                drop(api);
                for object in present {
                    self.event("ADDED", self.shown(&object));
                }
                if marked {
                    self.bookmark(true);
                }
            }
        }
        self.catch_up();
    }

    /// The next piece of the body; `None` when the watch is over.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(bytes) = self.ready.pop_front() {
                return Some(bytes);
            }
            if self.over {
                return None;
            }
            tokio::select! {
                changed = self.newest.changed() => {
                    changed.ok()?;
                    self.catch_up();
                }
                changed = self.switches.changed() => {
                    changed.ok()?;
                    self.called();
                }
                _ = self.interval.tick() => self.timely_bookmark(),
                () = tokio::time::sleep_until(self.until) => {
                    // The real server ends a watch with a bookmark, so that the next one begins
                    // where this one ended.
                    self.timely_bookmark();
                    self.over = true;
                }
            }
        }
    }

    fn called(&mut self) {
        let call = self.switches.borrow_and_update().bookmark_call;
        if call != self.bookmark_call {
            self.bookmark_call = call;
            self.timely_bookmark();
        }
    }

    fn timely_bookmark(&mut self) {
        if self.plan.bookmarks && !self.switches.borrow().no_bookmarks {
            self.catch_up();
            if !self.over {
                self.bookmark(false);
            }
        }
    }

    /// Tells every change since the last one told.
    fn catch_up(&mut self) {
        self.newest.mark_unchanged();
        let namespace = self.plan.namespace.as_deref();
        let api = self.shared.lock();
        let changes = api.store.changes(&self.plan.kind.id, namespace, self.told);
        let version = api.store.version();
        drop(api);
        match changes {
            Err(old) => {
                self.event("ERROR", too_old(old).status());
                self.over = true;
            }
            Ok(changes) => {
                for change in &changes {
                    self.tell(change);
                }
                self.told = self.told.max(version);
            }
        }
    }

    fn tell(&mut self, change: &Change) {
        let seen = change.seen_by(|object| self.plan.selector.matches(object));
        let Some((kind, object)) = seen else { return };
        let word = match kind {
            ChangeKind::Added => "ADDED",
            ChangeKind::Modified => "MODIFIED",
            ChangeKind::Deleted => "DELETED",
        };
        self.event(word, self.shown(&object));
    }

    fn shown(&self, object: &Value) -> Value {
        let object = present::object(&self.plan.kind, &self.plan.version, object);
        if self.plan.metadata_only {
            present::metadata_only(object)
        } else {
            object
        }
    }

    fn bookmark(&mut self, initial_end: bool) {
        let mut metadata = json!({
            "resourceVersion": self.told.to_string(),
            "creationTimestamp": null,
        });
        if initial_end {
            metadata["annotations"] = json!({ INITIAL_EVENTS_END: "true" });
        }
        let object = json!({
            "kind": self.plan.kind.kind,
            "apiVersion": self.plan.kind.api_version(&self.plan.version),
            "metadata": metadata,
        });
        self.event("BOOKMARK", object);
    }

    fn event(&mut self, word: &str, object: Value) {
        let mut line = json!({ "type": word, "object": object }).to_string();
        line.push('\n');
        self.ready.push_back(line.into());
    }
}
