//! A cluster of two sites: what is shown of them, and whom orders go to.

use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::server::{Plugin, said};

/// What the API server has of the cluster `wide`: its sites are `east`, with the primary, and `west`.
pub fn object(path: &str, query: &str) -> Option<Value> {
    let pod = |member: &str, role: &str, plain: Option<&str>| {
        json!({
            "metadata": {"name": format!("wide-{member}"), "namespace": "db", "uid": member,
                "labels": {"baton.dev/cluster": "wide", "baton.dev/role": role, "role": plain.unwrap_or("none"),
                    "baton.dev/serving": (plain == Some("primary")).to_string()}},
            "spec": {"containers": [], "nodeName": format!("node-{member}")},
            "status": {"conditions": [{"type": "Ready", "status": "True"}]},
        })
    };
    let lease = |name: &str, record: Value| {
        Some(json!({
            "metadata": {"name": name, "namespace": "db",
                "annotations": {"baton.dev/record": record.to_string()}},
            "spec": {},
        }))
    };
    let record = json!({"epoch": 3, "newest": 3, "holder": 1, "incarnation": 1, "sequence": 1,
        "clean": false, "planned": true, "initialized": true, "paused": false});
    let site = |name: &str, members: [&str; 2]| {
        json!({"name": name, "volume": {"claimName": name},
            "members": members.map(|name| json!({"name": name}))})
    };
    match path {
        "/apis/baton.dev/v1alpha1/namespaces/db/batonclusters/wide" => Some(json!({
            "apiVersion": "baton.dev/v1alpha1", "kind": "BatonCluster",
            "metadata": {"name": "wide", "namespace": "db", "uid": "w"},
            "spec": {"image": "i", "sites": [site("east", ["e1", "e2"]), site("west", ["w1", "w2"])],
                "api": {"tokenSecret": {"name": "token", "key": "word"}, "tlsSecret": "tls"}},
        })),
        "/apis/coordination.k8s.io/v1/namespaces/db/leases/wide-east" => lease("wide-east", record),
        "/apis/coordination.k8s.io/v1/namespaces/db/leases/wide-west" => lease("wide-west", record),
        "/apis/coordination.k8s.io/v1/namespaces/db/leases/wide-cluster" => {
            lease("wide-cluster", json!(all_sites(&record)))
        }
        "/api/v1/namespaces/db/pods" if query.contains("wide") => Some(json!({
            "apiVersion": "v1", "kind": "PodList", "metadata": {},
            "items": [pod("e1", "active", Some("primary")), pod("e2", "standby", None),
                pod("w1", "active", Some("replica")), pod("w2", "standby", None)],
        })),
        _ => None,
    }
}

/// The record: what is acknowledged at east is on west.
fn all_sites(register: &Value) -> Value {
    let mut all = register.clone();
    all["cluster"] = json!({
        "writes": 9, "term": 2, "primary": "east", "owners": {}, "system": 7, "timeline": 1, "newest_timeline": 1,
        "sync": sync(), "cuts": {}, "moving": null, "history": [],
    });
    all
}

fn sync() -> Value {
    json!({"need": 1, "sites": ["west"], "confirmed": true, "why": null})
}

/// What the actives say: the primary of west, and west of itself.
pub fn status(pod: &str) -> Option<Value> {
    let safe = json!({"safe": true, "why": "every acknowledged write is on site west"});
    let site = |name: &str, primary: bool, streaming: Option<bool>, lag: Option<u64>| {
        json!({"name": name, "primary": primary, "may_lead": true, "cut": false,
            "streaming": streaming, "lag_bytes": lag, "slot_lost": streaming.map(|_| false)})
    };
    let zone = |serving: &str, west: Value, lag_ms: Option<u64>| {
        json!({"zone": {
            "reachable": true, "term": 2, "primary": "east", "serving_as": serving, "sync": sync(),
            "readable": serving == "replica", "failover": safe, "lag_ms": lag_ms,
            "sites": [site("east", true, None, None), west],
        }})
    };
    match pod {
        "wide-e1" => Some(zone(
            "primary",
            site("west", false, Some(true), Some(1536)),
            None,
        )),
        "wide-w1" => Some(zone("replica", site("west", false, None, None), Some(1200))),
        _ => None,
    }
}

const ANSWERED: StatusCode = StatusCode::OK;

fn done() -> Value {
    json!({"message": "the primary is at site \"west\" now"})
}

#[test]
fn every_site_is_shown_and_whether_a_failover_would_be_safe() {
    let plugin = Plugin::new(true, (ANSWERED, done()));
    let output = plugin.run(&["status", "wide"]);
    let text = said(&output);
    assert!(output.status.success(), "{text}");
    for line in [
        "Cluster db/wide: active e1, epoch 3",
        "The primary is at site east",
        "A failover to another site now would lose nothing: every acknowledged write is on site west.",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    let line = |begins: [&str; 2]| {
        let words = text
            .lines()
            .map(|line| line.split('|').map(str::trim).collect::<Vec<_>>());
        let mut found = words.filter(|words| words.get(1..3) == Some(&begins[..]));
        found.next().unwrap_or_else(|| panic!("{begins:?}: {text}"))
    };
    let east = [
        "", "east", "primary", "e1", "e2", "serving", "-", "-", "-", "",
    ];
    assert_eq!(line(["east", "primary"]), east);
    let behind = ["1.5 kB, 1.2 s", "synchronous", "safe", ""];
    assert_eq!(
        line(["west", "replica"])[..5],
        ["", "west", "replica", "w1", "w2"]
    );
    assert_eq!(line(["west", "replica"])[5], "streaming");
    assert_eq!(line(["west", "replica"])[6..], behind);
    assert_eq!(
        line(["west", "w1"])[4..8],
        ["wide-w1", "node-w1", "active", "no"]
    );

    let output = plugin.run(&["status", "wide", "-o", "json"]);
    let status: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(status["primary_site"], "east");
    let replication = &status["replication"];
    assert_eq!(replication["failover"]["safe"], true);
    assert_eq!(
        (
            &replication["sites"][1]["lag_bytes"],
            &replication["sites"][1]["sync"]
        ),
        (&json!(1536), &json!("synchronous"))
    );
    assert_eq!(status["members"][2]["site"], "west");
}

#[test]
fn what_the_members_do_not_say_is_said_to_be_unknown() {
    let plugin = Plugin::new(false, (ANSWERED, Value::Null));
    let text = said(&plugin.run(&["status", "wide"]));
    assert!(
        text.contains("site west: w1 does not answer: 502"),
        "{text}"
    );
    let promised = "every acknowledged write is on site west.";
    assert!(text.contains(promised), "the record says it: {text}");
    assert!(!text.contains("streaming"), "{text}");
}

#[test]
fn orders_between_sites_go_to_the_member_that_must_do_it() {
    let plugin = Plugin::new(true, (ANSWERED, done()));
    for arguments in [
        &["switchover", "wide", "--site", "west"][..],
        &["failover", "wide", "--site", "west"],
        &[
            "failover",
            "wide",
            "--site",
            "west",
            "--allow-data-loss",
            "--yes",
        ],
    ] {
        let output = plugin.run(arguments);
        assert!(output.status.success(), "{}", said(&output));
        assert!(said(&output).contains("the primary is at site \"west\" now"));
    }
    let asked = plugin.asked.lock().unwrap().clone();
    let of = |what: &str, body| (what.to_owned(), Some("of-the-member".to_owned()), body);
    assert_eq!(
        asked,
        [
            of(
                "wide-e1 switchover",
                json!({"leader": "e1", "site": "west"})
            ),
            of(
                "wide-w1 failover",
                json!({"site": "west", "allow_data_loss": false})
            ),
            of(
                "wide-w1 failover",
                json!({"site": "west", "allow_data_loss": true})
            ),
        ]
    );
}

#[test]
fn an_order_that_makes_no_sense_is_asked_of_nobody() {
    let plugin = Plugin::new(true, (ANSWERED, done()));
    for (arguments, why) in [
        (
            &["switchover", "wide", "--site", "north"][..],
            "there is no site north; there are east, west",
        ),
        (
            &["failover", "wide", "--site", "north"],
            "there is no site north",
        ),
        (
            &["switchover", "wide", "--site", "east"],
            "the primary is at site east already",
        ),
        (
            &["failover", "wide", "--site", "east"],
            "the primary is at site east already",
        ),
        (
            &["switchover", "main", "--site", "west"],
            "the cluster has one site",
        ),
        (
            &["failover", "wide", "--site", "west", "--allow-data-loss"],
            "say --yes",
        ),
    ] {
        let output = plugin.run(arguments);
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        assert!(said(&output).contains(why), "{why}: {}", said(&output));
    }
    let both = plugin.run(&["switchover", "wide", "--site", "west", "--to", "e2"]);
    assert_eq!(both.status.code(), Some(2), "{}", said(&both));
    assert!(plugin.asked.lock().unwrap().is_empty());
}
