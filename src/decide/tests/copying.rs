//! A copy of another site's database to a blank volume, and what ends it.

use super::super::memory::{TakeOver, TakeOverPhase};
use super::super::zone::{
    ClusterLease, ClusterRecord, Degraded, SiteName, Sync, Synchronous, ZoneConfig, ZoneSeen,
};
use super::*;

/// Member 1 of 2 at site b has fenced its blank volume as epoch 6 and copies the database of site a.
fn copying() -> Scene {
    let mut scene = Scene::new(1, 2);
    let site = |name: &str| SiteName(name.to_owned());
    scene.config.zone = Some(ZoneConfig {
        site: site("b"),
        sites: [(site("a"), true), (site("b"), true)].into(),
        synchronous: Synchronous::Preferred,
        quorum: 1,
        first: site("a"),
        archive: false,
    });
    let unseen = || "not yet".to_owned();
    let (since, at) = (Mono::from_millis(1_000), Mono::from_millis(1_000));
    let unknown = |cause| Seen::Unknown { since, cause };
    let mut record = ClusterRecord::first(site("a"), Sync::none(Degraded::NotYet));
    record.system = Some(7);
    let lease = ClusterLease {
        version: LeaseVersion("1".to_owned()),
        record,
    };
    scene.seen.zone = Some(Box::new(ZoneSeen {
        record: Seen::Known {
            value: Some(lease),
            at,
        },
        leases: Default::default(),
        postgres: Seen::Unknown {
            since,
            cause: unseen(),
        },
        probe: Seen::Unknown {
            since,
            cause: unseen(),
        },
    }));
    scene.seen.lease = unknown(unseen());
    scene.seen.local.device = Device::Attached { made: 1 };
    scene.memory.role = Role::TakingOver(TakeOver {
        epoch: epoch(6),
        evidence: Evidence::FirstStart,
        victim: Victim::Nobody(AbsenceEvidence::FirstStart),
        phase: TakeOverPhase::Formatting,
        proven_at: Some(at),
    });
    scene.now += 1;
    scene.read_volume(Some((1, 6, KeyFlags::NONE)));
    scene.decide();
    assert!(
        matches!(scene.begun(), Some(Work::Seed { .. })),
        "{:?}",
        scene.last
    );
    scene.seen.local.mount = Mount::Mounted;
    scene
}

#[test]
fn a_member_that_leaves_ends_its_copy_and_gives_the_volume_away() {
    let mut scene = copying();
    scene.seen.stopping = true;
    scene.decide();
    assert_eq!(scene.begun(), Some(Work::KillPostgres));
    scene.end(Outcome::Done);
    assert_eq!(scene.begun(), Some(Work::Unmount));
    scene.seen.local.mount = Mount::Unmounted;
    scene.end(Outcome::Unmounted { clean: true });
    assert!(matches!(scene.begun(), Some(Work::AnnounceClean { .. })));
}

#[test]
fn a_copy_ends_with_the_hold() {
    let mut scene = copying();
    scene.now += 1;
    scene.read_volume(Some((2, 7, KeyFlags::NONE)));
    scene.decide();
    assert_eq!(scene.begun(), Some(Work::KillPostgres));
    // Nothing else before its programs are gone.
    scene.decide();
    assert_eq!(scene.begun(), None);
    scene.end(Outcome::Done);
    assert_eq!(scene.begun(), Some(Work::ShutdownFilesystem));
}
