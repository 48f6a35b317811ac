//! PUT, and what every change of an existing object has in common.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{body, present};
use crate::api::{Api, Call, Reply};
use crate::apply::shape::Shape;
use crate::apply::{self, Writer};
use crate::auth::rbac;
use crate::clock;
use crate::http::Route;
use crate::meta;
use crate::refusal::{Cause, MODIFIED, Refusal, conflict, invalid, not_found};

impl Api {
    pub(super) fn update(&mut self, call: &Call) -> Result<Reply, Refusal> {
        let object = body(call)?;
        let (object, warnings) = self.receive(call, object)?;
        if meta::name(&object) != call.name {
            return Err(Refusal::BadRequest(format!(
                "the name of the object ({}) does not match the name on the URL ({})",
                meta::name(&object),
                call.name
            )));
        }
        let Some(old) = self.store.get(&call.key(&call.name)).cloned() else {
            return self.create_by_update(call, object);
        };
        if meta::version(&object).is_none() && !call.kind.unconditional_update {
            let why = "must be specified for an update";
            let cause = Cause::invalid("metadata.resourceVersion", &json!(0), why);
            return Err(invalid(&call.kind, &call.name, vec![cause]));
        }
        let stored = self.replace(call, &old, object, true)?;
        let body = present::object(&call.kind, &call.version, &stored);
        Ok(Reply {
            code: 200,
            body,
            warnings,
        })
    }

    /// A PUT of an object that is not there: 404, or a creation for the few kinds that allow it.
    /// Such a creation ignores the resourceVersion, but not the uid, that was sent.
    fn create_by_update(&mut self, call: &Call, mut object: Value) -> Result<Reply, Refusal> {
        if !call.kind.create_on_update || !call.subresource.is_empty() {
            return Err(not_found(&call.kind, &call.name));
        }
        self.authorize_create(call)?;
        let uid = meta::text(&object, "uid");
        if !uid.is_empty() {
            let why =
                format!("Precondition failed: UID in precondition: {uid}, UID in object meta: ");
            return Err(conflict(&call.kind, &call.name, why));
        }
        meta::set(&mut object, "resourceVersion", Value::Null);
        let stored = self.insert(call, object, true)?;
        Ok(Reply::new(
            201,
            present::object(&call.kind, &call.version, &stored),
        ))
    }

    /// A write that makes the object needs the right to create it.
    pub(super) fn authorize_create(&self, call: &Call) -> Result<(), Refusal> {
        let route = Route {
            verb: "create",
            group: call.kind.group.clone(),
            version: call.version.clone(),
            namespace: call.namespace.clone(),
            resource: call.kind.plural.clone(),
            name: call.name.clone(),
            subresource: String::new(),
        };
        rbac::allow(&self.store, &call.identity, &route)
    }

    /// Puts `new` in the place of `old`; returns what lies there then. Nothing is written, and
    /// the resourceVersion stays, if nothing is different.
    pub(super) fn replace(
        &mut self,
        call: &Call,
        old: &Arc<Value>,
        mut new: Value,
        note: bool,
    ) -> Result<Arc<Value>, Refusal> {
        check_preconditions(call, old, &new)?;
        if call.conflict {
            self.store.put(call.key(&call.name), Value::clone(old));
            return Err(conflict(&call.kind, &call.name, MODIFIED));
        }
        carry_over(call, old, &mut new);
        let mut new = self.admit(call, new, Some(old))?;
        if note {
            let shape = Shape::root(call.kind.stored().schema.as_deref());
            let time = clock::seconds(call.now);
            let (manager, api_version) = (call.manager(), call.kind.api_version(&call.version));
            let writer = Writer {
                manager: &manager,
                api_version: &api_version,
                subresource: &call.subresource,
                time: &time,
            };
            apply::note_update(old, &mut new, writer, shape);
        }
        count_generation(call, old, &mut new);
        if meta::substance(&new) == meta::substance(old) {
            return Ok(Arc::clone(old));
        }
        if call.query.dry_run() {
            return Ok(Arc::new(new));
        }
        let key = call.key(&call.name);
        // The last finalizer gone from an object that is being deleted: it goes.
        if meta::deleting(&new) && !meta::finalizers(&new) && graceless(&new) {
            self.store.put(key.clone(), new);
            let gone = self.store.remove(&key);
            self.written(call, Some(old), None);
            return gone.ok_or_else(|| not_found(&call.kind, &call.name));
        }
        let stored = self.store.put(key, new);
        self.written(call, Some(old), Some(&stored));
        Ok(stored)
    }
}

/// Nobody is waiting for the object's end any more.
fn graceless(object: &Value) -> bool {
    object["metadata"]["deletionGracePeriodSeconds"]
        .as_i64()
        .unwrap_or(0)
        == 0
}

fn check_preconditions(call: &Call, old: &Value, new: &Value) -> Result<(), Refusal> {
    let (kind, name) = (&call.kind, &call.name);
    let uid = meta::text(new, "uid");
    if !uid.is_empty() && uid != meta::text(old, "uid") {
        let why = format!(
            "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
            meta::text(old, "uid")
        );
        return Err(conflict(kind, name, why));
    }
    match meta::version(new) {
        Some(version) if Some(version) != meta::version(old) => {
            if version.parse::<u64>().is_err() {
                let value = json!(version);
                let cause = Cause::invalid("metadata.resourceVersion", &value, "must be a number");
                return Err(invalid(kind, name, vec![cause]));
            }
            Err(conflict(kind, name, MODIFIED))
        }
        _ => Ok(()),
    }
}

/// What a client cannot change by this write is as it was.
fn carry_over(call: &Call, old: &Value, new: &mut Value) {
    if call.subresource == "status" {
        let status = meta::remove(new, "status");
        let mut whole = old.clone();
        if call.kind.native.is_some() {
            for field in ["labels", "annotations"] {
                meta::set(&mut whole, field, new["metadata"][field].clone());
            }
        }
        meta::set(
            &mut whole,
            "managedFields",
            new["metadata"]["managedFields"].clone(),
        );
        meta::put(&mut whole, "status", status);
        *new = whole;
    } else if call.kind.stored().status {
        meta::put(new, "status", old["status"].clone());
    }
    for field in [
        "name",
        "namespace",
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generateName",
        "generation",
        "selfLink",
    ] {
        meta::set(new, field, old["metadata"][field].clone());
    }
}

fn count_generation(call: &Call, old: &Value, new: &mut Value) {
    if !call.kind.generation || call.subresource == "status" {
        return;
    }
    let apart = call.kind.stored().status;
    if meta::desired(old, apart) != meta::desired(new, apart) {
        let generation = old["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
        meta::set(new, "generation", json!(generation));
    }
}
