//! Authorization by the stored roles and bindings.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{Identity, MASTERS};
use crate::http::Route;
use crate::refusal::{Refusal, Subject};
use crate::store::{Key, Store};

const ROLES: &str = "roles.rbac.authorization.k8s.io";
const CLUSTER_ROLES: &str = "clusterroles.rbac.authorization.k8s.io";
const BINDINGS: &str = "rolebindings.rbac.authorization.k8s.io";
const CLUSTER_BINDINGS: &str = "clusterrolebindings.rbac.authorization.k8s.io";

/// Paths that every user may read (`system:discovery`), and those that anybody may.
const DISCOVERY: [&str; 5] = ["/api", "/apis", "/openapi", "/healthz", "/readyz"];
const PUBLIC: [&str; 4] = ["/healthz", "/livez", "/readyz", "/version"];

/// Whether a request for a resource is allowed.
///
/// # Errors
/// 403, in the words of the real server.
pub(crate) fn allow(store: &Store, who: &Identity, route: &Route) -> Result<(), Refusal> {
    if permitted(store, who, route) {
        return Ok(());
    }
    let resource = if route.subresource.is_empty() {
        route.resource.clone()
    } else {
        format!("{}/{}", route.resource, route.subresource)
    };
    let scope = if route.namespace.is_empty() || route.resource == "namespaces" {
        "at the cluster scope".to_owned()
    } else {
        format!("in the namespace \"{}\"", route.namespace)
    };
    let why = format!(
        "User \"{}\" cannot {} resource \"{resource}\" in API group \"{}\" {scope}",
        who.user, route.verb, route.group
    );
    let subject = Subject {
        group: route.group.clone(),
        resource: route.resource.clone(),
        name: route.name.clone(),
    };
    Err(Refusal::Forbidden {
        subject,
        why,
        causes: Vec::new(),
    })
}

/// Whether a request for a path that is no resource is allowed.
///
/// # Errors
/// 403
pub(crate) fn allow_path(
    store: &Store,
    who: &Identity,
    verb: &str,
    path: &str,
) -> Result<(), Refusal> {
    let under = |roots: &[&str]| {
        roots
            .iter()
            .any(|root| path == *root || path.starts_with(&format!("{root}/")))
    };
    let reads = verb == "get" || verb == "head";
    if reads && (under(&PUBLIC) || (under(&DISCOVERY) && who.is_in("system:authenticated"))) {
        return Ok(());
    }
    let named = |rule: &Value| {
        contains(&rule["verbs"], verb)
            && strings(&rule["nonResourceURLs"]).any(|url| {
                url == path
                    || url
                        .strip_suffix('*')
                        .is_some_and(|head| path.starts_with(head))
            })
    };
    if who.is_in(MASTERS) || rules(store, who, "").iter().any(named) {
        return Ok(());
    }
    let why = format!("User \"{}\" cannot {verb} path \"{path}\"", who.user);
    Err(Refusal::Forbidden {
        subject: Subject::default(),
        why,
        causes: Vec::new(),
    })
}

/// The bare answer for a resource.
pub(crate) fn permitted(store: &Store, who: &Identity, route: &Route) -> bool {
    // Everybody may ask about himself (`system:basic-user`).
    let about_self = matches!(
        route.resource.as_str(),
        "selfsubjectaccessreviews" | "selfsubjectrulesreviews" | "selfsubjectreviews"
    );
    if who.is_in(MASTERS) || (about_self && who.is_in("system:authenticated")) {
        return true;
    }
    rules(store, who, &route.namespace)
        .iter()
        .any(|rule| grants(rule, route))
}

/// The rules that hold for somebody in a namespace, those of the whole cluster included.
pub(crate) fn rules(store: &Store, who: &Identity, namespace: &str) -> Vec<Value> {
    let mut found = Vec::new();
    for (_, binding) in store.list(&CLUSTER_BINDINGS.into(), None) {
        if bound(binding, who) {
            found.extend(role_rules(store, binding, ""));
        }
    }
    if !namespace.is_empty() {
        for (_, binding) in store.list(&BINDINGS.into(), Some(namespace)) {
            if bound(binding, who) {
                found.extend(role_rules(store, binding, namespace));
            }
        }
    }
    found
}

fn bound(binding: &Value, who: &Identity) -> bool {
    let home = binding["metadata"]["namespace"]
        .as_str()
        .unwrap_or_default();
    binding["subjects"]
        .as_array()
        .into_iter()
        .flatten()
        .any(|subject| {
            let name = subject["name"].as_str().unwrap_or_default();
            match subject["kind"].as_str().unwrap_or_default() {
                "User" => name == who.user,
                "Group" => who.is_in(name),
                "ServiceAccount" => {
                    let namespace = subject["namespace"].as_str().unwrap_or(home);
                    who.user == format!("system:serviceaccount:{namespace}:{name}")
                }
                _ => false,
            }
        })
}

fn role_rules(store: &Store, binding: &Value, namespace: &str) -> Vec<Value> {
    let reference = &binding["roleRef"];
    let (resource, namespace) = match reference["kind"].as_str() {
        Some("ClusterRole") => (CLUSTER_ROLES, ""),
        _ => (ROLES, namespace),
    };
    let key = Key {
        resource: resource.into(),
        namespace: namespace.to_owned(),
        name: reference["name"].as_str().unwrap_or_default().to_owned(),
    };
    let role = store.get(&key).map(Arc::as_ref);
    role.and_then(|role| role["rules"].as_array())
        .cloned()
        .unwrap_or_default()
}

fn grants(rule: &Value, route: &Route) -> bool {
    let full = if route.subresource.is_empty() {
        route.resource.clone()
    } else {
        format!("{}/{}", route.resource, route.subresource)
    };
    let resource = strings(&rule["resources"]).any(|resource| {
        resource == "*"
            || resource == full
            || (!route.subresource.is_empty()
                && resource.strip_prefix("*/") == Some(route.subresource.as_str()))
    });
    let names = &rule["resourceNames"];
    let named =
        names.as_array().is_none_or(Vec::is_empty) || strings(names).any(|name| name == route.name);
    resource
        && named
        && contains(&rule["verbs"], route.verb)
        && contains(&rule["apiGroups"], &route.group)
}

fn strings(list: &Value) -> impl Iterator<Item = &str> {
    list.as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
}

fn contains(list: &Value, wanted: &str) -> bool {
    strings(list).any(|entry| entry == wanted || entry == "*")
}

/// `status` of a SelfSubjectRulesReview: the rules as they are, split by what they are about.
pub(crate) fn rules_review(store: &Store, who: &Identity, namespace: &str) -> Value {
    let mut rules = rules(store, who, namespace);
    if who.is_in(MASTERS) {
        rules.push(json!({ "verbs": ["*"], "apiGroups": ["*"], "resources": ["*"] }));
        rules.push(json!({ "verbs": ["*"], "nonResourceURLs": ["*"] }));
    }
    let (paths, resources): (Vec<Value>, Vec<Value>) = rules
        .into_iter()
        .partition(|rule| rule["nonResourceURLs"].is_array());
    json!({ "resourceRules": resources, "nonResourceRules": paths, "incomplete": false })
}
