//! The controller with exactly the rights that deploy/ gives it: each is used, and no other is needed.

use std::collections::BTreeSet;

use apiserver::RequestLog;
use baton::cluster::BatonCluster;
use baton::controller::{LEASE, objects};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule, Role};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, DynamicObject, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::runtime::wait::await_condition;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::world::{PATIENCE, World};

const CONTROLLER: &str = "system:serviceaccount:baton-system:baton-controller";

/// A right: group, resource with its subresource, verb.
type Right = (String, String, String);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_right_is_used_and_no_other_is_needed() {
    let world = World::new().await;
    let Some(server) = &world.server else {
        // A real server has no log of requests, and its roles are not this test's to write.
        return;
    };
    install(&world).await;
    let client = server.client(CONTROLLER).await;
    // The Lease is made anew and renewed by the same rights.
    let _controller = world.controller_by(client, "one", "baton-system");
    let cluster = world.cluster("main", |spec| {
        spec["volume"] = json!({"template": {"storageClassName": "fast", "size": "5Gi"}});
    });
    world.make(&cluster).await;
    world.healthy("main").await;
    world.change("main", json!({"image": "baton:2"})).await;
    let b = world.pod("main-b", None).await;
    world.pod("main-b", b.uid().as_deref()).await;
    world
        .api::<BatonCluster>()
        .delete("main", &DeleteParams::default())
        .await
        .unwrap();
    world.until_gone::<BatonCluster>("main").await;

    renewed(&world).await;

    let requests = server.requests();
    let own: Vec<_> = requests
        .iter()
        .filter(|request| request.user == CONTROLLER)
        .collect();
    let refused: Vec<_> = own.iter().filter(|request| request.code == 403).collect();
    assert!(refused.is_empty(), "{refused:#?}");
    let used: BTreeSet<Right> = own.iter().flat_map(|request| rights_of(request)).collect();
    let granted = granted("controller-rbac.yaml");
    let unused: Vec<_> = granted.difference(&used).collect();
    assert!(unused.is_empty(), "granted and not used: {unused:#?}");
    let borrowed: Vec<_> = used.difference(&granted).collect();
    assert!(
        borrowed.is_empty(),
        "used by rights that are only to be handed on: {borrowed:#?}"
    );
}

/// Waits until the controller has renewed its Lease.
async fn renewed(world: &World) {
    let leases: Api<Lease> = Api::namespaced(world.client.clone(), "baton-system");
    let renewed = |lease: Option<&Lease>| {
        let spec = lease.and_then(|lease| lease.spec.as_ref());
        spec.is_some_and(|spec| spec.renew_time != spec.acquire_time)
    };
    let renewed = await_condition(leases, LEASE, renewed);
    timeout(PATIENCE, renewed).await.unwrap().unwrap();
}

/// The rights that a request takes. What server-side apply makes takes two.
fn rights_of(request: &RequestLog) -> Vec<Right> {
    if request.resource.is_empty() {
        return Vec::new();
    }
    let resource = match request.subresource.as_str() {
        "" => request.resource.clone(),
        sub => format!("{}/{sub}", request.resource),
    };
    let right = |verb: &str| (request.group.clone(), resource.clone(), verb.to_owned());
    let mut rights = vec![right(&request.verb)];
    if request.verb == "patch" && request.code == 201 {
        rights.push(right("create"));
    }
    rights
}

/// The rights in one file of deploy/base.
fn granted(file: &str) -> BTreeSet<Right> {
    let mut all = BTreeSet::new();
    for object in manifests(file) {
        let rules: Vec<PolicyRule> = match object["kind"].as_str() {
            Some("ClusterRole" | "Role") => {
                serde_json::from_value(object["rules"].clone()).unwrap()
            }
            _ => continue,
        };
        all.extend(rules.iter().flat_map(rights_in));
    }
    all
}

fn rights_in(rule: &PolicyRule) -> Vec<Right> {
    let mut all = Vec::new();
    for group in rule.api_groups.iter().flatten() {
        for resource in rule.resources.iter().flatten() {
            for verb in &rule.verbs {
                all.push((group.clone(), resource.clone(), verb.clone()));
            }
        }
    }
    all
}

fn manifests(file: &str) -> Vec<Value> {
    let path = format!("{}/deploy/base/{file}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(path).unwrap();
    serde_saphyr::from_multiple(&text).unwrap()
}

async fn install(world: &World) {
    let namespaces: Api<Namespace> = Api::all(world.client.clone());
    let namespace = serde_json::from_value(manifests("namespace.yaml").remove(0)).unwrap();
    namespaces
        .create(&PostParams::default(), &namespace)
        .await
        .unwrap();
    let files = ["controller-rbac.yaml", "controller-grants.yaml"];
    for object in files.into_iter().flat_map(manifests) {
        let object: DynamicObject = serde_json::from_value(object).unwrap();
        let types = object.types.clone().unwrap();
        let kind = GroupVersionKind::try_from(&types).unwrap();
        let resource = ApiResource::from_gvk(&kind);
        let api: Api<DynamicObject> = match object.namespace() {
            Some(namespace) => Api::namespaced_with(world.client.clone(), &namespace, &resource),
            None => Api::all_with(world.client.clone(), &resource),
        };
        api.create(&PostParams::default(), &object).await.unwrap();
    }
}

/// Kubernetes lets nobody grant what they do not hold: what is held for that is just what members get.
#[test]
fn what_is_held_to_be_handed_on_is_what_members_get() {
    let mut grants = manifests("controller-grants.yaml");
    let grants: ClusterRole = serde_json::from_value(grants.remove(0)).unwrap();
    let held: BTreeSet<_> = grants.rules.iter().flatten().flat_map(rights_in).collect();
    let cluster: BatonCluster = serde_json::from_value(json!({
        "apiVersion": "baton.dev/v1alpha1", "kind": "BatonCluster",
        "metadata": {"name": "main", "namespace": "db"},
        "spec": {"image": "i", "volume": {"claimName": "d"}, "members": [{"name": "a"}, {"name": "b"}]},
    }))
    .unwrap();
    let objects = objects::applied(&cluster).unwrap();
    let role = objects
        .into_iter()
        .find(|object| object["kind"] == "Role")
        .unwrap();
    let role: Role = serde_json::from_value(role).unwrap();
    let rules = role.rules.unwrap();
    let given: BTreeSet<_> = rules.iter().flat_map(rights_in).collect();
    assert_eq!(held, given);
    // Whatever can be limited to the cluster's own objects by name is.
    for rule in rules.iter().filter(|rule| rule.resource_names.is_none()) {
        let limited = ["create", "list"];
        assert!(
            rule.verbs
                .iter()
                .all(|verb| limited.contains(&verb.as_str())),
            "{rule:?}"
        );
    }
}
