//! What the API server itself refuses, by the rules in the definition.

use baton::cluster::BatonCluster;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::world::World;

/// What is wrong with a cluster's specification.
type Change = fn(&mut Value);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_definition_refuses_what_contradicts_itself() {
    let world = World::new().await;
    let cases: [(&str, Change); 8] = [
        ("at least 2", |spec| {
            spec["members"] = json!([{"name": "a"}])
        }),
        ("same node", |spec| {
            spec["members"] = json!([{"name": "a", "node": "n"}, {"name": "b", "node": "n"}]);
        }),
        ("same number", |spec| {
            spec["members"] = json!([{"name": "a", "number": 1}, {"name": "b", "number": 1}]);
        }),
        ("every member a number, or none", |spec| {
            spec["members"] = json!([{"name": "a", "number": 1}, {"name": "b"}]);
        }),
        ("either claimName or template", |spec| {
            spec["volume"] = json!({})
        }),
        ("address and subsystem go together", |spec| {
            spec["volume"] = json!({"claimName": "disk", "address": "10.0.0.1:4420"});
        }),
        ("a token needs TLS", |spec| {
            spec["api"] = json!({"tokenSecret": {"name": "t", "key": "k"}});
        }),
        ("spec.members", |spec| {
            spec["members"] = json!([{"name": "a"}, {"name": "a"}]);
        }),
    ];
    for (says, spec) in cases {
        let cluster = world.cluster("main", spec);
        let clusters: Api<BatonCluster> = world.api();
        let answer = clusters.create(&PostParams::default(), &cluster).await;
        let error = answer.expect_err(says).to_string();
        assert!(error.contains(says), "{says:?} is not in {error}");
    }
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_definition_refuses_changes_that_would_lose_the_volume() {
    let world = World::new().await;
    let numbered = |spec: &mut Value| {
        spec["members"] = json!([{"name": "a", "number": 1}, {"name": "b", "number": 2}]);
    };
    world.make(&world.cluster("plain", |_| ())).await;
    world.make(&world.cluster("numbered", numbered)).await;
    let other = json!([{"name": "a", "number": 2}, {"name": "b", "number": 1}]);
    for (name, change, says) in [
        (
            "plain",
            json!({"volume": {"claimName": "other"}}),
            "the volume cannot be changed",
        ),
        (
            "plain",
            json!({"site": "west"}),
            "the site cannot be changed",
        ),
        (
            "numbered",
            json!({"members": other}),
            "number cannot be changed",
        ),
    ] {
        let clusters: Api<BatonCluster> = world.api();
        let patch = Patch::Merge(json!({"spec": change}));
        let answer = clusters.patch(name, &PatchParams::default(), &patch).await;
        let error = answer.expect_err(says).to_string();
        assert!(error.contains(says), "{says:?} is not in {error}");
    }
    world.end().await;
}
