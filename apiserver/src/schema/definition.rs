//! Validation of CustomResourceDefinitions themselves: a definition that the real server would
//! refuse has to fail here, or tests would pass with it.

use regex::Regex;
use serde_json::Value;

use crate::meta;
use crate::refusal::Cause;

/// Checks a definition.
pub(crate) fn check_definition(definition: &Value, causes: &mut Vec<Cause>) {
    let spec = &definition["spec"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (group, plural) = (text(&spec["group"]), text(&spec["names"]["plural"]));
    let wanted = format!("{plural}.{group}");
    if meta::name(definition) != wanted {
        let value = definition["metadata"]["name"].clone();
        let why = format!("must be spec.names.plural+\".\"+spec.group: {wanted:?}");
        causes.push(Cause::invalid("metadata.name", &value, &why));
    }
    for (field, value) in [
        ("spec.group", &spec["group"]),
        ("spec.names.kind", &spec["names"]["kind"]),
    ] {
        if text(value).is_empty() {
            causes.push(Cause::required(field, ""));
        }
    }
    if !matches!(spec["scope"].as_str(), Some("Namespaced" | "Cluster")) {
        let message = format!(
            "Unsupported value: {}: supported values: \"Cluster\", \"Namespaced\"",
            spec["scope"]
        );
        let reason = "FieldValueNotSupported";
        causes.push(Cause {
            reason,
            field: "spec.scope".to_owned(),
            message,
        });
    }
    let versions = spec["versions"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    if versions
        .iter()
        .filter(|version| version["storage"] == true)
        .count()
        != 1
    {
        let why = "must have exactly one version marked as storage version";
        causes.push(Cause::invalid("spec.versions", &spec["versions"], why));
    }
    for (at, version) in versions.iter().enumerate() {
        let path = format!("spec.versions[{at}].schema.openAPIV3Schema");
        let schema = &version["schema"]["openAPIV3Schema"];
        if !schema.is_object() {
            causes.push(Cause::required(path, "schemas are required"));
            continue;
        }
        check_schema(schema, &path, false, causes);
        for error in kube_cel::compile_schema(schema).compilation_errors() {
            let path = format!("{path}.x-kubernetes-validations");
            causes.push(Cause::invalid(path, &Value::Null, &error.to_string()));
        }
    }
}

/// What makes a schema structural.
fn check_schema(schema: &Value, path: &str, in_junctor: bool, causes: &mut Vec<Cause>) {
    let open = schema["x-kubernetes-int-or-string"] == true
        || schema["x-kubernetes-preserve-unknown-fields"] == true;
    if schema["type"].as_str().unwrap_or_default().is_empty() && !open && !in_junctor {
        causes.push(Cause::required(format!("{path}.type"), "must not be empty"));
    }
    for forbidden in [
        "$ref",
        "definitions",
        "dependencies",
        "deprecated",
        "id",
        "patternProperties",
    ] {
        if !schema[forbidden].is_null() {
            causes.push(Cause::forbidden(
                format!("{path}.{forbidden}"),
                "not supported",
            ));
        }
    }
    if schema["properties"].is_object() && schema["additionalProperties"].is_object() {
        let why = "additionalProperties and properties are mutual exclusive";
        causes.push(Cause::forbidden(
            format!("{path}.additionalProperties"),
            why,
        ));
    }
    if schema["additionalProperties"] == false {
        let why = "additionalProperties cannot be set to false";
        causes.push(Cause::forbidden(
            format!("{path}.additionalProperties"),
            why,
        ));
    }
    if schema["uniqueItems"] == true {
        let why =
            "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
        causes.push(Cause::forbidden(format!("{path}.uniqueItems"), why));
    }
    if let Some(pattern) = schema["pattern"]
        .as_str()
        .filter(|text| Regex::new(text).is_err())
    {
        let why = "must be a valid regular expression";
        causes.push(Cause::invalid(
            format!("{path}.pattern"),
            &Value::from(pattern),
            why,
        ));
    }
    if schema["type"] == "array" && !schema["items"].is_object() && !in_junctor {
        causes.push(Cause::required(
            format!("{path}.items"),
            "must be specified",
        ));
    }
    for (name, below) in schema["properties"].as_object().into_iter().flatten() {
        check_schema(
            below,
            &format!("{path}.properties[{name}]"),
            in_junctor,
            causes,
        );
    }
    for field in ["items", "additionalProperties"] {
        if schema[field].is_object() {
            check_schema(
                &schema[field],
                &format!("{path}.{field}"),
                in_junctor,
                causes,
            );
        }
    }
    for junctor in ["allOf", "anyOf", "oneOf"] {
        for (at, below) in schema[junctor].as_array().into_iter().flatten().enumerate() {
            check_junctor(below, &format!("{path}.{junctor}[{at}]"), causes);
        }
    }
    if schema["not"].is_object() {
        check_junctor(&schema["not"], &format!("{path}.not"), causes);
    }
}

/// Below a junctor a schema only restricts: it may not say what a field is.
fn check_junctor(schema: &Value, path: &str, causes: &mut Vec<Cause>) {
    for field in [
        "type",
        "default",
        "additionalProperties",
        "nullable",
        "description",
        "title",
    ] {
        // The one exception: the two types of an int-or-string.
        let typed = field == "type" && matches!(schema[field].as_str(), Some("integer" | "string"));
        if !schema[field].is_null() && !typed {
            let why = "must be empty to be structural";
            causes.push(Cause::forbidden(format!("{path}.{field}"), why));
        }
    }
    check_schema(schema, path, true, causes);
}
