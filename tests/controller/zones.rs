//! Several sites: their objects, what is told of replication, the order of an update, and bad input.

use baton::cluster::{BatonCluster, Phase, names};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Secret};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::world::World;

/// What makes a good specification a bad one.
type Change = fn(&mut Value);

/// Site east with a and b, site west with c and d.
fn two_sites(spec: &mut Value) {
    let fields = spec.as_object_mut().unwrap();
    fields.remove("volume");
    fields.remove("members");
    spec["sites"] = json!([
        {"name": "east", "volume": {"claimName": "disk"}, "members": [{"name": "a"}, {"name": "b"}]},
        {"name": "west", "volume": {"template": {"storageClassName": "fast", "size": "5Gi"}},
         "members": [{"name": "c"}, {"name": "d"}]},
    ]);
}

impl World {
    /// What the primary's owner writes into the record of all sites.
    async fn record(&self, primary: &str, term: u64, sync: &Value) {
        let record = json!({
            "writes": term, "term": term, "primary": primary, "owners": {}, "system": 7, "timeline": 1,
            "newest_timeline": 1, "sync": sync, "cuts": {}, "moving": null, "history": [],
        });
        let record = json!({
            "epoch": 0, "newest": 0, "holder": null, "incarnation": 1, "sequence": term, "clean": false,
            "planned": false, "initialized": true, "paused": false, "cluster": record,
        });
        let lease = json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"labels": names::labels("main"), "annotations": {names::RECORD: record.to_string()}},
        });
        let leases = self.api::<Lease>();
        let how = PatchParams::apply("baton-member").force();
        let patch = Patch::Apply(lease);
        leases.patch("main-cluster", &how, &patch).await.unwrap();
    }

    /// An active that runs a replica: Kubernetes finds it ready, and it takes no writes.
    async fn play_replica(&self, pod: &str) {
        self.play(pod, "active", true).await;
        let labels = json!({names::SERVING: null, "role": "replica"});
        let patch = Patch::Merge(json!({"metadata": {"labels": labels}}));
        let how = PatchParams::default();
        self.api::<Pod>().patch(pod, &how, &patch).await.unwrap();
    }

    /// Both sites serve, and commits wait for west.
    async fn two_healthy(&self) {
        for pod in ["main-a", "main-b", "main-c", "main-d"] {
            self.pod(pod, None).await;
        }
        self.own_site("main", "east", 1, 5, false).await;
        self.own_site("main", "west", 1, 2, false).await;
        self.record("east", 1, &in_sync("west")).await;
        self.play("main-a", "active", true).await;
        self.play("main-b", "standby", true).await;
        self.play_replica("main-c").await;
        self.play("main-d", "standby", true).await;
        self.until_phase(Phase::Healthy).await;
    }

    async fn until_phase(&self, phase: Phase) -> BatonCluster {
        self.until::<BatonCluster>("main", &format!("{phase:?}"), |cluster| {
            cluster.status.as_ref().and_then(|status| status.phase) == Some(phase)
        })
        .await
    }
}

fn in_sync(site: &str) -> Value {
    json!({"need": 1, "sites": [site], "confirmed": true, "why": null})
}

fn behind(site: &str) -> Value {
    json!({"need": 0, "sites": [], "confirmed": false, "why": {"behind": [site]}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_site_gets_its_objects_and_what_is_between_them_is_told() {
    let world = World::new().await;
    let _controller = world.controller("one");
    world.make(&world.cluster("main", two_sites)).await;
    world.two_healthy().await;

    let claim = world
        .until::<PersistentVolumeClaim>("main-west-volume", "made", |_| true)
        .await;
    assert_eq!(claim.owner_references(), []);
    for budget in ["main-east", "main-west"] {
        let made = world
            .until::<PodDisruptionBudget>(budget, "made", |_| true)
            .await;
        assert_eq!(
            made.spec.unwrap().min_available,
            Some(serde_json::from_value(json!(1)).unwrap())
        );
    }
    let secret = world.api::<Secret>().get("main-replication").await.unwrap();
    assert_eq!(secret.data.unwrap()["password"].0.len(), 64);
    let pod = world.pod("main-c", None).await;
    assert_eq!(pod.labels()[names::SITE], "west");

    let status = world.until_phase(Phase::Healthy).await.status.unwrap();
    assert_eq!(status.active.as_deref(), Some("a"));
    assert_eq!(
        (status.primary_site.as_deref(), status.epoch),
        (Some("east"), Some(5))
    );
    let sites: Vec<_> = status
        .sites
        .iter()
        .map(|site| (site.active.as_deref(), site.epoch))
        .collect();
    assert_eq!(sites, [(Some("a"), Some(5)), (Some("c"), Some(2))]);

    world.record("east", 1, &behind("west")).await;
    world
        .until_condition("main", "ReplicationHealthy", "False", "SitesBehind")
        .await;
    world.record("east", 1, &in_sync("west")).await;
    world
        .until_condition("main", "ReplicationHealthy", "True", "Synchronous")
        .await;
    // East is lost: west is promoted.
    world.play("main-a", "active", false).await;
    world.record("west", 2, &behind("east")).await;
    world.play("main-c", "active", true).await;
    let moved = world
        .until::<BatonCluster>("main", "led by c", |cluster| {
            let status = cluster.status.clone().unwrap_or_default();
            let ready = status
                .condition("Ready")
                .is_some_and(|ready| ready.status == "True");
            ready && status.active.as_deref() == Some("c")
        })
        .await;
    assert_eq!(moved.status.unwrap().primary_site.as_deref(), Some("west"));
    let order = ["ReplicationDegraded!", "ReplicationHealthy", "PrimaryMoved"];
    world.told("main", &order).await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_begins_at_the_replicas_and_ends_at_the_primary() {
    let world = World::new().await;
    let _controller = world.controller("one");
    world.make(&world.cluster("main", two_sites)).await;
    world.two_healthy().await;
    let mut uids = std::collections::BTreeMap::new();
    for pod in ["main-a", "main-b", "main-c", "main-d"] {
        uids.insert(pod, world.pod(pod, None).await.uid());
    }
    let old = |pod: &str| uids[pod].clone();
    world.change("main", json!({"image": "baton:2"})).await;
    let d = world.pod("main-d", old("main-d").as_deref()).await;
    world
        .until_condition("main", "UpToDate", "False", "StandbyNotReady")
        .await;
    for pod in ["main-a", "main-b", "main-c"] {
        assert_eq!(world.pod(pod, None).await.uid(), old(pod), "{pod}");
    }
    world.play("main-d", "standby", true).await;
    // C hands over to d; the primary's site waits until c is back.
    world.pod("main-c", old("main-c").as_deref()).await;
    world.own_site("main", "west", 2, 3, true).await;
    world.play_replica("main-d").await;
    world.play("main-c", "standby", true).await;
    world.pod("main-b", old("main-b").as_deref()).await;
    assert_eq!(world.pod("main-a", None).await.uid(), old("main-a"));
    world.play("main-b", "standby", true).await;
    world.pod("main-a", old("main-a").as_deref()).await;
    assert_eq!(
        world.pod("main-d", None).await.uid(),
        d.uid(),
        "replaced once"
    );
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_work_between_sites_is_told_and_nothing_is_made() {
    let world = World::new().await;
    let _controller = world.controller("one");
    let cases: [(&str, Change, &str); 4] = [
        (
            "SitesShareClaim",
            |spec| spec["sites"][1]["volume"] = json!({"claimName": "disk"}),
            "each site needs a volume of its own",
        ),
        (
            "UnknownFirstPrimary",
            |spec| spec["replication"] = json!({"firstPrimary": "north"}),
            "name one of east, west",
        ),
        (
            "QuorumTooLarge",
            |spec| spec["sites"][1]["failover"] = json!("never"),
            "only 0 sites may take over",
        ),
        (
            "DuplicateMember",
            |spec| spec["sites"][1]["members"] = json!([{"name": "a"}, {"name": "d"}]),
            "share the name a",
        ),
    ];
    for (reason, change, says) in cases {
        let name = reason.to_lowercase();
        let cluster = world.cluster(&name, |spec| {
            two_sites(spec);
            change(spec);
        });
        world.make(&cluster).await;
        world
            .until_condition(&name, "Accepted", "False", reason)
            .await;
        let status = world.api::<BatonCluster>().get(&name).await.unwrap().status;
        let text = status
            .unwrap()
            .condition("Accepted")
            .unwrap()
            .message
            .clone();
        assert!(text.contains(says), "{reason}: {text}");
        world.told(&name, &[&format!("{reason}!")]).await;
        let pod = world.api::<Pod>().get_opt(&names::pod(&name, "c")).await;
        assert!(pod.unwrap().is_none());
    }
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_definition_takes_one_site_or_several_and_no_site_called_cluster() {
    let world = World::new().await;
    let cases: [(&str, Change); 4] = [
        ("either volume and members, or sites", |spec| {
            spec["members"] = json!([{"name": "x"}, {"name": "y"}]);
        }),
        ("at least 2", |spec| {
            spec["sites"].as_array_mut().unwrap().pop();
        }),
        ("no site is called cluster", |spec| {
            spec["sites"][1]["name"] = json!("cluster");
        }),
        ("it needs sites", |spec| {
            spec.as_object_mut().unwrap().remove("sites");
            spec["volume"] = json!({"claimName": "disk"});
            spec["members"] = json!([{"name": "x"}, {"name": "y"}]);
            spec["replication"] = json!({"synchronous": "off"});
        }),
    ];
    let clusters: Api<BatonCluster> = world.api();
    for (says, change) in cases {
        let cluster = world.cluster("main", |spec| {
            two_sites(spec);
            change(spec);
        });
        let answer = clusters.create(&PostParams::default(), &cluster).await;
        let error = answer.expect_err(says).to_string();
        assert!(error.contains(says), "{says:?} is not in {error}");
    }
    world.make(&world.cluster("plain", |_| ())).await;
    let patch = Patch::Merge(json!({"spec": {"volume": null, "members": null, "sites": [
        {"name": "east", "volume": {"claimName": "disk"}, "members": [{"name": "a"}, {"name": "b"}]},
        {"name": "west", "volume": {"claimName": "other"}, "members": [{"name": "c"}, {"name": "d"}]},
    ]}}));
    let answer = clusters
        .patch("plain", &PatchParams::default(), &patch)
        .await;
    let error = answer.expect_err("one becomes several").to_string();
    assert!(error.contains("cannot become one of several"), "{error}");
    world.end().await;
}
