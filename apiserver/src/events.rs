//! Events have two faces: the core group's and that of events.k8s.io. Both show the same stored
//! objects, with other names for some fields. Stored is the core form, which also carries the
//! newer fields.

use serde_json::{Map, Value};

/// (name in events.k8s.io, name in the core group)
const NAMES: [(&str, &str); 7] = [
    ("regarding", "involvedObject"),
    ("note", "message"),
    ("deprecatedCount", "count"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedSource", "source"),
    ("reportingController", "reportingComponent"),
];

/// The core form of an event of events.k8s.io.
pub(crate) fn to_core(event: Value) -> Value {
    rename(event, "v1", |(newer, core)| (newer, core))
}

/// The form of events.k8s.io of a stored event.
pub(crate) fn from_core(event: Value) -> Value {
    rename(event, "events.k8s.io/v1", |(newer, core)| (core, newer))
}

fn rename(
    event: Value,
    api_version: &str,
    pair: impl Fn((&'static str, &'static str)) -> (&'static str, &'static str),
) -> Value {
    let Value::Object(mut fields) = event else {
        return event;
    };
    let mut moved = Map::new();
    for names in NAMES {
        let (from, to) = pair(names);
        if let Some(value) = fields.remove(from) {
            moved.insert(to.to_owned(), value);
        }
    }
    fields.extend(moved);
    fields.insert("apiVersion".to_owned(), api_version.into());
    Value::Object(fields)
}
