//! A cluster that is deleted: its pods end in order, and what holds data stays.

use baton::cluster::{BatonCluster, names};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{
    ConfigMap, Namespace, PersistentVolumeClaim, Pod, Secret, Service,
};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::runtime::wait::await_condition;
use serde_json::json;
use tokio::time::timeout;

use crate::world::{PATIENCE, World};

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

/// A namespace that ends takes no Event: the finalizer must not wait for one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_that_is_deleted_takes_its_cluster_along() {
    let world = World::new().await;
    let namespaces: Api<Namespace> = Api::all(world.client.clone());
    // The controller's own Lease is elsewhere, as it normally is.
    let other = format!("{}-system", world.namespace);
    let made = json!({"metadata": {"name": other}});
    let made = serde_json::from_value(made).unwrap();
    namespaces
        .create(&PostParams::default(), &made)
        .await
        .unwrap();
    let _controller = world.controller_by(world.client.clone(), "one", &other);
    world.make(&world.cluster("main", |_| ())).await;
    world.healthy("main").await;
    let how = DeleteParams::default();
    namespaces.delete(&world.namespace, &how).await.unwrap();
    let gone = |found: Option<&Namespace>| found.is_none();
    let gone = await_condition(namespaces.clone(), &world.namespace, gone);
    let gone = timeout(PATIENCE, gone).await;
    namespaces.delete(&other, &how).await.unwrap();
    gone.expect("the namespace stays").unwrap();
}

/// A kubelet that is lost never says that its pod has ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_does_not_end_is_named_with_what_to_do() {
    let world = World::new().await;
    let _controller = world.controller("one");
    world.make(&world.cluster("main", |_| ())).await;
    world.healthy("main").await;
    keep(&world, "main-b", &[RUNNING]).await;
    let how = DeleteParams::default();
    let clusters = world.api::<BatonCluster>();
    clusters.delete("main", &how).await.unwrap();
    world
        .until_condition("main", "Reconciled", "False", "Leaving")
        .await;
    let told = world
        .until_condition("main", "Reconciled", "False", "PodStuck")
        .await;
    assert!(told.contains("pod main-b "), "{told}");
    assert!(told.contains("kubectl delete pod main-b --force"), "{told}");
    let owner = world.api::<Pod>().get("main-a").await.unwrap();
    assert!(owner.metadata.deletion_timestamp.is_none());
    world.told("main", &["PodStuck!"]).await;
    keep(&world, "main-b", &[]).await;
    world.until_gone::<BatonCluster>("main").await;
    world.end().await;
}

async fn keep(world: &World, pod: &str, finalizers: &[&str]) {
    let patch = Patch::Merge(json!({"metadata": {"finalizers": finalizers}}));
    let pods = world.api::<Pod>();
    pods.patch(pod, &PatchParams::default(), &patch)
        .await
        .unwrap();
}
