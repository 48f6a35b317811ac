//! The HTTP API against a member whose loop is the test: codes, documents, access, limits.
#![forbid(unsafe_code)]

mod cases;
mod client;
#[path = "../common/mod.rs"]
mod common;
mod fake;
mod settings;

use std::time::Duration;

use baton::api::metrics;
use baton::clock;
use baton::control::{ControlRequest, Fenced, Status, StepTally};
use baton::decide::{Postgres, RoleName};
use cases::cases;
use client::{Client, SOON, secret};
use fake::{Door, Fake, become_role};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

/// Paths, and whether they say 200 when the member is active, standby, joining.
const PROBES: [(&str, [bool; 3]); 12] = [
    ("/", [true, false, false]),
    ("/primary", [true, false, false]),
    ("/read-write", [true, false, false]),
    ("/master", [true, false, false]),
    ("/leader", [true, false, false]),
    ("/read-only", [true, false, false]),
    ("/replica", [false, false, false]),
    ("/async?lag=10MB", [false, false, false]),
    ("/health", [true, false, false]),
    ("/readiness", [true, true, false]),
    ("/liveness", [true, true, true]),
    ("/patroni", [true, true, true]),
];

#[tokio::test]
async fn probes_have_patroni_s_codes_for_each_role_and_method() {
    let fake = Fake::start(Door::Plain).await;
    let roles = [RoleName::Active, RoleName::Standby, RoleName::Joining];
    for (index, role) in roles.into_iter().enumerate() {
        fake.be(role);
        for (path, expected) in PROBES {
            let expected = if expected[index] { 200 } else { 503 };
            for method in ["GET", "HEAD", "OPTIONS"] {
                if path == "/patroni" && method == "OPTIONS" {
                    continue;
                }
                let reply = fake.client().ask(method, path, "", "").await;
                assert_eq!(reply.code, expected, "{role:?} {method} {path}: {reply:?}");
                assert_eq!(reply.body.is_empty(), method != "GET", "{reply:?}");
            }
        }
    }
    assert_eq!(fake.code("GET", "/nothing").await, 404);
    assert_eq!(fake.code("DELETE", "/primary").await, 405);
}

#[tokio::test]
async fn an_owner_whose_postgresql_is_not_up_leads_and_is_no_primary() {
    let fake = Fake::start(Door::Plain).await;
    fake.publish(|status| {
        become_role(status, RoleName::Active);
        status.serving = false;
        status.postgres = Postgres::Starting;
    });
    for (path, code) in [("/leader", 200), ("/primary", 503), ("/health", 503)] {
        assert_eq!(fake.code("GET", path).await, code, "{path}");
    }
}

/// The lease store is away in every status of this file: nothing of it makes a member look dead.
#[tokio::test]
async fn a_loop_that_hangs_is_no_primary_any_more() {
    let mut fake = Fake::start(Door::Plain).await;
    assert_eq!(fake.code("GET", "/primary").await, 503);
    assert_eq!(fake.code("GET", "/status").await, 503);
    assert_eq!(fake.code("GET", "/metrics").await, 503);
    assert_eq!(fake.code("GET", "/liveness").await, 200);
    fake.be(RoleName::Active);
    assert_eq!(fake.code("GET", "/primary").await, 200);
    let reply = fake.client().ask("GET", "/status", "", "").await;
    let status: Status = serde_json::from_str(&reply.body).unwrap();
    assert!(!status.lease.reachable && status.serving);
    let stale = fake.site.config.timings.detection + Duration::from_millis(200);
    tokio::time::sleep(stale).await;
    let reply = fake.client().ask("GET", "/primary", "", "").await;
    assert_eq!(reply.code, 503);
    assert!(reply.body.contains("decided nothing for"), "{reply:?}");
    assert_eq!(fake.code("GET", "/liveness").await, 200);
    // the loop is asked nothing by all that
    let asked = tokio::time::timeout(Duration::ZERO, fake.server.next()).await;
    assert!(asked.is_err());
}

#[tokio::test]
async fn documents_have_patroni_s_shapes() {
    let fake = Fake::start(Door::Plain).await;
    fake.publish(|status| {
        become_role(status, RoleName::Active);
        status.paused = true;
    });
    let client = fake.client();
    let node = client.ask("GET", "/patroni", "", "").await.json();
    assert_eq!(node["role"], "primary");
    assert_eq!(node["pause"], true);
    assert_eq!(node["patroni"]["scope"], "main");
    assert_eq!(node["patroni"]["name"], "a");
    let cluster = client.ask("GET", "/cluster", "", "").await.json();
    assert_eq!(cluster["scope"], "main");
    assert_eq!(cluster["members"][0]["role"], "leader");
    assert_eq!(cluster["members"][1]["name"], "b");
    let config = client.ask("GET", "/config", "", "").await.json();
    assert_eq!(config, serde_json::json!({"pause": true}));
    let history = client.ask("GET", "/history", "", "").await;
    assert_eq!((history.code, history.body.as_str()), (200, "[]"));
    // A standby says why it is no replica.
    fake.be(RoleName::Standby);
    let replica = client.ask("GET", "/replica", "", "").await.json();
    let why = replica["why"].as_str().unwrap();
    assert!(why.contains("runs no PostgreSQL"), "{why}");
}

const VERBS: [(&str, &str); 7] = [
    ("POST", "/switchover"),
    ("POST", "/failover"),
    ("POST", "/pause"),
    ("POST", "/resume"),
    ("POST", "/restart"),
    ("POST", "/reload"),
    ("PATCH", "/config"),
];

#[tokio::test]
async fn verbs_need_tls_and_the_token() {
    for (door, expected) in [
        (Door::Plain, 403),
        (Door::Tls, 403),
        (Door::TlsWithToken, 401),
    ] {
        let mut fake = Fake::start(door).await;
        fake.be(RoleName::Active);
        let client = fake.client();
        for (method, path) in VERBS {
            let wrong = "Authorization: Bearer 0123456789abcdef0123456789abcdeX\r\n";
            for headers in ["", wrong, "Authorization: Basic YTpi\r\n"] {
                let reply = client.ask(method, path, headers, "{}").await;
                assert_eq!(reply.code, expected, "{method} {path}: {reply:?}");
                assert!(reply.json()["error"].is_string(), "{reply:?}");
                let challenge = reply.head.contains("www-authenticate: bearer");
                assert_eq!(challenge, expected == 401, "{reply:?}");
            }
        }
        // Reading needs neither; the loop was asked nothing.
        assert_eq!(fake.code("GET", "/primary").await, 200);
        let asked = tokio::time::timeout(Duration::ZERO, fake.server.next()).await;
        assert!(asked.is_err());
    }
}

#[tokio::test]
async fn the_token_can_be_changed_while_the_member_runs() {
    let fake = Fake::start(Door::TlsWithToken).await;
    let client = fake.client();
    let nonsense = "{";
    assert_eq!(
        client.with_token("POST", "/restart", nonsense).await.code,
        400
    );
    secret(&fake.site, "api.token", "another-token-of-this-cluster");
    assert_eq!(
        client.with_token("POST", "/restart", nonsense).await.code,
        401
    );
}

#[tokio::test]
async fn whoever_speaks_plain_text_to_tls_gets_nothing() {
    let fake = Fake::start(Door::TlsWithToken).await;
    let plain = Client {
        tls: None,
        ..fake.client()
    };
    assert_eq!(plain.with_token("POST", "/pause", "").await.code, 0);
}

#[tokio::test]
async fn verbs_go_to_the_loop_and_its_answer_has_patroni_s_code() {
    let fake = Fake::start(Door::TlsWithToken).await;
    answered(fake, cases()).await;
    let fake = Fake::start_as(Door::TlsWithToken, cases::among_sites).await;
    answered(fake, cases::of_sites()).await;
}

async fn answered(mut fake: Fake, cases: Vec<cases::Case>) {
    for (method, path, body, expected, code) in cases {
        fake.be(RoleName::Active);
        let client = fake.client();
        let asking = tokio::spawn(async move { client.with_token(method, path, body).await });
        if let Some((ask, answer)) = expected {
            let next = tokio::time::timeout(SOON, fake.server.next());
            let request = next.await.unwrap_or_else(|_| panic!("{path} {body}"));
            assert_eq!(request.ask, ask, "{path} {body}");
            request.reply.send(answer).unwrap();
        }
        let reply = asking.await.unwrap();
        assert_eq!(reply.code, code, "{method} {path} {body}: {reply:?}");
        let asked = tokio::time::timeout(Duration::ZERO, fake.server.next()).await;
        assert!(asked.is_err(), "{path} {body}");
    }
}

#[tokio::test]
async fn a_member_that_stops_says_that_the_outcome_is_open() {
    let mut fake = Fake::start(Door::TlsWithToken).await;
    let client = fake.client();
    let asking = tokio::spawn(async move { client.with_token("POST", "/pause", "").await });
    let ControlRequest { ask: _, reply } = fake.server.next().await;
    drop(reply);
    let answer = asking.await.unwrap();
    assert_eq!(answer.code, 503);
    assert!(answer.body.contains("stopped before"), "{answer:?}");
}

#[tokio::test]
async fn metrics_are_what_the_status_says() {
    let fake = Fake::start(Door::Plain).await;
    fake.publish(|status| {
        become_role(status, RoleName::Active);
        status.members[0].epoch = Some(7);
        status.members[1].heard_ms = Some(250);
        status.signs.keys_ms.insert("b".to_owned(), 1500);
        status.signs.lease_ms = Some(3000);
        status.tally.takeovers = 3;
        status.tally.last_gap_ms = Some(350);
        let step = StepTally {
            done: 3,
            failed: 1,
            last_ms: Some(6),
            ..StepTally::default()
        };
        status.tally.steps.insert("fence".to_owned(), step);
        status.tally.last_fence = Some(Fenced {
            at: clock::Wall(1_700_000_000_500),
            took_ms: 6,
        });
    });
    let reply = fake.client().ask("GET", "/metrics", "", "").await;
    assert!(reply.head.contains("openmetrics-text"), "{reply:?}");
    let found = parse(&reply.body);
    for (name, label, value) in [
        ("baton_role", "role=\"active\"", 1.0),
        ("baton_role", "role=\"standby\"", 0.0),
        ("baton_postgres_state", "state=\"running\"", 1.0),
        ("baton_epoch", "member=\"a\"", 7.0),
        ("baton_serving", "site=\"local\"", 1.0),
        ("baton_reservation_held", "cluster=\"main\"", 1.0),
        ("baton_lease_store_reachable", "", 0.0),
        ("baton_takeovers_total", "", 3.0),
        ("baton_last_takeover_gap_seconds", "", 0.35),
        ("baton_steps_total", "outcome=\"failed\"", 1.0),
        ("baton_step_duration_seconds", "step=\"fence\"", 0.006),
        ("baton_last_fence_duration_seconds", "", 0.006),
        ("baton_last_fence_timestamp_seconds", "", 1_700_000_000.5),
    ] {
        let sample = found
            .iter()
            .find(|(key, labels, _)| key == name && labels.contains(label));
        let (_, _, got) = sample.unwrap_or_else(|| panic!("no {name} {label}"));
        assert!((got - value).abs() < 1e-9, "{name} {label}: {got}");
    }
    // Ages go on while nobody publishes.
    let beat = found
        .iter()
        .find(|(key, ..)| key == "baton_storage_beat_age_seconds");
    assert!((1.5..15.0).contains(&beat.unwrap().2));
}

/// Every metric has its help and type, belongs to the table, and is a number.
fn parse(text: &str) -> Vec<(String, String, f64)> {
    let names = metrics::names();
    assert!(text.ends_with("# EOF\n"), "{text}");
    let mut samples = Vec::new();
    let mut helped = 0;
    for line in text.lines() {
        if line.starts_with("# HELP baton_") {
            helped += 1;
        }
        if line.starts_with('#') {
            continue;
        }
        let (key, value) = line.rsplit_once(' ').unwrap();
        let (name, labels) = key.split_once('{').unwrap();
        assert!(names.iter().any(|known| known == name), "{name}");
        let labels = labels.strip_suffix('}').unwrap();
        assert!(!labels.ends_with(',') && !labels.contains(",,"), "{line}");
        samples.push((name.to_owned(), labels.to_owned(), value.parse().unwrap()));
    }
    assert!(helped > 15, "{text}");
    samples
}

#[tokio::test]
async fn too_much_is_refused() {
    let fake = Fake::start(Door::TlsWithToken).await;
    let client = fake.client();
    let long = "x".repeat(17 << 10);
    let reply = client.with_token("POST", "/switchover", &long).await;
    assert_eq!(reply.code, 413, "{reply:?}");
    let head = format!("X-Long: {}\r\n", "x".repeat(64 << 10));
    let reply = client.ask("GET", "/liveness", &head, "").await;
    assert!(matches!(reply.code, 0 | 431), "{reply:?}");
    let reply = client.send(b"\x00\x01rubbish\r\n\r\n").await;
    assert!(matches!(reply.code, 0 | 400), "{reply:?}");
    assert_eq!(fake.code("GET", "/liveness").await, 200);
}

/// Clients that say nothing fill their address's places, are cut off, and leave them to others.
#[tokio::test]
async fn silent_clients_are_cut_off() {
    let fake = Fake::start(Door::Plain).await;
    let mut silent = Vec::new();
    for _ in 0..32 {
        silent.push(TcpStream::connect(fake.api.address()).await.unwrap());
    }
    let cut = async {
        for stream in &mut silent {
            let mut rest = Vec::new();
            let _reset = stream.read_to_end(&mut rest).await;
        }
    };
    assert_eq!(fake.code("GET", "/liveness").await, 0);
    tokio::time::timeout(SOON, cut).await.expect("not cut off");
    assert_eq!(fake.code("GET", "/liveness").await, 200);
}

#[tokio::test]
async fn dropping_the_api_ends_it_at_once() {
    let fake = Fake::start(Door::Plain).await;
    let at = fake.api.address();
    let mut silent = TcpStream::connect(at).await.unwrap();
    drop(fake.api);
    let mut rest = Vec::new();
    let closed = tokio::time::timeout(SOON, silent.read_to_end(&mut rest)).await;
    assert!(closed.is_ok(), "still served");
    assert!(TcpStream::connect(at).await.is_err());
}
