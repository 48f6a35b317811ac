//! Strategic merge patches of built-in kinds: a merge patch whose lists are merged item by item
//! where the list has a merge key. `$patch: delete` and `$patch: replace` are understood;
//! `$setElementOrder` and `$retainKeys` are dropped, `$deleteFromPrimitiveList` is not supported.

use serde_json::{Map, Value};

use crate::apply::fields::steps;
use crate::apply::shape::{List, Shape};

/// The object with the patch laid over it.
pub(crate) fn merge(object: &Value, patch: &Value, shape: Shape<'_>) -> Value {
    match (object, patch) {
        (Value::Object(object), Value::Object(patch)) => merge_map(object, patch, shape),
        (Value::Array(items), Value::Array(patch)) => match strategic_keys(shape) {
            Some(shape) => merge_list(items, patch, shape),
            None => Value::Array(patch.clone()),
        },
        (_, Value::Object(patch)) => merge_map(&Map::new(), patch, shape),
        (_, patch) => patch.clone(),
    }
}

fn merge_map(object: &Map<String, Value>, patch: &Map<String, Value>, shape: Shape<'_>) -> Value {
    if patch.get("$patch").is_some_and(|what| what == "replace") {
        let mut patch = patch.clone();
        patch.remove("$patch");
        return Value::Object(patch);
    }
    let mut merged = object.clone();
    for (name, value) in patch.iter().filter(|(name, _)| !name.starts_with('$')) {
        if value.is_null() {
            merged.remove(name);
            continue;
        }
        let old = object.get(name).unwrap_or(&Value::Null);
        merged.insert(name.clone(), merge(old, value, shape.field(name)));
    }
    Value::Object(merged)
}

fn strategic_keys(shape: Shape<'_>) -> Option<Shape<'_>> {
    (shape.list() != List::Atomic).then_some(shape)
}

fn merge_list(items: &[Value], patch: &[Value], shape: Shape<'_>) -> Value {
    if patch.iter().any(|item| item["$patch"] == "replace") {
        let rest = patch.iter().filter(|item| item.get("$patch").is_none());
        return rest.cloned().collect();
    }
    let mut merged: Vec<(String, Value)> = steps(items, shape)
        .into_iter()
        .map(|(step, item)| (step, item.clone()))
        .collect();
    for (step, item) in steps(patch, shape) {
        let at = merged.iter().position(|(known, _)| *known == step);
        match (at, item["$patch"] == "delete") {
            (Some(at), true) => {
                merged.remove(at);
            }
            (None, true) => {}
            (Some(at), false) => merged[at].1 = merge(&merged[at].1, item, shape.item()),
            (None, false) => merged.push((step, item.clone())),
        }
    }
    merged.into_iter().map(|(_, item)| item).collect()
}
