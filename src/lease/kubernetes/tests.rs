//! What is known as of when, and what is written in an object's place, without any server.

use fencing::{Epoch, MemberId, Mono};
use k8s_openapi::api::coordination::v1::Lease as Object;

use super::cache::{Cache, Source};
use super::object::{self, Document, Owner, Trouble};
use crate::clock::Wall;
use crate::decide::{Incarnation, LeaseRecord, LeaseVersion};
use crate::kubernetes::names;
use crate::lease::Writer;

fn owner(number: u8) -> Owner {
    Owner {
        cluster: "main".to_owned(),
        site: "local".to_owned(),
        writer: Writer {
            name: format!("main-{number}"),
            member: MemberId::new(number).unwrap(),
            incarnation: Incarnation(7),
        },
        seconds: 6,
    }
}

fn record(epoch: u32, number: u8) -> LeaseRecord {
    LeaseRecord {
        epoch: Epoch::new(epoch).unwrap(),
        newest: Epoch::new(epoch).unwrap(),
        holder: MemberId::new(number),
        incarnation: Incarnation(7),
        sequence: 0,
        clean: false,
        planned: false,
        initialized: true,
        paused: false,
        cluster: None,
    }
}

/// As the server would store it.
fn stored(mut object: Object, uid: &str, version: u64) -> Object {
    object.metadata.uid = Some(uid.to_owned());
    object.metadata.resource_version = Some(version.to_string());
    object
}

fn object(uid: &str, version: u64) -> Object {
    let first = object::next(None, "main-local", &owner(1), &record(1, 1), Wall(0)).unwrap();
    stored(first, uid, version)
}

fn at(millis: u64) -> Mono {
    Mono::from_millis(millis)
}

fn version(uid: &str, number: u64) -> LeaseVersion {
    LeaseVersion(format!("{uid}:{number}"))
}

fn cache() -> Cache {
    Cache::new(owner(1))
}

#[test]
fn what_is_written_names_what_it_replaces_and_tells_people_who_holds() {
    let first = object("u", 5);
    let before = Document::read(first.clone(), &owner(2)).unwrap();
    assert_eq!(before.version(), version("u", 5));
    let next = record(2, 2);
    let object = object::next(Some(&before), "main-local", &owner(2), &next, Wall(1_000)).unwrap();
    assert_eq!(object.metadata.uid.as_deref(), Some("u"));
    assert_eq!(object.metadata.resource_version.as_deref(), Some("5"));
    let spec = object.spec.as_ref().unwrap();
    assert_eq!(spec.holder_identity.as_deref(), Some("main-2"));
    assert_eq!(spec.lease_transitions, Some(2));
    assert_eq!(spec.renew_time, spec.acquire_time);
    let again = Document::read(object.clone(), &owner(1)).unwrap();
    assert_eq!(again.record, next);
    let epochs: Vec<_> = again.history.iter().map(|o| o.epoch.number()).collect();
    assert_eq!(epochs, [1, 2]);
    // A renewal, or another's pause, changes neither the history nor who holds.
    let paused = LeaseRecord {
        paused: true,
        ..next
    };
    let by_other = object::next(Some(&again), "main-local", &owner(1), &paused, Wall(9)).unwrap();
    let spec_now = by_other.spec.as_ref().unwrap();
    assert_eq!(spec_now.holder_identity, spec.holder_identity);
    assert_eq!(spec_now.acquire_time, spec.acquire_time);
    let last = Document::read(by_other, &owner(1)).unwrap();
    assert_eq!(last.history, again.history);
}

#[test]
fn what_others_put_on_the_object_stays() {
    let mut first = object("u", 1);
    let labels = first.metadata.labels.as_mut().unwrap();
    labels.insert("team".to_owned(), "blue".to_owned());
    let before = Document::read(first, &owner(1)).unwrap();
    let next = object::next(
        Some(&before),
        "main-local",
        &owner(1),
        &record(2, 1),
        Wall(0),
    );
    let labels = next.unwrap().metadata.labels.unwrap();
    assert_eq!(labels.get("team").map(String::as_str), Some("blue"));
}

/// What stands in a site's place in the record of all sites is no label that an API server takes.
#[test]
fn the_record_of_all_sites_has_no_site_s_label() {
    let all = Owner {
        site: "*".to_owned(),
        ..owner(1)
    };
    let object = object::next(None, "main-cluster", &all, &record(1, 1), Wall(0)).unwrap();
    let labels = object.metadata.labels.as_ref().unwrap();
    assert!(!labels.contains_key(names::SITE), "{labels:?}");
    assert_eq!(labels[names::CLUSTER], all.cluster);
    let annotations = object.metadata.annotations.unwrap();
    assert_eq!(annotations[names::SITE], "*");
}

#[test]
fn damage_and_another_s_lease_are_told_apart_and_never_read_as_none() {
    let change = |key: &str, value: Option<&str>| {
        let mut object = object("u", 1);
        let annotations = object.metadata.annotations.as_mut().unwrap();
        match value {
            Some(value) => annotations.insert(key.to_owned(), value.to_owned()),
            None => annotations.remove(key),
        };
        Document::read(object, &owner(1))
    };
    for (key, value) in [
        (names::RECORD, None),
        (names::RECORD, Some("")),
        (names::RECORD, Some("{\"epoch\":1}")),
        (names::HISTORY, None),
        (names::HISTORY, Some("[{}]")),
        (names::CLUSTER, None),
        (names::SITE, None),
    ] {
        let found = change(key, value);
        assert!(
            matches!(found, Err(Trouble::Damaged(_))),
            "{key} {value:?}: {found:?}"
        );
    }
    for key in [names::CLUSTER, names::SITE] {
        let found = change(key, Some("other"));
        assert!(matches!(found, Err(Trouble::Foreign { .. })), "{found:?}");
    }
    let mut cache = cache();
    let mut damaged = object("u", 1);
    damaged.metadata.annotations = None;
    cache.take(Some(damaged), at(10), Source::Request);
    assert!(matches!(
        cache.reading(at(0)),
        Some(Err(Trouble::Damaged(_)))
    ));
}

#[test]
fn a_lease_that_was_there_has_vanished_and_one_that_never_was_is_none() {
    let mut cache = cache();
    assert_eq!(cache.reading(at(0)), None, "nothing was read yet");
    cache.take(None, at(10), Source::Request);
    let none = cache.reading(at(10)).unwrap().unwrap();
    assert_eq!((none.lease, none.at), (None, at(10)));
    cache.take(Some(object("u", 1)), at(20), Source::Request);
    cache.take(None, at(30), Source::Request);
    assert_eq!(cache.reading(at(30)), Some(Err(Trouble::Vanished)));
}

#[test]
fn an_older_version_takes_no_newer_one_s_place() {
    let shown = |cache: &Cache| cache.version().cloned().unwrap();
    let mut cache = cache();
    cache.take(Some(object("u", 5)), at(100), Source::Request);
    assert!(!cache.take(Some(object("u", 4)), at(110), Source::Watch));
    assert_eq!(shown(&cache), version("u", 5));
    assert!(!cache.take(Some(object("u", 3)), at(90), Source::Request));
    assert_eq!(shown(&cache), version("u", 5), "an answer that came late");
    // Numbers say nothing across objects, nor after a restore of the whole store.
    assert!(cache.take(Some(object("v", 1)), at(120), Source::Watch));
    assert!(cache.take(Some(object("v", 9)), at(130), Source::Watch));
    assert!(cache.take(Some(object("v", 2)), at(140), Source::Request));
    assert_eq!(shown(&cache), version("v", 2));
    // The removal of an earlier object of this name, told late.
    assert!(!cache.removed(&object("u", 6), at(150)));
    assert_eq!(shown(&cache), version("v", 2));
    assert!(cache.removed(&object("v", 3), at(160)));
    assert_eq!(cache.reading(at(0)), Some(Err(Trouble::Vanished)));
}

#[test]
fn the_moment_is_the_last_at_which_it_is_known_to_be_so() {
    let mut cache = cache();
    cache.take(Some(object("u", 5)), at(100), Source::Request);
    cache.unchanged(at(200));
    cache.take(Some(object("u", 5)), at(150), Source::Request);
    let reading = cache.reading(at(200)).unwrap().unwrap();
    assert_eq!(reading.at, at(200));
    assert_eq!(cache.reading(at(201)), None, "too old");
    // A write whose answer was lost may have changed it since.
    cache.uncertain(at(300));
    assert_eq!(cache.reading(at(0)), None);
    cache.take(Some(object("u", 5)), at(299), Source::Request);
    assert_eq!(cache.reading(at(0)), None);
    cache.take(Some(object("u", 6)), at(301), Source::Request);
    assert!(cache.reading(at(0)).is_some());
}

#[test]
fn failures_make_the_next_request_wait_longer_up_to_a_bound() {
    let mut cache = cache();
    let mut now = 0;
    let mut pauses = Vec::new();
    for _ in 0..12 {
        cache.failed("away".to_owned(), at(now), 1.0);
        let begin = now;
        while cache.pausing(at(now)).is_some() {
            now += 50;
        }
        pauses.push(now - begin);
    }
    assert_eq!(pauses[..5], [500, 1_000, 2_000, 4_000, 4_000]);
    assert_eq!(pauses[11], 4_000);
    cache.take(None, at(now), Source::Request);
    assert_eq!(cache.pausing(at(now)), None);
}
