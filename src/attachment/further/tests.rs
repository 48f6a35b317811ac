//! Two members on a real NVMe/TCP target, loopback, with a shell as the fence command.

use std::path::PathBuf;
use std::sync::Arc;

use fencing::command_fence::CommandFence;
use fencing::watchdog::WatchdogWait;
use fencing::{ClusterTag, FurtherFence, MemberId};
use nvme::initiator::{Initiator, Options};
use nvme::target::{NamespaceConfig, Target, TargetConfig};
use nvme::{HostId, HostIdentity};
use tempfile::TempDir;

use super::*;
use crate::attachment::carrier::Carrier;
use crate::attachment::keeper::Registrant;
use crate::decide;

const SECOND: Duration = Duration::from_secs(1);

fn member(number: u8) -> MemberId {
    MemberId::new(number).unwrap()
}

fn host(number: u8) -> HostId {
    HostId(uuid::Uuid::from_u128(u128::from(number)))
}

fn epoch(number: u32) -> Epoch {
    Epoch::new(number).unwrap()
}

fn cluster() -> ClusterTag {
    ClusterTag::of("main")
}

fn timings() -> Timings {
    Timings::new(decide::TimingSettings {
        storage_beat: Duration::from_millis(100),
        ..decide::TimingSettings::default()
    })
    .unwrap()
}

/// A member as far as its fences go.
struct Side {
    volume: Arc<Carrier>,
    keeper: Mutex<Keeper>,
}

/// Member 1 owns epoch 1; member 2 is a registered standby.
struct Site {
    files: TempDir,
    _target: Target,
    owner: Side,
    standby: Side,
}

impl Site {
    async fn new() -> Self {
        let files = TempDir::new().unwrap();
        let namespace = NamespaceConfig::new(files.path().join("volume"), Some(1 << 20));
        let config = TargetConfig::local(namespace);
        let subsystem = config.subsystem.clone();
        let target = Target::start(config).await.unwrap();
        let address = target.address().to_string();
        let mut sides = Vec::new();
        for number in 1..=2 {
            let nqn = format!("nqn.2026-11.dev.baton:host{number}");
            let identity = HostIdentity {
                nqn: nqn.parse().unwrap(),
                id: host(number),
            };
            let options = Options::new(address.clone(), subsystem.clone(), 1, identity);
            sides.push(side(number, Initiator::connect(options).await.unwrap()).await);
        }
        let (Some(standby), Some(owner)) = (sides.pop(), sides.pop()) else {
            unreachable!("two were made")
        };
        let first = order(1, Victim::Nobody(AbsenceEvidence::FirstStart));
        let site = Self {
            files,
            _target: target,
            owner,
            standby,
        };
        let _owned = site.none().fence_as(&site.owner, &first).await.unwrap();
        site
    }

    fn none(&self) -> Further {
        self.with(Vec::new())
    }

    fn with(&self, fences: Vec<FurtherFence>) -> Further {
        let suspects = self.files.path().join("suspects");
        Further::new(FurtherFences(fences), &suspects, timings())
    }

    fn command(&self, script: &str, timeout: Duration) -> Further {
        self.with(vec![FurtherFence::Command(CommandFence {
            program: PathBuf::from("/bin/sh"),
            arguments: vec![
                "-c".to_owned(),
                script.to_owned(),
                "fence".to_owned(),
                self.files.path().display().to_string(),
            ],
            timeout,
        })])
    }

    fn fenced(&self) -> String {
        std::fs::read_to_string(self.files.path().join("fenced")).unwrap_or_default()
    }

    /// The beat in member 2's key.
    async fn beat(&self) -> u16 {
        let report = self.owner.volume.report().await.unwrap();
        let mailbox = fencing::Mailbox::read(&report, cluster());
        mailbox.of_host(host(2)).unwrap().key.beat.number()
    }
}

impl Further {
    async fn fence_as(&self, side: &Side, order: &FenceOrder) -> Result<WritePermit, NotFenced> {
        self.fence(&side.keeper, &*side.volume, order).await
    }
}

async fn side(number: u8, volume: Initiator) -> Side {
    let volume = Arc::new(Carrier::UserSpace(volume));
    let registrant = Registrant {
        host: host(number),
        cluster: cluster(),
        member: member(number),
        require_persistence: false,
    };
    let identified = volume.identify().await.unwrap();
    let mut keeper = Keeper::new(volume.clone(), identified, registrant, timings());
    let deadline = clock::now() + 10 * SECOND;
    keeper
        .register(Epoch::ZERO, KeyFlags::NONE, deadline)
        .await
        .unwrap();
    Side {
        volume,
        keeper: Mutex::new(keeper),
    }
}

fn order(number: u32, victim: Victim) -> FenceOrder {
    FenceOrder {
        epoch: epoch(number),
        flags: KeyFlags::NONE,
        victim,
        former_gone: None,
        deadline: clock::now() + 40 * SECOND,
    }
}

/// The owner of epoch 1 is silent.
fn silent() -> FenceOrder {
    order(
        2,
        Victim::Holder {
            host: host(1),
            member: member(1),
            epoch: epoch(1),
            clean: false,
        },
    )
}

/// The standby finds its own hold, of a fence that was not proven.
fn own(number: u32) -> FenceOrder {
    order(
        number + 1,
        Victim::Own {
            epoch: epoch(number),
            clean: false,
            quiet_since: Mono::ZERO,
        },
    )
}

const CONFIRMS: &str = "echo $BATON_SUSPECT_MEMBER $BATON_SUSPECT_EPOCH >> $1/fenced";

#[tokio::test]
async fn a_command_that_confirms_lets_the_permit_out() {
    let site = Site::new().await;
    let further = site.command(CONFIRMS, 10 * SECOND);
    let permit = further.fence_as(&site.standby, &silent()).await.unwrap();
    assert_eq!((permit.epoch(), permit.host()), (epoch(2), host(2)));
    assert_eq!(site.fenced(), "1 1\n");
    assert_eq!(further.suspects.read().unwrap(), []);
}

#[tokio::test]
async fn the_suspect_stays_suspect_until_it_is_proven_fenced() {
    let site = Site::new().await;
    let refuses = site.command("echo outlet is stuck; exit 3", 10 * SECOND);
    let stopped = refuses
        .fence_as(&site.standby, &silent())
        .await
        .unwrap_err();
    assert!(!stopped.is_lost_race());
    let NotFenced::Further(FenceStopped::Command { source, .. }) = &stopped else {
        panic!("{stopped}");
    };
    assert!(source.to_string().contains("outlet is stuck"), "{source}");
    // The reservation is this host's by now, and no victim is named any more: nor by the next
    // process, which reads the list anew.
    let again = refuses.fence_as(&site.standby, &own(2)).await;
    assert!(matches!(again, Err(NotFenced::Further(_))), "{again:?}");
    let confirms = site.command(CONFIRMS, 10 * SECOND);
    let _permit = confirms.fence_as(&site.standby, &own(3)).await.unwrap();
    assert_eq!(site.fenced(), "1 1\n");
    // Proven once, it is not asked for again.
    let _permit = confirms.fence_as(&site.standby, &own(4)).await.unwrap();
    assert_eq!(site.fenced(), "1 1\n");
}

#[tokio::test]
async fn a_command_that_hangs_proves_nothing_and_beats_go_on_meanwhile() {
    let site = Site::new().await;
    let hangs = site.command("exec sleep 600", 2 * SECOND);
    let silent = silent();
    let fencing = hangs.fence_as(&site.standby, &silent);
    let watching = async {
        // The standby holds from here on; then its key moves on while the command hangs.
        loop {
            let report = site.owner.volume.report().await.unwrap();
            let mailbox = fencing::Mailbox::read(&report, cluster());
            match mailbox.holding_member() {
                Some(entry) if entry.host == host(2) && !entry.key.flags.draining => break,
                Some(_) | None => tokio::task::yield_now().await,
            }
        }
        let first = site.beat().await;
        while site.beat().await.wrapping_sub(first) < 3 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let (ended, ()) = tokio::join!(fencing, async {
        tokio::time::timeout(20 * SECOND, watching).await.unwrap()
    });
    let stopped = ended.unwrap_err();
    assert!(
        matches!(
            &stopped,
            NotFenced::Further(FenceStopped::Command { source, .. })
                if source.to_string().contains("did not end")
        ),
        "{stopped}"
    );
}

#[tokio::test]
async fn nobody_is_suspect_after_a_clean_owner() {
    let site = Site::new().await;
    let clean = KeyFlags {
        clean: true,
        ..KeyFlags::NONE
    };
    let said = site.owner.keeper.lock().await.say(epoch(1), clean).await;
    said.unwrap();
    let FenceOrder {
        victim:
            Victim::Holder {
                host,
                member,
                epoch,
                ..
            },
        ..
    } = silent()
    else {
        unreachable!("it names a holder")
    };
    let planned = order(
        2,
        Victim::Holder {
            host,
            member,
            epoch,
            clean: true,
        },
    );
    let refuses = site.command("exit 1", 10 * SECOND);
    let _permit = refuses.fence_as(&site.standby, &planned).await.unwrap();
}

#[tokio::test]
async fn a_watchdog_wait_that_does_not_fit_stops_and_one_that_fits_is_waited_for() {
    let site = Site::new().await;
    let times = |timeout, max_age, margin| {
        FurtherFence::Watchdog(WatchdogWait::new(timeout, max_age, margin).unwrap())
    };
    let slow = site.with(vec![times(60 * SECOND, SECOND, 3 * SECOND)]);
    let stopped = slow.fence_as(&site.standby, &silent()).await.unwrap_err();
    assert!(
        matches!(
            stopped,
            NotFenced::Further(FenceStopped::WatchdogTooSlow { .. })
        ),
        "{stopped}"
    );
    let short = Duration::from_millis(100);
    let quick = site.with(vec![times(SECOND, short, short)]);
    let permit = quick.fence_as(&site.standby, &own(2)).await.unwrap();
    assert!(
        permit
            .proven_at()
            .elapsed(2 * SECOND + 2 * short, clock::now())
    );
}

#[tokio::test]
async fn whoever_came_back_ready_is_not_fenced_a_second_time() {
    let site = Site::new().await;
    let refuses = site.command("exit 1", 10 * SECOND);
    let stopped = refuses.fence_as(&site.standby, &silent()).await;
    assert!(stopped.is_err());
    let ready = KeyFlags {
        ready: true,
        ..KeyFlags::NONE
    };
    let deadline = clock::now() + 10 * SECOND;
    let mut keeper = site.owner.keeper.lock().await;
    let none = KeyFlags::NONE;
    keeper.register(epoch(2), none, deadline).await.unwrap();
    let registered = refuses.fence_as(&site.standby, &own(2)).await;
    assert!(registered.is_err(), "being registered proves nothing");
    keeper.say(epoch(2), ready).await.unwrap();
    let _permit = refuses.fence_as(&site.standby, &own(3)).await.unwrap();
    assert_eq!(refuses.suspects.read().unwrap(), []);
}
