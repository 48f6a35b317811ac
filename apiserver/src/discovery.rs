//! The documents by which clients learn what is served.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::api::Reply;
use crate::kinds::{Kind, Kinds};
use crate::refusal::Refusal;

/// What every resource can do.
const VERBS: [&str; 8] = [
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "update",
    "watch",
];

/// The document at a path.
///
/// # Errors
/// 404 if there is none.
pub(crate) fn document(kinds: &Kinds, path: &str) -> Result<Reply, Refusal> {
    let segments: Vec<&str> = path
        .split('/')
        .filter(|segment| !segment.is_empty())
        .collect();
    let body = match segments.as_slice() {
        ["healthz" | "livez" | "readyz", ..] => json!("ok"),
        ["version"] => version(),
        [] => json!({ "paths": ["/api", "/api/v1", "/apis", "/healthz", "/version"] }),
        ["api"] => json!({
            "kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": [],
        }),
        ["api", "v1"] => resources(kinds, "", "v1")?,
        ["apis"] => {
            let groups = groups(kinds);
            let list: Vec<Value> = groups
                .iter()
                .map(|(name, versions)| group(name, versions))
                .collect();
            json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": list })
        }
        ["apis", name] => {
            let groups = groups(kinds);
            let versions = groups.get(*name).ok_or(Refusal::NoSuchResource)?;
            let mut document = group(name, versions);
            document["kind"] = json!("APIGroup");
            document["apiVersion"] = json!("v1");
            document
        }
        ["apis", group, version] => resources(kinds, group, version)?,
        ["openapi", "v3"] => open_api_index(kinds),
        ["openapi", "v3", "api", version] => open_api(kinds, "", version),
        ["openapi", "v3", "apis", group, version] => open_api(kinds, group, version),
        _ => return Err(Refusal::NoSuchResource),
    };
    Ok(Reply::new(200, body))
}

fn version() -> Value {
    json!({
        "major": "1", "minor": "33", "gitVersion": "v1.33.0+stand-in",
        "gitCommit": "", "gitTreeState": "clean", "buildDate": "2025-04-23T00:00:00Z",
        "goVersion": "", "compiler": "rustc", "platform": "linux/amd64",
    })
}

/// Versions by group, without the core one.
fn groups(kinds: &Kinds) -> BTreeMap<String, Vec<String>> {
    let mut groups: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for kind in kinds.iter().filter(|kind| !kind.group.is_empty()) {
        let versions = groups.entry(kind.group.clone()).or_default();
        for version in &kind.versions {
            if !versions.contains(&version.name) {
                versions.push(version.name.clone());
            }
        }
    }
    for group in ["authentication.k8s.io", "authorization.k8s.io"] {
        groups
            .entry(group.to_owned())
            .or_insert_with(|| vec!["v1".to_owned()]);
    }
    groups
}

fn group(name: &str, versions: &[String]) -> Value {
    let named: Vec<Value> = versions
        .iter()
        .map(|version| json!({ "groupVersion": format!("{name}/{version}"), "version": version }))
        .collect();
    json!({ "name": name, "versions": named, "preferredVersion": named[0] })
}

fn resources(kinds: &Kinds, group: &str, version: &str) -> Result<Value, Refusal> {
    let mut list = Vec::new();
    for kind in kinds.iter().filter(|kind| kind.group == group) {
        if let Some(served) = kind.version(version) {
            list.push(resource(kind));
            if served.status {
                list.push(subresource(
                    kind,
                    "status",
                    &kind.kind,
                    &["get", "patch", "update"],
                ));
            }
        }
        match &*kind.id {
            "pods" => {
                list.push(subresource(kind, "binding", "Binding", &["create"]));
                list.push(subresource(kind, "eviction", "Eviction", &["create"]));
            }
            "serviceaccounts" => {
                list.push(subresource(kind, "token", "TokenRequest", &["create"]));
            }
            _ => {}
        }
    }
    let reviews: &[(&str, &str)] = match group {
        "authorization.k8s.io" => &[
            ("selfsubjectaccessreviews", "SelfSubjectAccessReview"),
            ("selfsubjectrulesreviews", "SelfSubjectRulesReview"),
        ],
        "authentication.k8s.io" => &[("selfsubjectreviews", "SelfSubjectReview")],
        _ => &[],
    };
    for (plural, kind) in reviews {
        list.push(json!({
            "name": plural, "singularName": "", "namespaced": false, "kind": kind,
            "verbs": ["create"],
        }));
    }
    if list.is_empty() {
        return Err(Refusal::NoSuchResource);
    }
    let group_version = if group.is_empty() {
        version.to_owned()
    } else {
        format!("{group}/{version}")
    };
    Ok(json!({
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version,
        "resources": list,
    }))
}

fn resource(kind: &Kind) -> Value {
    let mut value = json!({
        "name": kind.plural, "singularName": kind.singular, "namespaced": kind.namespaced,
        "kind": kind.kind, "verbs": VERBS,
    });
    if !kind.short_names.is_empty() {
        value["shortNames"] = json!(kind.short_names);
    }
    if !kind.categories.is_empty() {
        value["categories"] = json!(kind.categories);
    }
    value
}

fn subresource(kind: &Kind, name: &str, of: &str, verbs: &[&str]) -> Value {
    json!({
        "name": format!("{}/{name}", kind.plural), "singularName": "",
        "namespaced": kind.namespaced, "kind": of, "verbs": verbs,
    })
}

/// Where the OpenAPI documents are.
fn open_api_index(kinds: &Kinds) -> Value {
    let mut paths = json!({ "api/v1": { "serverRelativeURL": "/openapi/v3/api/v1" } });
    for (group, versions) in groups(kinds) {
        for version in versions {
            let path = format!("apis/{group}/{version}");
            let url = format!("/openapi/v3/{path}");
            paths[path] = json!({ "serverRelativeURL": url });
        }
    }
    json!({ "paths": paths })
}

/// An OpenAPI document that says no more than that PATCH knows `fieldValidation`: what kubectl
/// looks for before it leaves the validation to the server.
fn open_api(kinds: &Kinds, group: &str, version: &str) -> Value {
    let mut paths = json!({});
    let served = kinds.iter().filter(|kind| kind.group == group);
    for kind in served.filter(|kind| kind.version(version).is_some()) {
        let root = if group.is_empty() {
            "/api".to_owned()
        } else {
            format!("/apis/{group}")
        };
        let place = if kind.namespaced {
            "/namespaces/{namespace}"
        } else {
            ""
        };
        let path = format!("{root}/{version}{place}/{}/{{name}}", kind.plural);
        paths[path] = json!({ "patch": {
            "parameters": [{ "name": "fieldValidation", "in": "query",
                             "schema": { "type": "string" } }],
            "responses": {},
            "x-kubernetes-group-version-kind": {
                "group": group, "version": version, "kind": kind.kind,
            },
        } });
    }
    json!({
        "openapi": "3.0.0",
        "info": { "title": "Kubernetes", "version": "v1.33.0" },
        "paths": paths,
    })
}
