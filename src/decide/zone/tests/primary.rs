//! What the primary's site does.

use std::time::Duration;

use super::*;

#[test]
fn nothing_starts_without_the_record() {
    let mut scene = Scene::new("a", &["a", "b"], promised(&["b"], true));
    scene.seen.record = Seen::Unknown {
        since: scene.now,
        cause: String::new(),
    };
    assert_eq!(scene.judge(), Move::Wait(ZoneReason::RecordUnknown));
}

#[test]
fn a_start_takes_the_confirmation_away_first() {
    let mut scene = Scene::new("a", &["a", "b"], promised(&["b"], true));
    assert_eq!(scene.judge(), Move::Align { reseed: false });
    scene.memory.aligned = Some((1, Data::Primary));
    let next = scene.judge();
    let record = scene.written(next);
    assert!(!record.sync.confirmed && record.sync.need == 1);
    assert_eq!(record.owners.get(&site("a")), Some(&owner()));
    assert_eq!(scene.judge(), Move::Start(serve(1, &["b"])));
}

#[test]
fn it_is_confirmed_when_the_other_site_has_what_was_there_at_the_start() {
    let mut scene = Scene::new("a", &["a", "b"], promised(&["b"], false));
    scene.runs(serve(1, &["b"]), facts(100));
    assert_eq!(scene.judge(), Move::Wait(ZoneReason::AwaitingSync));
    let mut looked = facts(150);
    looked.followers.insert(site("b"), follower(99));
    scene.looks(looked.clone());
    assert_eq!(scene.judge(), Move::Wait(ZoneReason::AwaitingSync));
    looked.followers.insert(site("b"), follower(100));
    scene.looks(looked);
    let next = scene.judge();
    assert!(scene.written(next).sync.confirmed);
}

#[test]
fn it_degrades_in_the_record_before_postgresql_stops_to_wait() {
    let mut scene = Scene::new("a", &["a", "b"], promised(&["b"], true));
    scene.runs(serve(1, &["b"]), facts(100));
    let next = scene.pass(Duration::from_secs(5));
    let record = scene.written(next);
    let behind = Degraded::Behind(sites(&["b"]));
    assert_eq!(record.sync, Sync::none(behind));
    assert_eq!(scene.judge(), Move::Reconfigure(serve(0, &[])));
}

#[test]
fn required_never_degrades() {
    let mut scene = Scene::new("a", &["a", "b"], promised(&["b"], true));
    scene.config.synchronous = Synchronous::Required;
    scene.runs(serve(1, &["b"]), facts(100));
    let next = scene.pass(Duration::from_secs(60));
    assert_eq!(next, Move::Wait(ZoneReason::InSync));
}

#[test]
fn it_promises_again_only_after_postgresql_waits_and_the_replica_has_caught_up() {
    let mut scene = Scene::new("a", &["a", "b"], Sync::none(Degraded::NotYet));
    let mut looked = facts(100);
    looked.followers.insert(site("b"), follower(100));
    scene.runs(serve(0, &[]), looked.clone());
    let wait = serve(1, &["b"]);
    assert_eq!(scene.judge(), Move::Reconfigure(wait.clone()));
    let (work, position) = (
        Work::Reconfigure {
            epoch: epoch(),
            serve: wait,
        },
        None,
    );
    scene.does(work, &Outcome::Reconfigured { position });
    looked.flushed.lsn = Lsn(120);
    scene.looks(looked.clone());
    let not_yet = ZoneReason::NotInSync(Degraded::NotYet);
    assert_eq!(scene.judge(), Move::Wait(not_yet));
    looked.followers.insert(site("b"), follower(120));
    scene.looks(looked);
    let next = scene.judge();
    assert_eq!(scene.written(next).sync, promised(&["b"], true));
}

#[test]
fn a_superseded_primary_is_killed_and_comes_back_as_a_replica() {
    let mut scene = Scene::new("a", &["a", "b"], promised(&["b"], true));
    scene.runs(serve(1, &["b"]), facts(100));
    let none = Sync::none(Degraded::NotYet);
    let next = scene
        .known()
        .promoted(site("b"), owner(), How::Failover, position(90), none);
    scene.record(next);
    let (by, term) = (site("b"), 2);
    assert_eq!(
        scene.judge(),
        Move::Kill(ZoneReason::Superseded { by, term })
    );
    scene.postgres = Postgres::Stopped;
    assert_eq!(scene.judge(), Move::Align { reseed: false });
}

#[test]
fn a_move_that_nobody_takes_is_taken_back() {
    let mut scene = Scene::new("a", &["a", "b"], promised(&["b"], true));
    scene.memory.aligned = Some((1, Data::Primary));
    let mut record = scene.known();
    record.moving = Some(Moving {
        to: site("b"),
        stopped: Some(position(200)),
    });
    scene.record(record);
    scene.memory.wrote = Some(scene.now);
    assert_eq!(scene.judge(), Move::Wait(ZoneReason::Moving(site("b"))));
    let next = scene.pass(Duration::from_secs(15));
    assert_eq!(scene.written(next).moving, None);
}

#[test]
fn a_move_to_a_site_that_is_not_offered_is_refused_by_its_name() {
    let mut scene = Scene::new("a", &["a", "b"], promised(&["b"], true));
    scene.config.sites.insert(site("b"), false);
    scene.runs(serve(1, &["b"]), facts(100));
    let refused = scene.judging().begin_move(&site("b"));
    assert_eq!(refused, Err(Unsafe::NotOffered(site("b"))));
}
