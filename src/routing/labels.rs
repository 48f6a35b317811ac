//! The labels on pods that say who serves. Pure.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::Wanted;
use crate::kubernetes::names;

/// The merge patch of this member's own pod. The UID keeps it from a later pod of the same name.
pub(super) fn own(uid: &str, wanted: &Wanted) -> Value {
    let (yes, no) = (json!("true"), Value::Null);
    let (plain, serving, readable) = match (wanted.serving, wanted.follows) {
        (true, _) => (json!(names::PRIMARY), yes.clone(), yes),
        (false, true) => (json!(names::REPLICA), no, yes),
        (false, false) => (no.clone(), no.clone(), no),
    };
    json!({"metadata": {
        "uid": uid,
        "labels": {
            names::ROLE: wanted.role,
            names::PLAIN_ROLE: plain,
            names::SERVING: serving,
            names::READABLE: readable,
        },
    }})
}

/// The merge patch of another pod that still says it serves; none where it does not.
pub(super) fn others(
    uid: Option<&str>,
    labels: Option<&BTreeMap<String, String>>,
) -> Option<Value> {
    let labels = labels?;
    let claims = labels.get(names::PLAIN_ROLE).map(String::as_str) == Some(names::PRIMARY)
        || labels.contains_key(names::SERVING);
    claims.then(|| {
        json!({"metadata": {
            "uid": uid,
            "labels": {names::PLAIN_ROLE: null, names::SERVING: null, names::READABLE: null},
        }})
    })
}
