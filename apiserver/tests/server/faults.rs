//! Each fault does what it says, and what it does not touch goes on.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use apiserver::{ADMIN, Identity, MASTERS, Partition, Server};
use futures_util::{FutureExt, TryStreamExt};
use kube::api::{Api, DynamicObject, ListParams, Patch, PatchParams, PostParams, WatchParams};
use serde_json::json;

use crate::common::{api, config, create, lease, refused, server, soon, version, with};

async fn leases_of(server: &Server, client: &str) -> Api<DynamicObject> {
    let identity = Identity::user("main", &[MASTERS]).client(client);
    api(
        &server.client_of(&identity).await,
        "coordination.k8s.io",
        "Lease",
        "leases",
    )
}

/// Whether something is still not done although everything else that runs had its turn: another
/// client's whole request went through meanwhile.
async fn hangs<F: Future + Unpin>(what: &mut F, other: &Api<DynamicObject>) -> bool {
    for _ in 0..3 {
        if what.now_or_never().is_some() {
            return false;
        }
        soon(other.list(&ListParams::default())).await.unwrap();
    }
    true
}

#[tokio::test]
async fn an_outage_refuses_and_cuts() {
    let (server, maps) = with("", "ConfigMap", "configmaps").await;
    let mut watch = pin!(maps.watch(&WatchParams::default(), "1").await.unwrap());
    server.faults().outage(true);
    assert!(
        !matches!(soon(watch.try_next()).await, Ok(Some(_))),
        "the watch is cut"
    );
    let refused = soon(tokio::net::TcpStream::connect(server.address())).await;
    // The listening socket is closed a moment after the switch.
    let mut refused = refused.map(drop);
    while refused.is_ok() {
        refused = soon(tokio::net::TcpStream::connect(server.address()))
            .await
            .map(drop);
    }
    assert_eq!(
        refused.unwrap_err().kind(),
        std::io::ErrorKind::ConnectionRefused
    );
    assert!(soon(maps.list(&ListParams::default())).await.is_err());
    server.faults().outage(false);
    let mut listed = soon(maps.list(&ListParams::default())).await;
    while listed.is_err() {
        listed = soon(maps.list(&ListParams::default())).await;
    }
}

#[tokio::test]
async fn a_black_hole_answers_nothing_until_it_is_over() {
    let (server, maps) = with("", "ConfigMap", "configmaps").await;
    let mut watch = pin!(maps.watch(&WatchParams::default(), "0").await.unwrap());
    server.faults().blackhole(true);
    let fresh = api(&server.client(ADMIN).await, "", "ConfigMap", "configmaps");
    let posted = PostParams::default();
    let wanted = config("c", json!({}));
    let mut write = pin!(fresh.create(&posted, &wanted));
    // Time goes on, nothing comes: the clock is the only other thing that runs.
    let quiet = tokio::time::timeout(Duration::from_millis(200), &mut write).await;
    assert!(quiet.is_err());
    assert!(watch.try_next().now_or_never().is_none());
    server.faults().blackhole(false);
    soon(write).await.unwrap();
    assert!(
        soon(watch.try_next()).await.unwrap().is_some(),
        "the stalled watch goes on"
    );
}

#[tokio::test]
async fn one_client_is_cut_off_and_the_others_are_not() {
    let server = server().await;
    let (one, other) = (
        leases_of(&server, "main-a").await,
        leases_of(&server, "main-b").await,
    );
    let made = create(&one, &lease("main", "a")).await;
    let mut watch = pin!(one.watch(&WatchParams::default(), "0").await.unwrap());
    soon(watch.try_next()).await.unwrap();
    server.faults().partition("main-a", Some(Partition::Hang));
    let posted = PostParams::default();
    let mut late = pin!(one.replace("main", &posted, &made));
    assert!(hangs(&mut late, &other).await);
    let mut mine = other.get("main").await.unwrap();
    mine.data["spec"]["holderIdentity"] = json!("b");
    other.replace("main", &posted, &mine).await.unwrap();
    assert!(
        watch.try_next().now_or_never().is_none(),
        "its watch is silent"
    );
    server.faults().partition("main-a", None);
    assert_eq!(
        refused(soon(late).await).code,
        409,
        "what arrives late loses"
    );
    assert!(soon(watch.try_next()).await.unwrap().is_some());

    server.faults().partition("main-a", Some(Partition::Cut));
    assert!(soon(one.get("main")).await.is_err());
    soon(other.get("main")).await.unwrap();
    // By user it is both.
    server.faults().partition("main", Some(Partition::Cut));
    assert!(soon(other.get("main")).await.is_err());
    server.faults().clear();
    soon(one.get("main")).await.unwrap();
}

#[tokio::test]
async fn errors_come_at_their_rate() {
    let (server, maps) = with("", "ConfigMap", "configmaps").await;
    for (code, reason) in [
        (429, "TooManyRequests"),
        (500, "InternalError"),
        (503, "ServiceUnavailable"),
    ] {
        server.faults().errors(code, 2);
        maps.list(&ListParams::default()).await.unwrap();
        let status = refused(maps.list(&ListParams::default()).await);
        assert_eq!((status.code, status.reason.as_str()), (code, reason));
        maps.list(&ListParams::default()).await.unwrap();
    }
    server.faults().errors(500, 0);
    for _ in 0..4 {
        maps.list(&ListParams::default()).await.unwrap();
    }
}

#[tokio::test]
async fn latency_delays() {
    let (server, maps) = with("", "ConfigMap", "configmaps").await;
    maps.list(&ListParams::default()).await.unwrap();
    let delay = Duration::from_millis(150);
    server.faults().latency(delay);
    let began = tokio::time::Instant::now();
    maps.list(&ListParams::default()).await.unwrap();
    assert!(began.elapsed() >= delay);
}

#[tokio::test]
async fn a_conflict_storm_moves_the_version_and_changes_nothing() {
    let (server, leases) = with("coordination.k8s.io", "Lease", "leases").await;
    let made = create(&leases, &lease("main", "a")).await;
    server.faults().conflicts(2);
    let post = PostParams::default();
    let mut mine = made.clone();
    mine.data["spec"]["holderIdentity"] = json!("b");
    let first = leases.replace("main", &post, &mine).await.unwrap();
    let mut next = first.clone();
    next.data["spec"]["holderIdentity"] = json!("c");
    assert_eq!(
        refused(leases.replace("main", &post, &next).await).code,
        409
    );
    let now = leases.get("main").await.unwrap();
    assert!(version(&now) > version(&first));
    assert_eq!(now.data["spec"]["holderIdentity"], "b");
    assert_eq!(
        refused(leases.replace("main", &post, &next).await).code,
        409,
        "it is stale now"
    );
    server.faults().conflicts(1);
    let patch = Patch::Merge(json!({ "spec": { "holderIdentity": "c" } }));
    assert_eq!(
        refused(leases.patch("main", &PatchParams::default(), &patch).await).code,
        409
    );
    server.faults().conflicts(0);
    leases
        .patch("main", &PatchParams::default(), &patch)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_lost_reply_is_of_a_write_that_was_done() {
    let server = server().await;
    let (one, other) = (
        leases_of(&server, "main-a").await,
        leases_of(&server, "main-b").await,
    );
    server.faults().lose_replies("main-a", 1);
    assert!(
        one.create(&PostParams::default(), &lease("main", "a"))
            .await
            .is_err()
    );
    assert_eq!(
        other.get("main").await.unwrap().data["spec"]["holderIdentity"],
        "a"
    );
    let lost = server
        .requests()
        .into_iter()
        .find(|request| request.verb == "create")
        .unwrap();
    assert_eq!(lost.code, 0);
    assert_eq!(
        refused(
            one.create(&PostParams::default(), &lease("main", "a"))
                .await
        )
        .code,
        409
    );
}
