//! The lease in a `coordination.k8s.io/v1` Lease of the Kubernetes API.
//!
//! ```text
//! watch ──────────► Cache ◄────────── GET, POST, PUT
//!                     │
//!  known(): from the cache, if it is young enough     read(): asks the server
//! ```
//!
//! The server must not be asked at the pace of decisions: a quiet pair of members costs its renewals
//! and a few requests for its watches, 25 a minute. A record is replaced only by naming the UID and
//! `resourceVersion` it was made from; a request whose answer is lost is "unknown", never "no".

mod cache;
mod object;
#[cfg(test)]
mod tests;
mod watching;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use fencing::Mono;
use k8s_openapi::api::coordination::v1::Lease as Object;
use kube::Api;
use kube::api::PostParams;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::{LeaseError, LeaseWatch, Ownership, Reading, Writer, Written};
use crate::clock;
use crate::decide::{LeaseRecord, LeaseVersion, TimingSettings};
use crate::kubernetes::{Access, Failure, names, within};
use cache::{Cache, Source};
use object::{Document, Owner};

/// Which Lease, and whose.
#[derive(Clone, Debug)]
pub struct Place {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The cluster it must belong to.
    pub cluster: String,
    /// The site.
    pub site: String,
}

/// The store. Clones share one cache and one watch, which ends with the last of them.
#[derive(Clone, Debug)]
pub struct KubernetesStore {
    shared: Arc<Shared>,
    watching: Arc<OnceLock<Watching>>,
}

/// Ends the watch.
#[derive(Debug)]
struct Watching(AbortHandle);

impl Drop for Watching {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[derive(Debug)]
struct Shared {
    access: Access,
    namespace: String,
    name: String,
    owner: Owner,
    /// The deadline of requests that nobody waits for.
    request: Duration,
    /// How old the cache may be for [`KubernetesStore::known`].
    young: Duration,
    cache: watch::Sender<Cache>,
    /// Counts the changes.
    hints: watch::Sender<u64>,
}

impl KubernetesStore {
    /// The store. Asks nothing yet.
    pub fn open(place: Place, writer: Writer, timings: &TimingSettings, access: Access) -> Self {
        let seconds = timings.lease_age.as_secs().max(1);
        let owner = Owner {
            cluster: place.cluster,
            site: place.site,
            writer,
            seconds: i32::try_from(seconds).unwrap_or(i32::MAX),
        };
        let shared = Shared {
            access,
            namespace: place.namespace,
            name: place.name,
            cache: watch::Sender::new(Cache::new(owner.clone())),
            hints: watch::Sender::new(0),
            owner,
            request: timings.lease_deadline,
            // A renewal that is half an interval late is not asked for.
            young: timings.lease_renew * 3 / 2,
        };
        Self {
            shared: Arc::new(shared),
            watching: Arc::default(),
        }
    }

    /// See [`super::LeaseStore::known`].
    ///
    /// # Errors
    /// Every one means "unknown".
    pub async fn known(&self, deadline: Mono) -> Result<Reading, LeaseError> {
        let shared = &self.shared;
        let now = clock::now();
        let oldest = Mono::from_millis(now.as_millis().saturating_sub(millis(shared.young)));
        let cached = {
            let cache = shared.cache.borrow();
            let pausing = || cache.pausing(now).map(|why| Err(shared.away(why)));
            let reading = cache.reading(oldest);
            reading
                .map(|reading| reading.map_err(|trouble| trouble.error(shared.shown())))
                .or_else(pausing)
        };
        match cached {
            Some(reading) => reading,
            None => shared.look(deadline).await,
        }
    }

    /// See [`super::LeaseStore::read`].
    ///
    /// # Errors
    /// Every one means "unknown".
    pub async fn read(&self, deadline: Mono) -> Result<Reading, LeaseError> {
        self.shared.look(deadline).await
    }

    /// See [`super::LeaseStore::history`].
    ///
    /// # Errors
    /// Every one means "unknown".
    pub async fn history(&self, deadline: Mono) -> Result<Vec<Ownership>, LeaseError> {
        let shared = &self.shared;
        let reading = shared.look(deadline).await?;
        let document = reading
            .lease
            .and_then(|lease| shared.cache.borrow().document(&lease.version));
        match document.as_deref() {
            Some(Ok(document)) => Ok(document.history.clone()),
            Some(Err(trouble)) => Err(trouble.clone().error(shared.shown())),
            None => Ok(Vec::new()),
        }
    }

    /// See [`super::LeaseStore::write`].
    ///
    /// # Errors
    /// Nothing was changed, unless [`LeaseError::may_have_written`].
    pub async fn write(
        &self,
        expected: Option<LeaseVersion>,
        record: LeaseRecord,
        deadline: Mono,
    ) -> Result<Written, LeaseError> {
        let shared = &self.shared;
        let before = match &expected {
            // What was there once must be removed by a person, who then restarts the members.
            None if shared.cache.borrow().seen() => {
                return shared.conflict(deadline).await;
            }
            None => None,
            Some(version) => match shared.document(version, deadline).await? {
                Some(document) => Some(document),
                None => return shared.conflict(deadline).await,
            },
        };
        let before = match before.as_deref() {
            None => None,
            Some(Ok(document)) => Some(document),
            Some(Err(trouble)) => return Err(trouble.clone().error(shared.shown())),
        };
        shared.put(before, &record, deadline).await
    }

    pub(super) fn shown(&self) -> String {
        self.shared.shown()
    }

    /// See [`super::LeaseStore::watch`]. The first call begins the watch of this process; it must be
    /// made within a runtime.
    pub fn watch(&self) -> LeaseWatch {
        let shared = &self.shared;
        self.watching.get_or_init(|| {
            let task = tokio::spawn(watching::run(Arc::clone(shared)));
            Watching(task.abort_handle())
        });
        LeaseWatch::of(shared.hints.subscribe())
    }
}

impl Shared {
    fn shown(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    async fn api(&self) -> Result<Api<Object>, Failure> {
        let client = self.access.client().await?;
        Ok(Api::namespaced(client, &self.namespace))
    }

    /// The newest version that is known.
    fn version(&self) -> Option<LeaseVersion> {
        self.cache.borrow().version().cloned()
    }

    fn found(&self, object: Option<Object>, at: Mono, source: Source) {
        self.change(|cache| cache.take(object, at, source));
    }

    fn removed(&self, object: &Object, at: Mono) {
        self.change(|cache| cache.removed(object, at));
    }

    fn unchanged(&self, at: Mono) {
        self.cache.send_modify(|cache| cache.unchanged(at));
    }

    fn change(&self, change: impl FnOnce(&mut Cache) -> bool) {
        let mut news = false;
        self.cache.send_modify(|cache| news = change(cache));
        if news {
            self.hints.send_modify(|count| *count += 1);
        }
    }

    /// GET.
    async fn look(&self, deadline: Mono) -> Result<Reading, LeaseError> {
        let began = clock::now();
        let object = within(deadline, async {
            let api = self.api().await?;
            api.get_opt(&self.name).await.map_err(Failure::from)
        })
        .await
        .map_err(|failure| self.failed("a read", failure))?;
        self.found(object, began, Source::Request);
        let newest = self.cache.borrow().newest();
        match newest {
            Some(reading) => reading.map_err(|trouble| trouble.error(self.shown())),
            None => Err(self.away("nothing was read")),
        }
    }

    /// The document of this version; none if another is there.
    async fn document(
        &self,
        version: &LeaseVersion,
        deadline: Mono,
    ) -> Result<Option<Arc<Result<Document, object::Trouble>>>, LeaseError> {
        let cached = self.cache.borrow().document(version);
        if cached.is_some() {
            return Ok(cached);
        }
        self.look(deadline).await?;
        Ok(self.cache.borrow().document(version))
    }

    /// POST, or PUT in the place of `before`.
    async fn put(
        &self,
        before: Option<&Document>,
        record: &LeaseRecord,
        deadline: Mono,
    ) -> Result<Written, LeaseError> {
        let object = object::next(before, &self.name, &self.owner, record, clock::wall())
            .map_err(|error| self.not_written(error.into()))?;
        let params = PostParams {
            field_manager: Some(names::FIELD_MANAGER.to_owned()),
            ..PostParams::default()
        };
        let began = clock::now();
        let answer = within(deadline, async {
            let api = self.api().await?;
            let answer = match before {
                None => api.create(&params, &object).await,
                Some(_) => api.replace(&self.name, &params, &object).await,
            };
            answer.map_err(Failure::from)
        });
        match answer.await {
            Ok(object) => {
                let version = object::version(&object);
                self.found(Some(object), began, Source::Request);
                Ok(Written::Done(version))
            }
            // Another version, or another object of this name, or none any more.
            Err(failure) if failure.code() == Some(409) => self.conflict(deadline).await,
            Err(failure) if before.is_some() && failure.code() == Some(404) => {
                self.conflict(deadline).await
            }
            Err(failure) => {
                if failure.may_have_effect() {
                    self.cache.send_modify(|cache| cache.uncertain(began));
                }
                Err(self.failed("a write", failure))
            }
        }
    }

    /// Nothing was written. What is there?
    async fn conflict(&self, deadline: Mono) -> Result<Written, LeaseError> {
        match self.look(deadline).await {
            Ok(reading) => Ok(Written::Conflict(reading.lease)),
            // Of the read alone: the write is known to have had no effect.
            Err(error) if error.may_have_written() => {
                Err(self.not_written(std::io::Error::other(error)))
            }
            Err(error) => Err(error),
        }
    }

    fn not_written(&self, source: std::io::Error) -> LeaseError {
        LeaseError::Failed {
            store: self.shown(),
            attempt: "a write",
            source,
        }
    }

    fn away(&self, why: &str) -> LeaseError {
        LeaseError::Unreachable {
            store: self.shown(),
            source: std::io::Error::other(why.to_owned()),
        }
    }

    /// Remembers that a request failed, and says what that means.
    fn failed(&self, attempt: &'static str, failure: Failure) -> LeaseError {
        let store = self.shown();
        let error = match failure {
            Failure::Refused {
                code,
                reason,
                message,
            } => LeaseError::Refused {
                advice: advice(code, &self.namespace),
                answer: format!("{code} {reason}: {message}"),
                store,
                attempt,
            },
            failure @ Failure::Unsent(_) => LeaseError::Unreachable {
                store,
                source: failure.into_io(),
            },
            failure @ Failure::Lost(_) => LeaseError::Lost {
                store,
                attempt,
                source: failure.into_io(),
            },
            Failure::Overdue => LeaseError::Overdue { store, attempt },
        };
        let why = error.to_string();
        let now = clock::now();
        self.cache
            .send_modify(|cache| cache.failed(why, now, rand::random()));
        error
    }
}

/// What a person can do about an answer that says no.
fn advice(code: u16, namespace: &str) -> String {
    match code {
        401 => {
            "the token of the pod's ServiceAccount is not accepted: look whether it is mounted and \
                not expired"
                .to_owned()
        }
        403 => format!(
            "grant get, list, watch, create and update on leases in coordination.k8s.io in the \
             namespace {namespace} to the pod's ServiceAccount"
        ),
        404 => format!("make the namespace {namespace}, or correct lease.namespace"),
        _ => "correct what it says".to_owned(),
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
