//! The fences beside the reservation, and all of them as one.

mod common;

use std::path::PathBuf;
use std::time::Duration;

use common::{at, claim, host, key, limits, victim};
use fencing::command_fence::{CommandFence, CommandUnproven};
use fencing::model::{Model, Quirks};
use fencing::watchdog::WatchdogWait;
use fencing::{
    Command, Drain, Expectation, Fence, FenceSequence, FenceStopped, FurtherFence, FurtherFences,
    Mono, PermitLost, Sequence, Step, Suspect, WritePermit,
};
use nvme::initiator::{Initiator, Options};
use nvme::reservation::{Acquire, ChangePersistence, Register};
use nvme::target::{NamespaceConfig, Target, TargetConfig};
use nvme::{HostIdentity, Namespace, ReservationType};
use tempfile::TempDir;
use tokio::time::Instant;

const WE: ReservationType = ReservationType::WriteExclusive;

fn suspect() -> Suspect {
    let victim = victim(1, 4);
    Suspect {
        member: victim.member,
        host: victim.host,
        epoch: victim.epoch,
        since: at(0),
    }
}

fn shell(script: &str, timeout: Duration) -> CommandFence {
    CommandFence {
        program: PathBuf::from("/bin/sh"),
        arguments: vec!["-c".to_owned(), script.to_owned()],
        timeout,
    }
}

fn clock() -> impl Fn() -> Mono + Send + Sync {
    let began = Instant::now();
    move || Mono::ZERO + began.elapsed()
}

#[tokio::test]
async fn only_exit_code_zero_is_proof() {
    let fence = shell(
        "echo off: $BATON_SUSPECT_MEMBER $BATON_SUSPECT_EPOCH",
        Duration::from_secs(5),
    );
    let proof = fence.fence(&suspect(), &clock(), Mono::MAX).await.unwrap();
    assert_eq!(proof.output, "off: 1 4");

    let fence = shell("echo no such outlet >&2; exit 3", Duration::from_secs(5));
    let unproven = fence
        .fence(&suspect(), &clock(), Mono::MAX)
        .await
        .unwrap_err();
    assert!(
        unproven.to_string().contains("no such outlet"),
        "{unproven}"
    );
    assert!(matches!(unproven, CommandUnproven::Failed { .. }));

    let killed = shell("kill -9 $$", Duration::from_secs(5));
    let unproven = killed
        .fence(&suspect(), &clock(), Mono::MAX)
        .await
        .unwrap_err();
    assert!(matches!(unproven, CommandUnproven::Failed { .. }));

    let absent = CommandFence {
        program: PathBuf::from("/nonexistent/power-off"),
        arguments: vec![],
        timeout: Duration::from_secs(5),
    };
    let unproven = absent
        .fence(&suspect(), &clock(), Mono::MAX)
        .await
        .unwrap_err();
    assert!(matches!(unproven, CommandUnproven::Start { .. }));
}

fn is_alive(pid: &str) -> bool {
    // Until it is reaped a killed process is there as a zombie.
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.contains(") Z ") && !stat.contains(") X "))
}

#[tokio::test]
async fn an_overdue_command_dies_with_all_that_it_started() {
    let fence = shell("sleep 600 & echo $!; wait", Duration::from_millis(300));
    let unproven = fence
        .fence(&suspect(), &clock(), Mono::MAX)
        .await
        .unwrap_err();
    let CommandUnproven::Overdue { output: pid, .. } = unproven else {
        panic!("{unproven}");
    };
    let gone = async {
        while is_alive(&pid) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), gone)
        .await
        .expect("the sleeper is killed");
}

#[tokio::test]
async fn the_deadline_of_the_take_over_counts_too() {
    let fence = shell("exec sleep 600", Duration::from_secs(600));
    let unproven = fence
        .fence(&suspect(), &clock(), at(100))
        .await
        .unwrap_err();
    assert!(matches!(unproven, CommandUnproven::Overdue { .. }));
}

#[tokio::test]
async fn a_flood_of_output_and_a_held_pipe_do_no_harm() {
    let script = "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done; \
                  sleep 1 & exit 0";
    let clock = clock();
    let fence = shell(script, Duration::from_secs(60));
    let proof = fence.fence(&suspect(), &clock, Mono::MAX).await.unwrap();
    assert!(proof.output.len() <= 4096 && proof.output.ends_with("line 19999"));
}

#[tokio::test(start_paused = true)]
async fn the_watchdogs_wait_counts_from_the_fence() {
    let second = Duration::from_secs(1);
    let fence = WatchdogWait::new(5 * second, 2 * second, second).unwrap();
    let clock = clock();
    let mut suspect = suspect();
    suspect.since = at(3_000);
    let too_slow = fence.fence(&suspect, &clock, at(15_999)).await.unwrap_err();
    assert_eq!((too_slow.certain_at, clock()), (at(16_000), at(0)));
    let proof = fence.fence(&suspect, &clock, at(16_000)).await.unwrap();
    assert_eq!(proof.at, at(16_000));
    assert!(clock() >= at(16_000));
}

/// A permit as the model's volume gives it.
fn permit() -> WritePermit {
    let mut model = Model::new(Quirks::NONE);
    for member in 1..=2 {
        let action = Register::Register {
            key: key(member, 4, 0).pack(),
        };
        model
            .register(host(member), action, ChangePersistence::Unchanged)
            .unwrap();
    }
    model.acquire(host(1), Acquire::Acquire, key(1, 4, 0).pack(), WE);
    let expected = Expectation::Holder(victim(1, 4));
    let mut sequence = FenceSequence::new(claim(2, 5), expected, limits(at(0)));
    let mut outcome = None;
    loop {
        match sequence.next(at(0), outcome.take()) {
            Step::Send(command) => {
                let fencing::model::Executed::Completed(done) = model.execute(host(2), &command)
                else {
                    panic!("nothing is in flight");
                };
                outcome = Some(done);
            }
            Step::Proven(permit) => return permit,
            Step::WaitUntil(_) | Step::Unproven(_) => panic!("proven at once"),
        }
    }
}

struct Volume {
    _target: Target,
    us: Initiator,
    _files: TempDir,
}

/// A real volume that we hold as the permit says.
async fn volume() -> Volume {
    let files = TempDir::new().unwrap();
    let namespace = NamespaceConfig::new(files.path().join("volume"), Some(1 << 20));
    let config = TargetConfig::local(namespace);
    let subsystem = config.subsystem.clone();
    let target = Target::start(config).await.unwrap();
    let nqn = "nqn.2026-11.dev.baton:host2".parse().unwrap();
    let identity = HostIdentity { nqn, id: host(2) };
    let address = target.address().to_string();
    let us = Initiator::connect(Options::new(address, subsystem, 1, identity))
        .await
        .unwrap();
    let command = Command::Register {
        key: key(2, 5, 1),
        persistence: ChangePersistence::Unchanged,
    };
    fencing::drive::send(&us, command).await;
    fencing::drive::send(&us, Command::Acquire { key: key(2, 5, 1) }).await;
    Volume {
        _target: target,
        us,
        _files: files,
    }
}

#[tokio::test]
async fn every_configured_fence_must_be_proven() {
    let volume = volume().await;
    let prove = async |fences: Vec<FurtherFence>| {
        let fences = FurtherFences(fences);
        fences
            .prove(permit(), &suspect(), &volume.us, &clock(), at(10_000))
            .await
    };
    let yes = || FurtherFence::Command(shell("exit 0", Duration::from_secs(5)));
    let no = || FurtherFence::Command(shell("exit 1", Duration::from_secs(5)));
    let second = Duration::from_secs(1);
    let slow = WatchdogWait::new(60 * second, 2 * second, 5 * second).unwrap();

    let none = prove(vec![]).await.unwrap();
    assert!(matches!(none.drain(), Drain::Aborted { .. }));
    assert!(prove(vec![yes(), yes()]).await.is_ok());
    let stopped = prove(vec![yes(), no()]).await;
    assert!(matches!(stopped, Err(FenceStopped::Command { .. })));
    let stopped = prove(vec![FurtherFence::Watchdog(slow), yes()]).await;
    assert!(matches!(stopped, Err(FenceStopped::WatchdogTooSlow { .. })));
}

#[tokio::test]
async fn a_volume_lost_meanwhile_stops_the_take_over() {
    let volume = volume().await;
    let gone = Register::Unregister {
        key: key(2, 5, 1).pack(),
    };
    volume
        .us
        .register(gone, ChangePersistence::Unchanged)
        .await
        .unwrap();
    let fences = FurtherFences(vec![FurtherFence::Command(shell(
        "exit 0",
        Duration::from_secs(5),
    ))]);
    let stopped = fences
        .prove(permit(), &suspect(), &volume.us, &clock(), at(10_000))
        .await;
    assert!(matches!(
        stopped,
        Err(FenceStopped::PermitLost(PermitLost::ReservationAbsent))
    ));
}

#[test]
fn the_configuration_is_read_strictly() {
    let text = r#"[{"command":{"program":"/usr/sbin/off","arguments":["n1"],"timeout":{"secs":9,"nanos":0}}}]"#;
    let fences: FurtherFences = serde_json::from_str(text).unwrap();
    assert_eq!(fences.0.len(), 1);
    let unknown = text.replace("arguments", "argumnets");
    assert!(serde_json::from_str::<FurtherFences>(&unknown).is_err());
}
