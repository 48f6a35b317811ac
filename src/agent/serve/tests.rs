//! A session of an earlier agent, with a volume that cannot be reached, on files in the place of the kernel's.

use std::fs;
use std::os::fd::OwnedFd;

use nvme::HostIdentity;
use nvme::target::{NamespaceConfig, Target, TargetConfig};
use tempfile::TempDir;
use uuid::Uuid;

use super::super::protocol::{Ask, What};
use super::*;
use crate::attachment::Happening;
use crate::config::{Transport, Volume};
use crate::decide::{TimingSettings, Timings, Work};

const KEY: &str = "db/main-a";

/// What takes longer has not happened at all.
const SOON: Duration = Duration::from_secs(30);

/// A node's directories.
struct Place {
    files: TempDir,
    target: TargetConfig,
}

impl Place {
    fn new() -> Self {
        let files = tempfile::tempdir().unwrap();
        for directory in ["state/sessions", "groups", "member", "volume"] {
            fs::create_dir_all(files.path().join(directory)).unwrap();
        }
        fs::write(files.path().join("groups/cgroup.controllers"), "").unwrap();
        let namespace = NamespaceConfig::new(files.path().join("image"), Some(1 << 20));
        let target = TargetConfig::local(namespace);
        Self { files, target }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    fn populated(&self, populated: u8) {
        let text = format!("populated {populated}\nfrozen 0\n");
        fs::write(self.path("member/cgroup.events"), text).unwrap();
    }

    /// Of a member that had nothing mounted.
    fn saved(&self, address: &str) -> Saved {
        let host = HostIdentity {
            nqn: "nqn.2026-11.dev.baton:host1".parse().unwrap(),
            id: nvme::HostId(Uuid::from_u128(1)),
        };
        let timings = Timings::new(TimingSettings {
            command: Duration::from_millis(500),
            retry: Duration::from_millis(100),
            ..TimingSettings::default()
        });
        Saved {
            key: KEY.to_owned(),
            pod: Uuid::from_u128(7),
            container: self.path("member"),
            owner: (0, 0),
            hello: Hello {
                protocol: PROTOCOL,
                cluster: "main".to_owned(),
                site: "local".to_owned(),
                member: "a".to_owned(),
                number: fencing::MemberId::new(1).unwrap(),
                major: 15,
                data_directory: "pgdata".into(),
                timings: timings.unwrap(),
                resume: true,
            },
            volume: Volume {
                transport: Transport::Tcp,
                address: address.parse().unwrap(),
                subsystem: self.target.subsystem.clone(),
                namespace_id: 1,
                identifier: None,
                host_nqn: host.nqn,
                host_id: host.id,
                mount_point: self.path("volume"),
                directory: self.path("bridge"),
                require_persistence: false,
            },
            runtime_dir: self.path("state"),
            record: Record::default(),
        }
    }

    /// An agent, after one that had this session. Its API server is away.
    fn agent(&self, saved: &Saved) -> Arc<Agent> {
        let records = Records::at(&self.path("state/sessions")).unwrap();
        records.save(saved).unwrap();
        let config = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
        let node = Node {
            name: "node".to_owned(),
            host: saved.volume.host(),
            members: self.path("members"),
            state: self.path("state"),
            kubelet: self.path("kubelet"),
            control_groups: self.path("groups"),
            bridges: self.path("bridges"),
            sysfs: self.path("sysfs"),
        };
        let options = Options {
            socket: self.path("agent.sock"),
            resume_within: Duration::from_secs(3600),
        };
        let client = kube::Client::try_from(config).unwrap();
        Agent::new(options, Platform::follow(client, node)).unwrap()
    }
}

fn peer(saved: &Saved) -> Peer {
    Peer {
        owner: saved.owner,
        pod: saved.pod,
        container: saved.container.clone(),
    }
}

async fn resume(agent: &Agent, saved: &Saved, lock: Option<OwnedFd>) -> Refusal {
    let found = agent.waiting.of_pod(saved.pod).expect("it waits");
    let resumed = agent.resume(peer(saved), found, lock).await;
    resumed.err().expect("it cannot be resumed")
}

async fn until(what: &str, mut is: impl FnMut() -> bool) {
    let late = clock::now() + SOON;
    while !is() {
        assert!(clock::now() < late, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_waits_until_it_is_cleaned_up_after_however_often_its_resume_fails() {
    let place = Place::new();
    place.populated(1);
    // A target has this address later.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let saved = place.saved(&address.to_string());
    let agent = place.agent(&saved);
    let minder = tokio::spawn(agent.clone().mind_the_waiting());

    let lock = lock(&saved).unwrap();
    for _ in 0..2 {
        let refused = resume(&agent, &saved, Some(lock.try_clone().unwrap())).await;
        assert!(refused.again, "the volume is away: {}", refused.why);
        assert!(agent.waiting.has(KEY), "{}", refused.why);
    }
    let refused = resume(&agent, &saved, None).await;
    assert!(!refused.again, "another process: {}", refused.why);
    let claim = agent.claim(KEY).await.expect("nobody works on it");
    assert!(agent.waiting.has(KEY));

    // Neither a new pod of this name nor another that would have the volume comes past it.
    let in_the_way = |key: &str, place: &Path| agent.waiting.in_the_way(key, place);
    let (own, other) = (saved.runtime_dir.as_path(), Path::new("/other"));
    assert_eq!(in_the_way(KEY, other).as_deref(), Some(KEY));
    assert_eq!(in_the_way("db/main-b", own).as_deref(), Some(KEY));
    assert_eq!(in_the_way("db/main-b", other), None);

    drop(claim);
    drop(lock);
    place.populated(0);
    // It has ended, and its volume is still away.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let record = place.path("state/sessions/db_main-a.json");
    assert!(agent.waiting.has(KEY) && record.exists());
    let target = Target::start(TargetConfig {
        listen: address,
        ..place.target.clone()
    });
    let _target = target.await.unwrap();
    until("it is cleaned up after", || agent.waiting.is_empty()).await;
    assert!(!record.exists(), "its record stays");
    assert!(!minder.is_finished(), "the minder has ended");
    minder.abort();
}

/// Runs a session of this member, whose end of the connection and whose way to the writer `act` has. How it
/// ended.
async fn session<A: Future<Output = ()>>(
    place: &Place,
    act: impl FnOnce(UnixStream, Out, Target) -> A,
) -> Ended {
    let target = Target::start(place.target.clone()).await.unwrap();
    let saved = place.saved(&target.address().to_string());
    let agent = place.agent(&saved);
    let silent = Tell::to(|_happening| {});
    let attachment = Attachment::open(saved.settings(&agent.outlive), silent).await;
    let (out, said) = Out::new();
    let (member, stream) = UnixStream::pair().unwrap();
    let (read, write) = tokio::io::split(stream);
    let writer = tokio::spawn(session::write(write, said));
    let mut session = Session {
        attachment: Arc::new(attachment.unwrap()),
        records: agent.records.clone(),
        saved,
        out: out.clone(),
    };
    let act = act(member, out, target);
    let ended = tokio::select! {
        ended = session.run(read) => ended,
        () = act => panic!("the session outlives what it must not bear"),
        () = tokio::time::sleep(SOON) => panic!("the session goes on"),
    };
    writer.abort();
    ended
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_does_not_read_loses_its_session() {
    let place = Place::new();
    let ended = session(&place, async |_member, out, _target| {
        loop {
            out.say(Said::Happened(Happening::AgentAway {
                since: clock::now(),
            }));
            tokio::task::yield_now().await;
        }
    });
    assert_eq!(ended.await, Ended::Lost);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_asks_too_much_loses_its_session() {
    let place = Place::new();
    let ended = session(&place, async |mut member, _out, target| {
        // Nothing is answered while the volume is away.
        drop(target);
        for id in 0..10_000 {
            let what = What::Perform {
                work: Work::Unregister,
                deadline: clock::now() + SOON,
            };
            // Closed meanwhile.
            let _closed = send(&mut member, &Ask { id, what }).await;
        }
        tokio::time::sleep(SOON).await;
    });
    assert_eq!(ended.await, Ended::Lost);
}
