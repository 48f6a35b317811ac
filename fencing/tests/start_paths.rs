//! A member's start on the volume: what it registers, what it takes over, what it refuses.

mod common;

use common::{at, claim, host, key, limits};
use fencing::model::{Executed, Model, Quirks};
use fencing::{
    Command, KeyFlags, Limits, Outcome, Registered, ReservationKey, Sequence, StartRefused,
    StartSequence, Step,
};
use nvme::reservation::{Acquire, ChangePersistence, Register};
use nvme::{ReservationType, Status};

const WE: ReservationType = ReservationType::WriteExclusive;

type Ended = Result<Registered, StartRefused>;

fn register(model: &mut Model, on_host: u8, key: u64) {
    let action = Register::Register { key };
    let done = model.register(host(on_host), action, ChangePersistence::Unchanged);
    done.expect("registered");
}

fn persistent() -> Limits {
    let mut limits = limits(at(77));
    limits.require_persistence = true;
    limits
}

/// Starts member 2 in epoch 6. `lost`: the commands, from 1, whose replies are lost.
fn start(model: &mut Model, limits: Limits, lost: &[usize]) -> Ended {
    let mut sequence = StartSequence::new(claim(2, 6), limits);
    let (mut now, mut outcome, mut sent) = (at(77), None, 0);
    loop {
        match sequence.next(now, outcome.take()) {
            Step::Send(command) => {
                sent += 1;
                let Executed::Completed(answer) = model.execute(host(2), &command) else {
                    panic!("nothing is in flight");
                };
                let is_lost = lost.contains(&sent);
                outcome = Some(if is_lost { Outcome::Unknown } else { answer });
            }
            Step::WaitUntil(until) => now = until,
            Step::Proven(registered) => return Ok(registered),
            Step::Unproven(why) => return Err(why),
        }
    }
}

#[test]
fn a_new_host_registers_persistently_with_a_key_of_its_own() {
    let mut model = Model::new(Quirks::NONE);
    register(&mut model, 1, key(1, 4, 0).pack());
    let started = start(&mut model, persistent(), &[]).unwrap();
    assert_eq!(
        started.key,
        key(2, 6, 77),
        "the first beat differs from one start to the next"
    );
    assert_eq!(model.key_of(host(2)), Some(started.key.pack()));
    assert!(started.mailbox.persistent && !started.holds);
    assert_eq!((started.replaced, started.twins), (None, vec![]));
}

#[test]
fn lost_replies_register_once() {
    for lost in [&[1][..], &[2], &[3], &[1, 2, 3, 4]] {
        let mut model = Model::new(Quirks::NONE);
        let started = start(&mut model, persistent(), lost).unwrap();
        assert_eq!(model.key_of(host(2)), Some(started.key.pack()), "{lost:?}");
        assert_eq!(model.report().registrants.len(), 1);
    }
}

#[test]
fn an_earlier_registration_of_ours_is_replaced_and_its_epoch_never_falls() {
    for (earlier, epoch) in [(4, 6), (9, 9)] {
        let mut model = Model::new(Quirks::NONE);
        register(&mut model, 2, key(2, earlier, 5).pack());
        let started = start(&mut model, limits(at(77)), &[]).unwrap();
        assert_eq!(started.key, key(2, epoch, 6));
        assert_eq!(started.replaced, Some(key(2, earlier, 5)));
    }
}

#[test]
fn a_holders_key_keeps_its_epoch_and_what_it_says_of_the_volume() {
    let mut model = Model::new(Quirks::NONE);
    let flags = KeyFlags {
        clean: true,
        draining: true,
        ready: true,
        ..KeyFlags::NONE
    };
    let held = ReservationKey {
        flags,
        ..key(2, 4, 5)
    };
    register(&mut model, 2, held.pack());
    model.acquire(host(2), Acquire::Acquire, held.pack(), WE);
    let started = start(&mut model, limits(at(77)), &[]).unwrap();
    let flags = KeyFlags {
        ready: false,
        ..flags
    };
    assert_eq!(
        started.key,
        ReservationKey {
            flags,
            ..key(2, 4, 6)
        }
    );
    assert!(started.holds && model.holds(host(2)));
}

#[test]
fn another_member_of_this_host_hands_over_its_registration_but_not_its_hold() {
    let mut model = Model::new(Quirks::NONE);
    register(&mut model, 2, key(3, 4, 5).pack());
    let started = start(&mut model.clone(), limits(at(77)), &[]).unwrap();
    assert_eq!(started.replaced, Some(key(3, 4, 5)));

    model.acquire(host(2), Acquire::Acquire, key(3, 4, 5).pack(), WE);
    let refused = start(&mut model, limits(at(77)), &[]).unwrap_err();
    let StartRefused::HostHoldsForAnother { holder, .. } = refused else {
        panic!("{refused}");
    };
    assert_eq!(holder.number(), 3);
}

#[test]
fn twins_are_shown_and_foreign_keys_refused() {
    let mut model = Model::new(Quirks::NONE);
    register(&mut model, 9, key(2, 5, 0).pack());
    let started = start(&mut model, limits(at(77)), &[]).unwrap();
    assert_eq!(started.twins.len(), 1);
    assert_eq!(started.twins[0].host, host(9));

    let mut model = Model::new(Quirks::NONE);
    register(&mut model, 2, 0x1234);
    let refused = start(&mut model, limits(at(77)), &[]).unwrap_err();
    assert_eq!(
        refused,
        StartRefused::ForeignKey {
            host: host(2),
            key: 0x1234
        }
    );
}

#[test]
fn a_volatile_target_is_refused_where_persistence_is_required() {
    let mut model = Model::new(Quirks {
        volatile: true,
        ..Quirks::NONE
    });
    assert_eq!(
        start(&mut model, persistent(), &[]),
        Err(StartRefused::NotPersistent)
    );

    let mut model = Model::new(Quirks::NVMET_6_13);
    assert_eq!(
        start(&mut model, persistent(), &[]),
        Err(StartRefused::NotPersistent)
    );
    assert!(start(&mut Model::new(Quirks::NVMET_6_13), limits(at(77)), &[]).is_ok());
}

#[test]
fn a_volume_without_reservations_is_refused_at_once() {
    let mut sequence = StartSequence::new(claim(2, 6), limits(at(0)));
    assert!(matches!(
        sequence.next(at(0), None),
        Step::Send(Command::Report)
    ));
    let status = Status::INVALID_OPCODE.dnr();
    let Step::Unproven(refused) = sequence.next(at(0), Some(Outcome::Refused(status))) else {
        panic!("refused");
    };
    assert_eq!(refused, StartRefused::Unsupported { status });
}

#[test]
fn a_registration_never_preempts_nor_acquires() {
    let mut sequence = StartSequence::new(claim(2, 6), limits(at(0)));
    let mut model = Model::new(Quirks::NONE);
    let mut outcome = None;
    while let Step::Send(command) = sequence.next(at(0), outcome.take()) {
        assert!(!matches!(
            command,
            Command::PreemptAndAbort { .. } | Command::Acquire { .. }
        ));
        let Executed::Completed(answer) = model.execute(host(2), &command) else {
            panic!("nothing is in flight");
        };
        outcome = Some(answer);
    }
    assert_eq!(model.reservation(), None);
}
