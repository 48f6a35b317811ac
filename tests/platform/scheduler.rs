//! A scheduler for these pods: to the node or into the zone that is asked for, and no two members of a
//! cluster to one node.

use std::collections::BTreeMap;

use futures_util::StreamExt;
use k8s_openapi::api::core::v1::{Binding, Pod};
use kube::api::{ListParams, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use serde_json::json;

use super::places;

/// The label of the node's own name.
const HOSTNAME: &str = "kubernetes.io/hostname";

/// Runs until it is dropped.
pub async fn run(client: Client, namespace: String) {
    let pods: Api<Pod> = Api::namespaced(client.clone(), &namespace);
    let unbound = watcher::Config::default().fields("spec.nodeName=");
    let mut changes = watcher(pods.clone(), unbound)
        .default_backoff()
        .applied_objects()
        .boxed();
    while let Some(change) = changes.next().await {
        let Ok(pod) = change else { continue };
        if let Err(error) = bind(&pods, &pod).await {
            eprintln!("scheduler: {}: {error:#}", pod.name_any());
        }
    }
}

async fn bind(pods: &Api<Pod>, pod: &Pod) -> anyhow::Result<()> {
    let name = pod.name_any();
    let cluster = pod
        .labels()
        .get("baton.dev/cluster")
        .cloned()
        .unwrap_or_default();
    let others = ListParams::default().labels(&format!("baton.dev/cluster={cluster}"));
    let taken: Vec<String> = pods
        .list(&others)
        .await?
        .into_iter()
        .filter(|other| other.name_any() != name)
        .filter_map(|other| other.spec?.node_name)
        .collect();
    let selector: BTreeMap<String, String> = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.node_selector.clone())
        .unwrap_or_default();
    let wanted = selector.get(HOSTNAME);
    // Nodes of a zone are for those alone that ask for it.
    let zone = selector.get(places::ZONE).map(String::as_str);
    let mut nodes = places::nodes()
        .filter(|(node, _)| wanted.is_none_or(|wanted| wanted == node))
        .filter(|(_, of)| *of == zone);
    let node = nodes.find(|(node, _)| !taken.iter().any(|taken| taken == node));
    let Some((node, _)) = node else { return Ok(()) };
    let binding: Binding = serde_json::from_value(json!({
        "metadata": { "name": name },
        "target": { "apiVersion": "v1", "kind": "Node", "name": node },
    }))?;
    let _bound: serde_json::Value = pods
        .create_subresource("binding", &name, &PostParams::default(), &binding)
        .await?;
    Ok(())
}
