//! On regular files: the machines of the tests have no watchdog device.

use std::path::PathBuf;
use std::time::Duration;

use fencing::watchdog::WatchdogWait;
use fencing::{Beat, ClusterTag, KeyFlags, ReservationKey};
use nvme::ReservationReport;
use tempfile::NamedTempFile;

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const NOW: Mono = Mono::from_millis(100_000);

fn times() -> WatchdogWait {
    WatchdogWait::new(5 * SECOND, 2 * SECOND, SECOND).unwrap()
}

fn member() -> MemberId {
    MemberId::new(1).unwrap()
}

fn host(number: u128) -> HostId {
    HostId(uuid::Uuid::from_u128(number))
}

fn epoch(number: u32) -> Epoch {
    Epoch::new(number).unwrap()
}

fn over(device: PathBuf) -> SelfFence {
    let configured = FenceWatchdog {
        device,
        times: times(),
    };
    SelfFence::new(Some(configured), host(1), member())
}

/// Armed for epoch 5 on a file.
fn armed() -> (NamedTempFile, SelfFence) {
    let file = NamedTempFile::new().unwrap();
    let self_fence = over(file.path().to_owned());
    self_fence
        .arm_with(epoch(5), || {
            Ok(Watchdog::over(file.reopen().unwrap(), file.path(), times()))
        })
        .unwrap();
    (file, self_fence)
}

fn said(file: &NamedTempFile) -> Vec<u8> {
    std::fs::read(file.path()).unwrap()
}

/// A report in which `holder` holds for `epoch`; none if nobody does.
fn mailbox(holder: Option<(HostId, u32)>) -> Mailbox {
    let cluster = ClusterTag::of("main");
    let registrants = holder.map(|(holder, number)| {
        let key = ReservationKey {
            cluster,
            member: member(),
            epoch: epoch(number),
            flags: KeyFlags::NONE,
            beat: Beat::ZERO,
        };
        nvme::reservation::Registrant {
            controller: 1,
            host: holder,
            key: key.pack(),
            holder: true,
        }
    });
    let report = ReservationReport {
        generation: 1,
        persistent: true,
        reservation: holder.map(|_| ReservationType::WriteExclusive),
        registrants: registrants.into_iter().collect(),
    };
    Mailbox::read(&report, cluster)
}

#[test]
fn a_young_confirmation_of_the_very_hold_feeds_and_nothing_else_does() {
    let (file, self_fence) = armed();
    let ours = mailbox(Some((host(1), 5)));
    self_fence.confirm(&ours, NOW, NOW + 2 * SECOND);
    assert_eq!(said(&file), b"\0");
    let late = NOW + 2 * SECOND + Duration::from_millis(1);
    self_fence.confirm(&ours, NOW, late);
    for other in [Some((host(2), 5)), Some((host(1), 4)), None] {
        self_fence.confirm(&mailbox(other), NOW, NOW);
    }
    assert_eq!(said(&file), b"\0");
    drop(self_fence);
    assert_eq!(
        said(&file),
        b"\0",
        "a member that dies takes the node with it"
    );
}

#[test]
fn it_is_closed_on_purpose_once() {
    let (file, self_fence) = armed();
    self_fence.disarm();
    self_fence.disarm();
    self_fence.confirm(&mailbox(Some((host(1), 5))), NOW, NOW);
    assert_eq!(said(&file), b"V");
}

#[test]
fn the_next_ownership_without_a_pause_counts_its_own_epoch() {
    let (file, self_fence) = armed();
    self_fence
        .arm_with(epoch(6), || panic!("it is open already"))
        .unwrap();
    self_fence.confirm(&mailbox(Some((host(1), 5))), NOW, NOW);
    assert_eq!(said(&file), b"");
    self_fence.confirm(&mailbox(Some((host(1), 6))), NOW, NOW);
    assert_eq!(said(&file), b"\0");
}

#[test]
fn what_is_no_watchdog_cannot_be_armed() {
    let file = NamedTempFile::new().unwrap();
    let refused = over(file.path().to_owned()).arm(epoch(5)).unwrap_err();
    assert!(
        matches!(refused, WatchdogError::Timeout { .. }),
        "{refused}"
    );
    SelfFence::new(None, host(1), member())
        .arm(epoch(5))
        .expect("nothing is configured");
}
