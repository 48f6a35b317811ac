//! Every path of the fence's sequence, one by one: what it sends, and how it ends.
//!
//! A trace has one letter a step: `R` report, `K` replace our key, `P` preempt-and-abort, `A`
//! acquire, `.` wait. Faults are numbered by the command that they hit, from 1.

mod common;

use common::{DRAIN_WAIT, at, claim, cluster, host, key, limits, victim};
use fencing::model::{Executed, Model, Quirks};
use fencing::reservation::{Failure, Trouble};
use fencing::{
    AbsenceEvidence, Command, Drain, Expectation, FenceSequence, FenceUnverified, Holder, KeyFlags,
    Mono, Outcome, OwnHold, PermitLost, ReservationKey, Sequence, Step, Victim, WritePermit,
};
use nvme::reservation::{Acquire, ChangePersistence, Register, Release};
use nvme::{ReservationType, Status};

const WE: ReservationType = ReservationType::WriteExclusive;
const BEGIN: Mono = at_begin();

const fn at_begin() -> Mono {
    Mono::from_millis(100_000)
}

type Ended = Result<WritePermit, FenceUnverified>;

#[derive(Clone, Copy)]
enum Fault {
    /// It never reaches the controller.
    NotSent,
    /// It is carried out, and the reply is lost.
    ReplyLost,
    /// It is lost before it is carried out.
    Lost,
    /// It is carried out, and then answered with this status all the same.
    RefusedAfterwards(Status),
    /// Something happens just before it is carried out.
    After(fn(&mut Model)),
}

struct Case {
    name: &'static str,
    quirks: Quirks,
    expected: Expectation,
    faults: Vec<(usize, Fault)>,
    trace: &'static str,
    ended: fn(&Ended) -> bool,
}

fn register(model: &mut Model, key: ReservationKey) {
    let action = Register::Register { key: key.pack() };
    let member = key.member.number();
    let _ = model.register(host(member), action, ChangePersistence::Unchanged);
}

fn replace(model: &mut Model, member: u8, new: ReservationKey) {
    let current = model.key_of(host(member)).expect("registered");
    let action = Register::Replace {
        current,
        new: new.pack(),
    };
    let done = model.register(host(member), action, ChangePersistence::Unchanged);
    done.expect("replaced");
}

/// Member 1 holds in epoch 4; 2 (we) and 3 are registered.
fn served(quirks: Quirks) -> Model {
    let mut model = Model::new(quirks);
    for member in 1..=3 {
        register(&mut model, key(member, 4, 0));
    }
    model.acquire(host(1), Acquire::Acquire, key(1, 4, 0).pack(), WE);
    model
}

fn beat(model: &mut Model) {
    let own = ReservationKey::unpack(model.key_of(host(1)).expect("registered"));
    replace(model, 1, own.expect("a member's").beaten());
}

fn say_clean(model: &mut Model) {
    let flags = KeyFlags {
        clean: true,
        ..KeyFlags::NONE
    };
    replace(
        model,
        1,
        ReservationKey {
            flags,
            ..key(1, 4, 1)
        },
    );
}

/// Member 3 takes over; its own victim is drained.
fn rival_wins(model: &mut Model) {
    let victim = model.report().holder().expect("held").key;
    let own = model.key_of(host(3)).expect("registered");
    model.acquire(host(3), Acquire::PreemptAndAbort { victim }, own, WE);
}

fn rival_wins_and_goes(model: &mut Model) {
    rival_wins(model);
    let own = model.key_of(host(3)).expect("registered");
    let _ = model.release(host(3), Release::Release(WE), own);
}

fn victim_is_back(model: &mut Model) {
    register(model, key(1, 4, 0));
}

fn victim_is_back_afresh(model: &mut Model) {
    register(model, key(1, 5, 9));
}

fn victim_leaves(model: &mut Model) {
    let own = model.key_of(host(1)).expect("registered");
    let action = Register::Unregister { key: own };
    let _ = model.register(host(1), action, ChangePersistence::Unchanged);
}

fn our_key_moves(model: &mut Model) {
    let own = ReservationKey::unpack(model.key_of(host(2)).expect("registered"));
    replace(model, 2, own.expect("ours").beaten());
}

fn we_are_fenced(model: &mut Model) {
    let victim = model.key_of(host(2)).expect("registered");
    let own = model.key_of(host(3)).expect("registered");
    model.acquire(host(3), Acquire::PreemptAndAbort { victim }, own, WE);
}

fn run(case: &Case) -> (String, Ended, Mono) {
    let mut model = match case.expected {
        Expectation::Holder(_) => served(case.quirks),
        Expectation::Nobody(_) => {
            let mut model = served(case.quirks);
            model.forget_holder();
            model
        }
        Expectation::Ourselves(_) => {
            let mut model = served(case.quirks);
            let (own, victim) = (key(2, 4, 0).pack(), key(1, 4, 0).pack());
            model.acquire(host(2), Acquire::PreemptAndAbort { victim }, own, WE);
            model
        }
    };
    let mut sequence = FenceSequence::new(claim(2, 5), case.expected, limits(BEGIN));
    let (mut trace, mut sent, mut now, mut outcome) = (String::new(), 0, BEGIN, None);
    loop {
        match sequence.next(now, outcome.take()) {
            Step::Send(command) => {
                trace.push(match command {
                    Command::Report => 'R',
                    Command::Replace { .. } => 'K',
                    Command::PreemptAndAbort { .. } => 'P',
                    Command::Acquire { .. } => 'A',
                    Command::Register { .. } => 'G',
                });
                sent += 1;
                now = now + std::time::Duration::from_millis(1);
                let faults = case.faults.iter().filter(|fault| fault.0 == sent);
                outcome = Some(carry_out(&mut model, &command, faults.map(|f| f.1)));
            }
            Step::WaitUntil(until) => {
                if !trace.ends_with('.') {
                    trace.push('.');
                }
                now = until;
            }
            Step::Proven(permit) => return (trace, Ok(permit), now),
            Step::Unproven(why) => return (trace, Err(why), now),
        }
        if trace.len() > 400 {
            return (trace, Err(FenceUnverified::Ended), now);
        }
    }
}

fn carry_out(model: &mut Model, command: &Command, faults: impl Iterator<Item = Fault>) -> Outcome {
    let mut answer = None;
    for fault in faults {
        match fault {
            Fault::NotSent => return Outcome::NotSent,
            Fault::Lost => return Outcome::Unknown,
            Fault::ReplyLost => answer = Some(Outcome::Unknown),
            Fault::RefusedAfterwards(status) => answer = Some(Outcome::Refused(status)),
            Fault::After(event) => event(model),
        }
    }
    match model.execute(host(2), command) {
        Executed::Completed(outcome) => answer.unwrap_or(outcome),
        Executed::Draining(_) => panic!("nothing is in flight here"),
    }
}

fn aborted(ended: &Ended) -> bool {
    matches!(ended, Ok(permit) if matches!(permit.drain(), Drain::Aborted { .. }))
}

fn waited(ended: &Ended) -> bool {
    let drained = |permit: &WritePermit| match permit.drain() {
        Drain::Waited { since } => since.elapsed(DRAIN_WAIT, permit.proven_at()),
        Drain::Aborted { .. } | Drain::NeverOwned | Drain::OwnClean => false,
    };
    matches!(ended, Ok(permit) if drained(permit))
}

fn other_holder(ended: &Ended) -> bool {
    matches!(ended, Err(why @ FenceUnverified::UnexpectedHolder { found: Holder::Member(_), .. })
        if why.is_lost_race())
}

fn absent(ended: &Ended) -> bool {
    matches!(ended, Err(FenceUnverified::ReservationAbsent { .. }))
}

fn not_registered(ended: &Ended) -> bool {
    matches!(ended, Err(FenceUnverified::NotRegistered { .. }))
}

fn case(
    name: &'static str,
    faults: Vec<(usize, Fault)>,
    trace: &'static str,
    ended: fn(&Ended) -> bool,
) -> Case {
    let expected = Expectation::Holder(victim(1, 4));
    Case {
        name,
        quirks: Quirks::NONE,
        expected,
        faults,
        trace,
        ended,
    }
}

fn on(quirks: Quirks, case: Case) -> Case {
    Case { quirks, ..case }
}

fn expecting(expected: Expectation, case: Case) -> Case {
    Case { expected, ..case }
}

/// A wait of 25 s with a beat every second: the beats are replacements, each read back.
fn with_wait(trace: &str) -> String {
    let mut beats = ".RKR".repeat(24);
    beats.push_str(".RK");
    trace.replace('~', &beats)
}

fn lost_replies() -> Vec<Case> {
    use Fault::{Lost, NotSent, RefusedAfterwards, ReplyLost};
    vec![
        case("nothing goes wrong", vec![], "RKRPRK", aborted),
        case("first report lost", vec![(1, Lost)], "RRKRPRK", aborted),
        case(
            "first reports have no path",
            vec![(1, NotSent), (2, NotSent)],
            "RR.RKRPRK",
            aborted,
        ),
        case(
            "replacement's reply lost",
            vec![(2, ReplyLost)],
            "RKRPRK",
            aborted,
        ),
        case("replacement lost", vec![(2, Lost)], "RKR.RKRPRK", aborted),
        case("preempt not sent", vec![(4, NotSent)], "RKRPRPRK", aborted),
        case("preempt lost", vec![(4, Lost)], "RKRPRKRPRK", aborted),
        case(
            "preempt's reply lost",
            vec![(4, ReplyLost)],
            "RKRPRKR~",
            waited,
        ),
        case(
            "preempt interrupted after its change",
            vec![(4, RefusedAfterwards(Status::COMMAND_INTERRUPTED))],
            "RKRPRKR~",
            waited,
        ),
        case("verifying report lost", vec![(5, Lost)], "RKRPRRK", aborted),
        case(
            "verifying reports have no path",
            vec![(5, NotSent), (6, NotSent)],
            "RKRPRR.RK",
            aborted,
        ),
        case("last replacement lost", vec![(6, Lost)], "RKRPRK", aborted),
    ]
}

fn races() -> Vec<Case> {
    use Fault::After;
    vec![
        case(
            "victim beats before the preempt",
            vec![(4, After(beat))],
            "RKRPRRPRK",
            aborted,
        ),
        on(
            Quirks::NVMET_6_13,
            case(
                "the same where that conflicts",
                vec![(4, After(beat))],
                "RKRPRPRK",
                aborted,
            ),
        ),
        case(
            "victim says clean meanwhile",
            vec![(4, After(say_clean))],
            "RKRPR",
            other_holder,
        ),
        case(
            "rival wins before the preempt",
            vec![(4, After(rival_wins))],
            "RKRPR",
            other_holder,
        ),
        case(
            "rival wins after the preempt",
            vec![(5, After(rival_wins))],
            "RKRPR",
            other_holder,
        ),
        case(
            "rival wins before all",
            vec![(1, After(rival_wins))],
            "R",
            other_holder,
        ),
        case(
            "rival wins, then releases",
            vec![(4, After(rival_wins_and_goes))],
            "RKRPRAR~",
            waited,
        ),
        case(
            "victim leaves before all",
            vec![(1, After(victim_leaves))],
            "R",
            absent,
        ),
        case(
            "victim leaves before the preempt",
            vec![(4, After(victim_leaves))],
            "RKRPRAR~",
            waited,
        ),
        case(
            "victim is back with its key",
            vec![(5, After(victim_is_back))],
            "RKRPRRPR~",
            waited,
        ),
        case(
            "victim is back afresh",
            vec![(5, After(victim_is_back_afresh))],
            "RKRPRK",
            aborted,
        ),
        case(
            "our key moves",
            vec![(4, After(our_key_moves))],
            "RKRPR.RKRPRK",
            aborted,
        ),
        case(
            "we are fenced first",
            vec![(3, After(we_are_fenced))],
            "RKR",
            not_registered,
        ),
        case(
            "target forgets the holder",
            vec![(5, After(Model::forget_holder))],
            "RKRPRAR~",
            waited,
        ),
        case(
            "target forgets all",
            vec![(4, After(Model::forget))],
            "RKRPR",
            not_registered,
        ),
        case(
            "target forgets the holder while a preempt is in doubt",
            vec![(4, Fault::Lost), (5, After(Model::forget_holder))],
            "RKRPR",
            absent,
        ),
    ]
}

fn without_a_victim() -> Vec<Case> {
    use Fault::{After, Lost, ReplyLost};
    let ourselves = Expectation::Ourselves(OwnHold::QuietSince(BEGIN));
    let stopped = |since| Expectation::Nobody(AbsenceEvidence::EveryOwnerStopped { since });
    let long_stopped = stopped(BEGIN - DRAIN_WAIT);
    let word = Expectation::Nobody(AbsenceEvidence::OperatorsWord);
    let never = Expectation::Nobody(AbsenceEvidence::NeverOwned);
    let no_wait = |ended: &Ended| ended.is_ok();
    vec![
        expecting(
            never,
            case(
                "new volume",
                vec![],
                "RKRARK",
                |ended| matches!(ended, Ok(permit) if permit.drain() == Drain::NeverOwned),
            ),
        ),
        expecting(
            long_stopped,
            case("all stopped long ago", vec![], "RKRARK", no_wait),
        ),
        expecting(word, case("operator's word", vec![], "RKRAR~", waited)),
        expecting(
            long_stopped,
            case(
                "acquire's reply lost",
                vec![(4, ReplyLost)],
                "RKRARKRK",
                no_wait,
            ),
        ),
        expecting(
            long_stopped,
            case("acquire lost", vec![(4, Lost)], "RKRARKRARK", no_wait),
        ),
        expecting(
            never,
            case(
                "somebody else acquires first",
                vec![(
                    4,
                    After(|model| {
                        model.acquire(host(3), Acquire::Acquire, key(3, 4, 0).pack(), WE);
                    }),
                )],
                "RKRAR",
                other_holder,
            ),
        ),
        expecting(
            never,
            case(
                "new volume with an owner's key",
                vec![(1, After(|model| replace(model, 3, key(3, 6, 0))))],
                "R",
                |ended| matches!(ended, Err(FenceUnverified::OwnedBefore { .. })),
            ),
        ),
        expecting(ourselves, case("we hold already", vec![], "RKR~", waited)),
        expecting(
            ourselves,
            case(
                "we held, and lost it",
                vec![(1, After(Model::forget_holder))],
                "R",
                absent,
            ),
        ),
    ]
}

#[test]
fn every_path_ends_as_it_must() {
    let mut wrong = Vec::new();
    for case in lost_replies()
        .into_iter()
        .chain(races())
        .chain(without_a_victim())
    {
        let (trace, ended, _) = run(&case);
        if trace != with_wait(case.trace) || !(case.ended)(&ended) {
            wrong.push(format!("{}: {trace}: {ended:?}", case.name));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A holder that claims to be draining its own predecessor is no proof of that one's end.
#[test]
fn a_draining_victim_costs_a_wait() {
    let draining = |model: &mut Model| {
        let flags = KeyFlags {
            draining: true,
            ..KeyFlags::NONE
        };
        replace(
            model,
            1,
            ReservationKey {
                flags,
                ..key(1, 4, 1)
            },
        );
    };
    let (trace, ended, _) = run(&case("", vec![(1, Fault::After(draining))], "", waited));
    assert!(
        trace.starts_with("RKRPR.R") && waited(&ended),
        "{trace}: {ended:?}"
    );
}

#[test]
fn our_own_clean_hold_needs_no_wait() {
    let clean = |model: &mut Model| {
        let flags = KeyFlags {
            clean: true,
            ..KeyFlags::NONE
        };
        replace(
            model,
            2,
            ReservationKey {
                flags,
                ..key(2, 4, 1)
            },
        );
    };
    let expected = Expectation::Ourselves(OwnHold::Clean);
    let clean = expecting(
        expected,
        case("", vec![(1, Fault::After(clean))], "", |_| true),
    );
    let (trace, ended, _) = run(&clean);
    assert_eq!(
        (trace.as_str(), ended.unwrap().drain()),
        ("RKRK", Drain::OwnClean)
    );

    let not_clean = expecting(expected, case("", vec![], "", |_| true));
    assert!(waited(&run(&not_clean).1));
}

#[test]
fn the_deadline_ends_every_trouble_and_names_it() {
    let lost_forever = (1..200).map(|n| (n, Fault::Lost)).collect();
    let (_, ended, now) = run(&case("", lost_forever, "", |_| true));
    let trouble = Some(Trouble::Report(Failure::Unknown));
    assert_eq!(
        ended,
        Err(FenceUnverified::OutOfTime {
            attempts: 0,
            trouble
        })
    );
    assert!(BEGIN.elapsed(std::time::Duration::from_millis(2_900), now));

    let no_preempt = (4..200).map(|n| {
        (
            n,
            if n % 2 == 0 {
                Fault::NotSent
            } else {
                Fault::After(|_| {})
            },
        )
    });
    let (_, ended, _) = run(&case("", no_preempt.collect(), "", |_| true));
    let Err(why @ FenceUnverified::OutOfTime { attempts, trouble }) = ended else {
        panic!("{ended:?}");
    };
    assert!(attempts > 10);
    let victim = key(1, 4, 0);
    assert_eq!(
        trouble,
        Some(Trouble::Preempt {
            victim,
            failure: Failure::NotSent
        })
    );
    let text = why.to_string();
    assert!(
        text.contains("preempt-and-abort") && text.contains("no path"),
        "{text}"
    );
}

#[test]
fn contradictory_claims_send_nothing() {
    let first =
        |claim, expected| FenceSequence::new(claim, expected, limits(at(0))).next(at(0), None);
    let own = Victim {
        host: host(2),
        ..victim(1, 4)
    };
    assert!(matches!(
        first(claim(2, 5), Expectation::Holder(own)),
        Step::Unproven(FenceUnverified::VictimOnOwnHost { .. })
    ));
    assert!(matches!(
        first(claim(2, 4), Expectation::Holder(victim(1, 4))),
        Step::Unproven(FenceUnverified::EpochNotNewer { .. })
    ));
}

#[test]
fn foreign_holders_other_types_and_volatile_targets_are_refused() {
    let expected = Expectation::Holder(victim(1, 4));
    let judge = |model: &Model, limits| {
        let mut sequence = FenceSequence::new(claim(2, 5), expected, limits);
        let _ = sequence.next(at(0), None);
        match sequence.next(at(0), Some(Outcome::Report(model.report()))) {
            Step::Unproven(why) => why,
            other => panic!("{other:?}"),
        }
    };
    let mut model = served(Quirks::NONE);
    let foreign = Register::Replace {
        current: key(1, 4, 0).pack(),
        new: 7,
    };
    model
        .register(host(1), foreign, ChangePersistence::Unchanged)
        .unwrap();
    let why = judge(&model, limits(at(0)));
    assert!(matches!(
        why,
        FenceUnverified::UnexpectedHolder {
            found: Holder::Foreign(_),
            ..
        }
    ));

    let mut model = served(Quirks::NONE);
    let foreign = Register::Replace {
        current: key(2, 4, 0).pack(),
        new: 7,
    };
    model
        .register(host(2), foreign, ChangePersistence::Unchanged)
        .unwrap();
    let why = judge(&model, limits(at(0)));
    assert!(matches!(
        why,
        FenceUnverified::RegisteredAsAnother { key: 7, .. }
    ));

    let mut model = served(Quirks::NONE);
    model
        .release(host(1), Release::Release(WE), key(1, 4, 0).pack())
        .unwrap();
    let kind = ReservationType::WriteExclusiveRegistrantsOnly;
    model.acquire(host(1), Acquire::Acquire, key(1, 4, 0).pack(), kind);
    assert_eq!(
        judge(&model, limits(at(0))),
        FenceUnverified::UnexpectedType { found: kind }
    );

    let mut strict = limits(at(0));
    strict.require_persistence = true;
    assert_eq!(
        judge(&served(Quirks::NONE), strict),
        FenceUnverified::NotPersistent
    );
}

#[test]
fn without_a_bound_only_a_completed_preempt_is_proof() {
    let drive = |lost: bool| {
        let mut model = served(Quirks::NONE);
        let mut limits = limits(BEGIN);
        limits.drain_wait = None;
        let expected = Expectation::Holder(victim(1, 4));
        let mut sequence = FenceSequence::new(claim(2, 5), expected, limits);
        let mut outcome = None;
        loop {
            match sequence.next(BEGIN, outcome.take()) {
                Step::Send(command) => {
                    let preempt = matches!(command, Command::PreemptAndAbort { .. });
                    let fault = (lost && preempt).then_some(Fault::ReplyLost);
                    outcome = Some(carry_out(&mut model, &command, fault.into_iter()));
                }
                Step::WaitUntil(_) => panic!("nothing to wait for"),
                Step::Proven(permit) => return Ok(permit.epoch()),
                Step::Unproven(why) => return Err(why),
            }
        }
    };
    assert_eq!(drive(false), Ok(claim(2, 5).epoch));
    assert_eq!(drive(true), Err(FenceUnverified::NoDrainBound));
}

#[test]
fn nothing_is_sent_while_own_old_commands_may_become_legal() {
    let first = |now: Mono, drain_wait| {
        let mut claim = claim(2, 5);
        claim.former_controllers_gone = Some(BEGIN);
        let mut limits = limits(now);
        limits.drain_wait = drain_wait;
        let expected = Expectation::Holder(victim(1, 4));
        FenceSequence::new(claim, expected, limits).next(now, None)
    };
    let wait = std::time::Duration::from_secs(25);
    let until = BEGIN + wait;
    match first(until - std::time::Duration::from_millis(1), Some(wait)) {
        Step::Unproven(why) => assert_eq!(why, FenceUnverified::OwnCommandsOnTheirWay { until }),
        step => panic!("{step:?}"),
    }
    match first(until, None) {
        Step::Unproven(why) => assert_eq!(why, FenceUnverified::NoDrainBound),
        step => panic!("{step:?}"),
    }
    let begun = first(until, Some(wait));
    assert!(matches!(begun, Step::Send(Command::Report)), "{begun:?}");
}

#[test]
fn a_permit_is_lost_with_the_hold_and_not_with_a_beat() {
    let expected = Expectation::Ourselves(OwnHold::QuietSince(Mono::ZERO));
    let (_, ended, _) = run(&expecting(expected, case("", vec![], "", |_| true)));
    let permit = ended.unwrap();
    let mut model = served(Quirks::NONE);
    assert!(matches!(
        permit.confirm(&model.report()),
        Err(PermitLost::HeldByOther { .. })
    ));
    let own = key(2, 4, 0).pack();
    model.acquire(
        host(2),
        Acquire::PreemptAndAbort {
            victim: key(1, 4, 0).pack(),
        },
        own,
        WE,
    );
    assert!(matches!(
        permit.confirm(&model.report()),
        Err(PermitLost::OtherIncarnation { .. })
    ));
    replace(&mut model, 2, key(2, 5, 77));
    assert_eq!(permit.confirm(&model.report()), Ok(()));
    victim_is_back(&mut model);
    assert_eq!(permit.confirm(&model.report()), Ok(()));
    model.forget_holder();
    assert_eq!(
        permit.confirm(&model.report()),
        Err(PermitLost::ReservationAbsent)
    );
    assert_eq!(permit.cluster(), cluster());
}
