//! The take-over of the reservation, from the first report to the permit.
//!
//! ```text
//!          ┌───────────────────────────── retry until the deadline ◄─────────────────────────┐
//!          ▼                                                                                 │
//!  Report ─┬─ our key is not fresh ────────────────► Replace ────────────────────────────────┤
//!          ├─ the expected victim holds ───────────► PreemptAndAbort ────────────────────────┤
//!          ├─ nobody holds: evidence, or our own ──► Acquire ────────────────────────────────┤
//!          │  completed preempt                                                              │
//!          ├─ we hold, old commands not over ──────► wait, with beats ───────────────────────┘
//!          ├─ we hold, old commands over, no preempted key left ──► Proven(WritePermit)
//!          └─ anything else ──────────────────────────────────────► Unproven
//! ```
//!
//! Two rules carry the proof. A permit needs a report that shows us as the holder; a completed
//! command alone proves nothing. And it needs to know that the victim's commands are over: either
//! the preempt-and-abort that made us the holder is known to have completed, or time enough has
//! passed.
//!
//! To know *which* command made us the holder, every preempt and acquire is sent with a key of ours
//! that no earlier command of unknown outcome has named ("fresh"): such a command, should it still be
//! under way, then ends in a conflict. So when a report that follows the replacement shows the victim
//! as the holder, no command of ours can remove it but the next one.
//!
//! Commands of our own former controllers are another matter: they become legal the moment we hold. So
//! nothing is sent before they are over.
//!
//! And the victim may itself have been in the middle of a take-over, with its own victim not drained.
//! Our key says `draining` from before the first preempt until the proof; whoever preempts a holder
//! whose key says so has to wait.

use std::time::Duration;

use nvme::ReservationType;
use nvme::reservation::ChangePersistence;

use super::{AbsenceEvidence, Claim, Expectation, Failure, FenceUnverified};
use super::{Limits, OwnHold, Trouble, Victim};
use crate::permit::Drain;
use crate::{
    Command, Holder, Mailbox, MemberEntry, Mono, Outcome, ReservationKey, Sequence, Step,
    WritePermit,
};

/// The take-over of the reservation as a pure state machine; see the module's diagram.
///
/// While it runs, nothing else on this host may replace our key: it beats itself.
#[derive(Debug)]
pub struct FenceSequence {
    claim: Claim,
    expectation: Expectation,
    limits: Limits,
    state: State,
    /// When to give up; later than `limits.deadline` once we hold and wait.
    deadline: Mono,
    /// Our registered key, if this sequence set it and no command of unknown outcome named it.
    fresh: Option<ReservationKey>,
    /// Every key of a victim that was named in a preempt.
    preempted: Vec<ReservationKey>,
    /// The victim's key in a preempt-and-abort that completed, the report being still to come.
    removed: Option<ReservationKey>,
    /// The completion of a preempt is no proof (any more): somebody may have written meanwhile.
    gap: bool,
    /// When a report first showed us as the holder, without interruption since.
    held_since: Option<Mono>,
    /// Whether our key said `clean` when this sequence first read it.
    own_clean: Option<bool>,
    /// The proof, while our key is being told so.
    permit: Option<WritePermit>,
    /// When our beat is due, during a wait.
    beat_due: Option<Mono>,
    attempts: u32,
    troubles: u32,
    trouble: Option<Trouble>,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Start,
    Sent(Command),
    Paused(Mono),
    Ended,
}

type Judged = Result<Step, FenceUnverified>;

impl Sequence for FenceSequence {
    type Proof = WritePermit;
    type Unproven = FenceUnverified;

    fn next(&mut self, now: Mono, outcome: Option<Outcome>) -> Step {
        let judged = match self.state {
            State::Ended => Err(FenceUnverified::Ended),
            State::Start => {
                let checked = self.claim.check(&self.expectation);
                let over = checked.and_then(|()| self.own_past_is_over(now));
                over.and_then(|()| self.report(now))
            }
            State::Paused(until) if now < until => Ok(Step::WaitUntil(until)),
            State::Paused(_) => self.report(now),
            State::Sent(command) => self.absorb(command, outcome.unwrap_or(Outcome::Unknown), now),
        };
        judged.unwrap_or_else(|unproven| {
            self.state = State::Ended;
            Step::Unproven(unproven)
        })
    }

    fn deadline(&self) -> Mono {
        self.deadline
    }
}

impl FenceSequence {
    /// A sequence that has sent nothing yet. A claim that contradicts itself is refused by the first
    /// step, before any command.
    pub fn new(claim: Claim, expectation: Expectation, limits: Limits) -> Self {
        Self {
            claim,
            expectation,
            limits,
            state: State::Start,
            deadline: limits.deadline,
            fresh: None,
            preempted: Vec::new(),
            removed: None,
            gap: false,
            held_since: None,
            own_clean: None,
            permit: None,
            beat_due: None,
            attempts: 0,
            troubles: 0,
            trouble: None,
        }
    }

    fn absorb(&mut self, command: Command, outcome: Outcome, now: Mono) -> Judged {
        if let Some(permit) = self.permit.take() {
            self.state = State::Ended;
            return Ok(Step::Proven(match (command, outcome) {
                (Command::Replace { new, .. }, Outcome::Done) => permit.under_key(new),
                _ => permit,
            }));
        }
        match (command, outcome) {
            (Command::Report, Outcome::Report(report)) => {
                let mailbox = Mailbox::read(&report, self.claim.cluster);
                return self.judge(&mailbox, now);
            }
            // A report "done" without its contents is no report.
            (Command::Report, outcome) => {
                let failure = Failure::of(outcome).unwrap_or(Failure::Unknown);
                return self.retry(Trouble::Report(failure), now);
            }
            (command, outcome) => match Failure::of(outcome) {
                None => self.note_success(command),
                Some(failure) => return self.note_failure(command, failure, now),
            },
        }
        self.report(now)
    }

    fn note_success(&mut self, command: Command) {
        match command {
            Command::Replace { new, .. } => self.fresh = Some(new),
            Command::PreemptAndAbort { victim, .. } => self.removed = Some(victim),
            Command::Acquire { .. } | Command::Report | Command::Register { .. } => {}
        }
    }

    fn note_failure(&mut self, command: Command, failure: Failure, now: Mono) -> Judged {
        let trouble = match command {
            Command::Replace { new, .. } => {
                // If the reply was lost after the change, the next report shows this very key.
                self.fresh = (!failure.had_no_effect()).then_some(new);
                Trouble::Replace(failure)
            }
            Command::PreemptAndAbort { victim, .. } => {
                self.doubt_unless(failure.had_no_effect());
                Trouble::Preempt { victim, failure }
            }
            Command::Acquire { .. } => {
                self.doubt_unless(failure.had_no_effect());
                Trouble::Acquire(failure)
            }
            Command::Report | Command::Register { .. } => Trouble::Report(failure),
        };
        self.retry(trouble, now)
    }

    /// A preempt or acquire that may yet be carried out names our present key: give it up.
    fn doubt_unless(&mut self, had_no_effect: bool) {
        if !had_no_effect {
            self.fresh = None;
        }
    }

    fn judge(&mut self, mailbox: &Mailbox, now: Mono) -> Judged {
        if self.limits.require_persistence && !mailbox.persistent {
            return Err(FenceUnverified::NotPersistent);
        }
        let own = self.claim.registered_key(mailbox).map_err(|unproven| {
            match (&unproven, mailbox.holding_member()) {
                // Who preempted us holds now: that is the race's end, our registration its price.
                (FenceUnverified::NotRegistered { .. }, Some(holder)) if !self.expects(holder) => {
                    self.unexpected(mailbox)
                }
                _ => unproven,
            }
        })?;
        self.own_clean
            .get_or_insert(own.flags.clean && !own.flags.draining);
        match mailbox.holder {
            Holder::Nobody => self.when_nobody_holds(mailbox, own, now),
            Holder::Member(entry) if entry.host == self.claim.host => {
                self.when_we_hold(mailbox, own, now)
            }
            Holder::Member(entry) => self.when_another_holds(mailbox, &entry, own, now),
            Holder::Foreign(_) | Holder::Several(_) | Holder::Missing => {
                Err(self.unexpected(mailbox))
            }
        }
    }

    fn when_another_holds(
        &mut self,
        mailbox: &Mailbox,
        holder: &MemberEntry,
        own: ReservationKey,
        now: Mono,
    ) -> Judged {
        self.held_since = None;
        if !self.expects(holder) {
            return Err(self.unexpected(mailbox));
        }
        self.check_type(mailbox)?;
        if self.removed.take().is_some() {
            let key = holder.key;
            return self.retry(Trouble::VictimStays { key }, now);
        }
        match self.freshen(own, now) {
            Some(step) => step,
            None => self.preempt(own, holder.key, now),
        }
    }

    fn when_nobody_holds(&mut self, mailbox: &Mailbox, own: ReservationKey, now: Mono) -> Judged {
        self.held_since = None;
        match self.expectation {
            // Our own completed preempt removed the victim, but the reservation had vanished before
            // it: whoever was fenced earlier may have begun to write meanwhile.
            Expectation::Holder(_) if self.gap || self.removed.is_some() => self.gap = true,
            Expectation::Nobody(AbsenceEvidence::NeverOwned) => {
                // A standby's key may already name the epoch that we claim, from the lease.
                let owned = |m: &&MemberEntry| m.key.epoch > self.claim.epoch;
                if let Some(entry) = mailbox.members.iter().find(owned) {
                    return Err(FenceUnverified::OwnedBefore { entry: *entry });
                }
            }
            Expectation::Nobody(_) => {}
            expected @ (Expectation::Holder(_) | Expectation::Ourselves(_)) => {
                return Err(FenceUnverified::ReservationAbsent { expected });
            }
        }
        if let Some(step) = self.freshen(own, now) {
            return step;
        }
        if let Some(key) = self.still_registered(mailbox) {
            return self.preempt(own, key, now);
        }
        self.attempts += 1;
        self.send(Command::Acquire { key: own }, now)
    }

    fn when_we_hold(&mut self, mailbox: &Mailbox, own: ReservationKey, now: Mono) -> Judged {
        match self.expectation {
            Expectation::Ourselves(_) if own.epoch > self.claim.epoch => {
                return Err(FenceUnverified::EpochNotNewer {
                    claimed: self.claim.epoch,
                    holder: own.epoch,
                });
            }
            Expectation::Ourselves(_) => {}
            // We hold without having done anything: another take-over of ours ended unseen.
            Expectation::Holder(_) | Expectation::Nobody(_) if self.attempts == 0 => {
                return Err(self.unexpected(mailbox));
            }
            Expectation::Holder(_) | Expectation::Nobody(_) => {}
        }
        self.check_type(mailbox)?;
        if let Some(step) = self.freshen(own, now) {
            return step;
        }
        let held_since = *self.held_since.get_or_insert(now);
        if let Some(key) = self.still_registered(mailbox) {
            // A holder's preempt removes nobody on some targets, so its success proves nothing.
            self.gap = true;
            return self.preempt_as_holder(own, key, now);
        }
        let drain = self.drain(held_since);
        match self.drained_at(drain)? {
            over if now < over => self.wait(own, over, now),
            _ => {
                let permit =
                    WritePermit::prove(mailbox, self.claim.host, own, &self.preempted, drain, now)?;
                Ok(self.settle(permit, own, now))
            }
        }
    }

    /// What shows that earlier owners' commands are over.
    fn drain(&self, held_since: Mono) -> Drain {
        let since = match (self.expectation, self.removed) {
            (Expectation::Holder(_), Some(victim)) if !self.gap && !victim.flags.draining => {
                return Drain::Aborted { victim };
            }
            (Expectation::Nobody(AbsenceEvidence::NeverOwned), _) => return Drain::NeverOwned,
            (Expectation::Nobody(AbsenceEvidence::EveryOwnerStopped { since }), _) => since,
            (Expectation::Nobody(AbsenceEvidence::LastOwnerOurselves { quiet_since }), _)
            | (Expectation::Ourselves(OwnHold::QuietSince(quiet_since)), _) => quiet_since,
            (Expectation::Ourselves(OwnHold::Clean), _) => match self.own_clean {
                Some(true) => return Drain::OwnClean,
                Some(false) | None => held_since,
            },
            (Expectation::Holder(_), _)
            | (Expectation::Nobody(AbsenceEvidence::OperatorsWord), _) => held_since,
        };
        Drain::Waited { since }
    }

    /// When all old commands are over: those of earlier owners, and of our own former controllers.
    fn drained_at(&self, drain: Drain) -> Result<Mono, FenceUnverified> {
        let owners = match drain {
            Drain::Aborted { .. } | Drain::NeverOwned | Drain::OwnClean => None,
            Drain::Waited { since } => Some(since),
        };
        match (
            owners.max(self.claim.former_controllers_gone),
            self.limits.drain_wait,
        ) {
            (None, _) => Ok(Mono::ZERO),
            (Some(since), Some(wait)) => Ok(since + wait),
            (Some(_), None) => Err(FenceUnverified::NoDrainBound),
        }
    }

    /// Refuses to become the holder while commands of our own former controllers may be on their way:
    /// the hold would make them legal, and a wait after it would come too late. Who holds already has
    /// nothing left to refuse, and waits with the proof.
    fn own_past_is_over(&self, now: Mono) -> Result<(), FenceUnverified> {
        let Some(since) = self.claim.former_controllers_gone else {
            return Ok(());
        };
        if matches!(self.expectation, Expectation::Ourselves(_)) {
            return Ok(());
        }
        let wait = self
            .limits
            .drain_wait
            .ok_or(FenceUnverified::NoDrainBound)?;
        match since + wait {
            until if now < until => Err(FenceUnverified::OwnCommandsOnTheirWay { until }),
            _ => Ok(()),
        }
    }

    /// Waits for old commands to be over, beating so that the others see that we live, and reading
    /// again at every beat whether we still hold.
    fn wait(&mut self, own: ReservationKey, over: Mono, now: Mono) -> Judged {
        self.deadline = self.deadline.max(over + self.limits.verify_within);
        let next_beat = match self.limits.beat {
            Duration::ZERO => over,
            beat => now + beat,
        };
        let due = *self.beat_due.get_or_insert(next_beat);
        if now >= due {
            self.beat_due = Some(next_beat);
            return self.replace(own, now);
        }
        let until = due.min(over);
        self.state = State::Paused(until);
        Ok(Step::WaitUntil(until))
    }

    /// Takes `draining` from our key. The proof stands whatever becomes of that: a key that goes on
    /// saying so costs the next owner a wait.
    fn settle(&mut self, permit: WritePermit, own: ReservationKey, now: Mono) -> Step {
        if now >= self.deadline {
            self.state = State::Ended;
            return Step::Proven(permit);
        }
        let command = self.replacement(own, false);
        self.permit = Some(permit);
        self.state = State::Sent(command);
        Step::Send(command)
    }

    fn still_registered(&self, mailbox: &Mailbox) -> Option<ReservationKey> {
        let mut keys = self.preempted.iter().copied();
        keys.find(|key| mailbox.has_key(*key))
    }

    fn check_type(&self, mailbox: &Mailbox) -> Result<(), FenceUnverified> {
        match mailbox.reservation {
            Some(ReservationType::WriteExclusive) | None => Ok(()),
            Some(found) => Err(FenceUnverified::UnexpectedType { found }),
        }
    }

    /// Whether this is the very holder that is to be fenced, saying what it was seen to say.
    fn expects(&self, holder: &MemberEntry) -> bool {
        self.expectation == Expectation::Holder(Victim::of(holder))
    }

    fn unexpected(&self, mailbox: &Mailbox) -> FenceUnverified {
        FenceUnverified::UnexpectedHolder {
            expected: self.expectation,
            found: mailbox.holder,
        }
    }

    /// The step that gives our registration a fresh key; `None` if it has one.
    fn freshen(&mut self, own: ReservationKey, now: Mono) -> Option<Judged> {
        match self.fresh.take() {
            Some(fresh) if fresh == own => {
                self.fresh = Some(fresh);
                None
            }
            Some(_) => Some(self.retry(Trouble::OwnKeyMoved { found: own }, now)),
            None => Some(self.replace(own, now)),
        }
    }

    fn replace(&mut self, own: ReservationKey, now: Mono) -> Judged {
        self.send(self.replacement(own, true), now)
    }

    fn replacement(&self, own: ReservationKey, draining: bool) -> Command {
        Command::Replace {
            current: own,
            new: self.claim.key(own.beat.next(), draining),
            persistence: ChangePersistence::Unchanged,
        }
    }

    fn preempt(&mut self, own: ReservationKey, victim: ReservationKey, now: Mono) -> Judged {
        if !self.preempted.contains(&victim) {
            self.preempted.push(victim);
        }
        self.removed = None;
        self.attempts += 1;
        self.send(Command::PreemptAndAbort { key: own, victim }, now)
    }

    /// A victim's key that is registered although we hold: paced, for it may never go.
    fn preempt_as_holder(&mut self, own: ReservationKey, key: ReservationKey, now: Mono) -> Judged {
        if self.removed.take().is_some() {
            return self.retry(Trouble::VictimStays { key }, now);
        }
        self.preempt(own, key, now)
    }

    fn report(&mut self, now: Mono) -> Judged {
        self.send(Command::Report, now)
    }

    /// Reads the volume again: at once after the first trouble, later after a pause.
    fn retry(&mut self, trouble: Trouble, now: Mono) -> Judged {
        self.trouble = Some(trouble);
        self.troubles += 1;
        if self.troubles == 1 {
            return self.report(now);
        }
        let until = now + self.limits.retry_pause;
        if until >= self.deadline {
            return Err(self.out_of_time());
        }
        self.state = State::Paused(until);
        Ok(Step::WaitUntil(until))
    }

    fn send(&mut self, command: Command, now: Mono) -> Judged {
        if now >= self.deadline {
            return Err(self.out_of_time());
        }
        self.state = State::Sent(command);
        Ok(Step::Send(command))
    }

    fn out_of_time(&self) -> FenceUnverified {
        FenceUnverified::OutOfTime {
            attempts: self.attempts,
            trouble: self.trouble,
        }
    }
}
