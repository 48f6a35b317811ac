//! Watches: order, selection, bookmarks, 410, and what kube's watcher and reflector make of them.

use std::pin::pin;
use std::time::Duration;

use apiserver::{ADMIN, Options, Server};
use futures_util::{Stream, StreamExt, TryStreamExt};
use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams, WatchEvent, WatchParams};
use kube::runtime::reflector::store::Writer;
use kube::runtime::{WatchStreamExt, reflector, watcher};
use serde_json::json;

use crate::common::{api, config, create, lease, refused, resource, server, soon, version, with};

type Event = WatchEvent<DynamicObject>;

async fn next<S: Stream<Item = Result<Event, kube::Error>> + Unpin>(watch: &mut S) -> Event {
    soon(watch.try_next())
        .await
        .unwrap()
        .expect("the watch ended")
}

fn told(event: &Event) -> (&'static str, String) {
    let name = |object: &DynamicObject| object.metadata.name.clone().unwrap_or_default();
    match event {
        WatchEvent::Added(object) => ("ADDED", name(object)),
        WatchEvent::Modified(object) => ("MODIFIED", name(object)),
        WatchEvent::Deleted(object) => ("DELETED", name(object)),
        WatchEvent::Bookmark(mark) => ("BOOKMARK", mark.metadata.resource_version.clone()),
        WatchEvent::Error(status) => ("ERROR", status.code.to_string()),
    }
}

fn expect(event: &Event, kind: &str, name: &str) {
    assert_eq!(told(event), (told(event).0, name.to_owned()));
    assert_eq!(told(event).0, kind);
}

#[tokio::test]
async fn every_change_in_its_order_from_any_version() {
    let (_server, maps) = with("", "ConfigMap", "configmaps").await;
    let made = create(&maps, &config("a", json!({}))).await;
    create(&maps, &config("b", json!({}))).await;
    let patch = Patch::Merge(json!({ "data": { "x": "1" } }));
    maps.patch("a", &PatchParams::default(), &patch)
        .await
        .unwrap();
    maps.delete("b", &DeleteParams::default()).await.unwrap();
    let from = made.metadata.resource_version.unwrap();
    let mut watch = pin!(maps.watch(&WatchParams::default(), &from).await.unwrap());
    let mut last = from.parse::<u64>().unwrap();
    for (kind, name) in [("ADDED", "b"), ("MODIFIED", "a"), ("DELETED", "b")] {
        let event = next(&mut watch).await;
        expect(&event, kind, name);
        if let WatchEvent::Added(object)
        | WatchEvent::Modified(object)
        | WatchEvent::Deleted(object) = &event
        {
            assert!(
                version(object) > last,
                "versions grow, that of a deletion too"
            );
            last = version(object);
        }
    }
}

#[tokio::test]
async fn a_watch_from_zero_begins_with_what_is_there() {
    let (_server, maps) = with("", "ConfigMap", "configmaps").await;
    create(&maps, &config("a", json!({}))).await;
    let mut watch = pin!(maps.watch(&WatchParams::default(), "0").await.unwrap());
    expect(&next(&mut watch).await, "ADDED", "a");
    create(&maps, &config("b", json!({}))).await;
    expect(&next(&mut watch).await, "ADDED", "b");
}

#[tokio::test]
async fn what_stops_matching_is_deleted_for_the_watch() {
    let (_server, maps) = with("", "ConfigMap", "configmaps").await;
    let label = |value: &str| Patch::Merge(json!({ "metadata": { "labels": { "role": value } } }));
    let made = create(&maps, &config("a", json!({}))).await;
    let params = WatchParams::default().labels("role=primary");
    let from = made.metadata.resource_version.unwrap();
    let mut watch = pin!(maps.watch(&params, &from).await.unwrap());
    let patch = PatchParams::default();
    for role in ["replica", "primary", "primary-not", "primary"] {
        maps.patch("a", &patch, &label(role)).await.unwrap();
    }
    maps.delete("a", &DeleteParams::default()).await.unwrap();
    for kind in ["ADDED", "DELETED", "ADDED", "DELETED"] {
        expect(&next(&mut watch).await, kind, "a");
    }
    let named = WatchParams::default().fields("metadata.name=b");
    let mut watch = pin!(maps.watch(&named, &from).await.unwrap());
    create(&maps, &config("b", json!({}))).await;
    expect(&next(&mut watch).await, "ADDED", "b");
}

#[tokio::test]
async fn watches_see_their_namespace_and_kind_only() {
    let (server, maps) = with("", "ConfigMap", "configmaps").await;
    let client = server.client(ADMIN).await;
    let elsewhere: Api<DynamicObject> = Api::namespaced_with(
        client.clone(),
        "kube-system",
        &resource("", "ConfigMap", "configmaps"),
    );
    let mut watch = pin!(maps.watch(&WatchParams::default(), "0").await.unwrap());
    create(&elsewhere, &config("far", json!({}))).await;
    create(
        &api(&client, "coordination.k8s.io", "Lease", "leases"),
        &lease("l", "a"),
    )
    .await;
    create(&maps, &config("near", json!({}))).await;
    expect(&next(&mut watch).await, "ADDED", "near");
}

#[tokio::test]
async fn bookmarks_come_by_time_and_carry_the_newest_version() {
    let options = Options {
        bookmark_interval: Duration::from_millis(1),
        ..Options::default()
    };
    let server = Server::start(options).await.unwrap();
    let client = server.client(ADMIN).await;
    let maps = api(&client, "", "ConfigMap", "configmaps");
    let leases = api(&client, "coordination.k8s.io", "Lease", "leases");
    let newest = version(&create(&leases, &lease("l", "a")).await);
    let mut watch = pin!(maps.watch(&WatchParams::default(), "1").await.unwrap());
    let event = next(&mut watch).await;
    expect(&event, "BOOKMARK", &newest.to_string());

    // One that does not want them gets none.
    server.faults().no_bookmarks(true);
    let plain = WatchParams::default().disable_bookmarks();
    let mut watch = pin!(maps.watch(&plain, "1").await.unwrap());
    server.faults().no_bookmarks(false);
    server.faults().bookmark_now();
    create(&maps, &config("a", json!({}))).await;
    expect(&next(&mut watch).await, "ADDED", "a");
}

#[tokio::test]
async fn bookmarks_can_be_kept_back() {
    let (server, maps) = with("", "ConfigMap", "configmaps").await;
    let mut watch = pin!(maps.watch(&WatchParams::default(), "1").await.unwrap());
    server.faults().no_bookmarks(true);
    server.faults().bookmark_now();
    create(&maps, &config("a", json!({}))).await;
    expect(&next(&mut watch).await, "ADDED", "a");
    server.faults().no_bookmarks(false);
    server.faults().bookmark_now();
    assert_eq!(told(&next(&mut watch).await).0, "BOOKMARK");
}

#[tokio::test]
async fn a_version_out_of_the_history_is_expired() {
    let server = Server::start(Options {
        history: 3,
        ..Options::default()
    })
    .await
    .unwrap();
    let maps = api(&server.client(ADMIN).await, "", "ConfigMap", "configmaps");
    let made = create(&maps, &config("a", json!({})))
        .await
        .metadata
        .resource_version
        .unwrap();
    for name in ["b", "c", "d"] {
        create(&maps, &config(name, json!({}))).await;
    }
    let mut watch = pin!(maps.watch(&WatchParams::default(), &made).await.unwrap());
    expect(&next(&mut watch).await, "ADDED", "b");
    create(&maps, &config("e", json!({}))).await;
    let mut watch = pin!(maps.watch(&WatchParams::default(), &made).await.unwrap());
    let WatchEvent::Error(status) = next(&mut watch).await else {
        panic!("no error")
    };
    assert_eq!((status.code, status.reason.as_str()), (410, "Expired"));
    assert!(
        status.message.starts_with("too old resource version: "),
        "{}",
        status.message
    );
    assert!(
        soon(watch.try_next()).await.unwrap().is_none(),
        "the watch ends with it"
    );
    server.faults().expired_by_http(true);
    assert_eq!(
        refused(maps.watch(&WatchParams::default(), &made).await.map(drop)).code,
        410
    );
}

#[tokio::test]
async fn a_running_watch_expires_with_the_history() {
    let (server, maps) = with("", "ConfigMap", "configmaps").await;
    let mut watch = pin!(maps.watch(&WatchParams::default(), "0").await.unwrap());
    create(&maps, &config("a", json!({}))).await;
    expect(&next(&mut watch).await, "ADDED", "a");
    server.faults().expire_history();
    expect(&next(&mut watch).await, "ERROR", "410");
}

#[tokio::test]
async fn a_watch_ends_when_its_time_is_up() {
    let (_server, maps) = with("", "ConfigMap", "configmaps").await;
    let params = WatchParams::default().timeout(1);
    let mut watch = pin!(maps.watch(&params, "1").await.unwrap());
    // It says where it ended, so that the next one can begin there.
    assert_eq!(told(&next(&mut watch).await).0, "BOOKMARK");
    assert!(soon(watch.try_next()).await.unwrap().is_none());
}

#[tokio::test]
async fn a_streaming_list_marks_its_end() {
    let (_server, maps) = with("", "ConfigMap", "configmaps").await;
    create(&maps, &config("a", json!({}))).await;
    let params = WatchParams::default().initial_events();
    let mut watch = pin!(maps.watch(&params, "0").await.unwrap());
    expect(&next(&mut watch).await, "ADDED", "a");
    let WatchEvent::Bookmark(mark) = next(&mut watch).await else {
        panic!("no bookmark")
    };
    assert_eq!(
        mark.metadata.annotations["k8s.io/initial-events-end"],
        "true"
    );
    let wrong = "/api/v1/configmaps?watch=1&sendInitialEvents=true";
    let client = maps.clone().into_client();
    assert_eq!(
        refused(crate::common::raw(&client, "GET", wrong, json!({})).await).code,
        400
    );
}

/// kube's own watcher, by list and by streaming list, through an expired history.
#[tokio::test]
async fn the_clients_watcher_and_reflector_follow() {
    for streaming in [false, true] {
        let server = server().await;
        let maps = api(&server.client(ADMIN).await, "", "ConfigMap", "configmaps");
        create(&maps, &config("a", json!({}))).await;
        let mut setup = watcher::Config::default();
        if streaming {
            setup = setup.streaming_lists();
        }
        let kind = resource("", "ConfigMap", "configmaps");
        let writer = Writer::new(kind);
        let store = writer.as_reader();
        let events = watcher(maps.clone(), setup).default_backoff();
        let mut events = pin!(reflector(writer, events).boxed());
        let mut seen = Vec::new();
        let mut initialized = 0;
        while seen.len() < 3 {
            match soon(events.next()).await.unwrap() {
                Ok(watcher::Event::InitDone) => {
                    initialized += 1;
                    if initialized == 1 {
                        create(&maps, &config("b", json!({}))).await;
                    }
                }
                Ok(watcher::Event::Apply(object)) => {
                    seen.push(object.metadata.name.unwrap());
                    server.faults().expire_history();
                    if seen.len() == 1 {
                        create(&maps, &config("c", json!({}))).await;
                    }
                }
                Ok(watcher::Event::InitApply(object)) if initialized > 0 => {
                    seen.push(object.metadata.name.unwrap());
                }
                Ok(_) => {}
                Err(watcher::Error::WatchError(status)) => assert_eq!(status.code, 410),
                Err(other) => panic!("{other}"),
            }
        }
        assert_eq!(
            seen,
            ["b", "a", "b"],
            "a new list after the 410 (streaming: {streaming})"
        );
        while store.len() < 3 {
            soon(events.next()).await.unwrap().unwrap();
        }
        let lists = server
            .requests()
            .iter()
            .filter(|request| request.verb == "list")
            .count();
        assert_eq!(lists > 0, !streaming);
    }
}
