//! When a standby takes over, and when it does not.

use fencing::{KeyFlags, Mono};

use super::*;

const CLEAN: KeyFlags = KeyFlags {
    clean: true,
    ..KeyFlags::NONE
};

fn holder() -> Option<(u8, u32, KeyFlags)> {
    Some((1, 5, KeyFlags::NONE))
}

#[test]
fn silence_of_every_channel_for_the_detection_takes_over() {
    let mut scene = Scene::standby();
    scene.pass(1_900);
    assert_eq!(scene.begun(), None);
    scene.pass(600);
    assert!(
        matches!(scene.evidence(), Some(Evidence::Silence { .. })),
        "{:?}",
        scene.reason()
    );
    assert!(matches!(scene.begun(), Some(Work::ClaimLease { .. })));
}

#[test]
fn moving_beats_forbid_an_unplanned_take_over() {
    let mut scene = Scene::standby();
    scene.pass_with_beats(20_000, (1, 5, KeyFlags::NONE));
    assert_eq!(scene.role(), RoleName::Standby);
}

#[test]
fn heartbeats_of_an_owner_forbid_it_unless_it_is_stuck() {
    for (stuck, expected) in [(false, RoleName::Standby), (true, RoleName::TakingOver)] {
        let mut scene = Scene::standby();
        for _ in 0..20 {
            scene.hear(1, |heartbeat| {
                heartbeat.role = RoleName::Active;
                heartbeat.custody = Custody::Held;
                heartbeat.stuck = stuck;
            });
            scene.pass(250);
            if scene.begun().is_some() {
                break;
            }
        }
        assert_eq!(scene.role(), expected, "stuck: {stuck}");
    }
}

#[test]
fn unknown_channels_are_never_silence() {
    let mut scene = Scene::standby();
    let since = Mono::from_millis(scene.now);
    scene.seen.mailbox = Seen::Unknown {
        since,
        cause: String::new(),
    };
    scene.seen.lease = Seen::Unknown {
        since,
        cause: String::new(),
    };
    scene.pass(20_000);
    assert_eq!(scene.role(), RoleName::Standby);
    assert_eq!(scene.reason(), &Reason::VolumeUnseen { since });
}

#[test]
fn a_gap_in_the_own_looking_starts_the_detection_anew() {
    let mut scene = Scene::standby();
    scene.pass(1_500);
    scene.now += 5_000;
    scene.read_volume(holder());
    scene.read_lease(Some((5, 1)));
    scene.decide();
    scene.pass(1_750);
    assert_eq!(
        scene.role(),
        RoleName::Standby,
        "frozen itself, it must watch for 2 s again"
    );
    scene.pass(1_000);
    assert_eq!(scene.role(), RoleName::TakingOver);
}

#[test]
fn without_beats_silence_needs_the_lease() {
    let mut scene = Scene::standby();
    let settings = TimingSettings {
        storage_beats: false,
        ..TimingSettings::default()
    };
    scene.config.timings = Timings::new(settings).unwrap();
    let since = Mono::from_millis(scene.now);
    scene.seen.lease = Seen::Unknown {
        since,
        cause: String::new(),
    };
    scene.pass(10_000);
    assert_eq!(scene.role(), RoleName::Standby);
    scene.read_lease(Some((5, 1)));
    scene.pass(5_000);
    assert_eq!(scene.role(), RoleName::TakingOver);
}

#[test]
fn positive_proof_of_death_takes_over_at_once() {
    let mut scene = Scene::standby();
    let at = Mono::from_millis(scene.now);
    scene.seen.platform.insert(
        member(1),
        Seen::Known {
            value: Life::Exited,
            at,
        },
    );
    scene.decide();
    assert_eq!(
        scene.evidence(),
        Some(Evidence::Exited { owner: member(1) })
    );

    let mut scene = Scene::standby();
    scene.hear(1, |heartbeat| heartbeat.custody = Custody::Relinquished);
    scene.decide();
    assert_eq!(
        scene.evidence(),
        Some(Evidence::Relinquished { owner: member(1) })
    );
}

#[test]
fn what_the_owner_said_before_it_owned_is_no_proof() {
    let mut scene = Scene::standby();
    scene.hear(1, |heartbeat| heartbeat.epoch = epoch(4));
    scene.decide();
    assert_eq!(scene.role(), RoleName::Standby);
}

#[test]
fn a_clean_owner_is_followed_at_once_by_key_or_by_message() {
    let mut scene = Scene::standby();
    scene.read_volume(Some((1, 5, CLEAN)));
    scene.now += 1;
    scene.decide();
    let by_key = Evidence::Clean {
        by: member(1),
        cause: None,
    };
    assert_eq!(scene.evidence(), Some(by_key));

    let mut scene = Scene::standby();
    scene.hear(1, |heartbeat| heartbeat.handover = Some(notice(Some(2))));
    scene.decide();
    let cause = Some(HandoverCause::Operator);
    assert_eq!(
        scene.evidence(),
        Some(Evidence::Clean {
            by: member(1),
            cause
        })
    );
    let Some(Work::ClaimLease { expected, record }) = scene.begun() else {
        panic!()
    };
    assert_eq!(expected, Some(LeaseVersion("5/1".to_owned())));
    assert_eq!((record.epoch, record.holder), (epoch(6), Some(member(2))));
    scene.read_lease(Some((6, 2)));
    scene.end(Outcome::Done);
    let Some(Work::Fence { victim, .. }) = scene.begun() else {
        panic!()
    };
    let expected = Victim::Holder {
        host: host(1),
        member: member(1),
        epoch: epoch(5),
        clean: true,
    };
    assert_eq!(victim, expected);
}

fn notice(to: Option<u8>) -> HandoverNotice {
    HandoverNotice {
        epoch: epoch(5),
        to: to.map(member),
        cause: HandoverCause::Operator,
        phase: HandoverPhase::Clean,
    }
}

#[test]
fn the_chosen_one_goes_first() {
    let mut scene = Scene::standby();
    scene.hear(1, |heartbeat| heartbeat.handover = Some(notice(Some(3))));
    scene.decide();
    assert_eq!(
        scene.reason(),
        &Reason::LeftTo {
            other: Some(member(3))
        }
    );
    scene.pass(1_750);
    assert_eq!(scene.role(), RoleName::Standby);
    scene.read_volume(Some((1, 5, CLEAN)));
    scene.pass(2_500);
    assert_eq!(scene.role(), RoleName::TakingOver);
}

#[test]
fn another_ones_claim_is_respected_for_a_detection() {
    let mut scene = Scene::new(2, 3);
    scene.memory = Scene::standby().memory;
    let mut ready = Scene::standby();
    std::mem::swap(&mut scene.seen.local, &mut ready.seen.local);
    scene.now = ready.now;
    scene.read_volume(holder());
    scene.read_lease(Some((6, 3)));
    scene.pass(2_000);
    assert_eq!(
        scene.reason(),
        &Reason::LeftTo {
            other: Some(member(3))
        }
    );
    scene.pass(1_000);
    assert_eq!(scene.role(), RoleName::TakingOver);
    assert_eq!(scene.memory.newest, epoch(7));
}

#[test]
fn pause_stops_what_nobody_asked_for() {
    let mut scene = Scene::standby();
    scene.paused();
    scene.pass(10_000);
    assert_eq!(scene.reason(), &Reason::Paused);
    scene.hear(1, |heartbeat| heartbeat.handover = Some(notice(Some(2))));
    scene.decide();
    assert_eq!(
        scene.role(),
        RoleName::TakingOver,
        "the operator asked for this one"
    );
}

#[test]
fn too_many_take_overs_hold_and_report() {
    let mut scene = Scene::standby();
    scene.memory.takeovers = vec![Mono::from_millis(scene.now); 3];
    scene.pass(10_000);
    assert_eq!(scene.reason(), &Reason::TakeoversExhausted { count: 3 });
    assert!(scene.reason().needs_operator());
}

#[test]
fn an_owner_that_speaks_while_the_lease_is_claimed_is_not_fenced() {
    let mut scene = Scene::standby();
    scene.pass(3_000);
    assert!(matches!(scene.begun(), Some(Work::ClaimLease { .. })));
    scene.beat += 1;
    scene.now += 100;
    scene.read_volume(holder());
    scene.read_lease(Some((6, 2)));
    scene.end(Outcome::Done);
    assert_eq!(scene.begun(), None);
    assert_eq!(scene.role(), RoleName::Standby);
}

#[test]
fn a_lost_claim_is_weighed_again_and_a_silent_store_is_passed_over() {
    let mut scene = Scene::standby();
    scene.pass(3_000);
    scene.read_lease(Some((6, 1)));
    scene.end(Outcome::ClaimLost);
    assert_eq!(
        scene.role(),
        RoleName::Standby,
        "the owner renewed: it lives"
    );

    let mut scene = Scene::standby();
    scene.pass(3_000);
    scene.end(Outcome::Overdue);
    assert!(matches!(scene.begun(), Some(Work::Fence { .. })));
}

#[test]
fn nothing_is_mounted_without_a_proven_fence() {
    for outcome in [
        Outcome::FenceLost,
        Outcome::Overdue,
        Outcome::Failed {
            cause: String::new(),
        },
        Outcome::Done,
    ] {
        let mut scene = Scene::standby();
        scene.pass(3_000);
        scene.end(Outcome::Done);
        assert!(matches!(scene.begun(), Some(Work::Fence { .. })));
        scene.end(outcome.clone());
        assert_eq!(scene.role(), RoleName::Standby, "{outcome:?}");
        assert_eq!(scene.begun(), None);
        scene.decide();
        assert_eq!(
            scene.begun(),
            None,
            "the report is older than the failed fence"
        );
    }
}

#[test]
fn a_foreign_holder_is_left_alone() {
    let mut scene = Scene::standby();
    if let Seen::Known { value, at: _ } = &mut scene.seen.mailbox {
        value.reservation = Some(nvme::ReservationType::WriteExclusiveRegistrantsOnly);
    }
    scene.pass(10_000);
    assert_eq!(scene.reason(), &Reason::ForeignHolder);
}

#[test]
fn nothing_is_registered_where_another_site_holds() {
    let mut scene = Scene::new(1, 2);
    scene.read_volume(None);
    let foreign = Foreign {
        host: host(9),
        key: 0xa1,
        holder: true,
    };
    if let Seen::Known { value, at: _ } = &mut scene.seen.mailbox {
        value.members.clear();
        value.foreign = vec![foreign];
        value.holder = Holder::Foreign(foreign);
        value.reservation = Some(ReservationType::WriteExclusive);
    }
    scene.seen.local.device = Device::Attached { made: 1 };
    scene.pass(10_000);
    assert_eq!(scene.reason(), &Reason::ForeignHolder);
    assert_eq!(scene.begun(), None);
}

#[test]
fn a_former_owner_fences_nobody_before_its_own_writes_are_over() {
    let mut scene = Scene::standby();
    scene.memory.former_gone = Some(Mono::from_millis(scene.now));
    let drained = scene.now + 25_000;
    let at = Mono::from_millis(scene.now);
    scene.seen.platform.insert(
        member(1),
        Seen::Known {
            value: Life::Exited,
            at,
        },
    );
    scene.pass(24_000);
    assert!(
        matches!(scene.reason(), Reason::NotReady { .. }),
        "{:?}",
        scene.reason()
    );
    assert!(!scene.memory.said.as_ref().unwrap().heartbeat.ready);
    scene.pass(2_000);
    assert_eq!(scene.role(), RoleName::TakingOver);
    assert!(scene.now >= drained);
}

#[test]
fn a_standby_that_is_told_to_stop_unregisters() {
    let mut scene = Scene::standby();
    scene.seen.stopping = true;
    scene.decide();
    assert_eq!(scene.begun(), Some(Work::Unregister));
    scene.end(Outcome::Done);
    assert!(scene.last.as_ref().unwrap().actions.contains(&Action::Exit));
}

/// Volume and lease as with a lease in Kubernetes: renewed and read every 3 s.
fn rarely_renewed(scene: &mut Scene) {
    scene.config.timings = Timings::new(TimingSettings::kubernetes()).unwrap();
}

#[test]
fn a_lease_that_is_renewed_rarely_shows_no_silence() {
    let mut scene = Scene::standby();
    rarely_renewed(&mut scene);
    // The volume was read, and then is not; the lease is read all the time and rests.
    let since = Mono::from_millis(scene.now);
    scene.pass(1_000);
    scene.memory.watch.mailbox = None;
    let at = Mono::from_millis(scene.now);
    scene.memory.watch.lease_read = Some(crate::decide::memory::Span { since, last: at });
    scene.pass(1_500);
    assert_eq!(scene.role(), RoleName::Standby, "{:?}", scene.reason());
    assert!(matches!(scene.reason(), Reason::Watching { .. }));
}

#[test]
fn a_lease_read_rarely_is_good_for_its_age_and_the_volume_shows_silence() {
    let mut scene = Scene::standby();
    rarely_renewed(&mut scene);
    let read = scene.now;
    for _ in 0..60 {
        scene.pass(250);
        if scene.begun().is_some() {
            break;
        }
        if let Seen::Known { value: _, at } = &mut scene.seen.lease {
            *at = Mono::from_millis(read);
        }
    }
    assert!(
        matches!(scene.begun(), Some(Work::ClaimLease { .. })),
        "{:?}",
        scene.last
    );
    assert!(matches!(scene.evidence(), Some(Evidence::Silence { .. })));
    assert!(scene.now - read < 3_000);
}

#[test]
fn a_claim_that_is_refused_again_and_again_does_not_keep_a_take_over_waiting() {
    let mut scene = Scene::standby();
    scene.pass(5_000);
    let mut claims = 0;
    while let Some(Work::ClaimLease { .. }) = scene.begun() {
        claims += 1;
        assert!(claims < 10, "never fences");
        // Somebody touches the lease all the time; its record stays the owner's.
        scene.end(Outcome::ClaimLost);
        if scene.begun().is_none() {
            scene.pass(500);
        }
    }
    assert!(
        matches!(scene.begun(), Some(Work::Fence { .. })),
        "{:?}",
        scene.reason()
    );
    assert_eq!(claims, 3);
    assert_eq!(scene.memory.takeovers.len(), 1, "only what is done counts");
}
