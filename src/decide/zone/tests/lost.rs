//! The record is gone, or an older copy of it is there.

use std::time::Duration;

use super::*;
use crate::decide::RequestId;

/// The primary of term 1 serves and has read its record.
fn serving() -> Scene {
    let mut scene = Scene::new("a", &["a", "b"], promised(&["b"], true));
    let mut looked = facts(100);
    looked.followers.insert(site("b"), follower(100));
    scene.runs(serve(1, &["b"]), looked);
    let mut record = scene.known();
    record.writes = 9;
    scene.record(record);
    assert_eq!(scene.judge(), Move::Wait(ZoneReason::InSync));
    scene
}

fn gone(scene: &mut Scene) {
    let at = scene.now;
    scene.seen.record = Seen::Known { value: None, at };
}

fn urge(scene: &mut Scene, term: u64) {
    scene.memory.urged = Some(Urged {
        request: RequestId(1),
        term,
        allow_data_loss: true,
        at: scene.now,
    });
}

#[test]
fn a_primary_serves_on_without_its_record_and_makes_none() {
    let mut scene = serving();
    gone(&mut scene);
    let next = scene.pass(Duration::from_secs(60));
    assert_eq!(next, Move::Wait(ZoneReason::RecordLost));
}

#[test]
fn an_older_copy_kills_and_promotes_nobody() {
    let mut scene = serving();
    let mut older = scene.known();
    older.writes = 8;
    older.primary = site("b");
    scene.record(older);
    let next = scene.pass(Duration::from_secs(60));
    assert_eq!(next, Move::Wait(ZoneReason::RecordOlder));
    let mut scene = Scene::new("b", &["a", "b"], promised(&["b"], true));
    scene.memory.newest = Some(Newest {
        writes: 20,
        term: 2,
        timeline: 2,
    });
    let mut looked = facts(100);
    looked.in_recovery = true;
    scene.runs(following(true), looked);
    scene.lease("1");
    let next = scene.pass(Duration::from_secs(60));
    assert_eq!(next, Move::Wait(ZoneReason::RecordOlder));
}

/// A process that has read nothing yet learns it from what is noted beside the data.
#[test]
fn what_is_noted_beside_the_data_keeps_the_first_site_from_beginning_anew() {
    let mut scene = Scene::new("a", &["a", "b"], promised(&["b"], true));
    gone(&mut scene);
    assert_eq!(scene.judge(), Move::Align { reseed: false });
    let work = Work::Align {
        epoch: epoch(),
        term: 0,
        writes: 0,
        primary: site("a"),
        reseed: false,
    };
    let known = Newest {
        writes: 40,
        term: 5,
        timeline: 0,
    };
    let data = Data::Replica;
    scene.does(work.clone(), &Outcome::RecordOlder { known, data });
    let next = scene.pass(Duration::from_secs(60));
    assert_eq!(next, Move::Wait(ZoneReason::RecordLost));
    let mut scene = Scene::new("a", &["a", "b"], promised(&["b"], true));
    gone(&mut scene);
    scene.judge();
    scene.does(work, &aligned(Data::Primary));
    let next = scene.judge();
    assert_eq!(scene.written(next).term, 1, "there never was a record");
}

#[test]
fn an_operators_word_makes_it_anew() {
    let mut scene = serving();
    gone(&mut scene);
    scene.judge();
    urge(&mut scene, 0);
    let next = scene.judge();
    let record = scene.written(next);
    assert_eq!((record.term, &record.primary), (1, &site("a")));
    assert!(record.writes > 1 << 40 && !record.sync.confirmed);

    let mut scene = Scene::new("b", &["a", "b"], promised(&["b"], true));
    let mut looked = facts(100);
    looked.in_recovery = true;
    scene.runs(following(true), looked);
    scene.judge();
    gone(&mut scene);
    urge(&mut scene, 1 << 16);
    let next = scene.judge();
    let record = scene.written(next);
    assert_eq!((record.term, &record.primary), (1 + (1 << 16), &site("b")));
    assert_eq!(record.newest_timeline, 16);
    assert_eq!(scene.judge(), Move::Reconfigure(following(false)));
}
