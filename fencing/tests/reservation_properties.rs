//! Drives the fence's sequence against the model of a volume while everything goes wrong: replies
//! are lost, commands arrive late, beats move keys, the victim registers again, another standby wins,
//! the target forgets, and targets deviate from the specification.
//!
//! What must hold whenever a permit is issued:
//! `we_hold` (Write Exclusive, under the permit's key), `nothing_in_flight` (no write of another, nor
//! of our own former controllers, that began earlier), `victim_gone` (its key is not registered).

mod common;

use common::{DRAIN_WAIT, at, claim, cluster, host, key, limits};
use fencing::model::{Access, CommandId, Executed, Model, Quirks};
use fencing::{
    AbsenceEvidence, Command, Drain, Epoch, Expectation, FenceSequence, FenceUnverified, Holder,
    KeyFlags, Mailbox, Mono, Outcome, OwnHold, ReservationKey, Sequence, StartSequence, Step,
    Victim, WritePermit,
};
use nvme::reservation::{Acquire, ChangePersistence, Register, Release};
use nvme::{HostId, ReservationReport, ReservationType};
use proptest::prelude::*;

const ACTIVE: u8 = 1;
const US: u8 = 2;
const RIVAL: u8 = 3;
/// A member that was fenced long ago: not registered, still trying to write.
const ZOMBIE: u8 = 4;
const WE: ReservationType = ReservationType::WriteExclusive;

/// Chance, as bytes that a property shrinks; when they are used up, nothing goes wrong any more.
struct Tape {
    bytes: Vec<u8>,
    at: usize,
}

impl Tape {
    fn draw(&mut self) -> u8 {
        let byte = self.bytes.get(self.at).copied().unwrap_or(0);
        self.at += 1;
        byte
    }
}

struct World {
    model: Model,
    tape: Tape,
    now: Mono,
    /// Writes in flight with their beginning.
    writes: Vec<(CommandId, HostId, Mono)>,
    /// Commands of ours whose reply was given up and that the target has not yet carried out.
    delayed: Vec<Command>,
    /// From when on nobody but the holder of a permit writes: what evidence asserts.
    quiet: bool,
    /// What was true when the target made its last report for us.
    reported: Option<Reported>,
}

#[derive(Debug)]
struct Reported {
    report: ReservationReport,
    holds: bool,
    key: Option<ReservationKey>,
    writes: Vec<HostId>,
}

impl World {
    fn new(bytes: Vec<u8>) -> Self {
        let mut tape = Tape { bytes, at: 0 };
        let quirks = match tape.draw() % 4 {
            0 => Quirks::NONE,
            1 => Quirks::NVMET,
            2 => Quirks::NVMET_6_13,
            _ => Quirks::SPDK,
        };
        Self {
            model: Model::new(quirks),
            tape,
            now: at(1_000_000),
            writes: Vec::new(),
            delayed: Vec::new(),
            quiet: false,
            reported: None,
        }
    }

    /// The active holds in epoch 4 and writes; we and the rival are registered.
    fn served(bytes: Vec<u8>) -> Self {
        let mut world = Self::new(bytes);
        if world.tape.draw().is_multiple_of(4) {
            // From when we were the active ourselves: the bridge is gone, its write is not.
            world.begin(US);
        }
        for member in [ACTIVE, US, RIVAL] {
            world.register(member, key(member, 4, 0));
        }
        let raw = key(ACTIVE, 4, 0).pack();
        world.model.acquire(host(ACTIVE), Acquire::Acquire, raw, WE);
        world.begin(ACTIVE);
        world
    }

    fn register(&mut self, member: u8, key: ReservationKey) {
        let action = Register::Register { key: key.pack() };
        let _ = self
            .model
            .register(host(member), action, ChangePersistence::Unchanged);
    }

    fn begin(&mut self, member: u8) {
        if self.quiet {
            return;
        }
        if let Ok(id) = self.model.begin(host(member), Access::Write) {
            self.writes.push((id, host(member), self.now));
        }
    }

    fn finish(&mut self, index: usize) {
        let (id, ..) = self.writes.remove(index);
        self.model.finish(id);
    }

    /// Old commands end in time: the one assumption on which a waiting proof rests.
    fn advance(&mut self, to: Mono) {
        self.now = self.now.max(to);
        while let Some(index) = self
            .writes
            .iter()
            .position(|(_, _, begun)| begun.elapsed(DRAIN_WAIT, self.now))
        {
            self.finish(index);
        }
    }

    fn own_key(&self, member: u8) -> Option<ReservationKey> {
        self.model
            .key_of(host(member))
            .and_then(ReservationKey::unpack)
    }

    fn replace(&mut self, member: u8, new: impl Fn(ReservationKey) -> ReservationKey) {
        if let Some(own) = self.own_key(member) {
            let (current, new) = (own.pack(), new(own).pack());
            let action = Register::Replace { current, new };
            let _ = self
                .model
                .register(host(member), action, ChangePersistence::Unchanged);
        }
    }

    fn beat(&mut self, member: u8) {
        self.replace(member, ReservationKey::beaten);
    }

    /// `member` preempts whoever holds, as a rival standby would; without the abort it is a rival
    /// whose command's drain is still under way, which looks the same.
    fn preempt_holder(&mut self, member: u8, abort: bool) {
        let report = self.model.report();
        let Some(holder) = report.holder().filter(|h| h.host != host(member)) else {
            return;
        };
        let victim = holder.key;
        let epoch = Mailbox::read(&report, cluster()).newest_epoch().next();
        self.replace(member, |own| ReservationKey {
            epoch: epoch.unwrap(),
            flags: KeyFlags {
                draining: true,
                ..KeyFlags::NONE
            },
            ..own.beaten()
        });
        let Some(own) = self.own_key(member) else {
            return;
        };
        let action = match abort {
            true => Acquire::PreemptAndAbort { victim },
            false => Acquire::Preempt { victim },
        };
        self.model.acquire(host(member), action, own.pack(), WE);
    }

    /// A rival that holds has proven that everybody else is drained, if everybody is.
    fn settle(&mut self, member: u8) {
        let lone = self.writes.iter().all(|(_, by, _)| *by == host(member));
        if lone && self.model.holds(host(member)) {
            self.replace(member, |own| ReservationKey {
                flags: KeyFlags::NONE,
                ..own.beaten()
            });
        }
    }

    /// Only a proven owner writes; a zombie writes whenever the target lets it.
    fn write(&mut self, member: u8) {
        if self.own_key(member).is_some_and(|key| !key.flags.draining) {
            self.begin(member);
        }
    }

    fn release(&mut self, member: u8) {
        if let Some(own) = self.own_key(member) {
            let _ = self
                .model
                .release(host(member), Release::Release(WE), own.pack());
        }
    }

    /// One thing that others do.
    fn event(&mut self) {
        let kind = self.tape.draw();
        match kind % 32 {
            0..=3 => {}
            4..=7 => self.beat(ACTIVE),
            8..=10 => self.write(ACTIVE),
            11 | 12 => self.begin(ZOMBIE),
            13 => self.write(RIVAL),
            14 => self.settle(RIVAL),
            15..=17 if !self.writes.is_empty() => {
                let index = self.tape.draw() as usize % self.writes.len();
                self.finish(index);
            }
            18 => self.register(ACTIVE, key(ACTIVE, 4, 0)),
            19 => self.register(ACTIVE, key(ACTIVE, 4, u16::from(kind))),
            20 => self.preempt_holder(RIVAL, true),
            21 => self.preempt_holder(RIVAL, false),
            22 => self.release(RIVAL),
            23 => self.release(ACTIVE),
            24 => self.preempt_holder(ACTIVE, true),
            25 if self.tape.draw().is_multiple_of(2) => self.model.forget_holder(),
            26 if self.tape.draw().is_multiple_of(4) => self.model.forget(),
            27..=29 if !self.delayed.is_empty() => {
                let command = self.delayed.remove(0);
                self.model.execute(host(US), &command);
            }
            30 => self.settle(ACTIVE),
            31 => self.advance(self.now + std::time::Duration::from_millis(u64::from(kind))),
            _ => {}
        }
    }

    fn events(&mut self) {
        for _ in 0..self.tape.draw() % 4 {
            self.event();
        }
    }

    /// Sends a command of ours through a bad network to the target.
    fn send(&mut self, command: Command) -> Outcome {
        self.events();
        self.advance(self.now + std::time::Duration::from_millis(1));
        match self.tape.draw() {
            160..=175 => Outcome::NotSent,
            176..=205 => {
                self.model.execute(host(US), &command);
                Outcome::Unknown
            }
            206..=230 => {
                self.delayed.push(command);
                Outcome::Unknown
            }
            _ => self.deliver(command),
        }
    }

    fn deliver(&mut self, command: Command) -> Outcome {
        if command == Command::Report {
            let us = host(US);
            self.reported = Some(Reported {
                report: self.model.report(),
                holds: self.model.holds(us) && self.model.reservation() == Some(WE),
                key: self.own_key(US),
                writes: self.writes.iter().map(|(_, by, _)| *by).collect(),
            });
        }
        match self.model.execute(host(US), &command) {
            Executed::Completed(outcome) => outcome,
            Executed::Draining(drain) => {
                // The victims' commands end one by one, unless we lose patience first.
                loop {
                    let waiting: Vec<_> = self.model.draining(drain).collect();
                    let Some(next) = waiting.first() else {
                        return Outcome::Done;
                    };
                    if self.tape.draw() > 230 {
                        return Outcome::Unknown;
                    }
                    self.writes.retain(|(id, ..)| id != next);
                    self.model.finish(*next);
                }
            }
        }
    }

    /// Runs a sequence to its end, a permit being checked at the very report that made it.
    fn run<S: Sequence>(&mut self, sequence: &mut S) -> Result<S::Proof, S::Unproven> {
        let mut outcome = None;
        for _ in 0..10_000 {
            match sequence.next(self.now, outcome.take()) {
                Step::Send(command) => outcome = Some(self.send(command)),
                Step::WaitUntil(until) => {
                    assert!(until > self.now, "a wait must be in the future");
                    self.events();
                    self.advance(until);
                }
                Step::Proven(proof) => return Ok(proof),
                Step::Unproven(why) => return Err(why),
            }
        }
        panic!("the sequence does not end");
    }

    fn check(&self, permit: &WritePermit) {
        let reported = self.reported.as_ref().expect("a permit without a report");
        assert!(reported.holds, "we_hold: {permit:?}, {reported:?}");
        let key = reported.key.expect("we_hold: no key");
        let settled = ReservationKey {
            flags: KeyFlags::NONE,
            ..key.beaten()
        };
        assert!(
            [key, settled].contains(&permit.key()),
            "we_hold: {permit:?}, {key}"
        );
        assert_eq!(reported.writes, [], "nothing_in_flight: {permit:?}");
        if let Drain::Aborted { victim } = permit.drain() {
            let mailbox = Mailbox::read(&reported.report, cluster());
            assert!(!mailbox.has_key(victim), "victim_gone: {permit:?}");
        }
        assert_eq!(permit.confirm(&reported.report), Ok(()));
    }

    /// What a decision would expect of the volume as it is, told the truth about it.
    fn expectation(&mut self) -> Option<Expectation> {
        let mailbox = Mailbox::read(&self.model.report(), cluster());
        match mailbox.holder {
            Holder::Member(entry) if entry.host == host(US) => {
                Some(Expectation::Ourselves(OwnHold::QuietSince(self.now)))
            }
            Holder::Member(entry) => Some(Expectation::Holder(Victim::of(&entry))),
            Holder::Nobody => {
                self.quiet = true;
                Some(Expectation::Nobody(match self.tape.draw() % 2 {
                    0 => AbsenceEvidence::EveryOwnerStopped { since: self.now },
                    _ => AbsenceEvidence::OperatorsWord,
                }))
            }
            Holder::Foreign(_) | Holder::Several(_) | Holder::Missing => None,
        }
    }

    /// One take-over after another, as a member would try, until one succeeds. Commands of a failed
    /// one may still be under way during the next.
    fn take_over(&mut self) -> Option<WritePermit> {
        let mut epoch = Epoch::new(4).unwrap();
        let mut former_gone = None;
        for _ in 0..4 {
            if self.model.key_of(host(US)).is_none() {
                let start = &mut StartSequence::new(claim(US, epoch.number()), limits(self.now));
                let _ = self.run(start);
            }
            let Some(expected) = self.expectation() else {
                continue;
            };
            let mailbox = Mailbox::read(&self.model.report(), cluster());
            epoch = mailbox.newest_epoch().max(epoch).next().unwrap();
            let mut claim = claim(US, epoch.number());
            if self.writes.iter().any(|(_, by, _)| *by == host(US)) {
                claim.former_controllers_gone = Some(*former_gone.get_or_insert(self.now));
            }
            let mut sequence = FenceSequence::new(claim, expected, limits(self.now));
            match self.run(&mut sequence) {
                Ok(permit) => return Some(permit),
                Err(FenceUnverified::OwnCommandsOnTheirWay { until }) => self.advance(until),
                Err(FenceUnverified::Ended) => panic!("ended before its end"),
                Err(why) => assert!(!why.to_string().is_empty()),
            }
        }
        None
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn a_permit_is_issued_only_to_a_lone_writer(
        bytes in proptest::collection::vec(any::<u8>(), 0..120),
    ) {
        let mut world = World::served(bytes);
        if let Some(permit) = world.take_over() {
            world.check(&permit);
        }
    }
}

/// The property above says something only if permits are issued, by every kind of proof, in spite of
/// the faults; and refused, too.
#[test]
fn faults_leave_permits_of_every_kind_and_refusals() {
    let mut random: u64 = 1;
    let mut byte = || {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (random >> 56) as u8
    };
    let (mut aborted, mut waited, mut refused) = (0, 0, 0);
    for _ in 0..2_000 {
        let mut world = World::served((0..80).map(|_| byte()).collect());
        match world.take_over().map(|permit| permit.drain()) {
            Some(Drain::Aborted { .. }) => aborted += 1,
            Some(_) => waited += 1,
            None => refused += 1,
        }
    }
    assert!(
        aborted > 200 && waited > 200 && refused > 5,
        "{aborted} {waited} {refused}"
    );
}
