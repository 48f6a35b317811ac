//! Sets of fields, in the form in which `managedFields` are written (FieldsV1): `f:name` is a
//! field, `k:{…}` an item of a list by its key, `v:…` a value of a set, `.` the thing itself.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::shape::{List, Shape};

/// A set of fields of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Fields {
    /// Whether this very place is in the set.
    pub here: bool,
    /// What is below, by step.
    pub below: BTreeMap<String, Fields>,
}

/// What is different between two objects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Difference {
    /// Fields that are new or have another value.
    pub changed: Fields,
    /// Fields that are gone.
    pub removed: Fields,
}

impl Fields {
    fn leaf() -> Self {
        Self {
            here: true,
            below: BTreeMap::new(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        !self.here && self.below.is_empty()
    }

    /// Every field that an object sets.
    pub(crate) fn of(value: &Value, shape: Shape<'_>) -> Self {
        let mut fields = Self::default();
        match value {
            Value::Object(map) if !map.is_empty() && !shape.atomic_map() => {
                for (name, value) in map {
                    fields.add(format!("f:{name}"), Self::of(value, shape.field(name)));
                }
            }
            Value::Array(items) if !items.is_empty() && shape.list() != List::Atomic => {
                for (step, item) in steps(items, shape) {
                    let mut below = match step.starts_with("k:") {
                        true => Self::of(item, shape.item()),
                        false => Self::default(),
                    };
                    below.here = true;
                    fields.add(step, below);
                }
            }
            _ => fields.here = true,
        }
        fields
    }

    fn add(&mut self, step: String, fields: Self) {
        if !fields.is_empty() {
            self.below.insert(step, fields);
        }
    }

    pub(crate) fn union(&self, other: &Self) -> Self {
        let mut all = self.clone();
        all.here |= other.here;
        for (step, fields) in &other.below {
            let joined = all
                .below
                .get(step)
                .map_or_else(|| fields.clone(), |own| own.union(fields));
            all.below.insert(step.clone(), joined);
        }
        all
    }

    pub(crate) fn minus(&self, other: &Self) -> Self {
        let mut rest = Self {
            here: self.here && !other.here,
            below: BTreeMap::new(),
        };
        for (step, fields) in &self.below {
            let left = other
                .below
                .get(step)
                .map_or_else(|| fields.clone(), |o| fields.minus(o));
            rest.add(step.clone(), left);
        }
        rest
    }

    pub(crate) fn common(&self, other: &Self) -> Self {
        let mut both = Self {
            here: self.here && other.here,
            below: BTreeMap::new(),
        };
        for (step, fields) in &self.below {
            if let Some(other) = other.below.get(step) {
                both.add(step.clone(), fields.common(other));
            }
        }
        both
    }

    /// The paths in the set, `.spec.containers[name="a"].image`.
    pub(crate) fn paths(&self) -> Vec<String> {
        let mut found = Vec::new();
        self.walk(String::new(), &mut found);
        found
    }

    fn walk(&self, path: String, found: &mut Vec<String>) {
        for (step, fields) in &self.below {
            fields.walk(format!("{path}{}", readable(step)), found);
        }
        if self.here {
            found.push(path);
        }
    }

    /// Reads `fieldsV1`.
    pub(crate) fn from_json(value: &Value) -> Self {
        let mut fields = Self::default();
        for (step, below) in value.as_object().into_iter().flatten() {
            if step == "." {
                fields.here = true;
            } else {
                let mut child = Self::from_json(below);
                child.here |= child.below.is_empty();
                fields.below.insert(step.clone(), child);
            }
        }
        fields
    }

    /// Writes `fieldsV1`.
    pub(crate) fn to_json(&self) -> Value {
        let mut map = Map::new();
        if self.here && !self.below.is_empty() {
            map.insert(".".to_owned(), Value::Object(Map::new()));
        }
        for (step, fields) in &self.below {
            map.insert(step.clone(), fields.to_json());
        }
        Value::Object(map)
    }
}

fn readable(step: &str) -> String {
    if let Some(name) = step.strip_prefix("f:") {
        return format!(".{name}");
    }
    if let Some(value) = step.strip_prefix("v:") {
        return format!("[={value}]");
    }
    let key: Map<String, Value> =
        serde_json::from_str(step.strip_prefix("k:").unwrap_or(step)).unwrap_or_default();
    let said: Vec<String> = key
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    format!("[{}]", said.join(","))
}

/// The items of a list by their steps; an item without a full key is passed over.
pub(crate) fn steps<'v>(items: &'v [Value], shape: Shape<'_>) -> Vec<(String, &'v Value)> {
    match shape.list() {
        List::Atomic => Vec::new(),
        List::Set => items
            .iter()
            .map(|item| (format!("v:{item}"), item))
            .collect(),
        List::Map(keys) => items
            .iter()
            .filter_map(|item| Some((format!("k:{}", shape.key(&keys, item)?), item)))
            .collect(),
    }
}

/// What is different between two objects, field by field.
pub(crate) fn difference(old: &Value, new: &Value, shape: Shape<'_>) -> Difference {
    let mut difference = Difference::default();
    match (old, new) {
        (Value::Object(old), Value::Object(new)) if !shape.atomic_map() => {
            let pairs = old
                .keys()
                .chain(new.keys().filter(|name| !old.contains_key(*name)));
            for name in pairs {
                let step = format!("f:{name}");
                difference.add(step, old.get(name), new.get(name), shape.field(name));
            }
        }
        (Value::Array(old), Value::Array(new)) if shape.list() != List::Atomic => {
            let new: BTreeMap<String, &Value> = steps(new, shape).into_iter().collect();
            let old: BTreeMap<String, &Value> = steps(old, shape).into_iter().collect();
            let all: std::collections::BTreeSet<&String> = old.keys().chain(new.keys()).collect();
            for step in all {
                let (old, new) = (old.get(step).copied(), new.get(step).copied());
                difference.add(step.clone(), old, new, shape.item());
            }
        }
        (old, new) if old != new => difference.changed = Fields::leaf(),
        _ => {}
    }
    difference
}

impl Difference {
    fn add(&mut self, step: String, old: Option<&Value>, new: Option<&Value>, shape: Shape<'_>) {
        let item = !step.starts_with("f:");
        let whole = |value: &Value| {
            let mut fields = if step.starts_with("v:") {
                Fields::leaf()
            } else {
                Fields::of(value, shape)
            };
            fields.here |= item;
            fields
        };
        match (old, new) {
            (None, Some(new)) => self.changed.add(step.clone(), whole(new)),
            (Some(old), None) => self.removed.add(step.clone(), whole(old)),
            (Some(old), Some(new)) => {
                let below = difference(old, new, shape);
                self.changed.add(step.clone(), below.changed);
                self.removed.add(step, below.removed);
            }
            (None, None) => {}
        }
    }
}
