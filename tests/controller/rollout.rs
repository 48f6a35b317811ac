//! A change of the specification: standby first, then the active, never both.

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use serde_json::json;

use crate::world::World;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_standby_is_replaced_first_and_the_active_by_a_handover() {
    let world = World::new().await;
    let _controller = world.controller("one");
    world.make(&world.cluster("main", |_| ())).await;
    world.healthy("main").await;
    let (a, b) = (
        world.pod("main-a", None).await,
        world.pod("main-b", None).await,
    );

    world.change("main", json!({"image": "baton:2"})).await;
    let new = world.pod("main-b", b.uid().as_deref()).await;
    assert_eq!(image(&new), "baton:2");
    // The new standby says nothing yet: the active stays, and the condition says why.
    world
        .until_condition("main", "UpToDate", "False", "StandbyNotReady")
        .await;
    assert_eq!(world.pod("main-a", None).await.uid(), a.uid());
    world.play("main-b", "joining", false).await;
    world
        .until_condition("main", "UpToDate", "False", "StandbyNotReady")
        .await;
    assert_eq!(world.pod("main-a", None).await.uid(), a.uid());

    world.play("main-b", "standby", true).await;
    let next = world.pod("main-a", a.uid().as_deref()).await;
    assert_eq!(image(&next), "baton:2");
    world.own("main", 2, 2, true).await;
    world.play("main-b", "active", true).await;
    world.play("main-a", "standby", true).await;
    world
        .until_condition("main", "UpToDate", "True", "Current")
        .await;
    assert_eq!(
        world.pod("main-b", None).await.uid(),
        new.uid(),
        "replaced once"
    );
    let told = world.events("main").await;
    assert_eq!(
        told.iter()
            .filter(|reason| *reason == "RollingUpdate")
            .count(),
        2,
        "{told:?}"
    );
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_cluster_is_left_as_it_is() {
    let world = World::new().await;
    let _controller = world.controller("one");
    world.make(&world.cluster("main", |_| ())).await;
    world.healthy("main").await;
    let b = world.pod("main-b", None).await;
    world
        .change("main", json!({"image": "baton:2", "paused": true}))
        .await;
    world
        .until_condition("main", "UpToDate", "False", "Paused")
        .await;
    assert_eq!(world.pod("main-b", None).await.uid(), b.uid());
    world.change("main", json!({"paused": false})).await;
    world.pod("main-b", b.uid().as_deref()).await;
    world.end().await;
}

/// Nobody serves for a moment: taking the standby away would take away what could bring service back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_replaced_while_a_takeover_may_be_under_way() {
    let world = World::new().await;
    let _controller = world.controller("one");
    world.make(&world.cluster("main", |_| ())).await;
    world.healthy("main").await;
    world.play("main-a", "active", false).await;
    world
        .until_condition("main", "Ready", "False", "NotServing")
        .await;
    let b = world.pod("main-b", None).await;
    world.change("main", json!({"image": "baton:2"})).await;
    world
        .until_condition("main", "UpToDate", "False", "NotServing")
        .await;
    assert_eq!(world.pod("main-b", None).await.uid(), b.uid());
    world.end().await;
}

/// PostgreSQL starts nowhere: what the specification says wrong is mended by the specification.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_parameter_is_mended_by_the_corrected_one() {
    let world = World::new().await;
    let _controller = world.controller("one");
    let bad = json!({"parameters": {"shared_preload_libraries": "typo"}});
    let cluster = world.cluster("main", |spec| spec["postgres"] = bad);
    world.make(&cluster).await;
    let (a, b) = (
        world.pod("main-a", None).await,
        world.pod("main-b", None).await,
    );
    world.own("main", 1, 1, false).await;
    world.play("main-a", "active", false).await;
    world.play("main-b", "standby", true).await;
    world
        .until_condition("main", "Ready", "False", "NotServing")
        .await;
    let good = json!({"parameters": {"shared_preload_libraries": "auto_explain"}});
    world.change("main", json!({"postgres": good})).await;
    let told = world
        .until_condition("main", "UpToDate", "False", "NotServing")
        .await;
    assert!(told.contains("calls for an operator"), "{told}");
    assert_eq!(world.pod("main-b", None).await.uid(), b.uid());

    let text = "PostgreSQL does not stay up";
    world.call("main-a", Some(text)).await;
    let next = world.pod("main-b", b.uid().as_deref()).await;
    // Nobody waits for the new standby: there is nothing that it would have to take over.
    let owner = world.pod("main-a", a.uid().as_deref()).await;
    assert!(next.creation_timestamp() <= owner.creation_timestamp());
    world.own("main", 2, 2, false).await;
    world.play("main-b", "active", true).await;
    world.play("main-a", "standby", true).await;
    world
        .until_condition("main", "UpToDate", "True", "Current")
        .await;
    assert_eq!(world.pod("main-b", None).await.uid(), next.uid());
    world.end().await;
}

fn image(pod: &Pod) -> &str {
    let spec = pod.spec.as_ref().unwrap();
    spec.containers[0].image.as_deref().unwrap()
}
