//! The owners of an object's fields: `metadata.managedFields`.

use serde_json::{Value, json};

use super::Writer;
use super::fields::Fields;
use crate::meta;

/// How an owner came by its fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Apply,
    Update,
}

impl Operation {
    fn name(self) -> &'static str {
        match self {
            Self::Apply => "Apply",
            Self::Update => "Update",
        }
    }
}

/// One owner.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    manager: String,
    operation: Operation,
    api_version: String,
    subresource: String,
    pub time: String,
    pub fields: Fields,
}

impl Entry {
    pub(super) fn new(
        writer: Writer<'_>,
        operation: Operation,
        fields: Fields,
        time: String,
    ) -> Self {
        Self {
            manager: writer.manager.to_owned(),
            operation,
            api_version: writer.api_version.to_owned(),
            subresource: writer.subresource.to_owned(),
            time,
            fields,
        }
    }

    /// As a conflict names it.
    pub(super) fn described(&self) -> String {
        let mut text = format!("\"{}\"", self.manager);
        if !self.subresource.is_empty() {
            text.push_str(&format!(" with subresource \"{}\"", self.subresource));
        }
        text.push_str(&format!(" using {}", self.api_version));
        if self.operation == Operation::Update {
            text.push_str(&format!(" at {}", self.time));
        }
        text
    }

    fn order(&self) -> (bool, &str, &str, &str) {
        (
            self.operation == Operation::Update,
            &self.time,
            &self.manager,
            &self.subresource,
        )
    }

    fn is(&self, writer: Writer<'_>, operation: Operation) -> bool {
        self.manager == writer.manager
            && self.operation == operation
            && self.subresource == writer.subresource
            && (operation == Operation::Apply || self.api_version == writer.api_version)
    }
}

/// All owners of an object.
#[derive(Debug, Default)]
pub(super) struct Managers(Vec<Entry>);

impl Managers {
    pub(super) fn read(object: &Value) -> Self {
        let list = object["metadata"]["managedFields"].as_array();
        let entries = list.into_iter().flatten().map(|entry| {
            let text = |field: &str| entry[field].as_str().unwrap_or_default().to_owned();
            Entry {
                manager: text("manager"),
                operation: if entry["operation"] == "Apply" {
                    Operation::Apply
                } else {
                    Operation::Update
                },
                api_version: text("apiVersion"),
                subresource: text("subresource"),
                time: text("time"),
                fields: Fields::from_json(&entry["fieldsV1"]),
            }
        });
        Self(entries.collect())
    }

    /// Takes the writer's own entry out.
    pub(super) fn take(&mut self, writer: Writer<'_>, operation: Operation) -> Option<Entry> {
        let at = self
            .0
            .iter()
            .position(|entry| entry.is(writer, operation))?;
        Some(self.0.remove(at))
    }

    /// Every field that has an owner.
    pub(super) fn all(&self) -> Fields {
        self.0
            .iter()
            .fold(Fields::default(), |all, entry| all.union(&entry.fields))
    }

    /// The owners of some of these fields, each with those that are theirs.
    pub(super) fn owners_of(&self, fields: &Fields) -> Vec<(&Entry, Fields)> {
        self.0
            .iter()
            .map(|entry| (entry, entry.fields.common(fields)))
            .filter(|(_, common)| !common.is_empty())
            .collect()
    }

    /// Takes fields from everybody.
    pub(super) fn release(&mut self, fields: &Fields) {
        for entry in &mut self.0 {
            entry.fields = entry.fields.minus(fields);
        }
    }

    pub(super) fn add(&mut self, entry: Entry) {
        self.0.push(entry);
    }

    pub(super) fn write(mut self, object: &mut Value) {
        self.0.retain(|entry| !entry.fields.is_empty());
        // One order for one content, so that a write that changes no owner is seen to change
        // nothing.
        self.0.sort_by(|one, other| one.order().cmp(&other.order()));
        let list: Vec<Value> = self
            .0
            .iter()
            .map(|entry| {
                let mut value = json!({
                    "manager": entry.manager,
                    "operation": entry.operation.name(),
                    "apiVersion": entry.api_version,
                    "time": entry.time,
                    "fieldsType": "FieldsV1",
                    "fieldsV1": entry.fields.to_json(),
                });
                if !entry.subresource.is_empty() {
                    value["subresource"] = json!(entry.subresource);
                }
                value
            })
            .collect();
        let list = if list.is_empty() {
            Value::Null
        } else {
            list.into()
        };
        meta::set(object, "managedFields", list);
    }
}
