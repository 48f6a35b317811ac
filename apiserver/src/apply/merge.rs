//! Laying an applied configuration over an object, and taking fields out of one.

use serde_json::{Map, Value};

use super::fields::{Fields, steps};
use super::shape::{List, Shape};

/// The object with everything that the configuration sets; nulls set nothing.
pub(crate) fn merge(live: &Value, config: &Value, shape: Shape<'_>) -> Value {
    match (live, config) {
        (Value::Object(live), Value::Object(config)) if !shape.atomic_map() => {
            let mut merged = live.clone();
            for (name, value) in config.iter().filter(|(_, value)| !value.is_null()) {
                let old = live.get(name).unwrap_or(&Value::Null);
                merged.insert(name.clone(), merge(old, value, shape.field(name)));
            }
            Value::Object(merged)
        }
        (Value::Array(live), Value::Array(config)) if shape.list() != List::Atomic => {
            Value::Array(merge_list(live, config, shape))
        }
        (_, config) => config.clone(),
    }
}

fn merge_list(live: &[Value], config: &[Value], shape: Shape<'_>) -> Vec<Value> {
    let mut merged: Vec<(String, Value)> = steps(live, shape)
        .into_iter()
        .map(|(step, item)| (step, item.clone()))
        .collect();
    for (step, item) in steps(config, shape) {
        match merged.iter_mut().find(|(known, _)| *known == step) {
            Some((_, old)) => *old = merge(old, item, shape.item()),
            None => merged.push((step, item.clone())),
        }
    }
    merged.into_iter().map(|(_, item)| item).collect()
}

/// Takes fields out; a list's item goes as a whole unless somebody owns something in it.
pub(crate) fn remove(value: &mut Value, gone: &Fields, owned: &Fields, shape: Shape<'_>) {
    match value {
        Value::Object(map) => {
            for (step, below) in &gone.below {
                if let Some(name) = step.strip_prefix("f:") {
                    remove_field(map, name, below, owned.below.get(step), shape);
                }
            }
        }
        Value::Array(items) => {
            let named: Vec<(String, Value)> = steps(items, shape)
                .into_iter()
                .map(|(s, item)| (s, item.clone()))
                .collect();
            let none = Fields::default();
            *items = named
                .into_iter()
                .filter_map(|(step, mut item)| {
                    let Some(below) = gone.below.get(&step) else {
                        return Some(item);
                    };
                    let owned = owned.below.get(&step);
                    if below.here && owned.is_none() {
                        return None;
                    }
                    remove(&mut item, below, owned.unwrap_or(&none), shape.item());
                    Some(item)
                })
                .collect();
        }
        _ => {}
    }
}

fn remove_field(
    map: &mut Map<String, Value>,
    name: &str,
    gone: &Fields,
    owned: Option<&Fields>,
    shape: Shape<'_>,
) {
    if gone.here && owned.is_none() {
        map.remove(name);
        return;
    }
    let none = Fields::default();
    if let Some(value) = map.get_mut(name) {
        remove(value, gone, owned.unwrap_or(&none), shape.field(name));
        // What only consisted of the removed fields is gone with them.
        let hollow = match value {
            Value::Object(map) => map.is_empty(),
            Value::Array(items) => items.is_empty(),
            _ => false,
        };
        if hollow && owned.is_none() {
            map.remove(name);
        }
    }
}
