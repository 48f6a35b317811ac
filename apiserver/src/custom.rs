//! CustomResourceDefinitions: from a stored definition to a served resource.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::api::Api;
use crate::clock;
use crate::kinds::{Kind, Version};
use crate::meta;
use crate::store::Key;

/// `Kind::id` of the definitions.
pub(crate) const DEFINITIONS: &str = "customresourcedefinitions.apiextensions.k8s.io";

/// Finalizer of a definition that waits until its objects are gone.
pub(crate) const CLEANUP: &str = "customresourcecleanup.apiextensions.k8s.io";

/// Follows a written definition: serves its resource, or serves it no more.
pub(crate) fn changed(api: &mut Api, old: Option<&Value>, new: Option<&Value>) {
    match (old, new) {
        (_, Some(definition)) => {
            if let Some(kind) = kind(definition) {
                api.kinds.serve(kind);
            }
            establish(api, definition);
        }
        (Some(definition), None) => {
            let spec = &definition["spec"];
            let group = spec["group"].as_str().unwrap_or_default();
            let plural = spec["names"]["plural"].as_str().unwrap_or_default();
            api.kinds.withdraw(group, plural);
        }
        (None, None) => {}
    }
}

/// The resource that a definition describes; `None` if it serves no version.
fn kind(definition: &Value) -> Option<Kind> {
    let spec = &definition["spec"];
    let names = &spec["names"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let list = |value: &Value| value.as_array().into_iter().flatten().map(text).collect();
    let mut versions: Vec<&Value> = spec["versions"]
        .as_array()?
        .iter()
        .filter(|version| version["served"] == true || version["storage"] == true)
        .collect();
    versions.sort_by_key(|version| version["storage"] != true);
    let versions: Vec<Version> = versions.into_iter().map(version).collect();
    versions.first()?;
    let kind = text(&names["kind"]);
    let singular = match text(&names["singular"]) {
        named if named.is_empty() => kind.to_lowercase(),
        named => named,
    };
    Some(Kind {
        id: meta::name(definition).into(),
        group: text(&spec["group"]),
        kind,
        plural: text(&names["plural"]),
        singular,
        short_names: list(&names["shortNames"]),
        categories: list(&names["categories"]),
        namespaced: spec["scope"] == "Namespaced",
        generation: true,
        create_on_update: false,
        unconditional_update: false,
        versions,
        native: None,
        facade: None,
    })
}

fn version(version: &Value) -> Version {
    let schema = &version["schema"]["openAPIV3Schema"];
    Version {
        name: version["name"].as_str().unwrap_or_default().to_owned(),
        schema: schema.is_object().then(|| Arc::new(schema.clone())),
        status: version["subresources"]["status"].is_object(),
    }
}

/// Writes into a definition's status that its resource is served.
fn establish(api: &mut Api, definition: &Value) {
    let key = Key {
        resource: DEFINITIONS.into(),
        namespace: String::new(),
        name: meta::name(definition).to_owned(),
    };
    let established = definition["status"]["conditions"]
        .as_array()
        .is_some_and(|conditions| {
            conditions
                .iter()
                .any(|one| one["type"] == "Established" && one["status"] == "True")
        });
    let names = definition["spec"]["names"].clone();
    if meta::deleting(definition) || (established && definition["status"]["acceptedNames"] == names)
    {
        return;
    }
    let at = clock::seconds(clock::now());
    let condition = |kind: &str, reason: &str, message: &str| {
        json!({
            "type": kind, "status": "True", "reason": reason, "message": message,
            "lastTransitionTime": at,
        })
    };
    let stored: Vec<&Value> = definition["spec"]["versions"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|version| version["storage"] == true)
        .map(|version| &version["name"])
        .collect();
    let mut new = definition.clone();
    new["status"] = json!({
        "acceptedNames": names,
        "storedVersions": stored,
        "conditions": [
            condition("NamesAccepted", "NoConflicts", "no conflicts found"),
            condition("Established", "InitialNamesAccepted", "the initial names have been accepted"),
        ],
    });
    let mut finalizers = new["metadata"]["finalizers"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    if !finalizers.iter().any(|entry| entry == CLEANUP) {
        finalizers.push(json!(CLEANUP));
    }
    meta::set(&mut new, "finalizers", Value::Array(finalizers));
    api.store.put(key, new);
}
