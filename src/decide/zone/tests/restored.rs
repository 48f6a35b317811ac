//! A copy that was made anew, and what the one before had acknowledged.

use std::time::Duration;

use super::replica::{silent, stopped};
use super::*;

/// The copy at this site was made anew when the primary was at 500, and has received so much.
fn restored(received: u64) -> Scene {
    let mut scene = silent(&["a", "b"], promised(&["b"], true));
    let align = Work::Align {
        epoch: epoch(),
        term: 1,
        writes: 0,
        primary: site("a"),
        reseed: true,
    };
    let outcome = Outcome::Aligned {
        data: Data::Replica,
        floor: Some(position(500)),
    };
    scene.does(align, &outcome);
    let mut looked = facts(received);
    looked.in_recovery = true;
    scene.runs(following(true), looked);
    scene
}

const LACKS: Unsafe = Unsafe::Restored {
    floor: Position {
        timeline: 1,
        lsn: Lsn(500),
    },
};

#[test]
fn a_copy_made_anew_does_not_stand_for_the_one_before_until_it_has_all_of_it() {
    let not_safe = Move::Wait(ZoneReason::NotSafe(LACKS));
    let mut scene = restored(499);
    assert_eq!(scene.pass(Duration::from_secs(60)), not_safe);
    assert_eq!(
        scene.judging().may_be_urged(false, Duration::from_secs(1)),
        Err(LACKS)
    );
    // Its archive has the rest.
    let mut looked = facts(500);
    looked.in_recovery = true;
    scene.looks(looked);
    assert_eq!(scene.judge(), Move::Reconfigure(following(false)));
    stopped(&mut scene, 500);
    let next = scene.judge();
    assert!(scene.written(next).cuts.contains_key(&site("b")));
    let next = scene.judge();
    assert_eq!(scene.written(next).primary, site("b"));

    // How far it is is not known.
    let mut scene = restored(600);
    scene.seen.postgres = unknown_facts(scene.now);
    assert_eq!(scene.pass(Duration::from_secs(60)), not_safe);
}

#[test]
fn a_cut_of_the_copy_before_does_not_promote_a_copy_made_anew() {
    let mut scene = restored(499);
    scene.pass(Duration::from_secs(11));
    let mut record = scene.known();
    record.cuts.insert(site("b"), position(450));
    scene.record(record);
    scene.memory.runs = Some((1, following(false)));
    assert_eq!(scene.judge(), Move::Wait(ZoneReason::NotSafe(LACKS)));
}

#[test]
fn after_a_copy_that_failed_it_is_looked_at_which_one_is_there() {
    let mut scene = silent(&["a", "b"], promised(&["b"], true));
    scene.postgres = Postgres::Stopped;
    scene.memory.reseed = true;
    assert_eq!(scene.judge(), Move::Align { reseed: true });
    let align = |reseed| Work::Align {
        epoch: epoch(),
        term: 1,
        writes: 0,
        primary: site("a"),
        reseed,
    };
    scene.does(align(true), &Outcome::Overdue);
    assert_eq!(scene.judge(), Move::Align { reseed: true });
    // The primary is lost: nobody else has what may be here.
    let next = scene.pass(Duration::from_secs(11));
    assert_eq!(next, Move::Align { reseed: false });
    scene.does(align(false), &aligned(Data::Replica));
    assert_eq!(scene.judge(), Move::Start(following(true)));
}

#[test]
fn an_operators_word_promotes_a_copy_made_anew_too() {
    let mut scene = restored(499);
    scene.pass(Duration::from_secs(3));
    assert_eq!(
        scene.judging().may_be_urged(true, Duration::from_secs(2)),
        Ok(1)
    );
    scene.memory.urged = Some(Urged {
        request: crate::decide::RequestId(1),
        term: 1,
        allow_data_loss: true,
        at: scene.now,
    });
    assert_eq!(scene.judge(), Move::Reconfigure(following(false)));
    stopped(&mut scene, 499);
    let next = scene.judge();
    let last = scene.written(next).history.pop().unwrap();
    assert_eq!((last.how, last.from), (How::DataLossAllowed, position(499)));
}
