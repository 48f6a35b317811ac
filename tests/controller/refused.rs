//! Bad input: told in a condition and an Event, and nothing is made.

use baton::cluster::BatonCluster;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, Service};
use kube::api::ListParams;
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
        let told = world.events(&name).await;
        assert_eq!(told, [format!("{reason}!")]);
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
    let events = world.events("main").await;
    let about: Vec<_> = events
        .iter()
        .filter(|reason| ["OperatorNeeded!", "MembersAble"].contains(&reason.as_str()))
        .collect();
    assert_eq!(about, ["OperatorNeeded!", "MembersAble"], "{events:?}");
    world.end().await;
}
