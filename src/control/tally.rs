//! What a member did since its start, counted from its own decisions: for metrics and people.
//!
//! Counts facts and judges nothing. It starts at zero with the process; the journal has the past.

use std::collections::BTreeMap;

use fencing::Mono;
use serde::{Deserialize, Serialize};

use crate::clock::Wall;
use crate::decide::{Action, Finished, Heartbeat, Outcome, RoleName, Seen, StepId};

/// The step whose end is a fence.
const FENCE: &str = "fence";

/// What a member did since its start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// How often it became active.
    pub takeovers: u64,
    /// The newest time without an active before this member became it: since another member, or this one,
    /// was last heard to be active. Greater than the true gap by up to a heartbeat.
    #[serde(default)]
    pub last_gap_ms: Option<u64>,
    /// The newest fence that was proven.
    pub last_fence: Option<Fenced>,
    /// Its steps, by name.
    pub steps: BTreeMap<String, StepTally>,
    /// Steps that have not ended; at most two are ever under way.
    #[serde(skip)]
    begun: BTreeMap<StepId, (String, Mono)>,
    /// When a member was last heard to be active.
    #[serde(skip)]
    active: Option<Mono>,
}

/// A fence that was proven.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fenced {
    /// When it ended, by the member's wall clock: for people only.
    pub at: Wall,
    /// What it took.
    pub took_ms: u64,
}

/// The steps of one name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepTally {
    /// Done.
    pub done: u64,
    /// Refused: somebody else was faster, and nothing was changed.
    pub refused: u64,
    /// Failed.
    pub failed: u64,
    /// Not done by their deadline.
    pub overdue: u64,
    /// What the newest one took that was done.
    pub last_ms: Option<u64>,
}

impl Tally {
    /// Counts what ended before a decision and begins with it. A step that ended stays in the
    /// observation until the next one ends: it is counted once.
    pub fn follow(&mut self, finished: Option<&Finished>, actions: &[Action], now: Mono, at: Wall) {
        if let Some(finished) = finished
            && let Some((name, began)) = self.begun.remove(&finished.id)
        {
            let took = finished.at.since(began).as_millis();
            self.count(name, finished, u64::try_from(took).unwrap_or(u64::MAX), at);
        }
        for action in actions {
            if let Action::Begin(step) = action {
                let began = (step.work.name().to_owned(), now);
                self.begun.insert(step.id, began);
            }
        }
    }

    /// Notes which peers say that they are active.
    pub fn hear<'a>(&mut self, peers: impl IntoIterator<Item = &'a Seen<Heartbeat>>) {
        let known = peers.into_iter().filter_map(Seen::known_at);
        let active = known.filter(|(heartbeat, _)| heartbeat.role == RoleName::Active);
        self.active = active.map(|(_, at)| at).chain(self.active).max();
    }

    /// Counts a change of role, or that there is none.
    pub fn turn(&mut self, from: RoleName, to: RoleName, now: Mono) {
        if to != RoleName::Active {
            return;
        }
        if from != RoleName::Active {
            self.takeovers += 1;
            let gap = self.active.map(|active| now.since(active).as_millis());
            self.last_gap_ms = gap.and_then(|gap| u64::try_from(gap).ok());
        }
        self.active = Some(now);
    }

    fn count(&mut self, name: String, finished: &Finished, took_ms: u64, at: Wall) {
        let fence = name == FENCE;
        let tally = self.steps.entry(name).or_default();
        match &finished.outcome {
            Outcome::Done
            | Outcome::Fenced(_)
            | Outcome::Volume(_)
            | Outcome::Stopped { .. }
            | Outcome::Aligned { .. }
            | Outcome::RecordOlder { .. }
            | Outcome::CopyNeeded { .. }
            | Outcome::Reconfigured { .. }
            | Outcome::ShutDown { .. }
            | Outcome::Unmounted { .. } => {
                tally.done += 1;
                tally.last_ms = Some(took_ms);
                if fence {
                    self.last_fence = Some(Fenced { at, took_ms });
                }
            }
            Outcome::ClaimLost | Outcome::FenceLost => tally.refused += 1,
            Outcome::Failed { cause: _ } => tally.failed += 1,
            Outcome::Overdue => tally.overdue += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::{Custody, Incarnation, Step, Work};
    use fencing::{Epoch, MemberId};

    fn begin(id: u64) -> Action {
        Action::Begin(Step {
            id: StepId(id),
            work: Work::Unmount,
            deadline: Mono::from_millis(99),
        })
    }

    #[test]
    fn a_step_is_counted_once_and_with_its_time() {
        let at = Wall(7);
        let mut tally = Tally::default();
        tally.follow(None, &[begin(1)], Mono::from_millis(10), at);
        let finished = Finished {
            id: StepId(1),
            at: Mono::from_millis(14),
            outcome: Outcome::Unmounted { clean: true },
        };
        for _ in 0..3 {
            tally.follow(Some(&finished), &[], Mono::from_millis(20), at);
        }
        tally.follow(None, &[begin(2)], Mono::from_millis(30), at);
        let failed = Finished {
            id: StepId(2),
            at: Mono::from_millis(31),
            outcome: Outcome::Overdue,
        };
        tally.follow(Some(&failed), &[], Mono::from_millis(31), at);
        let expected = StepTally {
            done: 1,
            overdue: 1,
            last_ms: Some(4),
            ..StepTally::default()
        };
        assert_eq!(tally.steps["unmount"], expected);
        assert_eq!(tally.last_fence, None);
    }

    #[test]
    fn only_becoming_active_is_a_takeover() {
        let mut tally = Tally::default();
        for (from, to) in [
            (RoleName::Standby, RoleName::TakingOver),
            (RoleName::TakingOver, RoleName::Active),
            (RoleName::Active, RoleName::Active),
            (RoleName::Active, RoleName::HandingOver),
        ] {
            tally.turn(from, to, Mono::ZERO);
        }
        assert_eq!((tally.takeovers, tally.last_gap_ms), (1, None));
    }

    #[test]
    fn a_gap_begins_with_the_last_word_of_an_active() {
        let heartbeat = |role| Heartbeat {
            member: MemberId::new(2).unwrap(),
            incarnation: Incarnation(1),
            sequence: 1,
            role,
            epoch: Epoch::ZERO,
            custody: Custody::Nothing,
            ready: false,
            reachable: true,
            volume: true,
            failed: false,
            stuck: false,
            handover: None,
            heard: BTreeMap::new(),
        };
        let heard = |role, millis| Seen::Known {
            value: heartbeat(role),
            at: Mono::from_millis(millis),
        };
        let mut tally = Tally::default();
        tally.hear([
            &heard(RoleName::Active, 100),
            &heard(RoleName::Standby, 190),
        ]);
        tally.hear([&heard(RoleName::HandingOver, 200)]);
        let (standby, active) = (RoleName::Standby, RoleName::Active);
        tally.turn(standby, active, Mono::from_millis(450));
        assert_eq!(tally.last_gap_ms, Some(350));
        // Its own time counts as well.
        tally.turn(active, active, Mono::from_millis(900));
        tally.turn(active, standby, Mono::from_millis(1_000));
        tally.turn(standby, active, Mono::from_millis(1_100));
        assert_eq!(tally.last_gap_ms, Some(200));
    }
}
