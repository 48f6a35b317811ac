//! PATCH: JSON patch, merge patch, strategic merge patch, server-side apply.

use serde_json::Value;

use super::{body, present};
use crate::api::{Api, Call, Reply};
use crate::apply::shape::Shape;
use crate::apply::{self, Writer};
use crate::clock;
use crate::meta;
use crate::refusal::{Cause, Refusal, invalid, not_found};
use crate::strategic;

impl Api {
    pub(super) fn patch(&mut self, call: &Call) -> Result<Reply, Refusal> {
        let form = call
            .content_type
            .split(';')
            .next()
            .unwrap_or_default()
            .trim();
        if form == "application/apply-patch+yaml" {
            return self.apply(call);
        }
        let old = self.store.get(&call.key(&call.name)).cloned();
        let old = old.ok_or_else(|| not_found(&call.kind, &call.name))?;
        let mut new = present::object(&call.kind, &call.version, &old);
        let patch = body(call)?;
        match form {
            "application/json-patch+json" => json_patch(call, &mut new, patch)?,
            "application/merge-patch+json" => json_patch::merge(&mut new, &patch),
            "application/strategic-merge-patch+json" if call.kind.native.is_some() => {
                new = strategic::merge(&new, &patch, Shape::root(None));
            }
            _ => return Err(unsupported(form)),
        }
        let (new, warnings) = self.receive(call, new)?;
        if meta::name(&new) != call.name {
            let value = new["metadata"]["name"].clone();
            let cause = Cause::invalid("metadata.name", &value, "field is immutable");
            return Err(invalid(&call.kind, &call.name, vec![cause]));
        }
        let stored = self.replace(call, &old, new, true)?;
        let body = present::object(&call.kind, &call.version, &stored);
        Ok(Reply {
            code: 200,
            body,
            warnings,
        })
    }

    fn apply(&mut self, call: &Call) -> Result<Reply, Refusal> {
        let manager = call.query.text("fieldManager");
        if manager.is_empty() {
            return Err(Refusal::BadRequest(
                "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is \
                 required for apply patch"
                    .to_owned(),
            ));
        }
        let config = body(call)?;
        if !config["metadata"]["managedFields"].is_null() {
            return Err(Refusal::BadRequest(
                "metadata.managedFields must be nil".to_owned(),
            ));
        }
        let (mut config, warnings) = self.receive(call, config)?;
        reset_foreign_part(call, &mut config);
        let old = self.store.get(&call.key(&call.name)).cloned();
        if old.is_none() && !call.subresource.is_empty() {
            return Err(not_found(&call.kind, &call.name));
        }
        let (time, api_version) = (
            clock::seconds(call.now),
            call.kind.api_version(&call.version),
        );
        let writer = Writer {
            manager,
            api_version: &api_version,
            subresource: &call.subresource,
            time: &time,
        };
        let schema = call.kind.stored().schema.clone();
        let shape = Shape::root(schema.as_deref());
        let force = call.query.flag("force");
        let live = old.as_deref().unwrap_or(&Value::Null);
        let mut new = apply::apply(live, &config, writer, force, shape)?;
        let (code, stored) = match old {
            Some(old) => (200, self.replace(call, &old, new, false)?),
            None => {
                self.authorize_create(call)?;
                let uid = meta::text(&config, "uid");
                if !uid.is_empty() {
                    return Err(not_found(&call.kind, &call.name));
                }
                meta::set(&mut new, "name", call.name.clone().into());
                meta::set(&mut new, "resourceVersion", Value::Null);
                (201, self.insert(call, new, false)?)
            }
        };
        let body = present::object(&call.kind, &call.version, &stored);
        Ok(Reply {
            code,
            body,
            warnings,
        })
    }
}

/// An apply to the main resource says nothing about status, one to status nothing about the rest.
fn reset_foreign_part(call: &Call, config: &mut Value) {
    if call.subresource == "status" {
        let status = meta::remove(config, "status");
        let metadata = meta::remove(config, "metadata");
        let mut only = serde_json::json!({
            "apiVersion": config["apiVersion"], "kind": config["kind"], "metadata": {},
        });
        for field in ["name", "namespace", "uid", "resourceVersion"] {
            meta::set(&mut only, field, metadata[field].clone());
        }
        meta::put(&mut only, "status", status);
        *config = only;
    } else if call.kind.stored().status {
        meta::remove(config, "status");
    }
}

fn json_patch(call: &Call, object: &mut Value, patch: Value) -> Result<(), Refusal> {
    let patch: json_patch::Patch = serde_json::from_value(patch)
        .map_err(|error| Refusal::BadRequest(format!("error decoding patch: {error}")))?;
    json_patch::patch(object, &patch).map_err(|error| {
        // A patch that does not fit the object, a failed `test` among them.
        let why =
            format!("the server rejected our request due to an error in our request: {error}");
        invalid(
            &call.kind,
            "",
            vec![Cause::invalid("patch", &Value::Null, &why)],
        )
    })
}

fn unsupported(form: &str) -> Refusal {
    Refusal::MediaType {
        code: 415,
        reason: "UnsupportedMediaType",
        message: format!(
            "the body of the request was in an unknown format ({form}) - accepted media types \
             include: application/json-patch+json, application/merge-patch+json, \
             application/apply-patch+yaml"
        ),
    }
}
