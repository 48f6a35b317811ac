//! Nobody holds: the first start, a target that forgot, and this host's own hold.

use fencing::{KeyFlags, Mono};

use super::*;

/// Member 1, ready, on a volume that nobody holds.
fn absent(record: Option<(u32, u8)>) -> Scene {
    let mut scene = Scene::new(1, 2);
    scene.read_volume(None);
    scene.read_lease(record);
    scene.decide();
    scene.seen.local.device = Device::Attached { made: 1 };
    scene.end(Outcome::Done);
    scene.end(Outcome::Done);
    scene.pass(1);
    scene
}

/// Member 2 says what it has, and which heartbeat of ours it heard last.
fn says(scene: &mut Scene, custody: Custody, heard: u64) {
    let ours = Heard {
        incarnation: scene.seen.local.incarnation,
        sequence: heard,
    };
    scene.hear(2, |heartbeat| {
        heartbeat.custody = custody;
        heartbeat.heard.insert(member(1), ours);
    });
}

#[test]
fn the_first_start_proves_the_volume_blank_before_it_acquires() {
    let mut scene = absent(None);
    assert_eq!(scene.begun(), Some(Work::PrepareVolume));
    scene.end(Outcome::Volume(VolumeFacts::Blank));
    let Some(Work::ClaimLease { expected, record }) = scene.begun() else {
        panic!()
    };
    assert_eq!((expected, record.epoch), (None, epoch(1)));
    scene.end(Outcome::Done);
    let Some(Work::Fence { victim, .. }) = scene.begun() else {
        panic!()
    };
    assert_eq!(victim, Victim::Nobody(AbsenceEvidence::FirstStart));
    scene.end_fence(1);
    scene.end(Outcome::Volume(VolumeFacts::Blank));
    assert_eq!(scene.begun(), Some(Work::Format { epoch: epoch(1) }));
}

#[test]
fn a_volume_in_use_is_no_first_start_even_without_a_lease_record() {
    let mut scene = absent(None);
    scene.end(Outcome::Volume(VolumeFacts::Ours { clean: true }));
    assert_eq!(
        scene.reason(),
        &Reason::ReservationAbsent {
            unproven: member(2)
        }
    );
    assert!(scene.reason().needs_operator());
}

#[test]
fn only_the_bootstrap_member_makes_the_database() {
    let mut scene = Scene::standby();
    scene.read_volume(None);
    scene.seen.lease = Seen::Known {
        value: None,
        at: Mono::from_millis(scene.now),
    };
    scene.pass(5_000);
    assert_eq!(
        scene.reason(),
        &Reason::WaitingForBootstrap {
            bootstrap: member(1)
        }
    );
}

#[test]
fn no_database_is_made_where_others_are_registered() {
    let mut scene = Scene::new(1, 2);
    scene.read_volume(None);
    if let Seen::Known { value, at: _ } = &mut scene.seen.mailbox {
        value.foreign.push(Foreign {
            host: host(9),
            key: 0xa1,
            holder: false,
        });
    }
    scene.read_lease(None);
    scene.decide();
    scene.seen.local.device = Device::Attached { made: 1 };
    scene.end(Outcome::Done);
    scene.end(Outcome::Done);
    scene.pass(60_000);
    assert_eq!(scene.reason(), &Reason::ForeignRegistrants);
    assert!(scene.reason().needs_operator());
    assert_eq!(scene.begun(), None);
}

#[test]
fn absence_is_no_permission() {
    let mut scene = absent(Some((5, 1)));
    scene.pass(60_000);
    assert_eq!(
        scene.reason(),
        &Reason::ReservationAbsent {
            unproven: member(2)
        }
    );
}

#[test]
fn every_members_word_after_our_registration_permits_the_acquire() {
    let mut scene = absent(Some((5, 1)));
    let before = scene.memory.watch.absent.unwrap().heartbeats;
    says(&mut scene, Custody::Nothing, before);
    scene.pass(100);
    assert_eq!(
        scene.role(),
        RoleName::Standby,
        "said before it heard of our registration"
    );
    says(&mut scene, Custody::Relinquished, before + 1);
    scene.pass(100);
    assert_eq!(
        scene.role(),
        RoleName::Standby,
        "its device may have writes queued"
    );
    says(&mut scene, Custody::Nothing, before + 1);
    scene.pass(100);
    assert_eq!(scene.evidence(), Some(Evidence::EveryOwnerStopped));
}

#[test]
fn another_incarnations_answer_is_no_proof() {
    let mut scene = absent(Some((5, 1)));
    let heard = Heard {
        incarnation: Incarnation(99),
        sequence: u64::MAX,
    };
    scene.hear(2, |heartbeat| {
        heartbeat.heard.insert(member(1), heard);
    });
    scene.pass(1_000);
    assert_eq!(scene.role(), RoleName::Standby);
}

#[test]
fn a_registration_that_is_gone_makes_all_words_old() {
    let mut scene = absent(Some((5, 1)));
    let before = scene.memory.watch.absent.unwrap().heartbeats;
    scene.now += 10;
    scene.read_volume(None);
    if let Seen::Known { value, at: _ } = &mut scene.seen.mailbox {
        value.members.retain(|entry| entry.host != host(1));
    }
    says(&mut scene, Custody::Nothing, before + 1);
    scene.decide();
    assert!(
        matches!(scene.begun(), Some(Work::Register { .. })),
        "{:?}",
        scene.reason()
    );
}

#[test]
fn an_operators_word_permits_the_acquire() {
    let mut scene = absent(Some((5, 1)));
    scene.ask(Ask::OwnersStopped);
    assert_eq!(scene.answer(), Some(Answer::Done));
    scene.seen.request = None;
    scene.pass(100);
    assert_eq!(scene.evidence(), Some(Evidence::OperatorsWord));
}

#[test]
fn an_operators_word_is_refused_where_somebody_holds() {
    let mut scene = Scene::standby();
    scene.ask(Ask::OwnersStopped);
    assert!(matches!(scene.answer(), Some(Answer::Refused(_))));
}

#[test]
fn an_own_hold_of_an_earlier_process_is_not_beaten_and_left_to_a_ready_peer() {
    let mut scene = Scene::new(1, 2);
    scene.seen.local.former_writer = true;
    scene.read_volume(Some((1, 5, KeyFlags::NONE)));
    scene.read_lease(Some((5, 1)));
    scene.decide();
    scene.seen.local.device = Device::Attached { made: 1 };
    scene.hear(2, |_| {});
    scene.end(Outcome::Done);
    assert_eq!(
        scene.reason(),
        &Reason::LeftTo {
            other: Some(member(2))
        }
    );
    assert!(
        !scene.beats(),
        "a beat would look like the dead owner's life"
    );
    for _ in 0..20 {
        scene.hear(2, |_| {});
        scene.pass(250);
        if scene.begun().is_some() {
            break;
        }
        assert!(!scene.beats());
    }
    assert_eq!(scene.evidence(), Some(Evidence::OwnHold { clean: false }));
    scene.end(Outcome::Done);
    let Some(Work::Fence {
        victim,
        former_gone,
        ..
    }) = scene.begun()
    else {
        panic!()
    };
    assert!(matches!(victim, Victim::Own { clean: false, .. }));
    assert!(
        former_gone.is_some(),
        "its own earlier writes may still be on their way"
    );
}

#[test]
fn a_blank_volume_of_an_initialized_cluster_is_never_formatted() {
    let mut scene = Scene::standby();
    scene.pass(3_000);
    scene.end(Outcome::Done);
    scene.end_fence(6);
    scene.end(Outcome::Volume(VolumeFacts::Blank));
    assert_eq!(scene.reason(), &Reason::VolumeBlank);
    assert_eq!(scene.begun(), None);
}

#[test]
fn two_members_of_one_host_identity_are_not_mixed_up() {
    let mut scene = Scene::standby();
    if let Seen::Known { value, at: _ } = &mut scene.seen.mailbox {
        for entry in &mut value.members {
            entry.host = host(2);
        }
    }
    scene.pass(1_000);
    assert_eq!(
        scene.reason(),
        &Reason::SharedHostIdentity { other: member(1) }
    );
}
