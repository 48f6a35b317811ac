//! Server-side apply: who owns which field, what happens when two want the same one, and how
//! every other write changes the ownership.

pub(crate) mod fields;
mod managed;
mod merge;
pub(crate) mod shape;

use serde_json::Value;

use crate::meta;
use crate::refusal::{Cause, Refusal};
use fields::{Fields, difference};
use managed::{Entry, Managers, Operation};
use shape::Shape;

/// Who writes, and how it is noted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Writer<'a> {
    pub manager: &'a str,
    pub api_version: &'a str,
    /// Empty for the main resource.
    pub subresource: &'a str,
    /// `2026-01-02T03:04:05Z`
    pub time: &'a str,
}

/// The object after an apply, with its new `managedFields`. `live` is null if there is none yet.
///
/// # Errors
/// 409 that names the owners, if a field of somebody else would get another value and `force` is
/// not set.
pub(crate) fn apply(
    live: &Value,
    config: &Value,
    writer: Writer<'_>,
    force: bool,
    shape: Shape<'_>,
) -> Result<Value, Refusal> {
    let wanted = Fields::of(&owned_part(config), shape);
    let mut merged = merge::merge(live, config, shape);
    let mut managers = Managers::read(live);
    let previous = managers.take(writer, Operation::Apply);

    let others = managers.all();
    if let Some(previous) = &previous {
        let dropped = previous.fields.minus(&wanted).minus(&others);
        merge::remove(&mut merged, &dropped, &others.union(&wanted), shape);
    }

    let changed = difference(&owned_part(live), &owned_part(&merged), shape).changed;
    let contested = changed.common(&wanted);
    let conflicts = managers.owners_of(&contested);
    if !conflicts.is_empty() && !force {
        return Err(conflict(&conflicts));
    }
    managers.release(&contested);
    let unchanged = previous
        .as_ref()
        .is_some_and(|previous| previous.fields == wanted);
    let time = match &previous {
        Some(previous) if unchanged && contested.is_empty() => previous.time.clone(),
        _ => writer.time.to_owned(),
    };
    managers.add(Entry::new(writer, Operation::Apply, wanted, time));
    managers.write(&mut merged);
    Ok(merged)
}

/// Notes in `new` who owns what after any write that is no apply. `live` is null if the object is
/// new.
pub(crate) fn note_update(live: &Value, new: &mut Value, writer: Writer<'_>, shape: Shape<'_>) {
    // An empty list is a client's way to say "forget all owners".
    let forget = new["metadata"]["managedFields"]
        .as_array()
        .is_some_and(|list| {
            list.iter()
                .all(|entry| entry.as_object().is_none_or(|e| e.is_empty()))
        });
    let mut managers = if forget {
        Managers::default()
    } else {
        Managers::read(live)
    };
    let difference = difference(&owned_part(live), &owned_part(new), shape);
    if !difference.changed.is_empty() || !difference.removed.is_empty() {
        let previous = managers.take(writer, Operation::Update);
        managers.release(&difference.changed.union(&difference.removed));
        let before = previous.map(|entry| entry.fields).unwrap_or_default();
        let now = before.minus(&difference.removed).union(&difference.changed);
        managers.add(Entry::new(
            writer,
            Operation::Update,
            now,
            writer.time.to_owned(),
        ));
    }
    managers.write(new);
}

/// What of an object can have owners.
fn owned_part(object: &Value) -> Value {
    let mut object = object.clone();
    if !object.is_object() {
        return Value::Object(serde_json::Map::new());
    }
    for field in ["apiVersion", "kind"] {
        meta::remove(&mut object, field);
    }
    let metadata = meta::edit(&mut object);
    for field in [
        "name",
        "namespace",
        "uid",
        "resourceVersion",
        "generation",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "selfLink",
        "managedFields",
    ] {
        metadata.remove(field);
    }
    if metadata.is_empty() {
        meta::remove(&mut object, "metadata");
    }
    object
}

fn conflict(conflicts: &[(&Entry, Fields)]) -> Refusal {
    let mut causes = Vec::new();
    let mut said = Vec::new();
    let mut count = 0;
    for (owner, fields) in conflicts {
        let paths = fields.paths();
        count += paths.len();
        let with = format!("conflict with {}", owner.described());
        match paths.as_slice() {
            [one] => said.push(format!("{with}: {one}")),
            many => {
                let list: String = many.iter().map(|path| format!("\n- {path}")).collect();
                said.push(format!("conflicts with {}:{list}", owner.described()));
            }
        }
        causes.extend(paths.into_iter().map(|field| Cause {
            reason: "FieldManagerConflict",
            field,
            message: with.clone(),
        }));
    }
    let plural = if count == 1 { "" } else { "s" };
    let message = format!(
        "Apply failed with {count} conflict{plural}: {}",
        said.join("\n")
    );
    Refusal::ApplyConflict { message, causes }
}
