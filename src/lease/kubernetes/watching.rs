//! The one watch of this process on its Lease: list, then watch from there, for ever.
//!
//! A stream that ends is taken up where it ended; one whose past is forgotten (410) begins with a new
//! list. A stream can die without a word: it is given up when it stays silent although a request
//! of this process has shown a newer version.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use k8s_openapi::api::coordination::v1::Lease as Object;
use kube::Api;
use kube::api::{ListParams, WatchEvent, WatchParams};
use tracing::{debug, info, warn};

use super::Shared;
use super::cache::Source;
use crate::decide::LeaseVersion;
use crate::kubernetes::{Failure, within};
use crate::{backoff, clock};

/// How long the server keeps a stream open: an ordinary client's choice. Each end costs a request.
const STREAM: Duration = Duration::from_secs(290);

/// How long a stream may be silent before it is compared with what requests have shown.
const SILENCE: Duration = Duration::from_secs(5);

/// How long the server may take to begin a stream.
const BEGIN: Duration = Duration::from_secs(5);

/// The pause after a failure, doubled with each further one up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(8);

/// Why a stream is over.
enum End {
    /// The server ended it in order: go on from this version.
    Closed(String),
    /// What happened since is not known any more: list again.
    Forgotten,
    /// It broke.
    Failed(Failure),
}

/// Runs until it is aborted.
pub(super) async fn run(shared: Arc<Shared>) {
    let mut from = None;
    let mut failures: u32 = 0;
    loop {
        let began = clock::now();
        match stream(&shared, from.take()).await {
            End::Closed(version) => from = Some(version),
            End::Forgotten => debug!("the lease is listed again"),
            End::Failed(error) if failures == 0 => {
                let error: &dyn std::error::Error = &error;
                warn!(error, "the watch of the lease is broken; it is tried again");
            }
            End::Failed(error) => debug!(%error, "the watch of the lease is still broken"),
        }
        if clock::now().since(began) > LONGEST_PAUSE {
            failures = 0;
        }
        let pause = backoff::pause(FIRST_PAUSE, LONGEST_PAUSE, failures, rand::random());
        failures = failures.saturating_add(1);
        tokio::time::sleep(pause).await;
    }
}

/// One list, if there is no version to go on from, and one stream.
async fn stream(shared: &Shared, from: Option<String>) -> End {
    let api = match within(clock::now() + BEGIN, shared.api()).await {
        Ok(api) => api,
        Err(error) => return End::Failed(error),
    };
    let from = match from {
        Some(from) => from,
        None => match list(shared, &api).await {
            Ok(from) => from,
            Err(error) => return End::Failed(error),
        },
    };
    let seconds = u32::try_from(STREAM.as_secs()).unwrap_or(290);
    let params = WatchParams::default()
        .fields(&selector(shared))
        .timeout(seconds);
    let begun = within(clock::now() + BEGIN, api.watch(&params, &from)).await;
    let events = match begun {
        Ok(events) => events,
        Err(Failure::Refused { code: 410, .. }) => return End::Forgotten,
        Err(error) => return End::Failed(error),
    };
    info!("the lease is watched");
    let mut events = pin!(events);
    let mut place = Place {
        from,
        shown: shared.version(),
    };
    let over = clock::now() + STREAM + BEGIN;
    loop {
        match tokio::time::timeout(SILENCE, events.next()).await {
            Ok(Some(Ok(event))) => {
                if let Some(end) = place.take(shared, event) {
                    return end;
                }
            }
            Ok(Some(Err(kube::Error::Api(status)))) if status.code == 410 => return End::Forgotten,
            Ok(Some(Err(error))) => return End::Failed(error.into()),
            Ok(None) => return End::Closed(place.from),
            Err(_silent) if clock::now() > over || shared.version() != place.shown => {
                warn!("the watch of the lease was dead; it begins anew");
                return End::Forgotten;
            }
            Err(_silent) => {}
        }
    }
}

fn selector(shared: &Shared) -> String {
    format!("metadata.name={}", shared.name)
}

/// What is there, and the version to watch from.
async fn list(shared: &Shared, api: &Api<Object>) -> Result<String, Failure> {
    let began = clock::now();
    let params = ListParams::default().fields(&selector(shared));
    let list = within(began + shared.request, api.list(&params)).await?;
    let from = list.metadata.resource_version.unwrap_or_default();
    shared.found(list.items.into_iter().next(), began, Source::Request);
    Ok(from)
}

/// Where in the stream we are.
struct Place {
    /// The version to go on from.
    from: String,
    /// The Lease's version that the stream has shown.
    shown: Option<LeaseVersion>,
}

impl Place {
    fn take(&mut self, shared: &Shared, event: WatchEvent<Object>) -> Option<End> {
        let now = clock::now();
        match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                self.advance(&object);
                self.shown = Some(super::object::version(&object));
                shared.found(Some(object), now, Source::Watch);
                None
            }
            WatchEvent::Deleted(object) => {
                self.advance(&object);
                self.shown = None;
                shared.removed(&object, now);
                None
            }
            WatchEvent::Bookmark(bookmark) => {
                self.from = bookmark.metadata.resource_version;
                shared.unchanged(now);
                None
            }
            WatchEvent::Error(status) if status.code == 410 => Some(End::Forgotten),
            WatchEvent::Error(status) => Some(End::Failed(kube::Error::Api(status).into())),
        }
    }

    fn advance(&mut self, object: &Object) {
        if let Some(version) = &object.metadata.resource_version {
            self.from.clone_from(version);
        }
    }
}
