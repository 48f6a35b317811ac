//! Who a request comes from: static tokens of users and tokens of service accounts.

pub(crate) mod rbac;
pub(crate) mod reviews;

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::meta;
use crate::refusal::Refusal;
use crate::store::{Key, Store};

/// Members of this group may do everything.
pub const MASTERS: &str = "system:masters";

/// Who makes a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// User name, `system:serviceaccount:<namespace>:<name>` for service accounts.
    pub user: String,
    /// Groups, without `system:authenticated`, which every known user is in.
    pub groups: Vec<String>,
    /// Which of the user's clients: for the log and for partitions.
    pub client: String,
    /// What else the token says, as `authentication.kubernetes.io/pod-name`.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl Identity {
    /// A user in groups.
    pub fn user(name: &str, groups: &[&str]) -> Self {
        Self {
            user: name.to_owned(),
            groups: groups.iter().map(|group| (*group).to_owned()).collect(),
            client: name.to_owned(),
            extra: BTreeMap::new(),
        }
    }

    /// A service account. It need not exist.
    pub fn service_account(namespace: &str, name: &str) -> Self {
        let user = format!("system:serviceaccount:{namespace}:{name}");
        Self {
            groups: vec![
                "system:serviceaccounts".to_owned(),
                format!("system:serviceaccounts:{namespace}"),
            ],
            client: user.clone(),
            user,
            extra: BTreeMap::new(),
        }
    }

    /// The same user under another client name.
    #[must_use]
    pub fn client(mut self, client: &str) -> Self {
        client.clone_into(&mut self.client);
        self
    }

    fn anonymous() -> Self {
        Self::user("system:anonymous", &["system:unauthenticated"])
    }

    /// Whether the identity is in a group.
    pub(crate) fn is_in(&self, group: &str) -> bool {
        let authenticated = !self
            .groups
            .iter()
            .any(|group| group == "system:unauthenticated");
        (group == "system:authenticated" && authenticated)
            || self.groups.iter().any(|own| own == group)
    }
}

/// An object that has to exist, with this uid, for a token to be good.
#[derive(Clone, Debug)]
struct Bound {
    key: Key,
    uid: String,
}

#[derive(Clone, Debug)]
struct Token {
    identity: Identity,
    bound: Vec<Bound>,
    until: Option<Timestamp>,
}

/// The tokens that the server knows.
#[derive(Debug, Default)]
pub(crate) struct Tokens(BTreeMap<String, Token>);

impl Tokens {
    /// Makes a token good for ever.
    pub(crate) fn add(&mut self, token: String, identity: Identity) {
        self.0.insert(
            token,
            Token {
                identity,
                bound: Vec::new(),
                until: None,
            },
        );
    }

    /// Makes a token of a service account, good until a time and as long as the account and, if
    /// given, the pod are there.
    pub(crate) fn issue(
        &mut self,
        token: String,
        account: &Value,
        pod: Option<&Value>,
        until: Timestamp,
    ) {
        let (namespace, name) = (meta::namespace(account), meta::name(account));
        let mut identity = Identity::service_account(namespace, name);
        let bind = |resource: &str, object: &Value| Bound {
            key: Key {
                resource: resource.into(),
                namespace: namespace.to_owned(),
                name: meta::name(object).to_owned(),
            },
            uid: meta::text(object, "uid").to_owned(),
        };
        let mut bound = vec![bind("serviceaccounts", account)];
        if let Some(pod) = pod {
            let said = |field| vec![meta::text(pod, field).to_owned()];
            let extra = &mut identity.extra;
            extra.insert(
                "authentication.kubernetes.io/pod-name".to_owned(),
                said("name"),
            );
            extra.insert(
                "authentication.kubernetes.io/pod-uid".to_owned(),
                said("uid"),
            );
            meta::name(pod).clone_into(&mut identity.client);
            bound.push(bind("pods", pod));
        }
        self.0.insert(
            token,
            Token {
                identity,
                bound,
                until: Some(until),
            },
        );
    }

    /// Who an `Authorization` header stands for.
    pub(crate) fn identify(
        &self,
        store: &Store,
        header: &str,
        now: Timestamp,
    ) -> Result<Identity, Refusal> {
        if header.is_empty() {
            return Ok(Identity::anonymous());
        }
        let token = header.strip_prefix("Bearer ").unwrap_or_default().trim();
        let token = self.0.get(token).ok_or(Refusal::Unauthorized)?;
        let alive = token.bound.iter().all(|bound| {
            store
                .get(&bound.key)
                .is_some_and(|object| meta::text(object, "uid") == bound.uid)
        });
        if !alive || token.until.is_some_and(|until| until < now) {
            return Err(Refusal::Unauthorized);
        }
        Ok(token.identity.clone())
    }
}

/// Shortest and default life of a service account's token.
const TOKEN_SECONDS: (i64, i64) = (600, 3600);

/// The end of a token that is asked for with `spec.expirationSeconds`; `None` if it is too short.
pub(crate) fn token_end(request: &Value, now: Timestamp) -> Option<Timestamp> {
    let (shortest, default) = TOKEN_SECONDS;
    let seconds = request["spec"]["expirationSeconds"]
        .as_i64()
        .unwrap_or(default);
    if seconds < shortest {
        return None;
    }
    now.checked_add(SignedDuration::from_secs(seconds)).ok()
}

/// `status.userInfo` of a SelfSubjectReview.
pub(crate) fn user_info(identity: &Identity) -> Value {
    let mut groups = identity.groups.clone();
    if identity.is_in("system:authenticated") {
        groups.push("system:authenticated".to_owned());
    }
    json!({ "username": identity.user, "groups": groups, "extra": identity.extra })
}
