//! Pods: grace, binding, eviction; what the server fills in.

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, DynamicObject, EvictParams, ListParams, Patch, PatchParams};
use serde_json::{Value, json};

use crate::common::{api, create, object, raw, refused, resource, with};

fn pod(name: &str) -> DynamicObject {
    object(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "labels": { "app": "main" } },
        "spec": { "containers": [{ "name": "main", "image": "a:1" }] },
    }))
}

async fn bind(pods: &Api<DynamicObject>, name: &str, node: &str) -> Result<Value, kube::Error> {
    let path = format!("/api/v1/namespaces/default/pods/{name}/binding");
    let binding = json!({
        "apiVersion": "v1", "kind": "Binding", "metadata": { "name": name },
        "target": { "apiVersion": "v1", "kind": "Node", "name": node },
    });
    raw(&pods.clone().into_client(), "POST", &path, binding).await
}

async fn ready(pods: &Api<DynamicObject>, name: &str, status: &str) {
    let patch = json!({ "status": {
        "phase": "Running", "conditions": [{ "type": "Ready", "status": status }],
    } });
    pods.patch_status(name, &PatchParams::default(), &Patch::Merge(&patch))
        .await
        .unwrap();
}

async fn evict(pods: &Api<DynamicObject>, name: &str) -> Result<(), kube::Error> {
    let pods: Api<Pod> = Api::namespaced(pods.clone().into_client(), "default");
    pods.evict(name, &EvictParams::default()).await.map(drop)
}

#[tokio::test]
async fn a_new_pod_waits_for_a_node() {
    let (_server, pods) = with("", "Pod", "pods").await;
    let made = create(&pods, &pod("p")).await;
    assert_eq!(made.data["status"]["phase"], "Pending");
    assert_eq!(made.data["spec"]["terminationGracePeriodSeconds"], 30);
    bind(&pods, "p", "n1").await.unwrap();
    assert_eq!(pods.get("p").await.unwrap().data["spec"]["nodeName"], "n1");
    assert_eq!(refused(bind(&pods, "p", "n2").await).code, 409);
    let on = ListParams::default().fields("spec.nodeName=n1,status.phase=Pending");
    assert_eq!(pods.list(&on).await.unwrap().items.len(), 1);
    let off = ListParams::default().fields("spec.nodeName!=n1");
    assert_eq!(pods.list(&off).await.unwrap().items.len(), 0);
}

#[tokio::test]
async fn a_pods_spec_is_fixed_but_for_its_image() {
    let (_server, pods) = with("", "Pod", "pods").await;
    create(&pods, &pod("p")).await;
    let params = PatchParams::default();
    let image = json!({ "spec": { "containers": [{ "name": "main", "image": "a:2" }] } });
    pods.patch("p", &params, &Patch::Strategic(&image))
        .await
        .unwrap();
    let host = Patch::Merge(json!({ "spec": { "hostNetwork": true } }));
    let status = refused(pods.patch("p", &params, &host).await);
    assert_eq!(status.code, 422);
    assert!(
        status.message.contains("pod updates may not change fields"),
        "{}",
        status.message
    );
}

#[tokio::test]
async fn a_running_pod_ends_when_its_kubelet_says_so() {
    let (_server, pods) = with("", "Pod", "pods").await;
    create(&pods, &pod("p")).await;
    bind(&pods, "p", "n1").await.unwrap();
    let params = DeleteParams::default().grace_period(20);
    let marked = pods.delete("p", &params).await.unwrap().left().unwrap();
    assert_eq!(marked.metadata.deletion_grace_period_seconds, Some(20));
    let until = marked.metadata.deletion_timestamp.clone().unwrap();
    // A second deletion may hurry, never delay.
    let later = DeleteParams::default().grace_period(60);
    let same = pods.delete("p", &later).await.unwrap().left().unwrap();
    assert_eq!(same.metadata.deletion_timestamp, Some(until));
    let sooner = DeleteParams::default().grace_period(5);
    let hurried = pods.delete("p", &sooner).await.unwrap().left().unwrap();
    assert_eq!(hurried.metadata.deletion_grace_period_seconds, Some(5));
    // As the kubelet does when the containers are gone.
    pods.delete("p", &DeleteParams::default().grace_period(0))
        .await
        .unwrap();
    assert_eq!(refused(pods.get("p").await).code, 404);
}

#[tokio::test]
async fn a_pod_that_runs_nowhere_goes_at_once() {
    let (_server, pods) = with("", "Pod", "pods").await;
    create(&pods, &pod("p")).await;
    pods.delete("p", &DeleteParams::default()).await.unwrap();
    assert_eq!(refused(pods.get("p").await).code, 404);
}

#[tokio::test]
async fn an_eviction_keeps_the_budget() {
    let (_server, pods) = with("", "Pod", "pods").await;
    let client = pods.clone().into_client();
    let budgets = api(
        &client,
        "policy",
        "PodDisruptionBudget",
        "poddisruptionbudgets",
    );
    let budget = object(json!({
        "apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": { "name": "main" },
        "spec": { "minAvailable": 1, "selector": { "matchLabels": { "app": "main" } } },
    }));
    create(&budgets, &budget).await;
    for name in ["a", "b"] {
        create(&pods, &pod(name)).await;
        bind(&pods, name, "n").await.unwrap();
        ready(&pods, name, "True").await;
    }
    evict(&pods, "a").await.unwrap();
    assert!(
        pods.get("a")
            .await
            .unwrap()
            .metadata
            .deletion_timestamp
            .is_some()
    );
    let status = refused(evict(&pods, "b").await);
    assert_eq!(
        (status.code, status.reason.as_str()),
        (429, "TooManyRequests")
    );
    assert_eq!(status.details.unwrap().causes[0].reason, "DisruptionBudget");
    assert!(
        pods.get("b")
            .await
            .unwrap()
            .metadata
            .deletion_timestamp
            .is_none()
    );
    // The other one is back: this one may go.
    pods.delete("a", &DeleteParams::default().grace_period(0))
        .await
        .unwrap();
    create(&pods, &pod("a")).await;
    bind(&pods, "a", "n").await.unwrap();
    ready(&pods, "a", "True").await;
    evict(&pods, "b").await.unwrap();
    assert_eq!(refused(evict(&pods, "none").await).code, 404);
}

#[tokio::test]
async fn budgets_by_percent_and_by_unavailable() {
    let (_server, pods) = with("", "Pod", "pods").await;
    let budgets = api(
        &pods.clone().into_client(),
        "policy",
        "PodDisruptionBudget",
        "poddisruptionbudgets",
    );
    for name in ["a", "b"] {
        create(&pods, &pod(name)).await;
        bind(&pods, name, "n").await.unwrap();
        ready(&pods, name, "True").await;
    }
    for (spec, code) in [
        (json!({ "minAvailable": "51%" }), 429),
        (json!({ "maxUnavailable": 0 }), 429),
        (json!({ "maxUnavailable": 1 }), 201),
    ] {
        let mut budget = json!({
            "apiVersion": "policy/v1", "kind": "PodDisruptionBudget",
            "metadata": { "name": "main" }, "spec": spec,
        });
        budget["spec"]["selector"] = json!({ "matchLabels": { "app": "main" } });
        create(&budgets, &object(budget)).await;
        match evict(&pods, "a").await {
            Ok(()) => assert_eq!(code, 201),
            refusal => assert_eq!(refused(refusal).code, code),
        }
        budgets
            .delete("main", &DeleteParams::default())
            .await
            .unwrap();
    }
}

/// A kubelet registers its node with a status; a pod's status is the server's at first.
#[tokio::test]
async fn a_node_is_made_with_its_status_and_a_pod_without() {
    let (_server, pods) = with("", "Pod", "pods").await;
    let nodes = Api::all_with(pods.clone().into_client(), &resource("", "Node", "nodes"));
    let node = json!({
        "apiVersion": "v1", "kind": "Node", "metadata": { "name": "n" },
        "status": { "conditions": [{ "type": "Ready", "status": "True" }] },
    });
    let made = create(&nodes, &object(node)).await;
    assert_eq!(made.data["status"]["conditions"][0]["type"], "Ready");
    let mut running = pod("p");
    running.data["status"] = json!({ "phase": "Running" });
    assert_eq!(
        create(&pods, &running).await.data["status"]["phase"],
        "Pending"
    );
}
