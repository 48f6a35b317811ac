//! What must follow from a fault, against what did. Pure.

use super::cast::Cast;
use super::gap::Gaps;
use super::ledger::Fate;
use super::report::Fence;
use super::scenario::{Fault, Owner, Scenario};
use super::target::{Audit, FenceRecord};
use super::timeline;
use super::verify::Verdict;
use super::writer::Written;
use crate::clock::Mono;

/// What is known after the writers have stopped.
pub struct Course {
    /// Who played what before the fault.
    pub before: Cast,
    /// Who did at the end; none if the lab did not come back.
    pub after: Option<Cast>,
    /// When the fault began.
    pub fault: Mono,
    /// The ledger.
    pub written: Written,
    /// From the ledger.
    pub gaps: Gaps,
    /// The target's record from before the drill to its end.
    pub audit: Audit,
    /// How many of its fences are from before the drill.
    pub old_fences: usize,
    /// What went wrong on the way, in words.
    pub failures: Vec<String>,
}

impl Course {
    /// The fences of this drill.
    fn fences(&self) -> &[FenceRecord] {
        self.audit.fences.get(self.old_fences..).unwrap_or_default()
    }

    /// The drill's last fence.
    pub fn fence(&self, done: &[timeline::Done]) -> Option<Fence> {
        fence_of(self.fences(), self.audit.violations, done)
    }

    /// What the scenario promises and what holds for all, where it does not hold, in words.
    /// `former` is the host identifier of the member that was active before.
    pub fn failures(&self, scenario: &Scenario, former: &str) -> Vec<String> {
        let expect = &scenario.expect;
        let mut wrong = self.failures.clone();
        let mut must = |holds: bool, text: String| {
            if !holds {
                wrong.push(text);
            }
        };
        let (gap, max_gap) = (self.gaps.longest.length(), expect.max_gap);
        must(
            gap <= max_gap,
            format!("no write for {gap:?}, more than {max_gap:?}"),
        );
        let violations = self.audit.violations;
        let applied = format!("the target applied {violations} writes of a fenced host");
        must(violations == 0, applied);
        let fences = self.fences().iter().filter(|fence| fence.victim == former);
        let refused: Vec<u64> = fences.map(|fence| fence.refused_writes).collect();
        let unfenced = "the target saw no fence of the former owner".to_owned();
        must(!expect.fenced || !refused.is_empty(), unfenced);
        let untold = "the target refused no write of the former owner".to_owned();
        must(
            !expect.refused_writes || refused.iter().sum::<u64>() > 0,
            untold,
        );
        if scenario.fault == Fault::LoseLease {
            let entries = self.written.entries.iter();
            let broke = entries.filter(|entry| entry.fate == Fate::Unknown).count();
            must(
                broke == 0,
                format!("{broke} sessions broke, but nothing was to be interrupted"),
            );
        }
        wrong.extend(self.wrong_owner(expect.owner));
        wrong
    }

    fn wrong_owner(&self, expected: Owner) -> Option<String> {
        let Self { before, after, .. } = self;
        let Cast {
            active,
            standby: _,
            epoch,
        } = after.as_ref()?;
        let (moved, same) = (*active != before.active, *epoch == before.epoch);
        match expected {
            Owner::Moved if !moved || same => Some(format!("{active} still owns the volume")),
            Owner::Same if moved || !same => Some(format!(
                "{active} owns the volume with epoch {epoch}, but nobody was to take over"
            )),
            Owner::Moved | Owner::Same | Owner::Either => None,
        }
    }
}

/// The last of these fences. It counts as verified if a member's journal holds its proof, and the
/// target's own record agrees.
pub fn fence_of(fences: &[FenceRecord], violations: u64, done: &[timeline::Done]) -> Option<Fence> {
    let last = fences.last()?;
    let proof = done.iter().rfind(|(_, step)| step.name == "fence");
    let proven = |(_, step): &timeline::Done| {
        let outcome = step.outcome.as_ref();
        outcome.is_some_and(|outcome| outcome.starts_with("Fenced"))
    };
    let refused = fences.iter().map(|fence| fence.refused_writes);
    Some(Fence {
        kind: "reservation".to_owned(),
        verified: violations == 0 && proof.is_some_and(proven),
        preempted_key: last.victim_key.map(|key| format!("{key:#018x}")),
        refused_writes: refused.sum(),
    })
}

/// What the comparison of ledger and table found, in words.
pub fn wrong_rows(verdict: &Verdict) -> Vec<String> {
    let Verdict {
        writes,
        unknown_present: _,
        unexpected,
        examples,
    } = verdict;
    let counts = [
        (writes.lost, "acknowledged rows are lost"),
        (writes.duplicated, "rows are there more than once"),
        (
            *unexpected,
            "rows are there that were never acknowledged nor in doubt",
        ),
    ];
    let wrong = counts.into_iter().filter(|(count, _)| *count > 0);
    wrong
        .map(|(count, what)| format!("{count} {what}"))
        .chain(examples.iter().cloned())
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::drill::gap::Gap;
    use crate::drill::ledger::{Entry, Row};
    use crate::drill::scenario;

    const FORMER: &str = "host-a";

    fn cast(active: &str, epoch: u32) -> Cast {
        let standby = if active == "a" { "b" } else { "a" };
        Cast {
            active: active.into(),
            standby: standby.into(),
            epoch,
        }
    }

    /// A take-over of `b` from `a` by a fence that refused 3 writes, after 2 s without a write.
    fn take_over() -> Course {
        let gap = Gap {
            from: Mono::from_millis(1_000),
            to: Mono::from_millis(3_000),
        };
        let record = |victim: &str, sequence| FenceRecord {
            sequence,
            victim: victim.into(),
            victim_key: Some(7),
            by: "host-b".into(),
            kind: "preempt_and_abort".into(),
            refused_writes: 3,
        };
        Course {
            before: cast("a", 1),
            after: Some(cast("b", 2)),
            fault: Mono::from_millis(1_000),
            written: Written {
                entries: Vec::new(),
                ended: Mono::from_millis(5_000),
            },
            gaps: Gaps {
                longest: gap,
                per_connection: BTreeMap::new(),
            },
            // the first fence is of an earlier drill
            audit: Audit {
                violations: 0,
                fences: vec![record("host-b", 1), record(FORMER, 9)],
            },
            old_fences: 1,
            failures: Vec::new(),
        }
    }

    fn in_doubt() -> Entry {
        let row = Row {
            connection: 1,
            number: 1,
        };
        Entry {
            fate: Fate::Unknown,
            row,
            at: Mono::from_millis(2_000),
        }
    }

    #[test]
    fn each_scenario_finds_what_it_must_not_find() {
        type Change = fn(&mut Course);
        let calm: Change = |course| {
            course.after = Some(cast("a", 1));
            course.gaps.longest.to = course.gaps.longest.from;
            course.audit.fences.pop();
        };
        let cases: [(&str, Change, &str); 11] = [
            ("crash", |_| (), ""),
            ("freeze", |_| (), ""),
            ("crash", |c| c.audit.violations = 1, "applied 1 writes"),
            ("crash", |c| c.after = Some(cast("a", 1)), "still owns"),
            ("crash", |c| c.after = Some(cast("a", 3)), "still owns"),
            ("crash", |c| drop(c.audit.fences.pop()), "no fence"),
            (
                "freeze",
                |c| c.audit.fences[1].refused_writes = 0,
                "refused no write",
            ),
            (
                "planned",
                |c| c.gaps.longest.to = Mono::from_millis(9_000),
                "no write for 8s",
            ),
            ("lease-outage", calm, ""),
            ("lease-outage", |_| (), "nobody was to take over"),
            (
                "lease-outage",
                |c| c.written.entries.push(in_doubt()),
                "1 sessions broke",
            ),
        ];
        for (name, change, expected) in cases {
            let mut course = take_over();
            change(&mut course);
            let failures = course
                .failures(scenario::find(name).unwrap(), FORMER)
                .join("; ");
            assert_eq!(
                failures.is_empty(),
                expected.is_empty(),
                "{name}: {failures}"
            );
            assert!(failures.contains(expected), "{name}: {failures}");
        }
    }

    #[test]
    fn a_fence_without_proof_in_the_journal_is_not_verified() {
        let fence = take_over().fence(&[]).unwrap();
        assert!(!fence.verified);
        assert_eq!(fence.preempted_key.as_deref(), Some("0x0000000000000007"));
        assert_eq!(fence.refused_writes, 3, "of this drill's fence alone");
    }
}
