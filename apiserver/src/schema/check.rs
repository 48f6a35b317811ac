//! Validation of an object by its schema: types, limits, patterns, lists that are sets or maps,
//! and the CEL rules (`x-kubernetes-validations`).

use std::collections::BTreeSet;

use kube_cel::Validator;
use regex::Regex;
use serde_json::Value;

use crate::refusal::Cause;
use crate::verbs::json_type;

/// Checks an object; `old` is what it replaces.
pub(crate) fn check(object: &Value, old: Option<&Value>, schema: &Value, causes: &mut Vec<Cause>) {
    check_value(object, schema, "", causes);
    // The rules may presume what the schema promises.
    if !causes.is_empty() {
        return;
    }
    let Err(errors) = Validator::new().validate(schema, object, old) else {
        return;
    };
    for error in errors.into_vec() {
        let field = error.field_path.trim_start_matches('.').to_owned();
        let pointer = format!("/{}", field.replace('.', "/"));
        let at = object.pointer(&pointer).map_or("object", json_type);
        causes.push(Cause {
            reason: reason(error.reason.as_deref()),
            message: format!("Invalid value: \"{at}\": {}", error.message),
            field,
        });
    }
}

fn reason(named: Option<&str>) -> &'static str {
    match named {
        Some("FieldValueForbidden") => "FieldValueForbidden",
        Some("FieldValueRequired") => "FieldValueRequired",
        Some("FieldValueDuplicate") => "FieldValueDuplicate",
        _ => "FieldValueInvalid",
    }
}

fn check_value(value: &Value, schema: &Value, path: &str, causes: &mut Vec<Cause>) {
    if !schema.is_object() || !check_type(value, schema, path, causes) {
        return;
    }
    check_enum(value, schema, path, causes);
    match value {
        Value::Object(_) => check_object(value, schema, path, causes),
        Value::Array(items) => check_list(items, schema, path, causes),
        Value::String(text) => check_text(text, schema, path, causes),
        Value::Number(_) => check_number(value, schema, path, causes),
        Value::Null | Value::Bool(_) => {}
    }
    check_combined(value, schema, path, causes);
}

/// Whether the type fits, so that a closer look makes sense.
fn check_type(value: &Value, schema: &Value, path: &str, causes: &mut Vec<Cause>) -> bool {
    let found = json_type(value);
    if value.is_null() && schema["nullable"] == true {
        return false;
    }
    if schema["x-kubernetes-int-or-string"] == true {
        if matches!(found, "integer" | "string") {
            return true;
        }
        causes.push(Cause::type_invalid(path, found, "integer,string"));
        return false;
    }
    let whole = value.as_f64().is_some_and(|number| number.fract() == 0.0);
    match schema["type"].as_str() {
        None => true,
        Some(wanted) if wanted == found => true,
        Some("number") if found == "integer" => true,
        Some("integer") if whole => true,
        Some(wanted) => {
            causes.push(Cause::type_invalid(path, found, wanted));
            false
        }
    }
}

fn check_enum(value: &Value, schema: &Value, path: &str, causes: &mut Vec<Cause>) {
    let Some(allowed) = schema["enum"].as_array() else {
        return;
    };
    if !allowed.contains(value) {
        let list: Vec<String> = allowed.iter().map(ToString::to_string).collect();
        causes.push(Cause {
            reason: "FieldValueNotSupported",
            field: path.to_owned(),
            message: format!(
                "Unsupported value: {value}: supported values: {}",
                list.join(", ")
            ),
        });
    }
}

fn check_object(value: &Value, schema: &Value, path: &str, causes: &mut Vec<Cause>) {
    let Some(fields) = value.as_object() else {
        return;
    };
    let below = |name: &str| {
        if path.is_empty() {
            name.to_owned()
        } else {
            format!("{path}.{name}")
        }
    };
    for name in schema["required"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
    {
        if !fields.contains_key(name) {
            causes.push(Cause::required(below(name), ""));
        }
    }
    for (name, value) in fields {
        // The server's own part of the object is not the schema's to judge.
        if path.is_empty() && matches!(name.as_str(), "metadata" | "apiVersion" | "kind") {
            continue;
        }
        match schema["properties"].get(name) {
            Some(schema) => check_value(value, schema, &below(name), causes),
            None => check_value(value, &schema["additionalProperties"], &below(name), causes),
        }
    }
    let count = fields.len() as u64;
    if schema["minProperties"]
        .as_u64()
        .is_some_and(|least| count < least)
    {
        let why = format!(
            "{path} in body should have at least {} properties",
            schema["minProperties"]
        );
        causes.push(Cause::invalid(path, &Value::from(count), &why));
    }
    if schema["maxProperties"]
        .as_u64()
        .is_some_and(|most| count > most)
    {
        let why = format!(
            "{path} in body should have at most {} properties",
            schema["maxProperties"]
        );
        causes.push(Cause::invalid(path, &Value::from(count), &why));
    }
}

fn check_list(items: &[Value], schema: &Value, path: &str, causes: &mut Vec<Cause>) {
    let count = items.len() as u64;
    if schema["minItems"]
        .as_u64()
        .is_some_and(|least| count < least)
    {
        let why = format!(
            "{path} in body should have at least {} items",
            schema["minItems"]
        );
        causes.push(Cause::invalid(path, &Value::from(count), &why));
    }
    if schema["maxItems"].as_u64().is_some_and(|most| count > most) {
        let why = format!(
            "{path} in body should have at most {} items",
            schema["maxItems"]
        );
        causes.push(Cause::invalid(path, &Value::from(count), &why));
    }
    let keys: Vec<&str> = schema["x-kubernetes-list-map-keys"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let kind = schema["x-kubernetes-list-type"]
        .as_str()
        .unwrap_or_default();
    let mut seen = BTreeSet::new();
    for (at, item) in items.iter().enumerate() {
        let path = format!("{path}[{at}]");
        check_value(item, &schema["items"], &path, causes);
        let identity = match kind {
            "map" => keys.iter().map(|key| item[*key].clone()).collect(),
            "set" => item.clone(),
            _ if schema["uniqueItems"] == true => item.clone(),
            _ => continue,
        };
        if !seen.insert(identity.to_string()) {
            causes.push(Cause {
                reason: "FieldValueDuplicate",
                field: path,
                message: format!("Duplicate value: {identity}"),
            });
        }
    }
}

fn check_text(text: &str, schema: &Value, path: &str, causes: &mut Vec<Cause>) {
    let value = Value::from(text);
    let length = text.chars().count() as u64;
    if schema["minLength"]
        .as_u64()
        .is_some_and(|least| length < least)
    {
        let why = format!(
            "{path} in body should be at least {} chars long",
            schema["minLength"]
        );
        causes.push(Cause::invalid(path, &value, &why));
    }
    if schema["maxLength"]
        .as_u64()
        .is_some_and(|most| length > most)
    {
        let why = format!(
            "{path} in body should be at most {} chars long",
            schema["maxLength"]
        );
        causes.push(Cause::invalid(path, &value, &why));
    }
    if let Some(pattern) = schema["pattern"].as_str() {
        // A definition with a pattern that does not compile was refused.
        let fits = Regex::new(pattern).is_ok_and(|pattern| pattern.is_match(text));
        if !fits {
            let why = format!("{path} in body should match '{pattern}'");
            causes.push(Cause::invalid(path, &value, &why));
        }
    }
    let bad_date = schema["format"] == "date-time" && text.parse::<jiff::Timestamp>().is_err();
    if bad_date {
        let why = format!("{path} in body must be of type date-time: {value}");
        causes.push(Cause::invalid(path, &value, &why));
    }
}

fn check_number(value: &Value, schema: &Value, path: &str, causes: &mut Vec<Cause>) {
    let Some(number) = value.as_f64() else { return };
    let mut refuse = |bad: bool, words: &str, limit: &Value| {
        if bad {
            let why = format!("{path} in body should be {words} {limit}");
            causes.push(Cause::invalid(path, value, &why));
        }
    };
    if let Some(least) = schema["minimum"].as_f64() {
        let exclusive = schema["exclusiveMinimum"] == true;
        let words = if exclusive {
            "greater than"
        } else {
            "greater than or equal to"
        };
        let bad = number < least || (exclusive && number <= least);
        refuse(bad, words, &schema["minimum"]);
    }
    if let Some(most) = schema["maximum"].as_f64() {
        let exclusive = schema["exclusiveMaximum"] == true;
        let words = if exclusive {
            "less than"
        } else {
            "less than or equal to"
        };
        refuse(
            number > most || (exclusive && number >= most),
            words,
            &schema["maximum"],
        );
    }
    let range = match schema["format"].as_str() {
        Some("int32") => Some((f64::from(i32::MIN), f64::from(i32::MAX))),
        Some("uint16") => Some((0.0, f64::from(u16::MAX))),
        Some("uint32") => Some((0.0, f64::from(u32::MAX))),
        _ => None,
    };
    let out = range.is_some_and(|(least, most)| number < least || number > most);
    refuse(out, "in the range of", &schema["format"]);
}

/// `allOf`, `anyOf`, `oneOf`, `not`.
fn check_combined(value: &Value, schema: &Value, path: &str, causes: &mut Vec<Cause>) {
    let fits = |schema: &Value| {
        let mut tried = Vec::new();
        check_value(value, schema, path, &mut tried);
        tried.is_empty()
    };
    for part in schema["allOf"].as_array().into_iter().flatten() {
        check_value(value, part, path, causes);
    }
    let mut refuse = |why: &str| {
        causes.push(Cause::invalid(
            path,
            value,
            &format!("{path} in body {why}"),
        ));
    };
    if schema["anyOf"]
        .as_array()
        .is_some_and(|any| !any.iter().any(fits))
    {
        refuse("must validate at least one schema (anyOf)");
    }
    if schema["oneOf"]
        .as_array()
        .is_some_and(|one| one.iter().filter(|s| fits(s)).count() != 1)
    {
        refuse("must validate one and only one schema (oneOf)");
    }
    if schema["not"].is_object() && fits(&schema["not"]) {
        refuse("must not validate the schema (not)");
    }
}
