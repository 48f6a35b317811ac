//! Structural schemas of custom resources: pruning, defaults, validation.

mod check;
mod definition;

use serde_json::{Map, Value};

pub(crate) use check::check;
pub(crate) use definition::check_definition;

/// The object without the fields that its schema does not know. `apiVersion`, `kind` and
/// `metadata` always stay.
pub(crate) fn prune(mut object: Value, schema: &Value) -> Value {
    let mut kept = Map::new();
    if let Some(fields) = object.as_object_mut() {
        for name in ["apiVersion", "kind", "metadata"] {
            if let Some(value) = fields.remove(name) {
                kept.insert(name.to_owned(), value);
            }
        }
    }
    prune_value(&mut object, schema);
    if let Some(fields) = object.as_object_mut() {
        fields.append(&mut kept);
    }
    object
}

fn prune_value(value: &mut Value, schema: &Value) {
    let keeps_unknown = schema["x-kubernetes-preserve-unknown-fields"] == true;
    match value {
        Value::Object(fields) => {
            let known = schema["properties"].as_object();
            let more = &schema["additionalProperties"];
            fields.retain(|name, value| {
                if let Some(schema) = known.and_then(|known| known.get(name)) {
                    prune_value(value, schema);
                    return true;
                }
                if more.is_object() {
                    prune_value(value, more);
                }
                let embedded = schema["x-kubernetes-embedded-resource"] == true
                    && matches!(name.as_str(), "apiVersion" | "kind" | "metadata");
                more.is_object() || *more == Value::Bool(true) || keeps_unknown || embedded
            });
        }
        Value::Array(items) => {
            for item in items {
                prune_value(item, &schema["items"]);
            }
        }
        _ => {}
    }
}

/// Sets what is missing and has a default; a null where none is allowed counts as missing then.
pub(crate) fn fill_defaults(value: &mut Value, schema: &Value) {
    match value {
        Value::Object(fields) => {
            for (name, schema) in schema["properties"].as_object().into_iter().flatten() {
                let default = &schema["default"];
                let nulled = fields.get(name).is_some_and(Value::is_null);
                let missing = !fields.contains_key(name) || (nulled && schema["nullable"] != true);
                if missing && !default.is_null() {
                    fields.insert(name.clone(), default.clone());
                }
                if let Some(value) = fields.get_mut(name) {
                    fill_defaults(value, schema);
                }
            }
            let more = &schema["additionalProperties"];
            if more.is_object() {
                let known = schema["properties"].as_object();
                let extra = fields
                    .iter_mut()
                    .filter(|(name, _)| known.is_none_or(|known| !known.contains_key(*name)));
                for (_, value) in extra {
                    fill_defaults(value, more);
                }
            }
        }
        Value::Array(items) => {
            for item in items {
                fill_defaults(item, &schema["items"]);
            }
        }
        _ => {}
    }
}

/// The paths of fields that are in `before` and no longer in `after`.
pub(crate) fn missing_paths(before: &Value, after: &Value, path: &str, found: &mut Vec<String>) {
    match (before, after) {
        (Value::Object(before), Value::Object(after)) => {
            for (name, value) in before.iter().filter(|(_, value)| !value.is_null()) {
                let path = if path.is_empty() {
                    name.clone()
                } else {
                    format!("{path}.{name}")
                };
                match after.get(name) {
                    Some(kept) => missing_paths(value, kept, &path, found),
                    None => found.push(path),
                }
            }
        }
        (Value::Array(before), Value::Array(after)) => {
            for (at, (value, kept)) in before.iter().zip(after).enumerate() {
                missing_paths(value, kept, &format!("{path}[{at}]"), found);
            }
        }
        _ => {}
    }
}
