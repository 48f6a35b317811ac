//! The initiator against the real target of this crate.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::json;
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use crate::bridge::Backend;
use crate::initiator::{ConnectError, Initiator, Options, Path, discover};
use crate::pdu::Digests;
use crate::reservation::{Acquire, ChangePersistence, Register, Release};
use crate::target::{NamespaceConfig, Target, TargetConfig, default_subsystem};
use crate::{Error, HostId, HostIdentity, Namespace, ReservationType};

const BLOCK: u32 = 4096;
const BLOCKS: u64 = 16384;
const LONG: Duration = Duration::from_secs(20);

struct Volume {
    directory: TempDir,
    target: Option<Target>,
    address: SocketAddr,
}

impl Volume {
    async fn new() -> Self {
        let mut volume = Self {
            directory: TempDir::new().expect("make a directory"),
            target: None,
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
        };
        volume.start(None).await;
        volume
    }

    /// Starts the target, at the same port where it had one.
    async fn start(&mut self, uuid: Option<Uuid>) {
        let path = self.directory.path().join("namespace");
        let mut namespace = NamespaceConfig::new(path, Some(BLOCKS * u64::from(BLOCK)));
        namespace.block_size = BLOCK;
        namespace.uuid = uuid;
        let mut config = TargetConfig::local(namespace);
        config.listen = self.address;
        let target = Target::start(config).await.expect("start the target");
        self.address = target.address();
        self.target = Some(target);
    }

    /// Ends the target; its reservations are lost, as without a state file.
    async fn stop(&mut self) {
        if let Some(target) = self.target.take() {
            target.shutdown().await.expect("write everything back");
        }
    }

    async fn fault(&self, request: serde_json::Value) {
        let request = serde_json::from_value(request).expect("a request");
        let target = self.target.as_ref().expect("a running target");
        let answer = target.control(request).await;
        assert_eq!(answer["ok"], json!(true), "{answer}");
    }

    fn options(&self, host: &str) -> Options {
        let id = HostId(Uuid::from_bytes([host.as_bytes()[0]; 16]));
        let nqn = format!("nqn.2026-11.dev.baton:{host}")
            .parse()
            .expect("an NQN");
        let address = self.address.to_string();
        let mut options = Options::new(address, default_subsystem(), 1, HostIdentity { nqn, id });
        options.max_backoff = Duration::from_millis(100);
        options
    }

    async fn connect(&self, host: &str) -> Initiator {
        let initiator = Initiator::connect(self.options(host)).await;
        initiator.expect("connect")
    }
}

async fn wait_for(initiator: &Initiator, wanted: impl Fn(&Path) -> bool) -> Path {
    let mut path = initiator.path();
    let seen = timeout(LONG, path.wait_for(|path| wanted(path))).await;
    seen.expect("in time").expect("the supervisor runs").clone()
}

fn is_connected(path: &Path) -> bool {
    matches!(path, Path::Connected { .. })
}

fn content(lba: u64, blocks: u32) -> Bytes {
    let word = |i: u64| (lba.wrapping_mul(0x9e37_79b9) ^ i.wrapping_mul(0x85eb_ca6b)) >> 7;
    (0..u64::from(blocks * BLOCK))
        .map(|i| word(i) as u8)
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parallel_reads_and_writes_of_all_sizes() {
    let volume = Volume::new().await;
    let on = Digests {
        header: true,
        data: true,
    };
    for (digests, queues) in [(Digests::default(), 1), (on, 3)] {
        let mut options = volume.options("a");
        (options.digests, options.io_queues) = (digests, queues);
        let initiator = Arc::new(Initiator::connect(options).await.expect("connect"));
        let limit = initiator.identify().await.expect("identify").max_transfer / BLOCK;
        let mut work = JoinSet::new();
        for n in 0..48_u64 {
            let initiator = Arc::clone(&initiator);
            work.spawn(async move {
                let (lba, blocks) = (n * 256, [1, 3, 16, 17, 64, limit.min(256)][n as usize % 6]);
                let data = content(lba + u64::from(queues), blocks);
                initiator
                    .write(lba, data.clone(), n % 5 == 0)
                    .await
                    .expect("write");
                if n % 7 == 0 {
                    initiator.flush().await.expect("flush");
                }
                assert_eq!(initiator.read(lba, blocks).await.expect("read"), data);
                initiator
                    .write_zeroes(lba, 1, n % 2 == 0)
                    .await
                    .expect("zero");
                let zeroed = initiator.read(lba, 1).await.expect("read");
                assert!(zeroed.iter().all(|byte| *byte == 0));
            });
        }
        while let Some(done) = work.join_next().await {
            done.expect("one that went well");
        }
    }
}

#[tokio::test]
async fn what_cannot_be_is_refused_before_it_is_sent() {
    let volume = Volume::new().await;
    let initiator = volume.connect("a").await;
    let limit = initiator.identify().await.expect("identify").max_transfer / BLOCK;
    for refused in [
        initiator.read(0, 0).await.map(|_| ()),
        initiator.read(0, limit + 1).await.map(|_| ()),
        initiator.write(0, Bytes::from(vec![0; 100]), false).await,
        initiator.write(0, Bytes::new(), false).await,
        initiator.write_zeroes(0, 65537, false).await,
    ] {
        let error = refused.expect_err("refused");
        assert!(matches!(error, Error::Io { .. }) && !error.outcome_unknown());
    }
    let beyond = initiator.read(BLOCKS, 1).await.expect_err("beyond the end");
    assert!(beyond.status().is_some(), "{beyond}");
}

#[tokio::test]
async fn reservations_refuse_the_other_host_and_can_be_taken_over() {
    let volume = Volume::new().await;
    let (a, b) = (volume.connect("a").await, volume.connect("b").await);
    let kind = ReservationType::WriteExclusive;
    for (host, key) in [(&a, 0xa), (&b, 0xb)] {
        let action = Register::Register { key };
        host.register(action, ChangePersistence::Unchanged)
            .await
            .expect("register");
    }
    a.acquire(Acquire::Acquire, 0xa, kind)
        .await
        .expect("acquire");
    let page = content(1, 1);
    a.write(1, page.clone(), false)
        .await
        .expect("the holder writes");
    assert!(
        b.write(1, page.clone(), false)
            .await
            .expect_err("fenced")
            .is_conflict()
    );
    assert_eq!(b.read(1, 1).await.expect("everybody reads"), page);
    let preempt = Acquire::PreemptAndAbort { victim: 0xa };
    b.acquire(preempt, 0xb, kind)
        .await
        .expect("preempt and abort");
    let report = b.report().await.expect("report");
    assert_eq!(report.reservation, Some(kind));
    assert_eq!(
        report.holder().map(|r| (r.host, r.key)),
        Some((b.options().host.id, 0xb))
    );
    assert!(report.of_host(a.options().host.id).is_none());
    assert!(
        a.write(1, page.clone(), false)
            .await
            .expect_err("fenced")
            .is_conflict()
    );
    assert!(a.flush().await.expect_err("fenced").is_conflict());
    b.release(Release::Release(kind), 0xb)
        .await
        .expect("release");
    a.write(1, page, false).await.expect("nobody holds");
}

#[tokio::test]
async fn a_report_with_more_registrants_than_expected_is_whole() {
    let volume = Volume::new().await;
    let mut hosts = Vec::new();
    for n in 0..20_u8 {
        let mut options = volume.options("a");
        options.host.nqn = format!("nqn.2026-11.dev.baton:{n}")
            .parse()
            .expect("an NQN");
        options.host.id = HostId(Uuid::from_bytes([n + 1; 16]));
        let host = Initiator::connect(options).await.expect("connect");
        let action = Register::Register {
            key: 100 + u64::from(n),
        };
        host.register(action, ChangePersistence::Unchanged)
            .await
            .expect("register");
        hosts.push(host);
    }
    assert_eq!(
        hosts[0].report().await.expect("report").registrants.len(),
        20
    );
}

#[tokio::test]
async fn a_cut_connection_comes_back_by_itself() {
    let volume = Volume::new().await;
    let initiator = volume.connect("a").await;
    let first = wait_for(&initiator, is_connected).await;
    volume.fault(json!({"do": "refuse"})).await;
    volume.fault(json!({"do": "disconnect"})).await;
    wait_for(&initiator, |path| !is_connected(path)).await;
    let error = initiator.flush().await.expect_err("no path");
    assert!(matches!(error, Error::NoPath { .. }) && !error.outcome_unknown());
    assert!(!initiator.usable(Duration::from_millis(100)).await);
    volume.fault(json!({"do": "heal"})).await;
    assert!(initiator.usable(LONG).await);
    let second = wait_for(&initiator, is_connected).await;
    assert_ne!(first, second);
    assert_eq!(initiator.association(), 2);
    initiator.flush().await.expect("flush");
}

#[tokio::test]
async fn a_command_under_way_when_the_connection_breaks_is_of_unknown_outcome() {
    let volume = Volume::new().await;
    let initiator = volume.connect("a").await;
    volume
        .fault(json!({"do": "delay", "ms": 60_000, "operation": "write"}))
        .await;
    let writing = initiator.write(0, content(0, 1), false);
    let cutting = async {
        // One queue, in order: when the read is answered, the write has begun.
        initiator.read(9, 1).await.expect("read");
        volume.fault(json!({"do": "disconnect"})).await;
    };
    let (outcome, ()) = timeout(LONG, async { tokio::join!(writing, cutting) })
        .await
        .expect("in time");
    let error = outcome.expect_err("lost");
    assert!(
        matches!(error, Error::ConnectionLost { .. }) && error.outcome_unknown(),
        "{error}"
    );
}

#[tokio::test]
async fn a_slow_command_runs_into_its_deadline_and_the_path_is_made_anew() {
    let volume = Volume::new().await;
    let mut options = volume.options("a");
    options.command_deadline = Duration::from_millis(300);
    let initiator = Initiator::connect(options).await.expect("connect");
    volume.fault(json!({"do": "delay", "ms": 60_000})).await;
    let error = initiator
        .write(0, content(0, 1), false)
        .await
        .expect_err("late");
    assert!(matches!(error, Error::Deadline { .. }) && error.outcome_unknown());
    volume.fault(json!({"do": "heal"})).await;
    wait_for(&initiator, |path| {
        matches!(path, Path::Connected { association: 2, .. })
    })
    .await;
    initiator
        .write(0, content(0, 1), false)
        .await
        .expect("write");
}

#[tokio::test]
async fn a_silent_path_is_noticed_within_the_keep_alive_time() {
    let volume = Volume::new().await;
    let mut options = volume.options("a");
    options.keep_alive = Duration::from_millis(1000);
    options.connect_deadline = Duration::from_millis(300);
    let initiator = Initiator::connect(options).await.expect("connect");
    volume.fault(json!({"do": "blackhole"})).await;
    let cut = Instant::now();
    wait_for(&initiator, |path| !is_connected(path)).await;
    // Within one KATO; the rest is for a machine under load.
    assert!(
        cut.elapsed() < Duration::from_millis(3000),
        "{:?}",
        cut.elapsed()
    );
    volume.fault(json!({"do": "heal"})).await;
    wait_for(&initiator, is_connected).await;
    initiator.flush().await.expect("flush");
}

#[tokio::test]
async fn a_target_that_restarts_is_found_again_and_another_namespace_is_not_taken() {
    let mut volume = Volume::new().await;
    let initiator = volume.connect("a").await;
    initiator
        .write(5, content(5, 2), true)
        .await
        .expect("write");
    volume.stop().await;
    wait_for(&initiator, |path| !is_connected(path)).await;
    volume.start(Some(Uuid::from_u128(0xbad))).await;
    let refused = wait_for(
        &initiator,
        |path| matches!(path, Path::Connecting { cause, .. } if cause.contains("another namespace")),
    );
    refused.await;
    volume.stop().await;
    volume.start(None).await;
    wait_for(&initiator, is_connected).await;
    assert_eq!(initiator.read(5, 2).await.expect("read"), content(5, 2));
}

#[tokio::test]
async fn connecting_in_vain_says_why() {
    let volume = Volume::new().await;
    let mut options = volume.options("a");
    options.namespace_id = 7;
    let error = Initiator::connect(options)
        .await
        .err()
        .expect("no such namespace");
    assert!(
        error.to_line().contains("no namespace 7") || error.status().is_some(),
        "{error}"
    );
    let mut options = volume.options("a");
    options.subsystem = "nqn.2026-11.dev.baton:other".parse().expect("an NQN");
    let error = Initiator::connect(options)
        .await
        .err()
        .expect("no such subsystem");
    assert!(error.status().is_some(), "{error:?}");
    let mut options = volume.options("a");
    // A port that was free a moment ago.
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    options.address = free.local_addr().expect("an address").to_string();
    drop(free);
    let error = Initiator::connect(options)
        .await
        .err()
        .expect("nobody listens");
    assert!(matches!(error, ConnectError::Tcp { .. }), "{error:?}");
}

#[tokio::test]
async fn discovery_names_the_subsystem() {
    let volume = Volume::new().await;
    let log = discover(&volume.options("a")).await.expect("discover");
    let [entry] = log.entries.as_slice() else {
        panic!("one entry: {log:?}");
    };
    assert_eq!(entry.subsystem, default_subsystem());
    assert_eq!(entry.address.port(), volume.address.port());
}
