//! The command line against a running member: each command's answer and exit code.

mod common;

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use baton::clock;
use baton::config::PeerMember;
use baton::control::status::Facts;
use baton::control::{
    Client, ClientError, ControlRequest, Reply, Request, Requests, Server, ServerError, Status,
    Tally,
};
use baton::decide::{Answer, Ask, Incarnation, Memory, Reason, RequestId, RoleName};
use baton::lease::LeaseStore;
use baton::peer::{Identity, Message, Patience, PeerChannel, PeerEvent, Secret};
use baton::routing::RouteState;
use common::{Site, observation};
use fencing::{Epoch, MemberId};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};

fn baton(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_baton"));
    command
        .args(arguments)
        .env_remove("BATON_CONFIG")
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs the command beside the runtime of the member that it talks to.
async fn ask(site: &Site, arguments: &[&str]) -> (i32, String, String) {
    let config = site.file("member.toml").display().to_string();
    let all: Vec<String> = arguments
        .iter()
        .map(|&a| a.to_owned())
        .chain(["--config".to_owned(), config])
        .collect();
    let run = move || baton(&all.iter().map(String::as_str).collect::<Vec<_>>());
    let output = tokio::task::spawn_blocking(run).await.unwrap();
    (
        output.status.code().unwrap(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

/// A member without a volume: its loop is the test.
struct Fake {
    site: Site,
    server: Server,
    peers: PeerChannel,
}

impl Fake {
    async fn start() -> Self {
        let site = Site::new();
        let lease = LeaseStore::open(&site.config, Incarnation(1)).unwrap();
        let server = Server::start(&site.config, lease).await.unwrap();
        let peers = PeerChannel::start(&site.config, Incarnation(1))
            .await
            .unwrap();
        let fake = Self {
            site,
            server,
            peers,
        };
        fake.server.publish(fake.status());
        fake
    }

    fn status(&self) -> Status {
        let now = clock::now();
        Status::of(&Facts {
            config: &self.site.config,
            memory: &Memory::default(),
            observation: &observation(&self.site.config, now),
            reason: &Reason::CleaningUp,
            peers: &self.peers,
            tally: &Tally::default(),
            route: RouteState::default(),
            copying: None,
            now,
        })
    }

    fn publish(&self, change: impl FnOnce(&mut Status)) {
        let mut status = self.status();
        change(&mut status);
        self.server.publish(status);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_as_a_table_and_as_json() {
    let fake = Fake::start().await;
    let (code, out, err) = ask(&fake.site, &["status"]).await;
    assert_eq!(code, 0, "{err}");
    for word in [
        "Cluster main, site local: active none",
        "joining",
        "| b ",
        "unreachable",
        "WARNING a",
    ] {
        assert!(out.contains(word), "{word:?} in {out}");
    }
    let (code, out, _) = ask(&fake.site, &["status", "--output", "json"]).await;
    let status: Status = serde_json::from_str(&out).unwrap();
    assert_eq!(
        (code, status.member.as_str(), status.members.len()),
        (0, "a", 2)
    );
    assert_eq!(status.reason_code, Reason::CleaningUp);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_switchover_is_done_when_the_member_says_so() {
    let mut fake = Fake::start().await;
    let mut running = tokio::process::Command::new(env!("CARGO_BIN_EXE_baton"))
        .args(["switchover", "--to", "b", "--config"])
        .arg(fake.site.file("member.toml"))
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(running.stdout.take().unwrap()).lines();
    let ControlRequest { ask: asked, reply } = fake.server.next().await;
    assert_eq!(
        asked,
        Ask::Switchover {
            to: MemberId::new(2)
        }
    );
    for (role, other, told) in [
        (
            RoleName::HandingOver,
            RoleName::Standby,
            &["a: handing over"][..],
        ),
        (
            RoleName::Returning,
            RoleName::TakingOver,
            &["a: returning", "b: taking over"],
        ),
        (
            RoleName::Standby,
            RoleName::Active,
            &["a: standby", "b: active"],
        ),
    ] {
        fake.publish(|status| {
            status.members[0].role = Some(role);
            status.members[1].role = Some(other);
            status.members[1].epoch = Some(5);
        });
        for words in told {
            let line = lines.next_line().await.unwrap().unwrap();
            assert!(line.ends_with(words), "{words:?} in {line:?}");
        }
    }
    reply.send(Answer::Done).unwrap();
    let line = lines.next_line().await.unwrap().unwrap();
    assert!(line.ends_with("b is active"), "{line}");
    assert!(running.wait().await.unwrap().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_done_exits_with_1_and_says_why() {
    type Loop = fn(ControlRequest);
    let cases: [(&[&str], Loop, &str); 4] = [
        (
            &["switchover"],
            |request| {
                request
                    .reply
                    .send(Answer::Refused(Box::new(Reason::NoReadyStandby)))
                    .unwrap()
            },
            "there is no ready standby",
        ),
        (
            &["pause", "--output", "json"],
            |request| drop(request.reply),
            "stopped before",
        ),
        (
            &["resume", "--timeout", "200ms"],
            std::mem::forget,
            "no answer within 200ms",
        ),
        (
            &["confirm-stopped", "--every-owner-is-stopped"],
            |request| {
                assert_eq!(request.ask, Ask::OwnersStopped);
                let refused = Reason::NotNow { ask: request.ask };
                request
                    .reply
                    .send(Answer::Refused(Box::new(refused)))
                    .unwrap();
            },
            "only by a ready standby",
        ),
    ];
    for (arguments, answer, words) in cases {
        let mut fake = Fake::start().await;
        let config = fake.site.file("member.toml").display().to_string();
        let all: Vec<String> = arguments
            .iter()
            .map(|&a| a.to_owned())
            .chain(["--config".to_owned(), config])
            .collect();
        let run = move || baton(&all.iter().map(String::as_str).collect::<Vec<_>>());
        let running = tokio::task::spawn_blocking(run);
        answer(fake.server.next().await);
        let output = running.await.unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(
            text(&output.stderr).contains(words),
            "{words:?} in {}",
            text(&output.stderr)
        );
        if arguments.contains(&"json") {
            let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
            assert_eq!(document["done"], false);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_member_is_refused_without_asking_the_loop() {
    let fake = Fake::start().await;
    let (code, _, err) = ask(&fake.site, &["switchover", "--to", "z"]).await;
    assert_eq!(code, 1);
    assert!(err.contains("no member \"z\"; there are b, a"), "{err}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_dies_leaves_the_outcome_unknown() {
    let mut fake = Fake::start().await;
    let socket = fake.site.config.control.socket.clone();
    let running = tokio::task::spawn_blocking(move || {
        let mut client = Client::connect(&socket, Duration::from_secs(5)).unwrap();
        client.send(&Request::Pause).unwrap();
        loop {
            match client.receive() {
                Ok(Reply::Status(_)) => {}
                other => return other,
            }
        }
    });
    let _request = fake.server.next().await;
    drop(fake.server);
    assert!(matches!(
        running.await.unwrap(),
        Err(ClientError::Gone { .. })
    ));
}

#[tokio::test]
async fn the_socket_is_root_s_alone_and_one_member_s_alone() {
    let site = Site::new();
    let lease = LeaseStore::open(&site.config, Incarnation(1)).unwrap();
    let server = Server::start(&site.config, lease.clone()).await.unwrap();
    let mode = std::fs::metadata(&site.config.control.socket)
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let second = Server::start(&site.config, lease.clone()).await;
    assert!(matches!(second, Err(ServerError::Taken { .. })));
    drop(server);
    assert!(!site.config.control.socket.exists());
    // What a killed member leaves is replaced.
    drop(std::os::unix::net::UnixListener::bind(&site.config.control.socket).unwrap());
    Server::start(&site.config, lease).await.unwrap();
}

#[tokio::test]
async fn rubbish_is_answered_or_cut_off() {
    let fake = Fake::start().await;
    let socket = &fake.site.config.control.socket;
    let mut stream = tokio::net::UnixStream::connect(socket).await.unwrap();
    stream.write_all(b"{\"do\":\"destroy\"}\n").await.unwrap();
    let mut answer = [0; 4096];
    let read = stream.read(&mut answer).await.unwrap();
    assert!(text(&answer[..read]).contains("no such request"));
    let mut stream = tokio::net::UnixStream::connect(socket).await.unwrap();
    let flood = tokio::spawn(async move {
        let _ = stream.write_all(&vec![b'x'; 4 << 20]).await;
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
    });
    tokio::time::timeout(Duration::from_secs(5), flood)
        .await
        .expect("not cut off")
        .unwrap();
}

/// A standby passes a switchover on to the active, whose answer comes back to the operator.
#[tokio::test]
async fn a_request_at_the_wrong_member_reaches_the_active() {
    let listen = || tokio::net::TcpListener::bind("127.0.0.1:0");
    let (first, second) = (listen().await.unwrap(), listen().await.unwrap());
    let (at_first, at_second) = (first.local_addr().unwrap(), second.local_addr().unwrap());
    let mut standby = member(1, first, (2, at_second));
    let mut active = member(2, second, (1, at_first));

    let (reply, answered) = tokio::sync::oneshot::channel();
    let mut at_standby = Requests::default();
    at_standby.take_local(ControlRequest {
        ask: Ask::Switchover { to: None },
        reply,
    });
    let id = at_standby.oldest().unwrap().id;
    let elsewhere = Reason::NotActive {
        active: MemberId::new(2),
    };
    at_standby.answer(id, Answer::Refused(Box::new(elsewhere)), &standby);
    assert_eq!(at_standby.oldest(), None);

    let mut at_active = Requests::default();
    let (from, message) = next_message(&mut active).await;
    at_active.take_message(from, message);
    let request = at_active.oldest().unwrap();
    assert_eq!(request.ask, Ask::Switchover { to: None });
    at_active.answer(RequestId(request.id.0), Answer::Done, &active);

    let (from, message) = next_message(&mut standby).await;
    at_standby.take_message(from, message);
    assert_eq!(answered.await.unwrap(), Answer::Done);
}

/// The channel of a member with one peer.
fn member(number: u8, listener: tokio::net::TcpListener, peer: (u8, SocketAddr)) -> PeerChannel {
    let identity = Identity {
        cluster: "main".to_owned(),
        site: "local".to_owned(),
        name: format!("m{number}"),
        member: MemberId::new(number).unwrap(),
        incarnation: Incarnation(u64::from(number)),
        secret: Secret::new(b"0123456789abcdef"),
    };
    let other = PeerMember {
        name: format!("m{}", peer.0),
        number: MemberId::new(peer.0).unwrap(),
        address: peer.1.into(),
    };
    PeerChannel::start_with(identity, listener, vec![other], Patience::default()).unwrap()
}

async fn next_message(channel: &mut PeerChannel) -> (MemberId, Message) {
    let waiting = async {
        loop {
            if let PeerEvent::Message { from, message, .. } = channel.next().await {
                return (from, message);
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), waiting)
        .await
        .expect("no message came")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn history_is_known_while_the_member_runs_and_while_it_does_not() {
    let mut fake = Fake::start().await;
    let lease = LeaseStore::open(&fake.site.config, Incarnation(1)).unwrap();
    let record = baton::decide::LeaseRecord {
        epoch: Epoch::new(1).unwrap(),
        newest: Epoch::new(1).unwrap(),
        holder: MemberId::new(1),
        incarnation: Incarnation(1),
        sequence: 0,
        clean: false,
        planned: false,
        initialized: true,
        paused: false,
        cluster: None,
    };
    lease
        .write(None, record, clock::now() + Duration::from_secs(5))
        .await
        .unwrap();
    let socket = fake.site.config.control.socket.display().to_string();
    let run = move || baton(&["history", "--socket", &socket, "--output", "json"]);
    let output = tokio::task::spawn_blocking(run).await.unwrap();
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["changes"][0]["name"], "a");
    fake.server = {
        drop(fake.server);
        Server::start(&fake.site.config, lease).await.unwrap()
    };
    let (code, out, err) = ask(&fake.site, &["history"]).await;
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("unplanned"), "{out}");
}

#[test]
fn bad_usage_and_bad_configuration_exit_with_2() {
    let site = Site::new();
    let bad = site.file("bad.toml");
    std::fs::write(&bad, "cluster = 5\nmembre = \"a\"\n").unwrap();
    let bad = bad.to_str().unwrap();
    let cases: [(&[&str], &[&str]); 8] = [
        (&["status"], &["--config"]),
        (
            &["status", "--config", "x", "--socket", "y"],
            &["cannot be used with"],
        ),
        (&["status", "--output", "xml", "--socket", "y"], &["xml"]),
        (&["fly"], &["fly"]),
        (
            &["status", "--config", bad],
            &[
                "cluster: must be text",
                "membre: unknown",
                "did you mean member",
            ],
        ),
        (
            &["run", "--config", bad],
            &["cluster: must be text", "volume.host_id: missing"],
        ),
        (
            &["run", "--config", "/nonexistent"],
            &["/nonexistent", "No such file"],
        ),
        (
            &["confirm-stopped", "--socket", "y"],
            &["--every-owner-is-stopped"],
        ),
    ];
    for (arguments, words) in cases {
        let output = baton(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let err = text(&output.stderr);
        assert!(
            words.iter().all(|word| err.contains(word)),
            "{words:?} in {err}"
        );
    }
}

#[test]
fn what_this_machine_lacks_is_named_all_at_once() {
    let site = Site::new();
    let text_of = std::fs::read_to_string(site.file("member.toml")).unwrap();
    let text_of = text_of
        .replace("/usr/lib/postgresql/15/bin", "/nonexistent/bin")
        .replace("[journal]", "os_user = \"nobody-of-this-name\"\n[journal]");
    std::fs::write(site.file("member.toml"), text_of).unwrap();
    std::fs::set_permissions(site.file("secret"), std::fs::Permissions::from_mode(0o644)).unwrap();
    let config = site.file("member.toml");
    let output = baton(&["run", "--check", "--config", config.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2));
    let err = text(&output.stderr);
    for word in [
        "/nonexistent/bin/postgres",
        "nobody-of-this-name",
        "chmod 600",
    ] {
        assert!(err.contains(word), "{word:?} in {err}");
    }
}

#[test]
fn a_member_that_is_not_there_is_said_to_be_so() {
    let site = Site::new();
    let config = site.file("member.toml");
    for command in ["status", "pause", "switchover"] {
        let output = baton(&[command, "--config", config.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(1));
        assert!(
            text(&output.stderr).contains("is it running?"),
            "{}",
            text(&output.stderr)
        );
    }
    let output = baton(&[
        "status",
        "--lab",
        site.directory.path().join("none").to_str().unwrap(),
    ]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("baton lab up"));
}
