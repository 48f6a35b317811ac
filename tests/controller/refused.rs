//! Bad input: told in a condition and an Event, and nothing is made.

use baton::cluster::BatonCluster;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, Service};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use serde_json::{Value, json};

use crate::world::World;

/// What is wrong, by the reason in the condition.
struct Case {
    reason: &'static str,
    spec: fn(&mut Value),
    says: &'static str,
}

const CASES: &[Case] = &[
    Case {
        reason: "HandoverTooLong",
        spec: |spec| {
            spec["volume"] = json!({"claimName": "third"});
            spec["timings"] = json!({"checkpoint": "60s"});
            spec["terminationGracePeriodSeconds"] = json!(60);
        },
        says: "needs 72: raise it",
    },
    Case {
        reason: "ClaimMissing",
        spec: |spec| spec["volume"] = json!({"claimName": "absent"}),
        says: "make it, with accessModes ReadWriteMany and volumeMode Block",
    },
    Case {
        reason: "ClaimNotShared",
        spec: |spec| spec["volume"] = json!({"claimName": "rwo"}),
        says: "make one with ReadWriteMany",
    },
    Case {
        reason: "ClaimNotBlock",
        spec: |spec| spec["volume"] = json!({"claimName": "filesystem"}),
        says: "make one with volumeMode Block",
    },
    Case {
        reason: "SecretMissing",
        spec: |spec| {
            spec["volume"] = json!({"claimName": "second"});
            spec["api"] = json!({"tlsSecret": "absent"});
        },
        says: "there is no Secret absent",
    },
    Case {
        reason: "SecretIncomplete",
        spec: |spec| {
            let secret = json!({"name": "password", "key": "other"});
            spec["pooler"] = json!({"address": "p:6432", "user": "u", "passwordSecret": secret});
        },
        says: "has no key other",
    },
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_work_is_told_and_nothing_is_made() {
    let world = World::new().await;
    world.claim("rwo", "ReadWriteOnce", "Block").await;
    world.claim("second", "ReadWriteMany", "Block").await;
    world.claim("third", "ReadWriteMany", "Block").await;
    world
        .claim("filesystem", "ReadWriteMany", "Filesystem")
        .await;
    let password = json!({"metadata": {"name": "password"}, "stringData": {"word": "x"}});
    world
        .make::<Secret>(&serde_json::from_value(password).unwrap())
        .await;
    let _controller = world.controller("one");
    for Case { reason, spec, says } in CASES {
        let name = reason.to_lowercase();
        world.make(&world.cluster(&name, spec)).await;
        world
            .until_condition(&name, "Accepted", "False", reason)
            .await;
        let cluster = world.api::<BatonCluster>().get(&name).await.unwrap();
        let status = cluster.status.unwrap();
        let text = &status.condition("Accepted").unwrap().message;
        assert!(text.contains(says), "{reason}: {text}");
        assert_eq!(cluster.metadata.finalizers, None, "{reason}");
        let expected = format!("{reason}!");
        assert_eq!(world.told(&name, &[&expected]).await, [expected]);
    }
    // One controller has looked at all of them, and made nothing for any.
    assert_eq!(count::<Pod>(&world).await, 0);
    assert_eq!(count::<Service>(&world).await, 0);
    assert_eq!(count::<ConfigMap>(&world).await, 0);
    let secrets = world
        .api::<Secret>()
        .get_opt("claimmissing-peers")
        .await
        .unwrap();
    assert!(secrets.is_none());
    world.end().await;
}

async fn count<K>(world: &World) -> usize
where
    K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned,
{
    let ours = ListParams::default().labels("app.kubernetes.io/managed-by=baton-controller");
    world.api::<K>().list(&ours).await.unwrap().items.len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_is_made_when_what_was_wrong_is_put_right() {
    let world = World::new().await;
    let _controller = world.controller("one");
    let cluster = world.cluster("main", |spec| spec["volume"] = json!({"claimName": "late"}));
    world.make(&cluster).await;
    world
        .until_condition("main", "Accepted", "False", "ClaimMissing")
        .await;
    world.claim("late", "ReadWriteMany", "Block").await;
    world
        .until_condition("main", "Accepted", "True", "Accepted")
        .await;
    world.pod("main-a", None).await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_clusters_never_share_a_volume() {
    let world = World::new().await;
    let _controller = world.controller("one");
    world.make(&world.cluster("first", |_| ())).await;
    world.pod("first-a", None).await;
    world.make(&world.cluster("second", |_| ())).await;
    world
        .until_condition("second", "Accepted", "False", "ClaimInUse")
        .await;
    assert!(
        world
            .api::<Pod>()
            .get_opt("second-a")
            .await
            .unwrap()
            .is_none()
    );
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn somebody_else_s_object_is_left_alone() {
    let world = World::new().await;
    let service = json!({"metadata": {"name": "main-rw"}, "spec": {"ports": [{"port": 80}]}});
    world
        .make::<Service>(&serde_json::from_value(service).unwrap())
        .await;
    let _controller = world.controller("one");
    world.make(&world.cluster("main", |_| ())).await;
    world
        .until_condition("main", "Accepted", "False", "NameTaken")
        .await;
    let service = world.api::<Service>().get("main-rw").await.unwrap();
    assert_eq!(service.spec.unwrap().ports.unwrap()[0].port, 80);
    world.end().await;
}

/// What a member is refused, or refuses, stands at the cluster too, for as long as it lasts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_s_call_for_an_operator_is_told_and_taken_back() {
    let world = World::new().await;
    let _controller = world.controller("one");
    world.make(&world.cluster("main", |_| ())).await;
    world.healthy("main").await;
    world
        .until_condition("main", "MembersAble", "True", "NoneNeedsOperator")
        .await;
    let text = "the volume holds something that is not ours: attach the right one";
    world.call("main-b", Some(text)).await;
    world
        .until_condition("main", "MembersAble", "False", "OperatorNeeded")
        .await;
    let cluster = world.api::<BatonCluster>().get("main").await.unwrap();
    let status = cluster.status.unwrap();
    let told = status.condition("MembersAble").unwrap();
    assert_eq!(told.message, format!("member b: {text}"));
    // The others go on: what the members serve does not hang on it.
    assert_eq!(status.condition("Ready").unwrap().status, "True");
    assert_eq!(status.condition("Accepted").unwrap().status, "True");
    world.call("main-b", None).await;
    world
        .until_condition("main", "MembersAble", "True", "NoneNeedsOperator")
        .await;
    let order = ["OperatorNeeded!", "MembersAble"];
    let events = world.told("main", &order).await;
    let about: Vec<_> = events
        .iter()
        .filter(|reason| order.contains(&reason.as_str()))
        .collect();
    assert_eq!(about, order, "{events:?}");
    world.end().await;
}

/// The API server refuses pods: the cluster says so, and what to do, and its status goes on to follow what is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_is_refused_is_told_while_the_status_follows_the_owner() {
    let world = World::new().await;
    let _controller = world.controller("one");
    world.make(&world.cluster("main", |_| ())).await;
    world.healthy("main").await;
    world
        .until_condition("main", "Reconciled", "True", "Reconciled")
        .await;
    let first = world.pod("main-a", None).await.uid();
    world.pod_security("baseline").await;
    let pods = world.api::<Pod>();
    pods.delete("main-a", &DeleteParams::default())
        .await
        .unwrap();
    let told = world
        .until_condition("main", "Reconciled", "False", "Refused")
        .await;
    assert!(
        told.starts_with("make pod main-a: pods \"main-a\" is forbidden: violates PodSecurity"),
        "{told}"
    );
    assert!(told.contains("enforce=privileged"), "{told}");

    world.own("main", 2, 2, false).await;
    world.play("main-b", "active", true).await;
    world
        .until::<BatonCluster>("main", "active b", |cluster| {
            let status = cluster.status.clone().unwrap_or_default();
            (status.active.as_deref(), status.epoch) == (Some("b"), Some(2))
        })
        .await;
    world
        .until_condition("main", "Ready", "True", "Serving")
        .await;
    world
        .until_condition("main", "Reconciled", "False", "Refused")
        .await;

    world.pod_security("privileged").await;
    world.pod("main-a", first.as_deref()).await;
    world
        .until_condition("main", "Reconciled", "True", "Reconciled")
        .await;
    let order = ["Refused!", "Reconciled"];
    let events = world.told("main", &order).await;
    let about: Vec<_> = events
        .iter()
        .filter(|reason| order.contains(&reason.as_str()))
        .collect();
    assert_eq!(about, order, "{events:?}");
    world.end().await;
}

/// An Event that cannot be written stops nothing: here the controller may write none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_is_refused_does_not_keep_the_pods_from_being_made() {
    let world = World::new().await;
    let Some(server) = &world.server else {
        // Roles of a real server are not this test's to write.
        return;
    };
    let rules = json!([
        {"apiGroups": ["*"], "resources": ["*"], "verbs": ["get", "list", "watch"]},
        {"apiGroups": ["*"], "verbs": ["*"], "resources": ["batonclusters", "batonclusters/status", "pods",
            "configmaps", "secrets", "serviceaccounts", "roles", "rolebindings", "leases", "poddisruptionbudgets"]},
    ]);
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
        "metadata": {"name": "some"}, "rules": rules});
    let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
        "metadata": {"name": "some"}, "subjects": [{"kind": "User", "name": "ann", "apiGroup": "rbac.authorization.k8s.io"}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "some"}});
    let how = PostParams::default();
    let role: ClusterRole = serde_json::from_value(role).unwrap();
    Api::all(world.client.clone())
        .create(&how, &role)
        .await
        .unwrap();
    let binding: ClusterRoleBinding = serde_json::from_value(binding).unwrap();
    Api::all(world.client.clone())
        .create(&how, &binding)
        .await
        .unwrap();
    let client = server.client("ann").await;
    let _controller = world.controller_by(client, "one", &world.namespace);
    world.make(&world.cluster("main", |_| ())).await;
    world.healthy("main").await;
    let told = world
        .until_condition("main", "Reconciled", "False", "Refused")
        .await;
    assert!(told.contains("apply Service main-rw: "), "{told}");
    assert!(told.contains("controller-rbac.yaml"), "{told}");
    let events = world.events("main").await;
    assert!(events.is_empty(), "{events:?}");
    world.end().await;
}
