//! The sequences on a real NVMe/TCP target, through the real initiator: three hosts, loopback.

mod common;

use std::time::Duration;

use bytes::Bytes;
use common::{claim, cluster, host, key, limits, victim};
use fencing::model::{Executed, Model, Quirks};
use fencing::{
    AbsenceEvidence, Drain, Expectation, FenceSequence, FenceUnverified, Mono, Outcome, OwnHold,
    StartSequence, WritePermit, drive,
};
use nvme::initiator::{Initiator, Options};
use nvme::reservation::{Acquire, ChangePersistence, Register, Release, ReservationType};
use nvme::target::{NamespaceConfig, Target, TargetConfig};
use nvme::{HostIdentity, Namespace, Status};
use tempfile::TempDir;
use tokio::time::Instant;

const COMMAND: Duration = Duration::from_secs(2);

struct Site {
    target: Target,
    hosts: Vec<Initiator>,
    began: Instant,
    _files: TempDir,
}

impl Site {
    /// A target with members 1 to 3 attached.
    async fn new() -> Self {
        let files = TempDir::new().unwrap();
        let namespace = NamespaceConfig::new(files.path().join("volume"), Some(1 << 20));
        let config = TargetConfig {
            state: Some(files.path().join("state")),
            ..TargetConfig::local(namespace)
        };
        let subsystem = config.subsystem.clone();
        let target = Target::start(config).await.unwrap();
        let mut hosts = Vec::new();
        for number in 1..=3 {
            let identity = HostIdentity {
                nqn: format!("nqn.2026-11.dev.baton:host{number}")
                    .parse()
                    .unwrap(),
                id: host(number),
            };
            let address = target.address().to_string();
            let options = Options::new(address, subsystem.clone(), 1, identity);
            hosts.push(Initiator::connect(options).await.unwrap());
        }
        Self {
            target,
            hosts,
            began: Instant::now(),
            _files: files,
        }
    }

    fn host(&self, member: u8) -> &Initiator {
        &self.hosts[usize::from(member) - 1]
    }

    fn now(&self) -> Mono {
        Mono::ZERO + self.began.elapsed()
    }

    async fn start(&self, member: u8, epoch: u32) -> fencing::Registered {
        let mut limits = limits(self.now());
        limits.require_persistence = true;
        let mut sequence = StartSequence::new(claim(member, epoch), limits);
        let started = drive(&mut sequence, self.host(member), || self.now(), COMMAND).await;
        started.expect("registered")
    }

    async fn fence(
        &self,
        member: u8,
        epoch: u32,
        expected: Expectation,
    ) -> Result<WritePermit, FenceUnverified> {
        let mut limits = limits(self.now());
        limits.require_persistence = true;
        let mut sequence = FenceSequence::new(claim(member, epoch), expected, limits);
        drive(&mut sequence, self.host(member), || self.now(), COMMAND).await
    }

    async fn write(&self, member: u8) -> Result<(), nvme::Error> {
        let block = Bytes::from(vec![member; 512]);
        self.host(member).write(0, block, true).await
    }
}

#[tokio::test]
async fn a_volume_goes_from_nobody_to_one_member_and_to_another() {
    let site = Site::new().await;
    for member in 1..=3 {
        site.start(member, 0).await;
    }
    let never = Expectation::Nobody(AbsenceEvidence::NeverOwned);
    let first = site
        .fence(1, 1, never)
        .await
        .expect("a new volume is acquired");
    assert_eq!(first.drain(), Drain::NeverOwned);
    site.write(1).await.expect("the holder writes");
    assert!(site.write(2).await.unwrap_err().is_conflict());

    let second = site
        .fence(2, 2, Expectation::Holder(victim(1, 1)))
        .await
        .expect("fenced");
    assert!(matches!(second.drain(), Drain::Aborted { .. }));
    assert!(
        site.write(1).await.unwrap_err().is_conflict(),
        "the fenced host cannot write"
    );
    site.write(2).await.expect("the new holder writes");
    let report = site.host(3).report().await.unwrap();
    assert_eq!(second.confirm(&report), Ok(()));
    assert!(first.confirm(&report).is_err());
    let own = report.of_host(host(2)).map(|r| r.key);
    assert_eq!(
        own,
        Some(second.key().pack()),
        "the permit names the registered key"
    );

    let late = site.fence(3, 2, Expectation::Holder(victim(1, 1))).await;
    assert!(late.unwrap_err().is_lost_race());
    assert!(
        !site.start(1, 1).await.holds,
        "the fenced member is a standby again"
    );
    assert!(site.write(1).await.unwrap_err().is_conflict());
}

#[tokio::test]
async fn a_restarted_holder_keeps_its_hold_and_waits_for_its_old_commands() {
    let site = Site::new().await;
    site.start(1, 0).await;
    let never = Expectation::Nobody(AbsenceEvidence::NeverOwned);
    drop(site.fence(1, 1, never).await.unwrap());
    let again = site.start(1, 0).await;
    assert!(again.holds && again.key.epoch.number() == 1 && again.replaced.is_some());

    let mut limits = limits(site.now());
    limits.drain_wait = Some(Duration::from_millis(80));
    limits.beat = Duration::from_millis(20);
    let since = site.now();
    let expected = Expectation::Ourselves(OwnHold::QuietSince(since));
    let mut sequence = FenceSequence::new(claim(1, 1), expected, limits);
    let permit = drive(&mut sequence, site.host(1), || site.now(), COMMAND)
        .await
        .unwrap();
    assert_eq!(permit.drain(), Drain::Waited { since });
    assert!(since.elapsed(Duration::from_millis(80), permit.proven_at()));
}

#[tokio::test]
async fn without_a_path_nothing_is_proven() {
    let site = Site::new().await;
    for member in 1..=2 {
        site.start(member, 0).await;
    }
    let never = Expectation::Nobody(AbsenceEvidence::NeverOwned);
    drop(site.fence(1, 1, never).await.unwrap());
    let began = site.began;
    let Site {
        target,
        hosts,
        _files,
        ..
    } = site;
    target.shutdown().await.unwrap();
    let now = || Mono::ZERO + began.elapsed();
    let mut limits = limits(now());
    limits.deadline = now() + Duration::from_millis(300);
    let expected = Expectation::Holder(victim(1, 1));
    let mut sequence = FenceSequence::new(claim(2, 2), expected, limits);
    let ended = drive(&mut sequence, &hosts[1], now, COMMAND).await;
    assert!(
        matches!(ended, Err(FenceUnverified::OutOfTime { .. })),
        "{ended:?}"
    );
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Register(Register, ChangePersistence),
    Acquire(Acquire, u64, ReservationType),
    Release(Release, u64),
}

/// The same pseudo-random commands on the model and on the wire, compared step by step: the codecs
/// and the target's commands are checked with the table.
#[tokio::test]
async fn the_model_agrees_with_the_target_on_the_wire() {
    let mut random: u64 = 7;
    let mut draw = move |below: u64| {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % below
    };
    let site = Site::new().await;
    let mut model = Model::new(Quirks::NONE);
    for _ in 0..1_500 {
        let member = draw(3) as u8 + 1;
        let kind = ReservationType::ALL[draw(6) as usize];
        let step = a_step(&mut draw, kind);
        let (ours, theirs) = match step {
            Step::Register(action, persistence) => (
                model.register(host(member), action, persistence),
                site.host(member).register(action, persistence).await,
            ),
            Step::Acquire(action, key, kind) => (
                status(model.acquire(host(member), action, key, kind)),
                site.host(member).acquire(action, key, kind).await,
            ),
            Step::Release(action, key) => (
                model.release(host(member), action, key),
                site.host(member).release(action, key).await,
            ),
        };
        let theirs = theirs.map_err(|error| error.status().expect("a status"));
        assert_eq!(ours, theirs, "{step:?} of {member}");
        let reader = draw(3) as u8 + 1;
        assert_eq!(model.report(), site.host(reader).report().await.unwrap());
    }
    assert_eq!(key(1, 1, 0).cluster, cluster());
}

fn status(executed: Executed) -> Result<(), Status> {
    match executed {
        Executed::Completed(Outcome::Refused(status)) => Err(status),
        Executed::Completed(_) | Executed::Draining(_) => Ok(()),
    }
}

fn a_step(draw: &mut impl FnMut(u64) -> u64, kind: ReservationType) -> Step {
    let (key, other) = (draw(4), draw(4));
    let persistence = match draw(8) {
        0 => ChangePersistence::Volatile,
        1 => ChangePersistence::Persistent,
        _ => ChangePersistence::Unchanged,
    };
    match draw(12) {
        0..=2 => Step::Register(Register::Register { key }, persistence),
        3 => Step::Register(Register::Unregister { key }, persistence),
        4 => Step::Register(
            Register::Replace {
                current: key,
                new: other,
            },
            persistence,
        ),
        5 | 6 => Step::Acquire(Acquire::Acquire, key, kind),
        7 => Step::Acquire(Acquire::Preempt { victim: other }, key, kind),
        8 | 9 => Step::Acquire(Acquire::PreemptAndAbort { victim: other }, key, kind),
        10 => Step::Release(Release::Release(kind), key),
        _ => Step::Release(Release::Clear, key),
    }
}
