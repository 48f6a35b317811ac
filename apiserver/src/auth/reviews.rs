//! What a client may ask about itself: may I, what may I, who am I.

use serde_json::{Value, json};

use super::{Identity, rbac, user_info};
use crate::api::Reply;
use crate::http::Route;
use crate::refusal::Refusal;
use crate::store::Store;

/// Answers a review; `None` if the route is none.
///
/// # Errors
/// 400 for a body that is no review, 405 for other verbs than create.
pub(crate) fn answer(
    store: &Store,
    who: &Identity,
    route: &Route,
    body: &[u8],
) -> Result<Option<Reply>, Refusal> {
    let kind = match (route.group.as_str(), route.resource.as_str()) {
        ("authorization.k8s.io", "selfsubjectaccessreviews") => "SelfSubjectAccessReview",
        ("authorization.k8s.io", "selfsubjectrulesreviews") => "SelfSubjectRulesReview",
        ("authentication.k8s.io", "selfsubjectreviews") => "SelfSubjectReview",
        _ => return Ok(None),
    };
    if route.verb != "create" {
        return Err(Refusal::MethodNotAllowed);
    }
    let mut review: Value = serde_json::from_slice(body)
        .map_err(|error| Refusal::BadRequest(format!("error decoding the review: {error}")))?;
    review["apiVersion"] = json!(format!("{}/{}", route.group, route.version));
    review["kind"] = json!(kind);
    review["status"] = match kind {
        "SelfSubjectAccessReview" => access(store, who, &review["spec"]),
        "SelfSubjectRulesReview" => {
            let namespace = review["spec"]["namespace"].as_str().unwrap_or_default();
            rbac::rules_review(store, who, namespace)
        }
        _ => json!({ "userInfo": user_info(who) }),
    };
    Ok(Some(Reply::new(201, review)))
}

fn access(store: &Store, who: &Identity, spec: &Value) -> Value {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let path = &spec["nonResourceAttributes"];
    if path.is_object() {
        let (verb, path) = (text(&path["verb"]), text(&path["path"]));
        let allowed = rbac::allow_path(store, who, &verb, &path).is_ok();
        return json!({ "allowed": allowed });
    }
    let wanted = &spec["resourceAttributes"];
    let verb = text(&wanted["verb"]);
    let route = Route {
        verb: known_verb(&verb),
        group: text(&wanted["group"]),
        version: text(&wanted["version"]),
        namespace: text(&wanted["namespace"]),
        resource: text(&wanted["resource"]),
        name: text(&wanted["name"]),
        subresource: text(&wanted["subresource"]),
    };
    json!({ "allowed": rbac::permitted(store, who, &route) })
}

/// Routes hold verbs that are known; any other one is granted by `*` alone.
fn known_verb(verb: &str) -> &'static str {
    const VERBS: [&str; 9] = [
        "get",
        "list",
        "watch",
        "create",
        "update",
        "patch",
        "delete",
        "deletecollection",
        "*",
    ];
    VERBS.into_iter().find(|known| *known == verb).unwrap_or("")
}
