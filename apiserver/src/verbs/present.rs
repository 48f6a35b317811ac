//! Stored objects in the form that a client asked for.

use serde_json::{Value, json};

use crate::kinds::Kind;
use crate::meta;

/// The object in one of its kind's versions.
pub(crate) fn object(kind: &Kind, version: &str, stored: &Value) -> Value {
    let mut object = stored.clone();
    if let Some(facade) = kind.facade {
        object = (facade.serve)(object);
    }
    object["apiVersion"] = json!(kind.api_version(version));
    object["kind"] = json!(kind.kind);
    object
}

/// A list of objects that are already in the wanted form.
pub(crate) fn list(kind: &Kind, version: &str, items: Vec<Value>, metadata: Value) -> Value {
    json!({
        "kind": format!("{}List", kind.kind),
        "apiVersion": kind.api_version(version),
        "metadata": metadata,
        "items": items,
    })
}

/// Whether only metadata is asked for.
pub(crate) fn wants_metadata_only(accept: &str) -> bool {
    accept.contains("as=PartialObjectMetadata")
}

/// The object's metadata as an object of its own.
pub(crate) fn metadata_only(mut object: Value) -> Value {
    json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": meta::remove(&mut object, "metadata"),
    })
}

/// A list of metadata.
pub(crate) fn metadata_list(items: Vec<Value>, metadata: Value) -> Value {
    json!({
        "kind": "PartialObjectMetadataList",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": metadata,
        "items": items,
    })
}
