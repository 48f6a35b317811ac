//! A cluster that is well: its objects, its status, its Events.

use baton::cluster::{BatonCluster, Phase, names};
use k8s_openapi::api::core::v1::{
    ConfigMap, PersistentVolumeClaim, Pod, Secret, Service, ServiceAccount,
};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::ResourceExt;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::json;

use crate::world::World;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_gets_its_objects_and_its_handovers_are_told() {
    let world = World::new().await;
    let _controller = world.controller("one");
    world.make(&world.cluster("main", |_| ())).await;
    world.healthy("main").await;

    for service in ["main-rw", "main-ro", "main-r", "main-members"] {
        world.until::<Service>(service, "made", |_| true).await;
    }
    world
        .until::<ServiceAccount>("main", "made", |_| true)
        .await;
    world.until::<Role>("main", "made", |_| true).await;
    world.until::<RoleBinding>("main", "made", |_| true).await;
    world
        .until::<PodDisruptionBudget>("main", "made", |_| true)
        .await;
    let config = world
        .until::<ConfigMap>("main-config", "made", |_| true)
        .await;
    let files: Vec<_> = config.data.unwrap().into_keys().collect();
    assert_eq!(files, ["a.toml", "b.toml"]);

    let status = world
        .api::<BatonCluster>()
        .get("main")
        .await
        .unwrap()
        .status
        .unwrap();
    assert_eq!(status.phase, Some(Phase::Healthy));
    assert_eq!(
        (status.active.as_deref(), status.standby.as_deref()),
        (Some("a"), Some("b"))
    );
    assert_eq!(status.epoch, Some(1));

    handover(&world).await;
    let handover = [
        "HandoverStarted",
        "TakingOver",
        "FenceProven",
        "ServiceRestored",
        "StandbyReady",
    ];
    world.told("main", &handover).await;
    world.end().await;
}

/// What Kubernetes sees when a hands over to b.
async fn handover(world: &World) {
    world.play("main-a", "handing-over", false).await;
    world
        .until::<BatonCluster>("main", "handing over", |cluster| {
            cluster.status.as_ref().and_then(|status| status.phase) == Some(Phase::HandingOver)
        })
        .await;
    world.own("main", 2, 2, true).await;
    world.play("main-b", "taking-over", true).await;
    world
        .until_condition("main", "FenceProven", "False", "FenceUnderWay")
        .await;
    world.play("main-b", "active", true).await;
    world.play("main-a", "standby", true).await;
    world
        .until::<BatonCluster>("main", "healthy with b", |cluster| {
            let status = cluster.status.clone().unwrap_or_default();
            status.phase == Some(Phase::Healthy) && status.active.as_deref() == Some("b")
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_pod_comes_back() {
    let world = World::new().await;
    let _controller = world.controller("one");
    world.make(&world.cluster("main", |_| ())).await;
    world.healthy("main").await;
    let first = world.pod("main-a", None).await.uid();
    let pods = world.api::<Pod>();
    pods.delete("main-a", &DeleteParams::default())
        .await
        .unwrap();
    let second = world.pod("main-a", first.as_deref()).await;
    assert_eq!(second.labels()[names::MEMBER_NUMBER], "1");
    assert!(
        !second.labels().contains_key(names::ROLE),
        "it has yet to say what it is"
    );
    world.end().await;
}

/// Fields that others own stay; ours are taken back; nobody's are fought over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_s_field_stays_and_ours_is_taken_back() {
    let world = World::new().await;
    let _controller = world.controller("one");
    world.make(&world.cluster("main", |_| ())).await;
    let made = world.until::<Service>("main-rw", "made", |_| true).await;
    assert!(made.spec.unwrap().selector.is_none());
    let services = world.api::<Service>();
    let user = PatchParams::apply("user").force();
    let wish = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "main-rw", "annotations": {"user": "note"}},
        "spec": {"sessionAffinity": "ClientIP", "ports": [{"name": "postgres", "port": 9999, "protocol": "TCP"}]},
    });
    services
        .patch("main-rw", &user, &Patch::Apply(wish))
        .await
        .unwrap();
    let service = world
        .until::<Service>("main-rw", "with our port alone", |service| {
            let spec = service.spec.clone().unwrap_or_default();
            let ports: Vec<_> = spec.ports.iter().flatten().map(|port| port.port).collect();
            ports.contains(&5432) && service.annotations().contains_key("user")
        })
        .await;
    assert_eq!(
        service.spec.unwrap().session_affinity.as_deref(),
        Some("ClientIP")
    );
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_is_made_from_the_template_and_the_secret_once() {
    let world = World::new().await;
    let _controller = world.controller("one");
    let cluster = world.cluster("main", |spec| {
        spec["volume"] = json!({"template": {"storageClassName": "fast", "size": "5Gi"}});
    });
    world.make(&cluster).await;
    world.pod("main-a", None).await;
    let claim = world
        .until::<PersistentVolumeClaim>("main-volume", "made", |_| true)
        .await;
    let spec = claim.spec.unwrap();
    assert_eq!(spec.access_modes.unwrap(), ["ReadWriteMany"]);
    assert_eq!(spec.volume_mode.as_deref(), Some("Block"));
    let secret = world.api::<Secret>().get("main-peers").await.unwrap();
    let content = secret.data.clone().unwrap();
    assert_eq!(content[names::PEER_SECRET_KEY].0.len(), 64);
    // Another look at the cluster leaves it as it is.
    world.change("main", json!({"paused": true})).await;
    world
        .until::<BatonCluster>("main", "looked at again", |cluster| {
            let seen = cluster
                .status
                .as_ref()
                .and_then(|status| status.observed_generation);
            seen == cluster.metadata.generation
        })
        .await;
    let again = world.api::<Secret>().get("main-peers").await.unwrap();
    assert_eq!(again.data.unwrap(), content);
    world.end().await;
}
