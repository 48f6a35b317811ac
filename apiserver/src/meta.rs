//! Reading and writing an object's metadata in its JSON form.

use serde_json::{Map, Value, json};

/// `metadata.<field>` as text, empty where it is missing.
pub(crate) fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object["metadata"][field].as_str().unwrap_or_default()
}

/// The object's name.
pub(crate) fn name(object: &Value) -> &str {
    text(object, "name")
}

/// The object's namespace, empty for those that have none.
pub(crate) fn namespace(object: &Value) -> &str {
    text(object, "namespace")
}

/// The resourceVersion; `None` if missing, empty or "0" (they all mean "not given").
pub(crate) fn version(object: &Value) -> Option<&str> {
    Some(text(object, "resourceVersion")).filter(|version| !version.is_empty() && *version != "0")
}

/// A label's value.
pub(crate) fn labels(object: &Value) -> Option<&Map<String, Value>> {
    object["metadata"]["labels"].as_object()
}

/// Whether deletion was asked for.
pub(crate) fn deleting(object: &Value) -> bool {
    !object["metadata"]["deletionTimestamp"].is_null()
}

/// Whether any finalizer holds the object.
pub(crate) fn finalizers(object: &Value) -> bool {
    object["metadata"]["finalizers"]
        .as_array()
        .is_some_and(|list| !list.is_empty())
}

/// The metadata for writing; made if it is missing or of another type.
pub(crate) fn edit(object: &mut Value) -> &mut Map<String, Value> {
    if !object["metadata"].is_object() {
        object["metadata"] = json!({});
    }
    object["metadata"].as_object_mut().expect("made above")
}

/// Sets a field of the metadata; null removes it.
pub(crate) fn set(object: &mut Value, field: &str, value: Value) {
    let metadata = edit(object);
    if value.is_null() {
        metadata.remove(field);
    } else {
        metadata.insert(field.to_owned(), value);
    }
}

/// Removes a top-level field.
pub(crate) fn remove(object: &mut Value, field: &str) -> Value {
    object
        .as_object_mut()
        .and_then(|fields| fields.remove(field))
        .unwrap_or_default()
}

/// Puts a top-level field; null removes it.
pub(crate) fn put(object: &mut Value, field: &str, value: Value) {
    if value.is_null() {
        remove(object, field);
    } else {
        object[field] = value;
    }
}

/// The object without its resourceVersion: what decides whether a write changes anything.
pub(crate) fn substance(object: &Value) -> Value {
    let mut object = object.clone();
    edit(&mut object).remove("resourceVersion");
    object
}

/// What counts for the generation: all but metadata, and status where it is apart.
pub(crate) fn desired(object: &Value, status_apart: bool) -> Value {
    let mut object = object.clone();
    remove(&mut object, "metadata");
    remove(&mut object, "apiVersion");
    if status_apart {
        remove(&mut object, "status");
    }
    object
}
