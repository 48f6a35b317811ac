//! The table against the specification's text: the access matrix, preempt in every position,
//! release, IEKEY, generation, notifications; and invariants over random command sequences.

use proptest::prelude::{Just, Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest};
use uuid::Uuid;

use super::*;
use ReservationType as T;

const A: HostId = HostId(Uuid::from_u128(1));
const B: HostId = HostId(Uuid::from_u128(2));
const C: HostId = HostId(Uuid::from_u128(3));
const CONFLICT: Status = Status::RESERVATION_CONFLICT.dnr();
const INVALID: Status = Status::INVALID_FIELD.dnr();

/// A has the key 10 and holds; B has the key 20; C is a stranger.
fn held(kind: T) -> ReservationTable {
    let mut table = ReservationTable::new(true);
    register(&mut table, A, 10).unwrap();
    register(&mut table, B, 20).unwrap();
    acquire(&mut table, A, 10, Acquire::Acquire, kind).unwrap();
    table
}

fn register(table: &mut ReservationTable, host: HostId, key: u64) -> Result<Effects, Status> {
    table.register_action(
        host,
        Register::Register { key },
        ChangePersistence::Unchanged,
    )
}

fn unregister(table: &mut ReservationTable, host: HostId, key: u64) -> Result<Effects, Status> {
    table.register_action(
        host,
        Register::Unregister { key },
        ChangePersistence::Unchanged,
    )
}

fn acquire(
    table: &mut ReservationTable,
    host: HostId,
    key: u64,
    action: Acquire,
    kind: T,
) -> Result<Effects, Status> {
    table.acquire_action(host, action, key, kind)
}

fn preempt(
    table: &mut ReservationTable,
    host: HostId,
    key: u64,
    victim: u64,
    kind: T,
) -> Result<Effects, Status> {
    acquire(table, host, key, Acquire::PreemptAndAbort { victim }, kind)
}

#[test]
fn the_access_matrix_is_the_specification_s() {
    // holder R W, registrant R W, other R W
    let matrix = [
        (T::WriteExclusive, "YY YN YN"),
        (T::ExclusiveAccess, "YY NN NN"),
        (T::WriteExclusiveRegistrantsOnly, "YY YY YN"),
        (T::ExclusiveAccessRegistrantsOnly, "YY YY NN"),
        (T::WriteExclusiveAllRegistrants, "YY YY YN"),
        (T::ExclusiveAccessAllRegistrants, "YY YY NN"),
    ];
    for (kind, expected) in matrix {
        let table = held(kind);
        let cell = |host, access| if table.allows(host, access) { 'Y' } else { 'N' };
        let row = [A, B, C].map(|host| {
            [cell(host, Access::Read), cell(host, Access::Write)]
                .iter()
                .collect::<String>()
        });
        assert_eq!(row.join(" "), expected, "{kind:?}");
    }
    let nobody = ReservationTable::new(true);
    assert!(nobody.allows(C, Access::Write));
}

#[test]
fn registering_twice_needs_the_same_key_and_zero_is_no_key() {
    let mut table = held(T::WriteExclusive);
    assert_eq!(register(&mut table, B, 20), Ok(Effects::default()));
    assert_eq!(register(&mut table, B, 21), Err(CONFLICT));
    assert_eq!(register(&mut table, C, 0), Err(INVALID));
    let replace = |current, new| Register::Replace { current, new };
    let mut change = |host, action| {
        table
            .register_action(host, action, ChangePersistence::Unchanged)
            .map(|_| ())
    };
    assert_eq!(change(B, replace(19, 21)), Err(CONFLICT));
    assert_eq!(change(B, replace(20, 0)), Err(INVALID));
    assert_eq!(change(B, replace(20, 21)), Ok(()));
    assert_eq!(change(C, replace(0, 30)), Err(CONFLICT));
    assert_eq!(table.key_of(B), Some(21));
    // The holder keeps the reservation under its new key.
    assert!(change_key(&mut table, A, 10, 11).is_ok() && table.is_holder(A));
}

fn change_key(
    table: &mut ReservationTable,
    host: HostId,
    current: u64,
    new: u64,
) -> Result<Effects, Status> {
    let replace = Register::Replace { current, new };
    table.register_action(host, replace, ChangePersistence::Unchanged)
}

#[test]
fn iekey_passes_by_the_current_key_of_register_only() {
    let mut table = held(T::WriteExclusive);
    let request = |action, new| RegisterRequest {
        action,
        ignore_existing_key: true,
        persistence: 0,
        current: 99,
        new,
    };
    table.register(C, &request(2, 30)).unwrap();
    table.register(B, &request(2, 25)).unwrap();
    assert_eq!((table.key_of(C), table.key_of(B)), (Some(30), Some(25)));
    table.register(C, &request(1, 0)).unwrap();
    table.register(C, &request(1, 0)).unwrap();
    assert_eq!(table.key_of(C), None);
    // Register over another key stays a conflict.
    assert_eq!(table.register(B, &request(0, 26)), Err(CONFLICT));

    let mut acquire = AcquireRequest::from_action(Acquire::Acquire, 10, T::WriteExclusive);
    acquire.ignore_existing_key = true;
    assert_eq!(table.acquire(A, &acquire), Err(INVALID));
    let mut release = ReleaseRequest::from_action(Release::Clear, 10);
    release.ignore_existing_key = true;
    assert_eq!(table.release(A, &release), Err(INVALID));
}

#[test]
fn reserved_values_are_invalid_fields() {
    let mut table = held(T::WriteExclusive);
    let register = RegisterRequest {
        action: 3,
        ignore_existing_key: false,
        persistence: 0,
        current: 10,
        new: 10,
    };
    assert_eq!(table.register(A, &register), Err(INVALID));
    let register = RegisterRequest {
        action: 0,
        persistence: 1,
        ..register
    };
    assert_eq!(table.register(A, &register), Err(INVALID));
    for (action, kind) in [(3, 1), (0, 0), (0, 7), (1, 0)] {
        let request = AcquireRequest {
            action,
            ignore_existing_key: false,
            kind,
            current: 10,
            preempted: 20,
        };
        assert_eq!(table.acquire(A, &request), Err(INVALID));
    }
    for (action, kind) in [(2, 1), (0, 0), (0, 9)] {
        let request = ReleaseRequest {
            action,
            ignore_existing_key: false,
            kind,
            current: 10,
        };
        assert_eq!(table.release(A, &request), Err(INVALID));
    }
    assert_eq!(table, held(T::WriteExclusive));
}

#[test]
fn acquire_is_for_registrants_and_repeats_only_the_same_type() {
    let mut table = held(T::WriteExclusive);
    let kind = T::WriteExclusive;
    assert!(acquire(&mut table, A, 10, Acquire::Acquire, kind).is_ok());
    let other = T::ExclusiveAccess;
    assert_eq!(
        acquire(&mut table, A, 10, Acquire::Acquire, other),
        Err(CONFLICT)
    );
    assert_eq!(
        acquire(&mut table, B, 20, Acquire::Acquire, kind),
        Err(CONFLICT)
    );
    assert_eq!(
        acquire(&mut table, C, 30, Acquire::Acquire, kind),
        Err(CONFLICT)
    );
    assert_eq!(
        acquire(&mut table, A, 11, Acquire::Acquire, kind),
        Err(CONFLICT)
    );
    // With an all-registrants type every registrant holds.
    let mut table = held(T::WriteExclusiveAllRegistrants);
    let all = T::WriteExclusiveAllRegistrants;
    assert!(acquire(&mut table, B, 20, Acquire::Acquire, all).is_ok());
    assert_eq!(
        acquire(&mut table, B, 20, Acquire::Acquire, kind),
        Err(CONFLICT)
    );
}

#[test]
fn preempting_the_holder_takes_over() {
    let mut table = held(T::WriteExclusive);
    register(&mut table, C, 30).unwrap();
    let effects = preempt(&mut table, B, 20, 10, T::WriteExclusive).unwrap();
    assert_eq!(effects.removed, [(A, 10)]);
    assert_eq!(
        effects.notify,
        [(A, NotificationKind::RegistrationPreempted)]
    );
    assert!(effects.abort && effects.changed);
    assert!(table.is_holder(B) && table.key_of(A).is_none() && table.key_of(C) == Some(30));
}

#[test]
fn preempting_a_registrant_evicts_it_and_takes_nothing() {
    let mut table = held(T::WriteExclusive);
    register(&mut table, C, 30).unwrap();
    let effects = preempt(&mut table, B, 20, 30, T::WriteExclusive).unwrap();
    assert_eq!(effects.removed, [(C, 30)]);
    assert!(table.is_holder(A));
    // By the holder too.
    let effects = preempt(&mut table, A, 10, 20, T::ExclusiveAccess).unwrap();
    assert_eq!(effects.removed, [(B, 20)]);
    assert_eq!(table.reservation(), Some(T::WriteExclusive));
}

#[test]
fn one_shared_key_evicts_all_who_have_it() {
    let mut table = held(T::WriteExclusive);
    register(&mut table, C, 10).unwrap();
    let effects = preempt(&mut table, B, 20, 10, T::WriteExclusive).unwrap();
    assert_eq!(effects.removed, [(A, 10), (C, 10)]);
}

#[test]
fn a_holder_that_preempts_its_own_key_changes_the_type() {
    let mut table = held(T::WriteExclusiveRegistrantsOnly);
    register(&mut table, C, 10).unwrap();
    let effects = preempt(&mut table, A, 10, 10, T::ExclusiveAccess).unwrap();
    assert_eq!(effects.removed, [(C, 10)]);
    assert!(
        effects
            .notify
            .contains(&(B, NotificationKind::ReservationReleased))
    );
    assert!(table.is_holder(A));
    assert_eq!(table.reservation(), Some(T::ExclusiveAccess));
}

#[test]
fn preempt_without_a_holder_acquires_nothing() {
    let mut table = ReservationTable::new(false);
    register(&mut table, A, 10).unwrap();
    register(&mut table, B, 20).unwrap();
    let effects = preempt(&mut table, B, 20, 10, T::WriteExclusive).unwrap();
    assert_eq!(effects.removed, [(A, 10)]);
    assert_eq!(table.reservation(), None);
    // A key that nobody has is no error, and changes nobody.
    let before = table.clone();
    preempt(&mut table, B, 20, 77, T::WriteExclusive).unwrap();
    assert_eq!(table.report().registrants, before.report().registrants);
    assert_eq!(
        preempt(&mut table, B, 20, 0, T::WriteExclusive),
        Err(INVALID)
    );
    assert_eq!(
        preempt(&mut table, C, 30, 20, T::WriteExclusive),
        Err(CONFLICT)
    );
}

#[test]
fn preempt_with_all_registrants() {
    let all = T::WriteExclusiveAllRegistrants;
    let mut table = held(all);
    assert_eq!(preempt(&mut table, B, 20, 77, all), Err(CONFLICT));
    let effects = preempt(&mut table, B, 20, 10, T::WriteExclusive).unwrap();
    assert_eq!(effects.removed, [(A, 10)]);
    assert_eq!(table.reservation(), Some(all));
    // The key 0: everybody else goes, and the issuer takes over.
    register(&mut table, C, 30).unwrap();
    let effects = preempt(&mut table, B, 20, 0, T::WriteExclusive).unwrap();
    assert_eq!(effects.removed, [(C, 30)]);
    assert!(table.is_holder(B));
    assert_eq!(table.reservation(), Some(T::WriteExclusive));
}

#[test]
fn release_and_clear() {
    let kind = T::WriteExclusiveRegistrantsOnly;
    let mut table = held(kind);
    let release = |kind| Release::Release(kind);
    assert_eq!(
        table.release_action(A, release(T::WriteExclusive), 10),
        Err(INVALID)
    );
    assert_eq!(table.release_action(A, release(kind), 11), Err(CONFLICT));
    assert_eq!(table.release_action(C, Release::Clear, 30), Err(CONFLICT));
    // Not the holder: nothing happens, successfully.
    assert_eq!(
        table.release_action(B, release(kind), 20),
        Ok(Effects::default())
    );
    let effects = table.release_action(A, release(kind), 10).unwrap();
    assert_eq!(effects.notify, [(B, NotificationKind::ReservationReleased)]);
    assert_eq!(table.reservation(), None);
    // Exclusive types notify nobody.
    let mut exclusive = held(T::WriteExclusive);
    let effects = exclusive
        .release_action(A, release(T::WriteExclusive), 10)
        .unwrap();
    assert_eq!(effects.notify, []);

    let mut table = held(T::ExclusiveAccess);
    let effects = table.release_action(B, Release::Clear, 20).unwrap();
    assert_eq!(
        effects.notify,
        [(A, NotificationKind::ReservationPreempted)]
    );
    assert_eq!(
        (table.reservation(), table.key_of(A), table.key_of(B)),
        (None, None, None)
    );
}

#[test]
fn unregistering_the_holder_releases_and_of_all_registrants_only_the_last_one() {
    let mut table = held(T::ExclusiveAccessRegistrantsOnly);
    let effects = unregister(&mut table, A, 10).unwrap();
    assert_eq!(effects.notify, [(B, NotificationKind::ReservationReleased)]);
    assert_eq!(table.reservation(), None);
    assert_eq!(unregister(&mut table, A, 10), Err(CONFLICT));
    assert_eq!(unregister(&mut table, B, 21), Err(CONFLICT));

    let mut table = held(T::WriteExclusiveAllRegistrants);
    unregister(&mut table, A, 10).unwrap();
    assert!(table.is_holder(B));
    unregister(&mut table, B, 20).unwrap();
    assert_eq!(table.reservation(), None);
}

#[test]
fn the_generation_counts_register_clear_and_preempt_only() {
    let mut table = held(T::WriteExclusive);
    assert_eq!(table.report().generation, 2);
    preempt(&mut table, A, 10, 20, T::WriteExclusive).unwrap();
    assert_eq!(table.report().generation, 3);
    table
        .release_action(A, Release::Release(T::WriteExclusive), 10)
        .unwrap();
    assert_eq!(table.report().generation, 3);
    register(&mut table, B, 21).unwrap();
    assert_eq!(register(&mut table, B, 22), Err(CONFLICT));
    table.release_action(A, Release::Clear, 10).unwrap();
    assert_eq!(table.report().generation, 5);
}

#[test]
fn persistence_is_per_command_and_decides_what_a_power_loss_leaves() {
    let mut table = held(T::WriteExclusive);
    let persist = ChangePersistence::Persistent;
    let kept = table.register_action(
        A,
        Register::Replace {
            current: 10,
            new: 11,
        },
        persist,
    );
    assert!(kept.unwrap().changed);
    let before = table.clone();
    table.power_loss();
    assert_eq!(table, before);
    let volatile = ChangePersistence::Volatile;
    table
        .register_action(A, Register::Register { key: 11 }, volatile)
        .unwrap();
    table.power_loss();
    assert_eq!(table, ReservationTable::new(true));
    let mut unable = ReservationTable::new(false);
    let refused = unable.register_action(A, Register::Register { key: 1 }, persist);
    assert_eq!(refused, Err(INVALID));
    assert_eq!(unable, ReservationTable::new(false));
}

#[derive(Clone, Debug)]
enum Step {
    Register(RegisterRequest),
    Acquire(AcquireRequest),
    Release(ReleaseRequest),
}

fn steps() -> impl Strategy<Value = Vec<(HostId, Step)>> {
    let key = prop_oneof![Just(0u64), Just(10), Just(20), Just(30)];
    let register = (0..4u8, any::<bool>(), 0..4u8, key.clone(), key.clone()).prop_map(
        |(action, ignore_existing_key, persistence, current, new)| {
            Step::Register(RegisterRequest {
                action,
                ignore_existing_key,
                persistence,
                current,
                new,
            })
        },
    );
    let acquire = (0..4u8, 0..8u8, key.clone(), key.clone()).prop_map(
        |(action, kind, current, preempted)| {
            Step::Acquire(AcquireRequest {
                action,
                ignore_existing_key: false,
                kind,
                current,
                preempted,
            })
        },
    );
    let release = (0..3u8, 0..8u8, key).prop_map(|(action, kind, current)| {
        Step::Release(ReleaseRequest {
            action,
            ignore_existing_key: false,
            kind,
            current,
        })
    });
    let host = prop_oneof![Just(A), Just(B), Just(C)];
    proptest::collection::vec((host, prop_oneof![register, acquire, release]), 0..60)
}

fn apply(table: &mut ReservationTable, host: HostId, step: &Step) -> Result<Effects, Status> {
    match step {
        Step::Register(request) => table.register(host, request),
        Step::Acquire(request) => table.acquire(host, request),
        Step::Release(request) => table.release(host, request),
    }
}

proptest! {
    /// After any commands: a holder is a registrant, nobody has the key 0, an error changed nothing
    /// and asks for no retry, whoever was removed cannot write under an exclusive reservation, and
    /// the state survives its file format.
    #[test]
    fn invariants_hold_after_any_commands(steps in steps()) {
        let mut table = ReservationTable::new(true);
        for (host, step) in steps {
            let before = table.clone();
            match apply(&mut table, host, &step) {
                Err(status) => {
                    prop_assert!(status.do_not_retry());
                    prop_assert_eq!(&table, &before);
                }
                Ok(effects) => {
                    prop_assert!(effects.notify.iter().all(|(to, _)| *to != host));
                    for (removed, key) in &effects.removed {
                        prop_assert_eq!(before.key_of(*removed), Some(*key));
                        prop_assert_eq!(table.key_of(*removed), None);
                        let exclusive = table.reservation().is_some();
                        prop_assert!(!exclusive || !table.allows(*removed, Access::Write));
                    }
                    if !effects.changed {
                        let mut same = before.report();
                        same.generation = table.report().generation;
                        prop_assert_eq!(table.report(), same);
                    }
                }
            }
            let report = table.report();
            prop_assert_eq!(report.reservation.is_some(), report.holder().is_some());
            prop_assert!(report.registrants.iter().all(|r| r.key != 0));
            let json = serde_json::to_string(&table).unwrap();
            let read: ReservationTable = serde_json::from_str(&json).unwrap();
            prop_assert_eq!(read.with_can_persist(true), table.clone());
        }
    }
}
