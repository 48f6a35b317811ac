//! What a replica's site does.

use std::collections::BTreeMap;
use std::time::Duration;

use super::*;

/// A replica that has seen the primary's lease stand still for the whole detection.
pub(super) fn silent(names: &[&str], sync: Sync) -> Scene {
    let mut scene = Scene::new("b", names, sync);
    let mut looked = facts(100);
    looked.in_recovery = true;
    scene.runs(following(true), looked);
    scene.lease("1");
    scene
}

/// The primary moves here, is shut down at 200, and this site stops to receive.
fn moving_here() -> Scene {
    let mut scene = silent(&["a", "b"], promised(&["b"], true));
    let mut record = scene.known();
    record.moving = Some(Moving {
        to: site("b"),
        stopped: Some(position(200)),
    });
    scene.record(record);
    assert_eq!(scene.judge(), Move::Reconfigure(following(false)));
    scene
}

pub(super) fn stopped(scene: &mut Scene, lsn: u64) {
    let position = Some(position(lsn));
    let work = Work::Reconfigure {
        epoch: epoch(),
        serve: following(false),
    };
    scene.does(work, &Outcome::Reconfigured { position });
}

#[test]
fn a_silent_primary_is_left_then_replaced() {
    let mut scene = silent(&["a", "b"], promised(&["b"], true));
    let early = scene.pass(Duration::from_secs(9));
    assert!(matches!(early, Move::Wait(_)), "{early:?}");
    let next = scene.pass(Duration::from_secs(2));
    assert_eq!(next, Move::Reconfigure(following(false)));
    stopped(&mut scene, 100);
    let next = scene.judge();
    let cut = scene.written(next);
    assert_eq!(cut.cuts, BTreeMap::from([(site("b"), position(100))]));
    assert_eq!(cut.primary, site("a"));
    let next = scene.judge();
    let promoted = scene.written(next);
    assert_eq!((promoted.term, &promoted.primary), (2, &site("b")));
    assert_eq!(promoted.sync.need, 0, "nobody follows yet");
    assert_eq!(scene.judge(), Move::Promote(serve(0, &[])));
}

#[test]
fn life_on_any_channel_keeps_the_site_from_leaving() {
    let renewed = |scene: &mut Scene| scene.lease("2");
    let answered = |scene: &mut Scene| {
        scene.seen.probe = Seen::Known {
            value: ProbeFacts {
                site: site("a"),
                system: 7,
                in_recovery: false,
                flushed: position(100),
                slot: None,
            },
            at: scene.now,
        };
    };
    let signs: [&dyn Fn(&mut Scene); 2] = [&renewed, &answered];
    for sign in signs {
        let mut scene = silent(&["a", "b"], promised(&["b"], true));
        scene.pass(Duration::from_secs(9));
        sign(&mut scene);
        let next = scene.pass(Duration::from_secs(5));
        assert!(matches!(next, Move::Wait(_)), "{next:?}");
    }
}

#[test]
fn what_is_not_promised_is_not_taken() {
    let unsafe_records = [
        (
            Sync::none(Degraded::NotYet),
            Unsafe::NotInSync(Some(Degraded::NotYet)),
        ),
        (promised(&["b"], false), Unsafe::Unconfirmed),
        (promised(&["c"], true), Unsafe::NotSynchronous),
    ];
    for (sync, why) in unsafe_records {
        let mut scene = silent(&["a", "b", "c"], sync);
        let next = scene.pass(Duration::from_secs(60));
        assert_eq!(next, Move::Wait(ZoneReason::NotSafe(why)));
    }
    let mut scene = silent(&["a", "b"], promised(&["b"], true));
    scene.paused = true;
    let next = scene.pass(Duration::from_secs(60));
    assert_eq!(next, Move::Wait(ZoneReason::NotSafe(Unsafe::Paused)));
    let mut scene = silent(&["a", "b"], promised(&["b"], true));
    scene.config.sites.insert(site("b"), false);
    let next = scene.pass(Duration::from_secs(60));
    assert_eq!(next, Move::Wait(ZoneReason::NotSafe(Unsafe::Never)));
}

#[test]
fn of_three_sites_the_furthest_leads_when_both_have_left() {
    let mut scene = silent(&["a", "b", "c"], promised(&["b", "c"], true));
    scene.pass(Duration::from_secs(11));
    stopped(&mut scene, 100);
    let next = scene.judge();
    scene.written(next);
    let follows = Unsafe::OthersFollow(vec![site("c")]);
    assert_eq!(scene.judge(), Move::Wait(ZoneReason::NotSafe(follows)));
    for (theirs, leads) in [(101, false), (100, true), (99, true)] {
        let mut record = scene.known();
        record.cuts.insert(site("c"), position(theirs));
        scene.record(record);
        let next = scene.judge();
        match next {
            Move::Write { record, .. } => assert!(leads && record.primary == site("b")),
            Move::Wait(ZoneReason::NotSafe(Unsafe::Behind { site: further, at })) => {
                assert!(!leads && further == site("c") && at == position(101));
            }
            other => panic!("{other:?}"),
        }
        scene.memory.wrote = None;
    }
}

#[test]
fn a_site_that_sees_life_again_takes_its_cut_back_before_it_follows() {
    let mut scene = silent(&["a", "b", "c"], promised(&["b", "c"], true));
    scene.pass(Duration::from_secs(11));
    stopped(&mut scene, 100);
    let next = scene.judge();
    scene.written(next);
    scene.lease("2");
    let next = scene.judge();
    assert_eq!(scene.written(next).cuts, BTreeMap::new());
    assert_eq!(scene.judge(), Move::Reconfigure(following(true)));
}

#[test]
fn a_cut_binds_the_next_owner_of_the_site() {
    let mut scene = Scene::new("b", &["a", "b", "c"], promised(&["b", "c"], true));
    let mut record = scene.known();
    record.cuts.insert(site("b"), position(100));
    scene.record(record);
    scene.memory.aligned = Some((1, Data::Replica));
    assert_eq!(scene.judge(), Move::Start(following(false)));
}

#[test]
fn a_planned_move_waits_for_the_last_of_the_log() {
    let mut scene = moving_here();
    stopped(&mut scene, 200);
    assert_eq!(scene.judge(), Move::Wait(ZoneReason::Moving(site("b"))));
    stopped(&mut scene, 320);
    let next = scene.judge();
    let moved = scene.written(next);
    assert_eq!(
        moved.history.last().map(|last| last.how),
        Some(How::Switchover)
    );
}

/// Time goes by in which the primary answers and keeps nothing of what this replica needs next; at each look
/// the replica has `gain` more.
fn beyond(scene: &mut Scene, seconds: u64, gain: u64) -> Move {
    let until = scene.now + Duration::from_secs(seconds);
    loop {
        scene.now = scene.now + Duration::from_millis(500);
        scene.reread();
        let slot = SlotFacts {
            lost: false,
            from: Some(Lsn(800)),
            retained: 0,
        };
        scene.seen.probe = Seen::Known {
            value: ProbeFacts {
                site: site("a"),
                system: 7,
                in_recovery: false,
                flushed: position(900),
                slot: Some(slot),
            },
            at: scene.now,
        };
        if let Seen::Known { value, .. } = &mut scene.seen.postgres {
            value.flushed.lsn.0 += gain;
        }
        let last = scene.judge();
        if !matches!(last, Move::Wait(_)) || scene.now >= until {
            return last;
        }
    }
}

#[test]
fn a_replica_that_can_never_follow_is_made_anew() {
    let mut scene = silent(&["a", "b"], Sync::none(Degraded::NotYet));
    let anew = Move::Stop(ZoneReason::Seeding(site("a")));
    let waits = |next| matches!(next, Move::Wait(_));
    assert!(waits(beyond(&mut scene, 9, 0)));
    // by what it had received, or from an archive
    assert!(waits(beyond(&mut scene, 60, 1)));
    assert!(waits(beyond(&mut scene, 9, 0)));
    assert_eq!(beyond(&mut scene, 2, 0), anew);
    scene.postgres = Postgres::Stopped;
    assert_eq!(scene.judge(), Move::Align { reseed: true });

    let mut scene = silent(&["a", "b"], Sync::none(Degraded::NotYet));
    scene.config.archive = true;
    assert!(waits(beyond(&mut scene, 290, 0)));
    assert_eq!(beyond(&mut scene, 20, 0), anew);
}

#[test]
fn an_operators_word_holds_for_a_while_and_for_a_silent_primary_only() {
    let urged = |scene: &Scene| Urged {
        request: crate::decide::RequestId(1),
        term: 1,
        allow_data_loss: true,
        at: scene.now,
    };
    let mut scene = silent(&["a", "b"], Sync::none(Degraded::NotYet));
    scene.pass(Duration::from_secs(3));
    scene.memory.urged = Some(urged(&scene));
    assert_eq!(scene.judge(), Move::Reconfigure(following(false)));
    // Life comes back before it is done.
    scene.lease("2");
    assert!(matches!(scene.judge(), Move::Wait(_)));
    // Or so much time went by that it was asked for something else.
    let mut scene = silent(&["a", "b"], Sync::none(Degraded::NotYet));
    scene.pass(Duration::from_secs(3));
    scene.memory.urged = Some(urged(&scene));
    scene.now = scene.now + scene.timings.promote;
    scene.reread();
    let next = scene.pass(Duration::from_secs(3));
    assert!(matches!(next, Move::Wait(_)), "{next:?}");
}

#[test]
fn an_operators_word_reaches_a_site_that_cannot_follow_the_lost_one() {
    let mut scene = Scene::new("b", &["a", "b"], Sync::none(Degraded::NotYet));
    scene.lease("1");
    assert_eq!(
        scene.pass(Duration::from_secs(3)),
        Move::Align { reseed: false }
    );
    scene.memory.urged = Some(Urged {
        request: crate::decide::RequestId(1),
        term: 1,
        allow_data_loss: true,
        at: scene.now,
    });
    assert_eq!(scene.judge(), Move::Start(following(false)));
}

#[test]
fn an_operators_word_does_not_expire_by_the_start_that_it_asked_for() {
    let mut scene = Scene::new("b", &["a", "b"], Sync::none(Degraded::NotYet));
    scene.lease("1");
    scene.pass(Duration::from_secs(3));
    let holds = scene.timings.promote;
    let said = scene.now;
    scene.memory.urged = Some(Urged {
        request: crate::decide::RequestId(1),
        term: 1,
        allow_data_loss: true,
        at: said,
    });
    assert_eq!(scene.judge(), Move::Start(following(false)));
    let start = |receive| Work::Serve {
        epoch: epoch(),
        serve: following(receive),
    };
    let (began, ended) = (said + Duration::from_secs(1), said + scene.timings.start);
    // Neither another step nor one that began too late.
    scene.memory.worked(&start(true), began, ended, holds);
    let late = said + holds;
    scene.memory.worked(&start(false), late, ended, holds);
    assert_eq!(scene.memory.urged.map(|urged| urged.at), Some(said));
    scene.memory.worked(&start(false), began, ended, holds);
    scene.now = ended;
    scene.reread();
    scene.does(start(false), &Outcome::Done);
    let mut looked = facts(100);
    looked.in_recovery = true;
    scene.runs(following(false), looked);
    // It takes a moment until it is known again that the primary is silent.
    let next = scene.pass(Duration::from_secs(3));
    assert_eq!(next, Move::Reconfigure(following(false)));
    stopped(&mut scene, 100);
    let next = scene.judge();
    let promoted = scene.written(next);
    assert_eq!((promoted.term, &promoted.primary), (2, &site("b")));

    // PostgreSQL ends before it is promoted: it goes on as a replica.
    scene.memory = scene.memory.mounted(Mono::from_millis(1_000));
    scene.postgres = Postgres::Stopped;
    let next = scene.judge();
    assert_eq!(next, Move::Align { reseed: false });
    let align = Work::Align {
        epoch: epoch(),
        term: 2,
        writes: 1,
        primary: site("b"),
        reseed: false,
    };
    scene.does(align, &aligned(Data::Replica));
    let of = site("b");
    let alone = Serve::Replica { of, receive: false };
    assert_eq!(scene.judge(), Move::Start(alone.clone()));
    let serve_alone = Work::Serve {
        epoch: epoch(),
        serve: alone,
    };
    scene.does(serve_alone, &Outcome::Done);
    scene.postgres = Postgres::Running;
    assert_eq!(scene.judge(), Move::Promote(serve(0, &[])));
}

#[test]
fn a_move_whose_site_is_lost_is_a_failover() {
    let mut scene = moving_here();
    stopped(&mut scene, 150);
    assert_eq!(scene.judge(), Move::Wait(ZoneReason::Moving(site("b"))));
    let next = scene.pass(Duration::from_secs(11));
    assert_eq!(
        scene.written(next).cuts,
        BTreeMap::from([(site("b"), position(150))])
    );
    let next = scene.judge();
    assert_eq!(scene.written(next).primary, site("b"));
}

#[test]
fn only_what_cannot_be_rewound_is_copied_anew() {
    let align = |reseed| Work::Align {
        epoch: epoch(),
        term: 1,
        writes: 0,
        primary: site("a"),
        reseed,
    };
    let mut scene = Scene::new("b", &["a", "b"], promised(&["b"], true));
    for _ in 0..5 {
        assert_eq!(scene.judge(), Move::Align { reseed: false });
        scene.does(align(false), &Outcome::Overdue);
    }
    let why = "no common history".to_owned();
    scene.does(align(false), &Outcome::CopyNeeded { why });
    assert_eq!(scene.judge(), Move::Align { reseed: true });
}
