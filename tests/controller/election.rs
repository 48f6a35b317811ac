//! Of two controllers one acts; when it dies, the other does.

use baton::controller::LEASE;
use k8s_openapi::api::coordination::v1::Lease;

use crate::world::World;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_controller_takes_over_from_a_dead_one() {
    let world = World::new().await;
    let first = world.controller("first");
    holder(&world, "first").await;
    let _second = world.controller("second");
    world.make(&world.cluster("main", |_| ())).await;
    world.pod("main-a", None).await;
    let told = world.events("main").await;
    let made = told.iter().filter(|reason| *reason == "PodMade").count();
    assert!(made <= 2, "each pod is made once: {told:?}");

    // Its watches and its Lease end without a word.
    drop(first);
    holder(&world, "second").await;
    world.claim("other", "ReadWriteMany", "Block").await;
    let cluster = world.cluster("next", |spec| spec["volume"]["claimName"] = "other".into());
    world.make(&cluster).await;
    world.pod("next-a", None).await;
    world.end().await;
}

async fn holder(world: &World, name: &str) {
    world
        .until::<Lease>(LEASE, &format!("held by {name}"), |lease| {
            let spec = lease.spec.as_ref();
            spec.and_then(|spec| spec.holder_identity.as_deref()) == Some(name)
        })
        .await;
}
