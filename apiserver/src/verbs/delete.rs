//! DELETE: preconditions, grace of pods, finalizers, what becomes of dependents.

use std::sync::Arc;

use jiff::SignedDuration;
use serde_json::{Value, json};

use super::read::{namespace, selector};
use super::{body, present};
use crate::api::{Api, Call, Reply};
use crate::clock;
use crate::meta;
use crate::refusal::{Cause, Refusal, conflict, not_found};
use crate::store::Key;

/// Finalizers by which a deletion says what becomes of dependents.
pub(super) const FOREGROUND: &str = "foregroundDeletion";
pub(super) const ORPHAN: &str = "orphan";

/// `DeleteOptions`, from the body and the query.
#[derive(Clone, Debug, Default)]
pub(super) struct Wish {
    grace: Option<i64>,
    uid: Option<String>,
    version: Option<String>,
    propagation: String,
    dry_run: bool,
}

impl Wish {
    /// A plain deletion, as controllers of the server itself ask for it.
    pub(super) fn plain() -> Self {
        Self::default()
    }

    fn of(call: &Call) -> Result<Self, Refusal> {
        let options = if call.body.is_empty() {
            json!({})
        } else {
            body(call)?
        };
        Self::from_options(&options, call)
    }

    /// Reads `DeleteOptions`; the query fills in what they do not say.
    pub(super) fn from_options(options: &Value, call: &Call) -> Result<Self, Refusal> {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let asked = call
            .query
            .number("gracePeriodSeconds")?
            .map(|seconds| seconds as i64);
        let grace = options["gracePeriodSeconds"].as_i64().or(asked);
        let propagation = text(&options["propagationPolicy"])
            .unwrap_or_else(|| call.query.text("propagationPolicy").to_owned());
        if !matches!(
            propagation.as_str(),
            "" | "Background" | "Foreground" | "Orphan"
        ) {
            return Err(Refusal::BadRequest(format!(
                "DeleteOptions.meta.k8s.io \"\" is invalid: propagationPolicy: Unsupported value: \
                 {propagation:?}"
            )));
        }
        Ok(Self {
            grace,
            uid: text(&options["preconditions"]["uid"]),
            version: text(&options["preconditions"]["resourceVersion"]),
            propagation,
            dry_run: call.query.dry_run() || options["dryRun"] == json!(["All"]),
        })
    }

    fn check(&self, call: &Call, object: &Value) -> Result<(), Refusal> {
        let checks = [
            ("UID", &self.uid, meta::text(object, "uid")),
            (
                "ResourceVersion",
                &self.version,
                meta::text(object, "resourceVersion"),
            ),
        ];
        for (what, wanted, found) in checks {
            if let Some(wanted) = wanted.as_deref().filter(|wanted| *wanted != found) {
                let why = format!(
                    "Precondition failed: {what} in precondition: {wanted}, {what} in object \
                     meta: {found}"
                );
                return Err(conflict(&call.kind, meta::name(object), why));
            }
        }
        Ok(())
    }
}

impl Api {
    pub(super) fn delete(&mut self, call: &Call) -> Result<Reply, Refusal> {
        let wish = Wish::of(call)?;
        let (object, gone) = self.delete_one(call, &call.name, &wish)?;
        Ok(Reply::new(200, answer(call, &object, gone)))
    }

    pub(super) fn delete_collection(&mut self, call: &Call) -> Result<Reply, Refusal> {
        let wish = Wish::of(call)?;
        let selector = selector(call)?;
        let found: Vec<Key> = self
            .store
            .list(&call.kind.id, namespace(call))
            .filter(|(_, object)| selector.matches(object))
            .map(|(key, _)| key.clone())
            .collect();
        let mut items = Vec::new();
        for key in found {
            let mut one = call.clone();
            one.namespace.clone_from(&key.namespace);
            // Gone meanwhile with another one of the collection.
            if let Ok((object, _)) = self.delete_one(&one, &key.name, &wish) {
                items.push(present::object(&call.kind, &call.version, &object));
            }
        }
        let metadata = json!({ "resourceVersion": self.store.version().to_string() });
        Ok(Reply::new(
            200,
            present::list(&call.kind, &call.version, items, metadata),
        ))
    }

    /// Deletes one object or begins to; returns its last state and whether it is gone.
    pub(super) fn delete_one(
        &mut self,
        call: &Call,
        name: &str,
        wish: &Wish,
    ) -> Result<(Arc<Value>, bool), Refusal> {
        let key = call.key(name);
        let old = self.store.get(&key).cloned();
        let old = old.ok_or_else(|| not_found(&call.kind, name))?;
        wish.check(call, &old)?;
        if call.kind.is("namespaces") && matches!(name, "default" | "kube-system") {
            let subject = crate::refusal::Subject::of(&call.kind, name);
            let why = "this namespace may not be deleted".to_owned();
            return Err(Refusal::Forbidden {
                subject,
                why,
                causes: Vec::<Cause>::new(),
            });
        }
        if wish.dry_run {
            return Ok((old, false));
        }
        let mut new = Value::clone(&old);
        add_propagation(&mut new, &wish.propagation);
        let grace = grace(call, &old, wish.grace);
        let waits = grace > 0 || meta::finalizers(&new) || call.kind.is("namespaces");
        if !waits {
            let gone = self.store.remove(&key);
            self.written(call, Some(&old), None);
            return gone
                .map(|gone| (gone, true))
                .ok_or_else(|| not_found(&call.kind, name));
        }
        mark(call, &old, &mut new, grace);
        let stored = if meta::substance(&new) == meta::substance(&old) {
            old
        } else {
            let stored = self.store.put(key, new);
            self.written(call, Some(&old), Some(&stored));
            stored
        };
        Ok((stored, false))
    }
}

/// Seconds that a pod is given; other objects and pods that run nowhere need none.
fn grace(call: &Call, object: &Value, wished: Option<i64>) -> i64 {
    if !call.kind.is("pods") {
        return 0;
    }
    let nowhere = object["spec"]["nodeName"]
        .as_str()
        .unwrap_or_default()
        .is_empty();
    let over = matches!(
        object["status"]["phase"].as_str(),
        Some("Succeeded" | "Failed")
    );
    if nowhere || over {
        return 0;
    }
    let own = object["spec"]["terminationGracePeriodSeconds"]
        .as_i64()
        .unwrap_or(30);
    // A negative wish means the shortest.
    match wished.unwrap_or(own) {
        seconds if seconds < 0 => 1,
        seconds => seconds,
    }
}

fn mark(call: &Call, old: &Value, new: &mut Value, grace: i64) {
    if meta::deleting(old) {
        // A second deletion can only hurry.
        let before = old["metadata"]["deletionGracePeriodSeconds"]
            .as_i64()
            .unwrap_or(0);
        if grace >= before {
            return;
        }
    } else if let Some(generation) = old["metadata"]["generation"].as_i64() {
        meta::set(new, "generation", json!(generation + 1));
    }
    let at = call
        .now
        .checked_add(SignedDuration::from_secs(grace))
        .unwrap_or(call.now);
    meta::set(new, "deletionTimestamp", json!(clock::seconds(at)));
    meta::set(new, "deletionGracePeriodSeconds", json!(grace));
    if call.kind.is("namespaces") {
        new["status"]["phase"] = json!("Terminating");
    }
}

fn add_propagation(object: &mut Value, propagation: &str) {
    let finalizer = match propagation {
        "Foreground" => FOREGROUND,
        "Orphan" => ORPHAN,
        _ => return,
    };
    let mut finalizers = object["metadata"]["finalizers"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    if !finalizers.iter().any(|known| known == finalizer) {
        finalizers.push(json!(finalizer));
    }
    meta::set(object, "finalizers", Value::Array(finalizers));
}

/// The object where it lives on or the real server returns it, else a `Status`.
fn answer(call: &Call, object: &Value, gone: bool) -> Value {
    let returned = matches!(
        &*call.kind.id,
        "pods"
            | "services"
            | "serviceaccounts"
            | "persistentvolumes"
            | "persistentvolumeclaims"
            | "resourcequotas"
    );
    if !gone || returned {
        return present::object(&call.kind, &call.version, object);
    }
    let mut details = json!({
        "name": meta::name(object),
        "kind": call.kind.plural,
        "uid": meta::text(object, "uid"),
    });
    if !call.kind.group.is_empty() {
        details["group"] = json!(call.kind.group);
    }
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
        "details": details,
    })
}
