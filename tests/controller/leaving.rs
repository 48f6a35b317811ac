//! A cluster that is deleted: its pods end in order, and what holds data stays.

use baton::cluster::{BatonCluster, names};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Secret, Service};
use kube::ResourceExt;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::json;

use crate::world::World;

/// Keeps a pod that is deleted, as a kubelet does until it has ended.
const RUNNING: &str = "baton.dev/test-running";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_standby_ends_before_the_owner_and_data_stays() {
    let world = World::new().await;
    let _controller = world.controller("one");
    let cluster = world.cluster("main", |spec| {
        spec["volume"] = json!({"template": {"storageClassName": "fast", "size": "5Gi"}});
    });
    world.make(&cluster).await;
    world.healthy("main").await;
    let made = world.api::<BatonCluster>().get("main").await.unwrap();
    assert_eq!(made.finalizers(), [names::FINALIZER]);
    for pod in ["main-a", "main-b"] {
        keep(&world, pod, &[RUNNING]).await;
    }
    let clusters = world.api::<BatonCluster>();
    clusters
        .delete("main", &DeleteParams::default())
        .await
        .unwrap();

    let ending = |pod: &Pod| pod.metadata.deletion_timestamp.is_some();
    world.until::<Pod>("main-b", "ending", ending).await;
    assert!(
        !ending(&world.api::<Pod>().get("main-a").await.unwrap()),
        "the owner waits"
    );
    keep(&world, "main-b", &[]).await;
    world.until::<Pod>("main-a", "ending", ending).await;
    keep(&world, "main-a", &[]).await;
    world.until_gone::<BatonCluster>("main").await;

    assert!(
        world
            .api::<PersistentVolumeClaim>()
            .get_opt("main-volume")
            .await
            .unwrap()
            .is_some()
    );
    assert!(
        world
            .api::<Secret>()
            .get_opt("main-peers")
            .await
            .unwrap()
            .is_some()
    );
    assert!(
        world
            .api::<Lease>()
            .get_opt("main-local")
            .await
            .unwrap()
            .is_some()
    );
    // By their owner, which is gone.
    world.until_gone::<Service>("main-rw").await;
    world.until_gone::<ConfigMap>("main-config").await;
    world.until_gone::<Pod>("main-a").await;
    world.end().await;
}

async fn keep(world: &World, pod: &str, finalizers: &[&str]) {
    let patch = Patch::Merge(json!({"metadata": {"finalizers": finalizers}}));
    let pods = world.api::<Pod>();
    pods.patch(pod, &PatchParams::default(), &patch)
        .await
        .unwrap();
}
