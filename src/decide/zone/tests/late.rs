//! Nothing is done against a write, or a change of PostgreSQL, that may yet come into force.

use std::time::Duration;

use super::*;

/// Its follower streams, and has everything.
fn in_step(promise: Sync) -> Scene {
    let need = promise.need;
    let names: Vec<_> = promise.sites.iter().map(|site| site.0.clone()).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let mut scene = Scene::new("a", &["a", "b"], promise);
    let mut looked = facts(100);
    looked.followers.insert(site("b"), follower(100));
    scene.runs(serve(need, &names), looked);
    scene
}

fn reconfigured(scene: &mut Scene, to: Serve, outcome: &Outcome) {
    let work = Work::Reconfigure {
        epoch: epoch(),
        serve: to,
    };
    scene.does(work, outcome);
}

fn failed() -> Outcome {
    Outcome::Overdue
}

#[test]
fn a_promise_that_may_yet_arrive_is_voided_before_postgresql_stops_to_wait() {
    let mut scene = in_step(Sync::none(Degraded::NotYet));
    let wait = serve(1, &["b"]);
    assert_eq!(scene.judge(), Move::Reconfigure(wait.clone()));
    let position = None;
    reconfigured(&mut scene, wait, &Outcome::Reconfigured { position });
    let mut looked = facts(100);
    looked.followers.insert(site("b"), follower(100));
    scene.looks(looked);
    let promise = scene.judge();
    assert!(matches!(&promise, Move::Write { record, .. } if record.sync.confirmed));
    // It does not arrive. The follower goes.
    scene.looks(facts(120));
    let next = scene.pass(Duration::from_secs(6));
    let record = scene.written(next);
    assert_eq!(
        record.sync.need, 0,
        "a write that changes nothing but itself"
    );
    assert_eq!(scene.judge(), Move::Reconfigure(serve(0, &[])));
}

#[test]
fn a_change_that_failed_is_made_again_before_anything_is_promised() {
    let mut scene = in_step(Sync::none(Degraded::NotYet));
    scene.memory.runs = Some((1, serve(1, &["b"])));
    let mut looked = facts(100);
    looked.followers.insert(site("b"), follower(100));
    scene.looks(looked);
    reconfigured(&mut scene, serve(0, &[]), &failed());
    assert_eq!(scene.judge(), Move::Reconfigure(serve(1, &["b"])));
    // And one that may have come into force is taken back, too.
    let mut scene = in_step(Sync::none(Degraded::NotYet));
    reconfigured(&mut scene, serve(1, &["b"]), &failed());
    scene.looks(facts(120));
    let next = scene.pass(Duration::from_secs(6));
    assert_eq!(next, Move::Reconfigure(serve(0, &[])));
}

#[test]
fn what_somebody_else_changed_is_taken_back_in_the_record_first() {
    let mut scene = in_step(promised(&["b"], true));
    assert_eq!(scene.judge(), Move::Wait(ZoneReason::InSync));
    if let Seen::Known { value, .. } = &mut scene.seen.postgres {
        value.names = String::new();
    }
    let next = scene.judge();
    assert!(!scene.written(next).sync.confirmed);
    assert_eq!(scene.judge(), Move::Reconfigure(serve(1, &["b"])));
}

#[test]
fn an_earlier_owners_word_is_voided_before_a_replica_receives() {
    let mut scene = Scene::new("b", &["a", "b"], promised(&["b"], true));
    let mut record = scene.known();
    let mut before = owner();
    before.epoch = Epoch::new(2).unwrap();
    record.owners.insert(site("b"), before);
    scene.record(record);
    scene.memory.aligned = Some((1, Data::Replica));
    let next = scene.judge();
    assert_eq!(scene.written(next).owners.get(&site("b")), Some(&owner()));
    assert_eq!(scene.judge(), Move::Start(following(true)));
}

#[test]
fn a_greater_epoch_in_the_record_is_believed_until_it_is_outlasted() {
    let mut scene = Scene::new("b", &["a", "b"], promised(&["b"], true));
    let mut record = scene.known();
    let mut other = owner();
    other.epoch = Epoch::new(9).unwrap();
    record.owners.insert(site("b"), other);
    scene.record(record);
    scene.memory.aligned = Some((1, Data::Replica));
    assert_eq!(
        scene.pass(Duration::from_secs(9)),
        Move::Wait(ZoneReason::Changing)
    );
    let next = scene.pass(Duration::from_secs(2));
    assert_eq!(scene.written(next).owners.get(&site("b")), Some(&owner()));
}

/// Its successor has started PostgreSQL anew: what that shows is not what this one's sites have confirmed.
#[test]
fn an_overtaken_owner_confirms_nothing_of_its_successors() {
    let mut scene = in_step(promised(&["b"], true));
    assert_eq!(scene.judge(), Move::Wait(ZoneReason::InSync));
    let mut record = scene.known();
    let mut successor = owner();
    successor.epoch = Epoch::new(9).unwrap();
    record.owners.insert(site("a"), successor);
    record.sync.confirmed = false;
    record.writes += 1;
    scene.record(record.clone());
    let next = scene.pass(Duration::from_secs(60));
    assert_eq!(next, Move::Wait(ZoneReason::Changing));
    // It is the successor who was promoted: this one must not acknowledge anything.
    record.term += 1;
    record.writes += 1;
    scene.record(record);
    assert!(matches!(scene.judge(), Move::Kill(_)));
}

#[test]
fn a_missing_slot_keeps_nobody_from_degrading() {
    let mut scene = in_step(promised(&["b"], true));
    let mut looked = facts(120);
    looked.slots.clear();
    scene.looks(looked);
    assert_eq!(scene.judge(), Move::KeepSlots);
    let work = Work::KeepSlots { epoch: epoch() };
    scene.does(work, &failed());
    let next = scene.pass(Duration::from_secs(6));
    assert_eq!(scene.written(next).sync.need, 0);
}

#[test]
fn a_site_that_is_away_leaves_the_promise_and_comes_back_into_it() {
    let mut scene = Scene::new("a", &["a", "b", "c"], promised(&["b", "c"], true));
    let follow = |scene: &mut Scene, names: &[&str]| {
        let mut looked = facts(100);
        for name in names {
            looked.followers.insert(site(name), follower(100));
        }
        scene.looks(looked);
    };
    scene.runs(serve(1, &["b", "c"]), facts(100));
    follow(&mut scene, &["b", "c"]);
    assert_eq!(scene.judge(), Move::Wait(ZoneReason::InSync));
    // PostgreSQL waits for fewer first, then less is promised.
    follow(&mut scene, &["b"]);
    let next = scene.pass(Duration::from_secs(6));
    assert_eq!(next, Move::Reconfigure(serve(1, &["b"])));
    let position = None;
    reconfigured(
        &mut scene,
        serve(1, &["b"]),
        &Outcome::Reconfigured { position },
    );
    follow(&mut scene, &["b"]);
    let next = scene.judge();
    assert_eq!(scene.written(next).sync, promised(&["b"], true));
    // The other way round, the record first.
    follow(&mut scene, &["b", "c"]);
    let next = scene.judge();
    assert_eq!(scene.written(next).sync, promised(&["b", "c"], true));
    assert_eq!(scene.judge(), Move::Reconfigure(serve(1, &["b", "c"])));
}
