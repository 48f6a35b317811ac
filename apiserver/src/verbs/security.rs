//! Pod Security admission, as far as volumes of the node go: the levels `baseline` and `restricted` take none.
//! (`policy/check_hostPathVolumes.go` of k8s.io/pod-security-admission.)

use serde_json::Value;

use crate::api::{Api, Call};
use crate::meta;
use crate::refusal::{Refusal, Subject};
use crate::store::Key;

/// The label of a namespace with the level that it enforces.
const ENFORCE: &str = "pod-security.kubernetes.io/enforce";

impl Api {
    /// Refuses a pod with more than its namespace allows. No label means that everything is.
    pub(super) fn check_pod_security(&self, call: &Call, object: &Value) -> Result<(), Refusal> {
        if !call.kind.is("pods") {
            return Ok(());
        }
        let key = Key {
            resource: "namespaces".into(),
            namespace: String::new(),
            name: call.namespace.clone(),
        };
        let namespace = self.store.get(&key);
        let level = namespace.and_then(|found| found["metadata"]["labels"][ENFORCE].as_str());
        let Some(level @ ("baseline" | "restricted")) = level else {
            return Ok(());
        };
        let volumes = object["spec"]["volumes"].as_array().into_iter().flatten();
        let volumes = volumes.filter(|volume| volume["hostPath"].is_object());
        let named = volumes.filter_map(|volume| volume["name"].as_str());
        let named: Vec<_> = named.map(|name| format!("\"{name}\"")).collect();
        if named.is_empty() {
            return Ok(());
        }
        let which = if named.len() > 1 { "volumes" } else { "volume" };
        Err(Refusal::Forbidden {
            subject: Subject::of(&call.kind, meta::name(object)),
            why: format!(
                "violates PodSecurity \"{level}:latest\": hostPath volumes ({which} {})",
                named.join(", ")
            ),
            causes: Vec::new(),
        })
    }
}
