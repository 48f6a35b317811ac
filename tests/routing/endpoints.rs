//! EndpointSlice and labels.

use std::time::Duration;

use baton::clock;
use baton::kubernetes::{Access, PodFacts, names};
use baton::routing::{Leg, Router};
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::json;

use crate::api_server::Site;
use crate::{config, epoch, serving, standby, until, within};

/// A pod that no scheduler takes, as nothing of it needs to run.
async fn pod(site: &Site, name: &str) -> Pod {
    let pod = json!({
        "metadata": {"name": name, "labels": {names::CLUSTER: "main"}},
        "spec": {"schedulerName": "nobody", "containers": [{"name": "baton", "image": "baton"}]},
    });
    let pod: Pod = serde_json::from_value(pod).unwrap();
    let made = pods(site).create(&PostParams::default(), &pod).await;
    made.unwrap()
}

fn pods(site: &Site) -> Api<Pod> {
    Api::namespaced(site.admin(), &site.namespace)
}

async fn router(site: &Site, pod: &Pod, ip: &str, access: &Access) -> Router {
    let name = pod.metadata.name.clone().unwrap();
    let config = config(&format!(
        "[kubernetes]\nnamespace = \"{}\"\npod = \"{name}\"\nservice = \"main-rw\"\n",
        site.namespace
    ));
    let facts = PodFacts {
        uid: pod.metadata.uid.clone().unwrap(),
        ip: ip.parse().unwrap(),
        node: "node-1".to_owned(),
    };
    Router::start_as(&config, access, Some(facts))
}

/// A cluster with the pods main-a and main-b and their routers.
struct Pair {
    site: Site,
    a: Router,
    b: Router,
    pod_a: Pod,
}

async fn pair() -> Pair {
    let site = Site::start().await;
    let (pod_a, pod_b) = (pod(&site, "main-a").await, pod(&site, "main-b").await);
    let a = router(&site, &pod_a, "10.0.0.1", &site.access("a").await).await;
    let b = router(&site, &pod_b, "10.0.0.2", &site.access("b").await).await;
    Pair { site, a, b, pod_a }
}

/// Where the Service's endpoints lead, and whose epoch they have.
async fn led_to(site: &Site) -> (Vec<String>, Option<String>) {
    let slices: Api<EndpointSlice> = Api::namespaced(site.admin(), &site.namespace);
    let Some(slice) = slices.get_opt("main-rw-baton").await.unwrap() else {
        return (Vec::new(), None);
    };
    let ready = slice.endpoints.into_iter().filter(|endpoint| {
        let conditions = endpoint.conditions.as_ref();
        conditions.and_then(|conditions| conditions.ready) == Some(true)
    });
    let addresses = ready.flat_map(|endpoint| endpoint.addresses).collect();
    let annotations = slice.metadata.annotations.unwrap_or_default();
    (addresses, annotations.get(names::EPOCH).cloned())
}

/// The pods that say they serve, each label by itself.
async fn said_to_serve(site: &Site) -> (Vec<String>, Vec<String>) {
    let of = async |selector: String| {
        let params = kube::api::ListParams::default().labels(&selector);
        let found = pods(site).list(&params).await.unwrap();
        let names = found.items.into_iter().filter_map(|pod| pod.metadata.name);
        names.collect::<Vec<_>>()
    };
    (
        of("role=primary".to_owned()).await,
        of(format!("{}=true", names::SERVING)).await,
    )
}

async fn role_of(site: &Site, pod: &str) -> Option<String> {
    let labels = pods(site).get(pod).await.unwrap().metadata.labels;
    labels.unwrap_or_default().get(names::ROLE).cloned()
}

async fn published(router: &Router, number: u32) {
    let leg = Some(Leg::Published {
        epoch: epoch(number),
    });
    until(router, "published", |state| state.endpoints == leg).await;
}

fn only(text: &str) -> Vec<String> {
    vec![text.to_owned()]
}

#[tokio::test]
async fn a_handover_leads_clients_from_one_pod_to_the_other() {
    let Pair { site, a, b, .. } = pair().await;
    let service = json!({"metadata": {"name": "main-rw"}, "spec": {"ports": [{"port": 5432}]}});
    let service: Service = serde_json::from_value(service).unwrap();
    let services: Api<Service> = Api::namespaced(site.admin(), &site.namespace);
    let service = services.create(&PostParams::default(), &service).await;
    a.want(serving(5));
    published(&a, 5).await;
    assert_eq!(
        led_to(&site).await,
        (only("10.0.0.1"), Some("5".to_owned()))
    );
    assert_eq!(said_to_serve(&site).await, (only("main-a"), only("main-a")));
    assert_eq!(role_of(&site, "main-a").await.as_deref(), Some("active"));
    let slices: Api<EndpointSlice> = Api::namespaced(site.admin(), &site.namespace);
    let slice = slices.get("main-rw-baton").await.unwrap();
    let owners = slice.metadata.owner_references.unwrap();
    assert_eq!(Some(&owners[0].uid), service.unwrap().metadata.uid.as_ref());

    // The standby says what it is, and leaves the active's endpoint alone.
    b.want(standby(5));
    until(&b, "withdrawn", |state| {
        state.endpoints == Some(Leg::Withdrawn)
    })
    .await;
    assert_eq!(led_to(&site).await.0, only("10.0.0.1"));

    a.withdraw(epoch(5), within(2_000)).await.unwrap();
    assert_eq!(led_to(&site).await, (Vec::new(), Some("5".to_owned())));
    assert_eq!(said_to_serve(&site).await, (Vec::new(), Vec::new()));
    b.want(serving(6));
    published(&b, 6).await;
    assert_eq!(
        led_to(&site).await,
        (only("10.0.0.2"), Some("6".to_owned()))
    );
    assert_eq!(said_to_serve(&site).await, (only("main-b"), only("main-b")));
}

#[tokio::test]
async fn after_a_failover_the_labels_of_the_dead_are_taken_away() {
    let Pair { site, a, b, .. } = pair().await;
    a.want(serving(5));
    published(&a, 5).await;
    drop(a);
    b.want(serving(6));
    published(&b, 6).await;
    assert_eq!(led_to(&site).await.0, only("10.0.0.2"));
    assert_eq!(said_to_serve(&site).await, (only("main-b"), only("main-b")));
}

#[tokio::test]
async fn an_owner_that_was_overtaken_publishes_nothing_and_takes_nothing_away() {
    let Pair { site, a, b, pod_a } = pair().await;
    b.want(serving(6));
    published(&b, 6).await;
    a.want(serving(5));
    let by = Some(Leg::Superseded { by: epoch(6) });
    until(&a, "superseded", |state| state.endpoints == by).await;
    a.withdraw(epoch(5), within(2_000)).await.unwrap();
    assert_eq!(
        led_to(&site).await,
        (only("10.0.0.2"), Some("6".to_owned()))
    );
    assert_eq!(said_to_serve(&site).await, (only("main-b"), only("main-b")));
    // Started again as a standby in the same pod, it finds nothing of its own.
    drop(a);
    let again = router(&site, &pod_a, "10.0.0.1", &site.access("a").await).await;
    again.want(standby(6));
    until(&again, "withdrawn", |state| {
        state.endpoints == Some(Leg::Withdrawn)
    })
    .await;
    assert_eq!(led_to(&site).await.0, only("10.0.0.2"));
}

#[tokio::test]
async fn a_member_that_starts_again_in_its_pod_takes_its_old_endpoint_away() {
    let Pair { site, a, pod_a, .. } = pair().await;
    a.want(serving(5));
    published(&a, 5).await;
    drop(a);
    let again = router(&site, &pod_a, "10.0.0.1", &site.access("a").await).await;
    again.want(standby(5));
    until(&again, "withdrawn", |state| {
        state.endpoints == Some(Leg::Withdrawn)
    })
    .await;
    assert!(led_to(&site).await.0.is_empty());
}

#[tokio::test]
async fn a_pod_that_was_replaced_does_not_label_its_successor() {
    let Pair { site, a, b: _b, .. } = pair().await;
    let params = DeleteParams::default().grace_period(0);
    pods(&site).delete("main-a", &params).await.unwrap();
    pod(&site, "main-a").await;
    a.want(standby(5));
    until(&a, "failing", |state| {
        matches!(state.endpoints, Some(Leg::Failing { .. }))
    })
    .await;
    assert_eq!(role_of(&site, "main-a").await, None);
    assert!(a.state().errors > 0);
}

#[tokio::test]
async fn what_somebody_else_wrote_is_judged_anew_and_a_storm_of_conflicts_passes() {
    let Pair { site, a, .. } = pair().await;
    a.want(serving(5));
    published(&a, 5).await;
    // Known to the router as it was; changed behind its back.
    let slices: Api<EndpointSlice> = Api::namespaced(site.admin(), &site.namespace);
    let patch = Patch::Merge(json!({"metadata": {"annotations": {"note": "x"}}}));
    let params = PatchParams::default();
    let patched = slices.patch("main-rw-baton", &params, &patch).await;
    patched.unwrap();
    a.withdraw(epoch(5), within(2_000)).await.unwrap();
    assert!(led_to(&site).await.0.is_empty());
    let Some(faults) = site.faults("a storm of conflicts") else {
        return;
    };
    for (every, number) in [(2, 6), (3, 7)] {
        faults.conflicts(every);
        a.want(serving(number));
        published(&a, number).await;
        faults.conflicts(0);
        assert_eq!(
            led_to(&site).await,
            (only("10.0.0.1"), Some(number.to_string()))
        );
    }
}

#[tokio::test]
async fn a_server_that_is_away_delays_clients_and_nothing_else() {
    let Pair { site, a, b, .. } = pair().await;
    let Some(faults) = site.faults("a server that is away") else {
        return;
    };
    for (hangs, number) in [(false, 5), (true, 7)] {
        a.want(serving(number));
        published(&a, number).await;
        if hangs {
            faults.blackhole(true);
        } else {
            faults.outage(true);
        }
        let begin = clock::now();
        let failed = a.withdraw(epoch(number), within(1_500)).await;
        assert!(failed.is_err(), "hangs: {hangs}");
        assert!(clock::now().since(begin) < Duration::from_millis(1_900));
        let next = number + 1;
        b.want(serving(next));
        until(&b, "failing", |state| {
            matches!(state.endpoints, Some(Leg::Failing { .. }))
        })
        .await;
        assert!(!b.state().published() && b.state().errors > 0);
        assert_eq!(b.state().failures().len(), 1);
        faults.clear();
        published(&b, next).await;
        assert_eq!(led_to(&site).await.0, only("10.0.0.2"));
        // And back, for the next round.
        b.withdraw(epoch(next), within(5_000)).await.unwrap();
    }
}

#[tokio::test]
async fn who_serves_in_peace_asks_nothing() {
    let Pair { site, a, b, .. } = pair().await;
    a.want(serving(5));
    published(&a, 5).await;
    b.want(standby(5));
    until(&b, "withdrawn", |state| {
        state.endpoints == Some(Leg::Withdrawn)
    })
    .await;
    site.forget_requests();
    for _ in 0..10 {
        a.want(serving(5));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let asked = [site.requests("a"), site.requests("b")].concat();
    assert!(asked.is_empty(), "{asked:#?}");
}
