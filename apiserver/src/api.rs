//! The state of a server and the calls on it. A call runs to its end under one lock, so every
//! write is atomic and the log of versions has no gaps.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde_json::Value;

use crate::Options;
use crate::auth::{Identity, Tokens, rbac};
use crate::faults::{Compact, Faults};
use crate::http::{Query, Route};
use crate::kinds::{Kind, Kinds};
use crate::refusal::{Refusal, Subject};
use crate::requests::RequestLog;
use crate::store::{Key, Store};
use crate::watch::Plan;

/// One authenticated and authorized request for a resource.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub identity: Identity,
    pub verb: &'static str,
    pub kind: Arc<Kind>,
    /// The version in which the client speaks.
    pub version: String,
    /// Empty: all namespaces, or a resource without them.
    pub namespace: String,
    pub name: String,
    pub subresource: String,
    pub query: Query,
    pub content_type: String,
    pub accept: String,
    pub user_agent: String,
    pub body: Bytes,
    pub now: Timestamp,
    /// A fault wants this write to lose.
    pub conflict: bool,
    /// A fault wants a too old watch to be refused by HTTP.
    pub expired_by_http: bool,
}

impl Call {
    pub(crate) fn key(&self, name: &str) -> Key {
        Key {
            resource: Arc::clone(&self.kind.id),
            namespace: self.namespace.clone(),
            name: name.to_owned(),
        }
    }

    /// Who owns the fields that this call writes: the `fieldManager`, else what the client calls
    /// itself, up to the first slash.
    pub(crate) fn manager(&self) -> String {
        let named = self.query.text("fieldManager");
        if !named.is_empty() {
            return named.to_owned();
        }
        let agent = self.user_agent.split('/').next().unwrap_or_default();
        if agent.is_empty() {
            "unknown".to_owned()
        } else {
            agent.to_owned()
        }
    }
}

/// An answer with a body.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub code: u16,
    pub body: Value,
    pub warnings: Vec<String>,
}

impl Reply {
    pub(crate) fn new(code: u16, body: Value) -> Self {
        Self {
            code,
            body,
            warnings: Vec::new(),
        }
    }
}

/// What a call comes to.
#[derive(Debug)]
pub(crate) enum Answer {
    Reply(Reply),
    Watch(Plan),
}

impl Answer {
    pub(crate) fn code(&self) -> u16 {
        match self {
            Self::Reply(reply) => reply.code,
            Self::Watch(_) => 200,
        }
    }
}

/// The state of the server.
#[derive(Debug)]
pub(crate) struct Api {
    pub store: Store,
    pub(crate) kinds: Kinds,
    pub tokens: Tokens,
    random: ChaCha8Rng,
    pub next_service_ip: u32,
    /// Garbage is being collected: deletions made by that do not begin it anew.
    pub collecting: bool,
}

impl Api {
    pub(crate) fn new(options: &Options) -> Self {
        Self {
            store: Store::new(options.history),
            kinds: Kinds::built_in(),
            tokens: Tokens::default(),
            random: ChaCha8Rng::seed_from_u64(options.seed),
            next_service_ip: 1,
            collecting: false,
        }
    }

    pub(crate) fn kinds(&self) -> &Kinds {
        &self.kinds
    }

    /// Who the `Authorization` header says it is.
    pub(crate) fn authenticate(&self, header: &str) -> Result<Identity, Refusal> {
        self.tokens
            .identify(&self.store, header, crate::clock::now())
    }

    /// Whether the stored roles allow it.
    pub(crate) fn authorize(
        &self,
        identity: &Identity,
        route: &Route,
        path: &str,
    ) -> Result<(), Refusal> {
        if route.resource.is_empty() {
            return rbac::allow_path(&self.store, identity, route.verb, path);
        }
        rbac::allow(&self.store, identity, route)
    }

    /// The resource and version of a route.
    pub(crate) fn resolve(&self, route: &Route) -> Result<(Arc<Kind>, String), Refusal> {
        let kind = self.kinds.find(&route.group, &route.resource);
        let kind = kind.filter(|kind| kind.version(&route.version).is_some());
        kind.map(|kind| (kind, route.version.clone()))
            .ok_or(Refusal::NoSuchResource)
    }

    /// A new uid; the same ones in every run with the same seed.
    pub(crate) fn uid(&mut self) -> String {
        let mut bytes = [0; 16];
        self.random.fill_bytes(&mut bytes);
        uuid::Builder::from_random_bytes(bytes)
            .into_uuid()
            .to_string()
    }

    /// Five letters and digits for `generateName`, of the alphabet that the real server uses (no
    /// vowels, nothing that looks like another).
    pub(crate) fn suffix(&mut self) -> String {
        const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
        let mut letter = || {
            let at = self.random.next_u32() as usize % ALPHABET.len();
            char::from(ALPHABET[at])
        };
        (0..5).map(|_| letter()).collect()
    }

    /// A token that nobody guesses.
    pub(crate) fn secret(&mut self) -> String {
        format!("{}{}", self.uid(), self.uid()).replace('-', "")
    }

    /// The namespace of a write has to be there, and not on its way out.
    pub(crate) fn check_namespace(&self, kind: &Kind, namespace: &str) -> Result<(), Refusal> {
        if !kind.namespaced {
            return Ok(());
        }
        let subject = |name: &str| Subject {
            group: String::new(),
            resource: "namespaces".to_owned(),
            name: name.to_owned(),
        };
        let key = Key {
            resource: "namespaces".into(),
            namespace: String::new(),
            name: namespace.into(),
        };
        match self.store.get(&key) {
            None => Err(Refusal::NotFound(subject(namespace))),
            Some(found) if crate::meta::deleting(found) => Err(Refusal::Forbidden {
                subject: Subject::of(kind, ""),
                why: format!(
                    "unable to create new content in namespace {namespace} because it is being \
                     terminated"
                ),
                causes: vec![crate::refusal::Cause {
                    reason: "NamespaceTerminating",
                    field: "metadata.namespace".to_owned(),
                    message: format!("namespace {namespace} is being terminated"),
                }],
            }),
            Some(_) => Ok(()),
        }
    }
}

/// What the connections, the watches and the test share.
#[derive(Debug)]
pub(crate) struct Shared {
    api: Arc<Mutex<Api>>,
    faults: Faults,
    log: Mutex<Vec<RequestLog>>,
    /// Time between two bookmarks of a watch.
    pub bookmark_interval: Duration,
    /// How long a watch lasts that does not say.
    pub watch_timeout: Duration,
}

impl Shared {
    pub(crate) fn new(options: &Options) -> Self {
        let api = Arc::new(Mutex::new(Api::new(options)));
        let faults = Faults::new(Arc::new(Compacts(Arc::clone(&api))));
        Self {
            api,
            faults,
            log: Mutex::default(),
            bookmark_interval: options.bookmark_interval,
            watch_timeout: options.watch_timeout,
        }
    }

    /// The state. Held for one call, never across an await.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Api> {
        self.api.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn faults(&self) -> &Faults {
        &self.faults
    }

    pub(crate) fn log(&self, request: RequestLog) {
        self.requests().push(request);
    }

    pub(crate) fn requests(&self) -> MutexGuard<'_, Vec<RequestLog>> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
struct Compacts(Arc<Mutex<Api>>);

impl Compact for Compacts {
    fn compact(&self) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .store
            .compact();
    }
}
