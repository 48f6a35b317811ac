//! What an owner does: serve, stop at once when it must, restart, hand over, come back.

use fencing::{KeyFlags, Mono};

use super::*;

const MINE: Option<(u8, u32, KeyFlags)> = Some((1, 5, KeyFlags::NONE));

fn ready_peer(scene: &mut Scene) {
    scene.hear(2, |_| {});
}

#[test]
fn a_lost_hold_kills_at_once_even_during_another_step() {
    for busy in [false, true] {
        let mut scene = Scene::active();
        if busy {
            ready_peer(&mut scene);
            scene.ask(Ask::Switchover { to: None });
            assert_eq!(scene.begun(), Some(Work::Checkpoint));
        }
        scene.now += 10;
        scene.read_volume(Some((2, 6, KeyFlags::NONE)));
        scene.decide();
        assert_eq!(scene.begun(), Some(Work::KillPostgres), "busy: {busy}");
        assert_eq!(
            scene.reason(),
            &Reason::HoldLost {
                to: Some(member(2))
            }
        );
    }
}

#[test]
fn a_vanished_reservation_kills_at_once() {
    let mut scene = Scene::active();
    scene.now += 10;
    scene.read_volume(None);
    scene.decide();
    assert_eq!(scene.begun(), Some(Work::KillPostgres));
    assert_eq!(scene.reason(), &Reason::HoldVanished);
}

#[test]
fn a_former_owner_cleans_up_in_order_before_it_is_standby() {
    let mut scene = Scene::active();
    scene.now += 10;
    scene.read_volume(Some((2, 6, KeyFlags::NONE)));
    scene.decide();
    scene.seen.local.postgres = Postgres::Stopped;
    scene.end(Outcome::Done);
    assert_eq!(scene.begun(), Some(Work::ShutdownFilesystem));
    scene.end(Outcome::Done);
    assert_eq!(scene.begun(), Some(Work::DropMount));
    scene.seen.local.mount = Mount::Unmounted;
    scene.end(Outcome::Done);
    assert_eq!(scene.begun(), Some(Work::RebuildDevice));
    let said = scene.memory.said.as_ref().unwrap();
    assert!(!said.heartbeat.ready);
    assert_eq!(said.heartbeat.custody, Custody::Relinquished);
    scene.seen.local.device = Device::Attached { made: 2 };
    scene.end(Outcome::Done);
    assert_eq!(scene.role(), RoleName::Standby);
    assert!(
        scene.memory.former_gone.is_some(),
        "its queued writes may still arrive"
    );
}

#[test]
fn the_lease_alone_never_stops_an_owner() {
    let mut scene = Scene::active();
    let since = Mono::from_millis(scene.now);
    scene.seen.lease = Seen::Unknown {
        since,
        cause: String::new(),
    };
    for _ in 0..100 {
        ready_peer(&mut scene);
        scene.pass(250);
        assert_eq!(scene.reason(), &Reason::Serving);
    }
    scene.read_lease(Some((9, 2)));
    scene.pass(1_000);
    assert_eq!(
        scene.reason(),
        &Reason::Serving,
        "another's claim does not stop it either"
    );
}

#[test]
fn a_lost_path_stops_soon_if_a_peer_could_and_late_if_none_could() {
    for (peer, survives, stops) in [(true, 1_500, 2_500), (false, 9_000, 11_000)] {
        let mut scene = Scene::active();
        let since = Mono::from_millis(scene.now);
        scene.seen.mailbox = Seen::Unknown {
            since,
            cause: String::new(),
        };
        let begin = scene.now;
        let stopped = loop {
            if peer {
                ready_peer(&mut scene);
            }
            scene.pass(250);
            if scene.begun().is_some() {
                break scene.now - begin;
            }
        };
        assert_eq!(scene.begun(), Some(Work::KillPostgres));
        assert!(
            (survives..=stops).contains(&stopped),
            "peer {peer}: after {stopped} ms"
        );
    }
}

#[test]
fn an_owner_outlasts_its_agents_restart_and_not_its_absence() {
    let mut scene = Scene::active();
    let since = Mono::from_millis(scene.now);
    scene.seen.mailbox = Seen::Unknown {
        since,
        cause: String::new(),
    };
    scene.seen.local.agent_away = Some(since);
    let begin = scene.now;
    let stopped = loop {
        ready_peer(&mut scene);
        scene.pass(250);
        let said = scene.memory.said.as_ref().unwrap();
        assert!(
            !said.heartbeat.stuck || scene.now - begin >= 60_000,
            "stuck after {} ms",
            scene.now - begin
        );
        if scene.begun().is_some() {
            break scene.now - begin;
        }
    };
    assert_eq!(scene.begun(), Some(Work::KillPostgres));
    assert!((60_000..=61_000).contains(&stopped), "after {stopped} ms");
}

#[test]
fn an_owner_that_was_frozen_looks_before_it_judges() {
    let mut scene = Scene::active();
    scene.now += 60_000;
    scene.decide();
    assert_eq!(scene.begun(), None);
    let refresh = Action::Refresh {
        mailbox: true,
        lease: true,
    };
    assert!(scene.last.as_ref().unwrap().actions.contains(&refresh));
    scene.now += 5;
    scene.read_volume(MINE);
    scene.decide();
    assert_eq!(scene.reason(), &Reason::Serving);
}

#[test]
fn postgres_is_restarted_within_the_budget_then_handed_over_but_not_passed_round() {
    for (peer_failed, expected) in [(false, RoleName::HandingOver), (true, RoleName::Active)] {
        let mut scene = Scene::active();
        for _ in 0..3 {
            scene.seen.local.postgres = Postgres::Stopped;
            scene.hear(2, |heartbeat| heartbeat.failed = peer_failed);
            scene.pass(2_000);
            assert_eq!(scene.begun(), Some(Work::StartPostgres { epoch: epoch(5) }));
            scene.end(Outcome::Failed {
                cause: String::new(),
            });
        }
        scene.hear(2, |heartbeat| heartbeat.failed = peer_failed);
        scene.pass(2_000);
        assert_eq!(scene.role(), expected, "peer failed: {peer_failed}");
        if peer_failed {
            assert_eq!(scene.reason(), &Reason::PostgresKeepsFailing);
        }
    }
}

#[test]
fn a_switchover_goes_step_by_step_without_waiting() {
    let mut scene = Scene::active();
    ready_peer(&mut scene);
    scene.ask(Ask::Switchover {
        to: Some(member(2)),
    });
    assert_eq!(scene.begun(), Some(Work::Checkpoint));
    scene.end(Outcome::Done);
    assert_eq!(
        scene.begun(),
        Some(Work::StopPostgres {
            mode: StopMode::Fast
        })
    );
    scene.seen.local.postgres = Postgres::Stopped;
    scene.end(Outcome::Stopped { clean: true });
    assert_eq!(scene.begun(), Some(Work::Unmount));
    scene.seen.local.mount = Mount::Unmounted;
    scene.end(Outcome::Unmounted { clean: true });
    assert!(matches!(scene.begun(), Some(Work::AnnounceClean { .. })));
    scene.end(Outcome::Done);
    let said = scene.memory.said.clone().unwrap().heartbeat;
    let notice = said.handover.unwrap();
    assert_eq!(
        (notice.phase, notice.to),
        (HandoverPhase::Clean, Some(member(2)))
    );
    assert_eq!(said.custody, Custody::Relinquished);
    scene.pass(250);
    assert!(
        !scene.beats(),
        "a beat would make the standby's preempt miss"
    );
    scene.now += 5;
    scene.read_volume(Some((2, 6, KeyFlags::NONE)));
    scene.decide();
    assert_eq!(scene.begun(), Some(Work::RebuildDevice));
    assert_eq!(scene.answer(), None, "not done before the other serves");
    scene.hear(2, |heartbeat| heartbeat.role = RoleName::Active);
    scene.decide();
    assert_eq!(scene.answer(), Some(Answer::Done));
    assert_eq!(
        scene.memory.former_gone, None,
        "everything was flushed: nothing to wait for"
    );
}

/// What the decision says of who serves, if it says anything new.
fn published(scene: &Scene) -> Option<(RoleName, bool)> {
    let actions = &scene.last.as_ref().unwrap().actions;
    actions.iter().find_map(|action| match action {
        Action::PublishRole { role, serving, .. } => Some((*role, *serving)),
        _ => None,
    })
}

#[test]
fn clients_are_led_away_after_the_checkpoint_and_before_the_stop_whatever_becomes_of_it() {
    for outcome in [
        Outcome::Done,
        Outcome::Failed {
            cause: String::new(),
        },
        Outcome::Overdue,
    ] {
        let mut scene = Scene::active();
        scene.config.routed = true;
        ready_peer(&mut scene);
        scene.ask(Ask::Switchover { to: None });
        assert_eq!(scene.begun(), Some(Work::Checkpoint));
        assert_eq!(
            published(&scene),
            Some((RoleName::HandingOver, true)),
            "a checkpoint may take long"
        );
        scene.end(Outcome::Done);
        assert_eq!(scene.begun(), Some(Work::Withdraw { epoch: epoch(5) }));
        assert_eq!(published(&scene), Some((RoleName::HandingOver, false)));
        scene.end(outcome);
        let stop = Work::StopPostgres {
            mode: StopMode::Fast,
        };
        assert_eq!(scene.begun(), Some(stop));
    }
}

#[test]
fn an_owner_that_takes_back_after_a_handover_is_led_to_again() {
    let mut scene = Scene::active();
    scene.config.routed = true;
    ready_peer(&mut scene);
    scene.ask(Ask::Switchover { to: None });
    scene.end(Outcome::Done);
    scene.end(Outcome::Done);
    scene.seen.local.postgres = Postgres::Stopped;
    scene.end(Outcome::Stopped { clean: true });
    scene.seen.local.mount = Mount::Unmounted;
    scene.end(Outcome::Unmounted { clean: true });
    scene.end(Outcome::Done);
    let clean = KeyFlags {
        clean: true,
        ..KeyFlags::NONE
    };
    scene.read_volume(Some((1, 5, clean)));
    scene.pass(16_000);
    scene.seen.local.device = Device::Attached { made: 2 };
    scene.end(Outcome::Done);
    assert_eq!(scene.evidence(), Some(Evidence::OwnHold { clean: true }));
    scene.take_over_to_the_end(6);
    assert_eq!(scene.role(), RoleName::Active);
    let said = scene.memory.routed.unwrap();
    assert!(said.serving && said.epoch == epoch(6), "{said:?}");
}

#[test]
fn a_stop_that_takes_too_long_gets_harder() {
    let mut scene = Scene::active();
    ready_peer(&mut scene);
    scene.ask(Ask::Switchover { to: None });
    scene.end(Outcome::Failed {
        cause: String::new(),
    });
    assert_eq!(
        scene.begun(),
        Some(Work::StopPostgres {
            mode: StopMode::Fast
        })
    );
    scene.seen.local.postgres = Postgres::Stopping;
    scene.end(Outcome::Overdue);
    assert_eq!(
        scene.begun(),
        Some(Work::StopPostgres {
            mode: StopMode::Immediate
        })
    );
    scene.end(Outcome::Overdue);
    assert_eq!(scene.begun(), Some(Work::KillPostgres));
}

#[test]
fn a_switchover_is_refused_before_anything_is_stopped() {
    for (to, reason) in [
        (None, Reason::NoReadyStandby),
        (Some(member(1)), Reason::AlreadyActive),
        (Some(member(9)), Reason::NoSuchMember),
    ] {
        let mut scene = Scene::active();
        scene.ask(Ask::Switchover { to });
        assert_eq!(scene.answer(), Some(Answer::Refused(Box::new(reason))));
        assert_eq!(scene.begun(), None);
    }
}

#[test]
fn sigterm_without_a_standby_goes_alone_and_keeps_the_hold() {
    let mut scene = Scene::active();
    scene.seen.stopping = true;
    scene.decide();
    scene.end(Outcome::Done);
    scene.seen.local.postgres = Postgres::Stopped;
    scene.end(Outcome::Stopped { clean: true });
    scene.seen.local.mount = Mount::Unmounted;
    scene.end(Outcome::Unmounted { clean: true });
    scene.end(Outcome::Done);
    let written = scene
        .last
        .as_ref()
        .unwrap()
        .actions
        .iter()
        .any(|action| matches!(action, Action::WriteLease { record, .. } if record.clean));
    assert!(written, "the lease says clean, for whoever starts next");
    scene.pass(4_000);
    assert!(scene.last.as_ref().unwrap().actions.contains(&Action::Exit));
    assert_eq!(
        scene.begun(),
        None,
        "never unregister a hold: somebody must keep zombies out"
    );
}

#[test]
fn an_isolated_owner_hands_over_through_the_mailbox() {
    let mut scene = Scene::active();
    let since = Mono::from_millis(scene.now);
    scene.seen.lease = Seen::Unknown {
        since,
        cause: String::new(),
    };
    let flags = KeyFlags {
        ready: true,
        reachable: true,
        ..KeyFlags::NONE
    };
    for beat in 0..60 {
        scene.read_volume(MINE);
        if let Seen::Known { value, at: _ } = &mut scene.seen.mailbox {
            value.members[1].key = key(2, 5, flags, beat);
        }
        scene.pass(250);
        if scene.begun().is_some() {
            break;
        }
    }
    assert_eq!(scene.begun(), Some(Work::Checkpoint));
    let to = Some(member(2));
    assert_eq!(
        scene.reason(),
        &Reason::HandingOver {
            cause: HandoverCause::Isolated,
            to
        }
    );
}

#[test]
fn a_stuck_step_stops_all_signs_of_life() {
    let mut scene = Scene::active();
    ready_peer(&mut scene);
    scene.ask(Ask::Switchover { to: None });
    let issued = scene.memory.issued.clone().unwrap();
    scene.seen.running = Some(Running {
        id: issued.id,
        since: issued.at,
    });
    let mut beats = 0;
    for _ in 0..280 {
        scene.beat += 1;
        scene.read_volume(MINE);
        scene.pass(250);
        beats += u32::from(scene.beats() && scene.now > issued.deadline.as_millis() + 250);
    }
    assert_eq!(scene.reason(), &Reason::StepStuck);
    assert_eq!(beats, 0);
    assert!(scene.memory.said.as_ref().unwrap().heartbeat.stuck);
}

#[test]
fn a_clean_owner_that_nobody_follows_takes_back() {
    let mut scene = Scene::active();
    ready_peer(&mut scene);
    scene.ask(Ask::Switchover { to: None });
    scene.end(Outcome::Done);
    scene.seen.local.postgres = Postgres::Stopped;
    scene.end(Outcome::Stopped { clean: true });
    scene.seen.local.mount = Mount::Unmounted;
    scene.end(Outcome::Unmounted { clean: true });
    scene.end(Outcome::Done);
    scene.read_volume(Some((
        1,
        5,
        KeyFlags {
            clean: true,
            ..KeyFlags::NONE
        },
    )));
    scene.pass(16_000);
    assert_eq!(
        scene.begun(),
        Some(Work::RebuildDevice),
        "{:?}",
        scene.reason()
    );
    scene.seen.local.device = Device::Attached { made: 2 };
    scene.end(Outcome::Done);
    scene.pass(6_000);
    assert_eq!(scene.evidence(), Some(Evidence::OwnHold { clean: true }));
}
