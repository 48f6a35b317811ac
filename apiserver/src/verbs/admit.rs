//! From what a client sent to what may be stored: the right kind and namespace, known fields of
//! the right types, defaults, rules.

use serde_json::{Value, json};

use super::{defaults, names};
use crate::api::{Api, Call};
use crate::meta;
use crate::refusal::{Refusal, invalid};
use crate::schema;

impl Api {
    /// Checks that an object fits its path and turns it into the stored form, without the fields
    /// that nobody knows. Says which those were, as the client wished (`fieldValidation`).
    pub(super) fn receive(
        &self,
        call: &Call,
        mut object: Value,
    ) -> Result<(Value, Vec<String>), Refusal> {
        if !object.is_object() {
            return Err(Refusal::BadRequest("the body is no object".to_owned()));
        }
        check_type(call, &mut object)?;
        check_place(call, &mut object)?;
        if let Some(facade) = call.kind.facade {
            object = (facade.store)(object);
        }
        let before = object.clone();
        let object = match (call.kind.native, &call.kind.stored().schema) {
            (Some(normalise), _) => {
                let known = normalise(object.clone()).map_err(|error| unreadable(call, &error))?;
                retain_known(object, &known)
            }
            (None, Some(schema)) => schema::prune(object, schema),
            (None, None) => object,
        };
        let mut unknown = Vec::new();
        schema::missing_paths(&before, &object, "", &mut unknown);
        let warnings: Vec<String> = unknown
            .into_iter()
            .map(|path| format!("unknown field \"{path}\""))
            .collect();
        match call.query.text("fieldValidation") {
            "Ignore" => Ok((object, Vec::new())),
            "Strict" if !warnings.is_empty() => Err(Refusal::BadRequest(format!(
                "{} in version \"{}\" cannot be handled as a {}: strict decoding error: {}",
                call.kind.kind,
                call.version,
                call.kind.kind,
                warnings.join(", ")
            ))),
            _ => Ok((object, warnings)),
        }
    }

    /// Fills in defaults and checks the whole object.
    pub(super) fn admit(
        &mut self,
        call: &Call,
        object: Value,
        old: Option<&Value>,
    ) -> Result<Value, Refusal> {
        let kind = &call.kind;
        let mut causes = Vec::new();
        let mut object = match (kind.native, &kind.stored().schema) {
            (Some(normalise), _) => {
                let mut object = normalise(object).map_err(|error| unreadable(call, &error))?;
                defaults::fill(self, kind, &mut object);
                names::check_native(kind, &object, old, &mut causes);
                object
            }
            (None, Some(schema)) => {
                let mut object = schema::prune(object, schema);
                schema::fill_defaults(&mut object, schema);
                schema::check(&object, old, schema, &mut causes);
                object
            }
            (None, None) => object,
        };
        object["apiVersion"] = match kind.facade {
            Some(_) => json!("v1"),
            None => json!(kind.api_version(&kind.stored().name)),
        };
        object["kind"] = json!(kind.kind);
        names::check(kind, &object, old, &mut causes);
        if causes.is_empty() {
            Ok(object)
        } else {
            Err(invalid(kind, meta::name(&object), causes))
        }
    }
}

fn check_type(call: &Call, object: &mut Value) -> Result<(), Refusal> {
    let wanted = call.kind.api_version(&call.version);
    for (field, wanted) in [
        ("apiVersion", wanted.as_str()),
        ("kind", call.kind.kind.as_str()),
    ] {
        match object[field].as_str() {
            None | Some("") => object[field] = json!(wanted),
            Some(found) if found == wanted => {}
            Some(found) => {
                return Err(Refusal::BadRequest(format!(
                    "the {field} in the data ({found}) does not match the expected {field} \
                     ({wanted})"
                )));
            }
        }
    }
    // Stored under one version whatever the client speaks; the real server does the same for
    // resources without conversion.
    object["apiVersion"] = json!(call.kind.api_version(&call.kind.stored().name));
    Ok(())
}

fn check_place(call: &Call, object: &mut Value) -> Result<(), Refusal> {
    if !object["metadata"].is_null() && !object["metadata"].is_object() {
        return Err(Refusal::BadRequest("metadata is no object".to_owned()));
    }
    let namespace = meta::namespace(object).to_owned();
    if !call.kind.namespaced {
        meta::set(object, "namespace", Value::Null);
    } else if namespace.is_empty() {
        meta::set(object, "namespace", json!(call.namespace));
    } else if namespace != call.namespace {
        return Err(Refusal::BadRequest(
            "the namespace of the provided object does not match the namespace sent on the \
             request"
                .to_owned(),
        ));
    }
    if call.verb == "patch" && meta::name(object).is_empty() {
        meta::set(object, "name", json!(call.name));
    }
    Ok(())
}

fn unreadable(call: &Call, error: &serde_json::Error) -> Refusal {
    Refusal::BadRequest(format!(
        "{} in version \"{}\" cannot be handled as a {}: {error}",
        call.kind.kind, call.version, call.kind.kind
    ))
}

/// The value without the fields that its type dropped, otherwise as it was sent: a type writes
/// required fields that were never sent, and an apply must not own those.
fn retain_known(value: Value, known: &Value) -> Value {
    match (value, known) {
        (Value::Object(fields), Value::Object(known)) => fields
            .into_iter()
            .filter(|(_, value)| !value.is_null())
            .filter_map(|(name, value)| {
                // An empty list or map may be written as nothing.
                let hollow = value.as_object().is_some_and(serde_json::Map::is_empty)
                    || value.as_array().is_some_and(Vec::is_empty);
                match known.get(&name) {
                    Some(known) => Some((name, retain_known(value, known))),
                    None if hollow => Some((name, value)),
                    None => None,
                }
            })
            .collect(),
        (Value::Array(items), Value::Array(known)) if items.len() == known.len() => items
            .into_iter()
            .zip(known)
            .map(|(item, known)| retain_known(item, known))
            .collect(),
        (value, _) => value,
    }
}
