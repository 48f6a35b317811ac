//! The subresources and virtual resources that are more than a part of an object: binding,
//! eviction, tokens, reviews.

use std::sync::Arc;

use serde_json::{Value, json};

use super::body;
use super::delete::Wish;
use crate::api::{Api, Call, Reply};
use crate::auth;
use crate::clock;
use crate::meta;
use crate::refusal::{Cause, Refusal, conflict, invalid, not_found};
use crate::store::Key;
use crate::store::select::Selector;

const BUDGETS: &str = "poddisruptionbudgets.policy";

impl Api {
    /// Answers the calls that no ordinary verb answers.
    pub(super) fn carry_out_special(&mut self, call: &Call) -> Result<Option<Reply>, Refusal> {
        let answer = match (&*call.kind.id, call.subresource.as_str(), call.verb) {
            ("pods", "binding", "create") => self.bind(call),
            ("pods", "eviction", "create") => self.evict(call),
            ("serviceaccounts", "token", "create") => self.token(call),
            _ => return Ok(None),
        };
        answer.map(Some)
    }

    fn bind(&mut self, call: &Call) -> Result<Reply, Refusal> {
        let binding = body(call)?;
        let node = binding["target"]["name"].as_str().unwrap_or_default();
        if node.is_empty() {
            let cause = Cause::required("target.name", "");
            return Err(invalid(&call.kind, &call.name, vec![cause]));
        }
        let key = call.key(&call.name);
        let pod = self
            .store
            .get(&key)
            .ok_or_else(|| not_found(&call.kind, &call.name))?;
        let bound = pod["spec"]["nodeName"].as_str().unwrap_or_default();
        if !bound.is_empty() || meta::deleting(pod) {
            let why = if bound.is_empty() {
                format!(
                    "pod {} is being deleted, cannot be assigned to a host",
                    call.name
                )
            } else {
                format!("pod {} is already assigned to node \"{bound}\"", call.name)
            };
            return Err(conflict(&call.kind, &call.name, why));
        }
        let old = Arc::clone(pod);
        let mut pod = Value::clone(&old);
        pod["spec"]["nodeName"] = json!(node);
        let mut conditions = pod["status"]["conditions"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        conditions.retain(|condition| condition["type"] != "PodScheduled");
        conditions.push(json!({
            "type": "PodScheduled", "status": "True", "lastProbeTime": null,
            "lastTransitionTime": clock::seconds(call.now),
        }));
        pod["status"]["conditions"] = Value::Array(conditions);
        let stored = self.store.put(key, pod);
        self.written(call, Some(&old), Some(&stored));
        Ok(Reply::new(201, success(201)))
    }

    fn evict(&mut self, call: &Call) -> Result<Reply, Refusal> {
        let eviction = body(call)?;
        let key = call.key(&call.name);
        let pod = self
            .store
            .get(&key)
            .ok_or_else(|| not_found(&call.kind, &call.name))?;
        let pod = Arc::clone(pod);
        self.check_budgets(&pod)?;
        let wish = Wish::from_options(&eviction["deleteOptions"], call)?;
        self.delete_one(call, &call.name, &wish)?;
        Ok(Reply::new(201, success(201)))
    }

    /// A pod may go if every budget over it has a healthy pod to spare. Budgets are reckoned
    /// anew from the pods; the real server believes the budget's status instead, which a
    /// controller keeps.
    fn check_budgets(&self, pod: &Value) -> Result<(), Refusal> {
        let over = matches!(
            pod["status"]["phase"].as_str(),
            Some("Succeeded" | "Failed" | "Pending")
        );
        if over || meta::deleting(pod) {
            return Ok(());
        }
        let namespace = meta::namespace(pod);
        let budgets: Vec<&Arc<Value>> = self
            .store
            .list(&BUDGETS.into(), Some(namespace))
            .map(|(_, budget)| budget)
            .filter(|budget| covers(budget, pod))
            .collect();
        let budget = match budgets.as_slice() {
            [] => return Ok(()),
            [one] => one,
            _ => {
                return Err(Refusal::Internal(
                    "This pod has more than one PodDisruptionBudget, which the eviction \
                     subresource does not support."
                        .to_owned(),
                ));
            }
        };
        let pods: Vec<&Arc<Value>> = self
            .store
            .list(&"pods".into(), Some(namespace))
            .map(|(_, pod)| pod)
            .filter(|pod| covers(budget, pod))
            .collect();
        let healthy = pods.iter().filter(|pod| is_healthy(pod)).count() as i64;
        let needed = needed(budget, pods.len() as i64);
        // A pod that is not healthy takes nothing from a budget that is kept without it.
        if healthy > needed || (!is_healthy(pod) && healthy >= needed) {
            return Ok(());
        }
        let name = meta::name(budget);
        Err(Refusal::TooManyRequests {
            message: "Cannot evict pod as it would violate the pod's disruption budget.".to_owned(),
            retry_after: 10,
            causes: vec![Cause {
                reason: "DisruptionBudget",
                field: String::new(),
                message: format!(
                    "The disruption budget {name} needs {needed} healthy pods and has {healthy} \
                     currently"
                ),
            }],
        })
    }

    fn token(&mut self, call: &Call) -> Result<Reply, Refusal> {
        let mut request = body(call)?;
        let account = self.store.get(&call.key(&call.name)).cloned();
        let account = account.ok_or_else(|| not_found(&call.kind, &call.name))?;
        let Some(until) = auth::token_end(&request, call.now) else {
            let value = &request["spec"]["expirationSeconds"];
            let why = "may not specify a duration less than 10 minutes";
            let cause = Cause::invalid("spec.expirationSeconds", value, why);
            return Err(invalid(&call.kind, &call.name, vec![cause]));
        };
        let pod = self.bound_pod(call, &request["spec"]["boundObjectRef"])?;
        let token = self.secret();
        self.tokens
            .issue(token.clone(), &account, pod.as_deref(), until);
        request["apiVersion"] = json!("authentication.k8s.io/v1");
        request["kind"] = json!("TokenRequest");
        request["status"] = json!({ "token": token, "expirationTimestamp": clock::seconds(until) });
        Ok(Reply::new(201, request))
    }

    fn bound_pod(&self, call: &Call, reference: &Value) -> Result<Option<Arc<Value>>, Refusal> {
        if reference["kind"] != "Pod" {
            return Ok(None);
        }
        let name = reference["name"].as_str().unwrap_or_default();
        let key = Key {
            resource: "pods".into(),
            namespace: call.namespace.clone(),
            name: name.to_owned(),
        };
        let pods = self.kinds.find("", "pods").ok_or(Refusal::NoSuchResource)?;
        let pod = self.store.get(&key).ok_or_else(|| not_found(&pods, name))?;
        let uid = reference["uid"].as_str().unwrap_or_default();
        if !uid.is_empty() && uid != meta::text(pod, "uid") {
            let why = format!(
                "the UID in the bound object reference ({uid}) does not match the UID in record. \
                 The object might have been deleted and then recreated"
            );
            return Err(conflict(&pods, name, why));
        }
        if pod["spec"]["serviceAccountName"] != call.name {
            let why = "pod is not bound to this service account";
            return Err(Refusal::BadRequest(why.to_owned()));
        }
        Ok(Some(Arc::clone(pod)))
    }
}

fn covers(budget: &Value, pod: &Value) -> bool {
    let selector = &budget["spec"]["selector"];
    selector.is_object() && Selector::of_label_selector(selector).matches(pod)
}

fn is_healthy(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    let ready = |one: &Value| one["type"] == "Ready" && one["status"] == "True";
    !meta::deleting(pod) && conditions.into_iter().any(ready)
}

/// Healthy pods that a budget over so many pods wants.
fn needed(budget: &Value, pods: i64) -> i64 {
    let scaled = |value: &Value| match value {
        Value::String(text) => {
            let percent: i64 = text.trim_end_matches('%').parse().unwrap_or(100);
            (pods * percent + 99) / 100
        }
        value => value.as_i64().unwrap_or(0),
    };
    let spec = &budget["spec"];
    if !spec["minAvailable"].is_null() {
        scaled(&spec["minAvailable"])
    } else if !spec["maxUnavailable"].is_null() {
        pods - scaled(&spec["maxUnavailable"])
    } else {
        // Neither given means one.
        1
    }
}

fn success(code: u16) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": code,
    })
}
