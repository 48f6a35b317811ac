//! What the EndpointSlice and the labels must say, without any server.

use fencing::Epoch;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::json;

use super::slice::{self, Rank, Target, Verdict};
use super::{Wanted, labels};
use crate::decide::RoleName;
use crate::kubernetes::{PodFacts, names};

fn target(name: &str, ip: &str) -> Target {
    Target {
        cluster: "main".to_owned(),
        namespace: "db".to_owned(),
        pod: format!("main-{name}"),
        service: "main-rw".to_owned(),
        facts: PodFacts {
            uid: format!("uid-{name}"),
            ip: ip.parse().unwrap(),
            node: "node-1".to_owned(),
        },
        port: 5432,
    }
}

fn epoch(number: u32) -> Epoch {
    Epoch::new(number).unwrap()
}

fn rank(term: u64, number: u32) -> Rank {
    Rank {
        term,
        epoch: epoch(number),
    }
}

fn written(verdict: Verdict) -> EndpointSlice {
    match verdict {
        Verdict::Write(slice) => *slice,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_slice_leads_to_one_pod_and_says_as_which_owner() {
    let a = target("a", "10.0.0.1");
    let slice = written(slice::publish(None, &a, rank(0, 5)));
    let text = serde_json::to_value(&slice).unwrap();
    assert_eq!(text["addressType"], "IPv4");
    assert_eq!(text["metadata"]["name"], "main-rw-baton");
    assert_eq!(text["metadata"]["labels"][names::SERVICE_NAME], "main-rw");
    assert_eq!(text["metadata"]["annotations"][names::EPOCH], "5");
    assert_eq!(text["ports"][0]["port"], 5432);
    assert_eq!(text["endpoints"].as_array().unwrap().len(), 1);
    assert_eq!(text["endpoints"][0]["addresses"], json!(["10.0.0.1"]));
    assert_eq!(text["endpoints"][0]["conditions"]["ready"], true);
    assert_eq!(text["endpoints"][0]["targetRef"]["uid"], "uid-a");
    assert_eq!(slice::publish(Some(&slice), &a, rank(0, 5)), Verdict::Right);
}

#[test]
fn an_owner_that_was_overtaken_replaces_nothing() {
    let (a, b) = (target("a", "10.0.0.1"), target("b", "10.0.0.2"));
    let of_b = written(slice::publish(None, &b, rank(0, 6)));
    let by = Verdict::Superseded(rank(0, 6));
    assert_eq!(slice::publish(Some(&of_b), &a, rank(0, 5)), by);
    assert_eq!(slice::withdraw(Some(&of_b), &a), Verdict::Right);
    let of_a = written(slice::publish(Some(&of_b), &a, rank(0, 7)));
    assert_eq!(of_a.endpoints[0].addresses, ["10.0.0.1"]);
}

/// Each site counts epochs of its own: a promoted site's first owner goes before any of the old site's.
#[test]
fn the_primary_s_term_goes_before_the_epoch() {
    let (a, b) = (target("a", "10.0.0.1"), target("b", "10.0.0.2"));
    let of_a = written(slice::publish(None, &a, rank(1, 9)));
    let of_b = written(slice::publish(Some(&of_a), &b, rank(2, 1)));
    assert_eq!(of_b.endpoints[0].addresses, ["10.0.0.2"]);
    let again = slice::publish(Some(&of_b), &a, rank(1, 10));
    assert_eq!(again, Verdict::Superseded(rank(2, 1)));
    assert_eq!(slice::withdraw(Some(&of_b), &a), Verdict::Right);
    // One whose site has lost the primary leads clients away from itself, whatever its epoch.
    let empty = written(slice::withdraw(Some(&of_b), &b));
    assert!(empty.endpoints.is_empty());
    let mut damaged = of_b;
    let annotations = damaged.metadata.annotations.as_mut().unwrap();
    annotations.insert(names::TERM.to_owned(), "soon".to_owned());
    let verdict = slice::publish(Some(&damaged), &a, rank(3, 1));
    assert!(matches!(verdict, Verdict::Unusable(_)), "{verdict:?}");
}

#[test]
fn withdrawing_empties_what_leads_here_and_keeps_the_epoch() {
    let a = target("a", "10.0.0.1");
    let slice = written(slice::publish(None, &a, rank(0, 5)));
    let empty = written(slice::withdraw(Some(&slice), &a));
    assert!(empty.endpoints.is_empty());
    let superseded = slice::publish(Some(&empty), &a, rank(0, 4));
    assert_eq!(superseded, Verdict::Superseded(rank(0, 5)));
    assert_eq!(slice::withdraw(Some(&empty), &a), Verdict::Right);
    assert_eq!(slice::withdraw(None, &a), Verdict::Right);
}

#[test]
fn an_epoch_that_makes_no_sense_and_another_family_of_addresses_need_a_person() {
    let a = target("a", "10.0.0.1");
    let mut slice = written(slice::publish(None, &a, rank(0, 5)));
    let six = slice::publish(Some(&slice), &target("a", "fd00::1"), rank(0, 6));
    assert!(matches!(six, Verdict::Unusable(_)), "{six:?}");
    let annotations = slice.metadata.annotations.as_mut().unwrap();
    annotations.insert(names::EPOCH.to_owned(), "soon".to_owned());
    for verdict in [
        slice::publish(Some(&slice), &a, rank(0, 6)),
        slice::withdraw(Some(&slice), &a),
    ] {
        assert!(matches!(verdict, Verdict::Unusable(_)), "{verdict:?}");
    }
}

#[test]
fn labels_say_who_serves_and_are_taken_from_everybody_else() {
    let wanted = |serving| Wanted {
        role: RoleName::TakingOver,
        epoch: epoch(5),
        term: 0,
        serving,
        follows: false,
    };
    let on = labels::own("u", &wanted(true));
    assert_eq!(
        on,
        json!({"metadata": {"uid": "u", "labels": {
            "baton.dev/role": "taking-over", "role": "primary", "baton.dev/serving": "true",
            "baton.dev/readable": "true"}}})
    );
    let off = labels::own("u", &wanted(false));
    let labels = &off["metadata"]["labels"];
    for label in ["role", names::SERVING, names::READABLE] {
        assert_eq!(labels[label], json!(null), "{label}");
    }
    let replica = Wanted {
        role: RoleName::Active,
        follows: true,
        ..wanted(false)
    };
    let labels = &labels::own("u", &replica)["metadata"]["labels"];
    assert_eq!(labels["role"], "replica");
    assert_eq!(labels["baton.dev/serving"], json!(null));
    assert_eq!(labels["baton.dev/readable"], "true");
    let of = |pairs: &[(&str, &str)]| {
        let labels = pairs.iter();
        let labels = labels.map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        labels::others(Some("v"), Some(&labels.collect()))
    };
    assert_eq!(of(&[("role", "replica"), (names::ROLE, "standby")]), None);
    let cleared = json!({"metadata": {"uid": "v", "labels": {
        "role": null, "baton.dev/serving": null, "baton.dev/readable": null}}});
    assert_eq!(of(&[("role", "primary")]), Some(cleared.clone()));
    assert_eq!(of(&[(names::SERVING, "true")]), Some(cleared));
}
