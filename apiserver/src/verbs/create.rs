//! POST: a new object.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{body, present};
use crate::api::{Api, Call, Reply};
use crate::apply::shape::Shape;
use crate::apply::{self, Writer};
use crate::clock;
use crate::meta;
use crate::refusal::{Refusal, Subject};

impl Api {
    pub(super) fn create(&mut self, call: &Call) -> Result<Reply, Refusal> {
        let object = body(call)?;
        let (object, warnings) = self.receive(call, object)?;
        if meta::version(&object).is_some() {
            let why = "resourceVersion should not be set on objects to be created";
            return Err(Refusal::Internal(why.to_owned()));
        }
        let stored = self.insert(call, object, true)?;
        let body = present::object(&call.kind, &call.version, &stored);
        Ok(Reply {
            code: 201,
            body,
            warnings,
        })
    }

    /// Makes an object of what was sent or applied. `note` says whether the fields are to be
    /// noted as written by an update; an apply has noted them itself.
    pub(super) fn insert(
        &mut self,
        call: &Call,
        mut object: Value,
        note: bool,
    ) -> Result<Arc<Value>, Refusal> {
        self.check_namespace(&call.kind, &call.namespace)?;
        self.check_pod_security(call, &object)?;
        self.begin_metadata(call, &mut object)?;
        // Status comes by its own way only; but a kubelet makes its node with one.
        if call.kind.stored().status && !call.kind.is("nodes") {
            meta::remove(&mut object, "status");
        }
        let mut object = self.admit(call, object, None)?;
        if note {
            let time = clock::seconds(call.now);
            let api_version = call.kind.api_version(&call.version);
            let manager = call.manager();
            let writer = Writer {
                manager: &manager,
                api_version: &api_version,
                subresource: "",
                time: &time,
            };
            let shape = Shape::root(call.kind.stored().schema.as_deref());
            apply::note_update(&Value::Null, &mut object, writer, shape);
        }
        let key = call.key(meta::name(&object));
        if self.store.get(&key).is_some() {
            return Err(Refusal::AlreadyExists(Subject::of(&call.kind, &key.name)));
        }
        if call.query.dry_run() {
            return Ok(Arc::new(object));
        }
        let stored = self.store.put(key, object);
        self.written(call, None, Some(&stored));
        Ok(stored)
    }

    fn begin_metadata(&mut self, call: &Call, object: &mut Value) -> Result<(), Refusal> {
        let prefix = meta::text(object, "generateName").to_owned();
        if meta::name(object).is_empty() {
            if prefix.is_empty() {
                return Err(Refusal::Invalid {
                    subject: Subject {
                        group: call.kind.group.clone(),
                        resource: call.kind.kind.clone(),
                        name: String::new(),
                    },
                    causes: vec![crate::refusal::Cause::required(
                        "metadata.name",
                        "name or generateName is required",
                    )],
                });
            }
            let suffix = self.suffix();
            meta::set(object, "name", json!(format!("{prefix}{suffix}")));
        }
        let uid = self.uid();
        meta::set(object, "uid", json!(uid));
        meta::set(object, "creationTimestamp", json!(clock::seconds(call.now)));
        meta::set(object, "resourceVersion", Value::Null);
        meta::set(object, "deletionTimestamp", Value::Null);
        meta::set(object, "deletionGracePeriodSeconds", Value::Null);
        meta::set(object, "selfLink", Value::Null);
        let generation = if call.kind.generation {
            json!(1)
        } else {
            Value::Null
        };
        meta::set(object, "generation", generation);
        Ok(())
    }
}
