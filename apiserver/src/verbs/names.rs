//! Rules on names, labels, annotations and on what may not change, for all kinds and for the
//! built-in ones.

use serde_json::Value;

use crate::custom::DEFINITIONS;
use crate::kinds::Kind;
use crate::meta;
use crate::refusal::Cause;
use crate::schema;

/// All annotations of an object together, in bytes.
const ANNOTATIONS_LIMIT: usize = 256 * 1024;
/// All data of a Secret or a ConfigMap together, in bytes.
const DATA_LIMIT: usize = 1024 * 1024;

/// Checks the metadata.
pub(super) fn check(kind: &Kind, object: &Value, old: Option<&Value>, causes: &mut Vec<Cause>) {
    let name = meta::name(object);
    if old.is_none() {
        check_name(kind, name, causes);
    }
    for (key, value) in meta::labels(object).into_iter().flatten() {
        check_key("metadata.labels", key, causes);
        if !is_label_value(value.as_str().unwrap_or("\0")) {
            let why = "a valid label must be an empty string or consist of alphanumeric \
                       characters, '-', '_' or '.', and must start and end with an alphanumeric \
                       character, and be no more than 63 characters";
            causes.push(Cause::invalid("metadata.labels", value, why));
        }
    }
    let annotations = object["metadata"]["annotations"].as_object();
    let mut size = 0;
    for (key, value) in annotations.into_iter().flatten() {
        check_key("metadata.annotations", key, causes);
        size += key.len() + value.as_str().map_or(0, str::len);
        if !value.is_string() {
            causes.push(Cause::type_invalid(
                "metadata.annotations",
                json_type(value),
                "string",
            ));
        }
    }
    if size > ANNOTATIONS_LIMIT {
        causes.push(Cause {
            reason: "FieldValueTooLong",
            field: "metadata.annotations".to_owned(),
            message: format!("Too long: may not be more than {ANNOTATIONS_LIMIT} bytes"),
        });
    }
    check_owners(object, causes);
    check_finalizers(object, old, causes);
}

fn check_name(kind: &Kind, name: &str, causes: &mut Vec<Cause>) {
    let value = Value::from(name);
    let path_segment = kind.group == "rbac.authorization.k8s.io";
    if path_segment {
        if name == "." || name == ".." || name.contains(['/', '%']) {
            causes.push(Cause::invalid(
                "metadata.name",
                &value,
                "may not contain '/' or '%'",
            ));
        }
    } else if matches!(&*kind.id, "services" | "namespaces") {
        if !is_dns_label(name) {
            let why = "a lowercase RFC 1123 label must consist of lower case alphanumeric \
                       characters or '-', and must start and end with an alphanumeric character";
            causes.push(Cause::invalid("metadata.name", &value, why));
        }
    } else if name.len() > 253 || !name.split('.').all(is_dns_part) {
        let why = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric \
                   characters, '-' or '.', and must start and end with an alphanumeric character";
        causes.push(Cause::invalid("metadata.name", &value, why));
    }
}

fn is_dns_label(name: &str) -> bool {
    name.len() <= 63 && is_dns_part(name)
}

fn is_dns_part(part: &str) -> bool {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    edge(part.chars().next())
        && edge(part.chars().last())
        && part
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
}

fn is_label_value(value: &str) -> bool {
    value.is_empty() || is_qualified_part(value)
}

fn is_qualified_part(part: &str) -> bool {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    part.len() <= 63
        && edge(part.chars().next())
        && edge(part.chars().last())
        && part
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

fn check_key(field: &str, key: &str, causes: &mut Vec<Cause>) {
    let (prefix, name) = key.split_once('/').unwrap_or(("a", key));
    let prefix_ok = prefix.len() <= 253
        && prefix
            .split('.')
            .all(|part| is_dns_part(&part.to_ascii_lowercase()));
    if !prefix_ok || !is_qualified_part(name) {
        let why = "name part must consist of alphanumeric characters, '-', '_' or '.', and must \
                   start and end with an alphanumeric character";
        causes.push(Cause::invalid(field, &Value::from(key), why));
    }
}

fn check_owners(object: &Value, causes: &mut Vec<Cause>) {
    let owners = object["metadata"]["ownerReferences"].as_array();
    let mut controllers = 0;
    for (at, owner) in owners.into_iter().flatten().enumerate() {
        for field in ["apiVersion", "kind", "name", "uid"] {
            if owner[field].as_str().unwrap_or_default().is_empty() {
                let path = format!("metadata.ownerReferences[{at}].{field}");
                causes.push(Cause::required(path, "must not be empty"));
            }
        }
        controllers += usize::from(owner["controller"] == true);
    }
    if controllers > 1 {
        let why = "Only one reference can have Controller set to true";
        let value = object["metadata"]["ownerReferences"].clone();
        causes.push(Cause::invalid("metadata.ownerReferences", &value, why));
    }
}

fn check_finalizers(object: &Value, old: Option<&Value>, causes: &mut Vec<Cause>) {
    let Some(old) = old.filter(|old| meta::deleting(old)) else {
        return;
    };
    let had = old["metadata"]["finalizers"].as_array();
    for finalizer in object["metadata"]["finalizers"]
        .as_array()
        .into_iter()
        .flatten()
    {
        if !had.is_some_and(|had| had.contains(finalizer)) {
            let why = "no new finalizers can be added if the object is being deleted";
            causes.push(Cause::forbidden("metadata.finalizers", why));
        }
    }
}

/// Checks what is particular to a built-in kind.
pub(super) fn check_native(
    kind: &Kind,
    object: &Value,
    old: Option<&Value>,
    causes: &mut Vec<Cause>,
) {
    let immutable: &[&str] = match &*kind.id {
        "endpointslices.discovery.k8s.io" => &["addressType"],
        "persistentvolumeclaims" => &[
            "spec.accessModes",
            "spec.storageClassName",
            "spec.volumeMode",
        ],
        "services" => &["spec.clusterIP"],
        "rolebindings.rbac.authorization.k8s.io"
        | "clusterrolebindings.rbac.authorization.k8s.io" => &["roleRef"],
        "deployments.apps" | "daemonsets.apps" => &["spec.selector"],
        "secrets" => &["type"],
        _ => &[],
    };
    for path in immutable {
        let pointer = format!("/{}", path.replace('.', "/"));
        let before = old
            .and_then(|old| old.pointer(&pointer))
            .filter(|value| !value.is_null());
        let after = object.pointer(&pointer);
        if before.is_some() && before != after {
            let why = "field is immutable";
            causes.push(Cause::invalid(*path, after.unwrap_or(&Value::Null), why));
        }
    }
    match &*kind.id {
        "pods" => check_pod(object, old, causes),
        "leases.coordination.k8s.io" => check_lease(object, causes),
        "secrets" | "configmaps" => check_data(object, old, causes),
        DEFINITIONS => schema::check_definition(object, causes),
        _ => {}
    }
}

fn check_pod(object: &Value, old: Option<&Value>, causes: &mut Vec<Cause>) {
    if object["spec"]["containers"]
        .as_array()
        .is_none_or(Vec::is_empty)
    {
        causes.push(Cause::required("spec.containers", ""));
    }
    let Some(old) = old else { return };
    let fixed = |pod: &Value| {
        let mut spec = pod["spec"].clone();
        if let Some(fields) = spec.as_object_mut() {
            for field in [
                "activeDeadlineSeconds",
                "terminationGracePeriodSeconds",
                "tolerations",
            ] {
                fields.remove(field);
            }
        }
        for list in ["containers", "initContainers"] {
            for container in spec[list].as_array_mut().into_iter().flatten() {
                container["image"] = Value::Null;
            }
        }
        spec
    };
    if fixed(old) != fixed(object) {
        let why = "pod updates may not change fields other than `spec.containers[*].image`,\
                   `spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` \
                   (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` \
                   (allow it to be set to 1 if it was previously negative)";
        causes.push(Cause::forbidden("spec", why));
    }
}

fn check_lease(object: &Value, causes: &mut Vec<Cause>) {
    let spec = &object["spec"];
    if spec["leaseDurationSeconds"]
        .as_i64()
        .is_some_and(|seconds| seconds <= 0)
    {
        let value = &spec["leaseDurationSeconds"];
        causes.push(Cause::invalid(
            "spec.leaseDurationSeconds",
            value,
            "must be greater than 0",
        ));
    }
    if spec["leaseTransitions"]
        .as_i64()
        .is_some_and(|count| count < 0)
    {
        let value = &spec["leaseTransitions"];
        let why = "must be greater than or equal to 0";
        causes.push(Cause::invalid("spec.leaseTransitions", value, why));
    }
}

fn check_data(object: &Value, old: Option<&Value>, causes: &mut Vec<Cause>) {
    let mut size = 0;
    for field in ["data", "binaryData"] {
        for (key, value) in object[field].as_object().into_iter().flatten() {
            let legal = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            if key.is_empty() || key.len() > 253 || !key.chars().all(legal) {
                let why = "a valid config key must consist of alphanumeric characters, '-', '_' \
                           or '.'";
                causes.push(Cause::invalid(
                    format!("{field}[{key}]"),
                    &Value::from(&**key),
                    why,
                ));
            }
            size += value.as_str().map_or(0, str::len);
        }
    }
    if size > DATA_LIMIT {
        causes.push(Cause {
            reason: "FieldValueTooLong",
            field: "data".to_owned(),
            message: format!("Too long: may not be more than {DATA_LIMIT} bytes"),
        });
    }
    let Some(old) = old.filter(|old| old["immutable"] == true) else {
        return;
    };
    for field in ["data", "binaryData", "immutable"] {
        if old[field] != object[field] {
            let why = "field is immutable when `immutable` is set";
            causes.push(Cause::forbidden(field, why));
        }
    }
}

/// The JSON type of a value, as schemas name it.
pub(crate) fn json_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}
