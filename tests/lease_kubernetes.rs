//! The lease in a Kubernetes Lease: no two writers win the same version, an answer that is lost is
//! "unknown", a server that is away is asked with patience, and a quiet pair asks little.

mod api_server;

use std::time::Duration;

use api_server::Site;
use baton::clock;
use baton::decide::{Incarnation, Lease, LeaseRecord, LeaseVersion, TimingSettings};
use baton::kubernetes::{Access, names};
use baton::lease::kubernetes::Place;
use baton::lease::{KubernetesStore, LeaseError, Writer, Written};
use fencing::{Epoch, MemberId, Mono};
use k8s_openapi::api::coordination::v1::Lease as Object;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};

const NAME: &str = "main-local";

fn place(namespace: &str) -> Place {
    Place {
        namespace: namespace.to_owned(),
        name: NAME.to_owned(),
        cluster: "main".to_owned(),
        site: "local".to_owned(),
    }
}

fn writer(number: u8) -> Writer {
    Writer {
        name: format!("main-{number}"),
        member: MemberId::new(number).unwrap(),
        incarnation: Incarnation(7),
    }
}

fn open(site: &Site, number: u8, access: Access) -> KubernetesStore {
    let timings = TimingSettings::kubernetes();
    KubernetesStore::open(place(&site.namespace), writer(number), &timings, access)
}

async fn store(site: &Site, number: u8) -> KubernetesStore {
    let user = format!("m{number}");
    open(site, number, site.access(&user).await)
}

fn record(epoch: u32, number: u8, sequence: u64) -> LeaseRecord {
    LeaseRecord {
        epoch: Epoch::new(epoch).unwrap(),
        newest: Epoch::new(epoch).unwrap(),
        holder: MemberId::new(number),
        incarnation: Incarnation(7),
        sequence,
        clean: false,
        planned: false,
        initialized: true,
        paused: false,
        cluster: None,
    }
}

fn soon() -> Mono {
    within(10_000)
}

fn within(millis: u64) -> Mono {
    clock::now() + Duration::from_millis(millis)
}

async fn put(
    store: &KubernetesStore,
    expected: Option<LeaseVersion>,
    record: LeaseRecord,
) -> Option<LeaseVersion> {
    match store.write(expected, record, soon()).await.unwrap() {
        Written::Done(version) => Some(version),
        Written::Conflict(_) => None,
    }
}

async fn get(store: &KubernetesStore) -> Option<Lease> {
    store.read(soon()).await.unwrap().lease
}

fn objects(site: &Site) -> Api<Object> {
    Api::namespaced(site.admin(), &site.namespace)
}

async fn patch(site: &Site, patch: Value) {
    let params = PatchParams::default();
    let patch = Patch::Merge(&patch);
    objects(site).patch(NAME, &params, &patch).await.unwrap();
}

#[tokio::test]
async fn a_record_is_read_back_and_only_the_named_version_is_replaced() {
    let site = Site::start().await;
    let (a, b) = (store(&site, 1).await, store(&site, 2).await);
    assert_eq!(get(&a).await, None);
    let first = put(&a, None, record(1, 1, 0)).await.unwrap();
    assert_eq!(put(&b, None, record(1, 2, 0)).await, None);
    let second = put(&b, Some(first.clone()), record(2, 2, 0)).await.unwrap();
    assert_eq!(put(&a, Some(first), record(1, 1, 1)).await, None);
    let found = Lease {
        version: second,
        record: record(2, 2, 0),
    };
    assert_eq!(get(&a).await, Some(found.clone()));
    let object = objects(&site).get(NAME).await.unwrap();
    let spec = object.spec.unwrap();
    assert_eq!(spec.holder_identity.as_deref(), Some("main-2"));
    assert_eq!(spec.lease_transitions, Some(2));
    let history = a.history(soon()).await.unwrap();
    let names: Vec<_> = history.iter().map(|change| change.name.as_str()).collect();
    assert_eq!(names, ["main-1", "main-2"]);
    let conflict = a.write(Some(found.version.clone()), record(3, 1, 0), soon());
    assert!(matches!(conflict.await.unwrap(), Written::Done(_)));
    let conflict = b.write(Some(found.version), record(3, 2, 0), soon()).await;
    match conflict.unwrap() {
        Written::Conflict(Some(lease)) => assert_eq!(lease.record, record(3, 1, 0)),
        other => panic!("{other:?}"),
    }
}

async fn race(store: &KubernetesStore, times: u32) {
    let mut won = 0;
    while won < times {
        let lease = get(store).await;
        let sequence = lease.as_ref().map_or(0, |lease| lease.record.sequence);
        let expected = lease.map(|lease| lease.version);
        let done = put(store, expected, record(1, 1, sequence + 1)).await;
        won += u32::from(done.is_some());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_write_is_lost_among_racers_nor_in_a_storm_of_conflicts() {
    let site = Site::start().await;
    let faults = site.faults("a storm of conflicts");
    let stores = [1, 2, 3].map(|number| store(&site, number));
    let mut racers = tokio::task::JoinSet::new();
    for store in futures_util::future::join_all(stores).await {
        racers.spawn(async move {
            race(&store, 15).await;
            store
        });
    }
    let stores = racers.join_all().await;
    if let Some(faults) = &faults {
        faults.conflicts(2);
    }
    for store in &stores {
        race(store, 5).await;
    }
    let lease = get(&stores[0]).await.unwrap();
    assert_eq!(lease.record.sequence, 3 * 15 + 3 * 5);
}

#[tokio::test]
async fn a_change_by_another_is_an_event_and_is_known_without_asking() {
    let site = Site::start().await;
    let (a, b) = (store(&site, 1).await, store(&site, 2).await);
    let mut watch = b.watch();
    let version = put(&a, None, record(1, 1, 0)).await;
    known_within(&b, &mut watch, &record(1, 1, 0)).await;
    site.forget_requests();
    let before = clock::now();
    put(&a, version, record(1, 1, 1)).await.unwrap();
    let at = known_within(&b, &mut watch, &record(1, 1, 1)).await;
    assert!(at >= before, "as of the event");
    let asked: Vec<_> = site.requests("m2");
    assert!(asked.is_empty(), "{asked:#?}");
}

/// Waits until the store knows the record, and says as of when.
async fn known_within(
    store: &KubernetesStore,
    watch: &mut baton::lease::LeaseWatch,
    record: &LeaseRecord,
) -> Mono {
    let deadline = within(5_000);
    loop {
        let reading = store.known(deadline).await.unwrap();
        if reading.lease.is_some_and(|lease| lease.record == *record) {
            return reading.at;
        }
        assert!(clock::now() < deadline, "the change is not seen");
        watch.changed().await;
    }
}

/// Both members as their loops are: the active renews, both look four times a second.
#[tokio::test]
async fn a_quiet_pair_asks_at_most_forty_times_a_minute_and_never_knows_too_little() {
    const SECONDS: u64 = 13;
    let site = Site::start().await;
    let timings = TimingSettings::kubernetes();
    let (a, b) = (store(&site, 1).await, store(&site, 2).await);
    let _watches = (a.watch(), b.watch());
    let mut version = put(&a, None, record(1, 1, 0)).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    site.forget_requests();
    let begin = clock::now();
    let (mut sequence, mut oldest) = (0, Duration::ZERO);
    while !begin.elapsed(Duration::from_secs(SECONDS), clock::now()) {
        if begin.elapsed(timings.lease_renew * sequence, clock::now()) {
            sequence += 1;
            version = put(&a, version, record(1, 1, u64::from(sequence))).await;
            assert!(version.is_some());
        }
        for store in [&a, &b] {
            let reading = store.known(within(1_000)).await.unwrap();
            oldest = oldest.max(clock::now().since(reading.at));
        }
        tokio::time::sleep(timings.observe).await;
    }
    assert!(oldest < timings.lease_age, "{oldest:?}");
    let asked = [site.requests("m1"), site.requests("m2")].concat();
    let a_minute = asked.len() as u64 * 60 / SECONDS;
    assert!(a_minute <= 40, "{a_minute} a minute: {asked:#?}");
    println!("{a_minute} requests a minute, the oldest reading {oldest:?}");
}

#[tokio::test]
async fn a_watch_whose_past_is_forgotten_lists_again() {
    let site = Site::start().await;
    let Some(faults) = site.faults("a watch whose past is forgotten") else {
        return;
    };
    let (a, b) = (store(&site, 1).await, store(&site, 2).await);
    let mut watch = b.watch();
    let mut version = put(&a, None, record(1, 1, 0)).await;
    known_within(&b, &mut watch, &record(1, 1, 0)).await;
    for (round, by_http) in [false, true, false].into_iter().enumerate() {
        faults.expired_by_http(by_http);
        faults.expire_history();
        if by_http {
            faults.partition("m2", Some(apiserver::Partition::Cut));
            tokio::time::sleep(Duration::from_millis(300)).await;
            faults.partition("m2", None);
        }
        let next = record(1, 1, 1 + round as u64);
        version = put(&a, version, next.clone()).await;
        known_within(&b, &mut watch, &next).await;
    }
}

#[tokio::test]
async fn an_outage_is_unknown_is_asked_about_with_patience_and_ends_by_itself() {
    let site = Site::start().await;
    let Some(faults) = site.faults("an outage") else {
        return;
    };
    let a = store(&site, 1).await;
    let mut watch = a.watch();
    let version = put(&a, None, record(1, 1, 0)).await;
    known_within(&a, &mut watch, &record(1, 1, 0)).await;
    faults.outage(true);
    // What is known stays known for as long as it is young; a look at the server fails.
    assert!(a.known(within(1_000)).await.is_ok());
    let read = a.read(within(1_000)).await;
    assert!(
        matches!(read, Err(LeaseError::Unreachable { .. })),
        "{read:?}"
    );
    let written = a
        .write(version.clone(), record(1, 1, 1), within(1_000))
        .await;
    let error = written.unwrap_err();
    assert!(!error.may_have_written(), "{error:?}");
    let begin = clock::now();
    let mut failed = 0;
    while !begin.elapsed(Duration::from_secs(6), clock::now()) {
        failed += u32::from(a.known(within(1_000)).await.is_err());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(failed > 10, "it must become unknown");
    faults.outage(false);
    known_within_after_failures(&a, &record(1, 1, 0)).await;
    put(&a, version, record(1, 1, 1)).await.unwrap();
}

async fn known_within_after_failures(store: &KubernetesStore, record: &LeaseRecord) {
    let deadline = within(10_000);
    loop {
        let reading = store.known(within(1_000)).await;
        if reading.is_ok_and(|reading| reading.lease.is_some_and(|l| l.record == *record)) {
            return;
        }
        assert!(clock::now() < deadline, "it stays unknown");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_server_that_hangs_costs_the_deadline_and_a_write_may_come_late() {
    let site = Site::start().await;
    let Some(faults) = site.faults("a server that hangs") else {
        return;
    };
    let a = store(&site, 1).await;
    let _watch = a.watch();
    let version = put(&a, None, record(1, 1, 0)).await;
    faults.blackhole(true);
    let begin = clock::now();
    let read = a.read(within(300)).await;
    assert!(matches!(read, Err(LeaseError::Overdue { .. })), "{read:?}");
    let written = a.write(version, record(1, 1, 1), within(300)).await;
    assert!(written.unwrap_err().may_have_written());
    assert!(clock::now().since(begin) < Duration::from_secs(2));
    // What was known before that write says nothing any more.
    let known = a.known(within(300)).await;
    assert!(known.is_err(), "{known:?}");
    faults.blackhole(false);
    let lease = get(&a).await.unwrap();
    let again = put(&a, Some(lease.version), record(1, 1, 2)).await;
    assert!(again.is_some() || get(&a).await.is_some());
}

#[tokio::test]
async fn a_lost_answer_is_neither_done_nor_not_done() {
    let site = Site::start().await;
    let Some(faults) = site.faults("a lost answer") else {
        return;
    };
    let a = store(&site, 1).await;
    faults.lose_replies("m1", 1);
    let error = a.write(None, record(1, 1, 0), soon()).await.unwrap_err();
    assert!(matches!(error, LeaseError::Lost { .. }), "{error:?}");
    assert!(error.may_have_written());
    let lease = get(&a).await.expect("it was done");
    faults.lose_replies("m1", 1);
    let written = a.write(Some(lease.version.clone()), record(2, 1, 0), soon());
    assert!(written.await.unwrap_err().may_have_written());
    let known = a.known(soon()).await;
    // Either the truth or nothing, until the server was asked.
    if let Ok(reading) = known {
        assert_eq!(reading.lease.unwrap().record, record(2, 1, 0));
    }
    assert_eq!(get(&a).await.unwrap().record, record(2, 1, 0));
    // The old version is gone: writing it again is a conflict, not a second write.
    assert_eq!(put(&a, Some(lease.version), record(2, 1, 0)).await, None);
    for (code, may) in [(500, true), (503, true), (504, true), (429, false)] {
        let version = get(&a).await.map(|lease| lease.version);
        faults.errors(code, 1);
        let error = a.write(version, record(2, 1, 1), soon()).await.unwrap_err();
        assert_eq!(error.may_have_written(), may, "{code}: {error:?}");
        faults.errors(code, 0);
    }
}

#[tokio::test]
async fn who_may_not_is_told_what_to_grant() {
    let site = Site::start().await;
    if site.faults("a member without rights").is_none() {
        return;
    }
    let stranger = open(&site, 1, site.stranger("stranger").await);
    for error in [
        stranger.read(soon()).await.unwrap_err(),
        stranger
            .write(None, record(1, 1, 0), soon())
            .await
            .unwrap_err(),
    ] {
        assert!(matches!(error, LeaseError::Refused { .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.contains("403") && text.contains("grant get"), "{text}");
        assert!(!error.may_have_written());
    }
}

#[tokio::test]
async fn a_namespace_that_is_missing_is_named() {
    let site = Site::start().await;
    let nowhere = Place {
        namespace: "baton-test-nowhere".to_owned(),
        ..place(&site.namespace)
    };
    let access = site.access("m1").await;
    let timings = TimingSettings::kubernetes();
    let store = KubernetesStore::open(nowhere, writer(1), &timings, access);
    let error = store
        .write(None, record(1, 1, 0), soon())
        .await
        .unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("make the namespace baton-test-nowhere"),
        "{text}"
    );
}

/// Its record says by itself how old it is, and an operator may have it made anew without a restart.
#[tokio::test]
async fn the_clusters_record_may_go_and_be_made_anew() {
    let site = Site::start().await;
    let mut place = place(&site.namespace);
    place.site = "*".to_owned();
    let timings = TimingSettings::kubernetes();
    let access = site.access("m1").await;
    let every_site = KubernetesStore::open(place, writer(1), &timings, access);
    let version = put(&every_site, None, record(1, 1, 0)).await;
    let gone = objects(&site).delete(NAME, &DeleteParams::default()).await;
    gone.unwrap();
    assert_eq!(every_site.read(soon()).await.unwrap().lease, None);
    assert_eq!(put(&every_site, version, record(2, 1, 0)).await, None);
    put(&every_site, None, record(2, 1, 0)).await.unwrap();
}

#[tokio::test]
async fn a_lease_that_is_removed_has_vanished_and_is_not_made_again() {
    let site = Site::start().await;
    let (a, b) = (store(&site, 1).await, store(&site, 2).await);
    let version = put(&a, None, record(1, 1, 0)).await;
    assert!(get(&b).await.is_some());
    let gone = objects(&site).delete(NAME, &DeleteParams::default()).await;
    gone.unwrap();
    for store in [&a, &b] {
        let read = store.read(soon()).await;
        assert!(matches!(read, Err(LeaseError::Vanished { .. })), "{read:?}");
        for expected in [None, version.clone()] {
            let written = store.write(expected, record(2, 2, 0), soon()).await;
            assert!(
                matches!(written, Err(LeaseError::Vanished { .. })),
                "{written:?}"
            );
        }
    }
    assert!(objects(&site).get_opt(NAME).await.unwrap().is_none());
    // Members that are started again make the next one, which the old ones' versions never match.
    let c = store(&site, 3).await;
    put(&c, None, record(1, 3, 0)).await.unwrap();
    assert_eq!(put(&a, version, record(9, 1, 0)).await, None);
    assert_eq!(get(&a).await.unwrap().record, record(1, 3, 0));
}

#[tokio::test]
async fn damage_and_another_cluster_s_lease_are_refused_and_never_written_over() {
    let site = Site::start().await;
    let a = store(&site, 1).await;
    put(&a, None, record(1, 1, 0)).await.unwrap();
    let good = objects(&site).get(NAME).await.unwrap();
    let good = good.metadata.annotations.unwrap();
    for (key, value) in [
        (names::RECORD, json!("{")),
        (names::RECORD, Value::Null),
        (names::HISTORY, json!("x")),
        (names::CLUSTER, json!("other")),
        (names::SITE, json!("elsewhere")),
    ] {
        patch(&site, json!({"metadata": {"annotations": {key: value}}})).await;
        let reader = store(&site, 2).await;
        let before = objects(&site).get(NAME).await.unwrap();
        let foreign = [names::CLUSTER, names::SITE].contains(&key);
        for store in [&a, &reader] {
            let read = store.read(soon()).await.unwrap_err();
            let written = store
                .write(None, record(2, 2, 0), soon())
                .await
                .unwrap_err();
            for error in [read, written] {
                let named = match &error {
                    LeaseError::Foreign { .. } => foreign,
                    LeaseError::Damaged { .. } => !foreign,
                    _ => false,
                };
                assert!(named, "{key}: {error:?}");
            }
        }
        let after = objects(&site).get(NAME).await.unwrap();
        assert_eq!(
            after.metadata.resource_version,
            before.metadata.resource_version
        );
        patch(
            &site,
            json!({"metadata": {"annotations": {key: good[key]}}}),
        )
        .await;
    }
    assert_eq!(get(&a).await.unwrap().record, record(1, 1, 0));
}

#[tokio::test]
async fn what_others_write_on_the_object_stays_and_is_a_conflict() {
    let site = Site::start().await;
    let a = store(&site, 1).await;
    let version = put(&a, None, record(1, 1, 0)).await;
    patch(&site, json!({"metadata": {"labels": {"team": "blue"}}})).await;
    assert_eq!(put(&a, version, record(1, 1, 1)).await, None);
    let version = get(&a).await.map(|lease| lease.version);
    put(&a, version, record(1, 1, 1)).await.unwrap();
    let labels = objects(&site).get(NAME).await.unwrap().metadata.labels;
    assert_eq!(
        labels.unwrap().get("team").map(String::as_str),
        Some("blue")
    );
}
