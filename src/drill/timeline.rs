//! The phases of a handover or take-over, from what the members' journals say they did.

use super::report::Phase;
use crate::clock::Mono;
use crate::journal::Step;

/// A step and who did it.
pub type Done = (String, Step);

/// The steps that began between `fault` and `end`, in the order of their starts.
pub fn between(steps: Vec<Done>, fault: Mono, end: Mono) -> Vec<Done> {
    let during = |(_, step): &Done| step.began >= fault && step.began <= end;
    let mut done: Vec<Done> = steps.into_iter().filter(during).collect();
    done.sort_by_key(|(_, step)| step.began);
    done
}

/// From the fault until a member first set out to take over.
pub fn detection_ms(done: &[Done], fault: Mono) -> Option<u64> {
    let takes_over = |(_, step): &&Done| matches!(step.name.as_str(), "claim-lease" | "fence");
    let (_, step) = done.iter().find(takes_over)?;
    u64::try_from(step.began.since(fault).as_millis()).ok()
}

/// The phases to report. `served` is when the writers next had a row acknowledged after the gap: the
/// last phase ends with what a client sees.
pub fn phases(done: &[Done], fault: Mono, served: Mono) -> Vec<Phase> {
    let mut phases = Vec::new();
    for (member, step) in done {
        let Some(name) = phase(&step.name) else {
            continue;
        };
        let start_ms = relative(step.began, fault);
        let duration_ms = step.took_ms.unwrap_or(0);
        phases.push(Phase {
            name: name.to_owned(),
            member: member.clone(),
            start_ms,
            duration_ms,
        });
    }
    let started = phases.iter().rfind(|phase| phase.name == "start").cloned();
    if let Some(Phase {
        name: _,
        member,
        start_ms,
        duration_ms,
    }) = started
    {
        // a client may be served before the step's own write has proven that it is
        let served = relative(served, fault);
        let start_ms = served.min(start_ms.saturating_add_unsigned(duration_ms));
        let duration_ms = (served - start_ms).unsigned_abs();
        phases.push(Phase {
            name: "first-write".to_owned(),
            member,
            start_ms,
            duration_ms,
        });
    }
    phases.sort_by_key(|phase| phase.start_ms);
    phases
}

fn relative(at: Mono, fault: Mono) -> i64 {
    at.as_millis().cast_signed() - fault.as_millis().cast_signed()
}

/// The phase's name in reports; none for the chores of a standby.
fn phase(step: &str) -> Option<&str> {
    match step {
        "register" | "unregister" | "rebuild-device" => None,
        "claim-lease" => Some("claim"),
        "prepare-volume" => Some("prepare"),
        "start-postgres" => Some("start"),
        "stop-postgres-fast" => Some("stop"),
        "stop-postgres-immediate" => Some("stop-immediate"),
        "announce-clean" => Some("announce"),
        other => Some(other),
    }
}

#[cfg(test)]
mod tests {
    use fencing::Epoch;

    use super::*;
    use crate::clock::Wall;

    fn step(member: &str, name: &str, began: u64, took_ms: u64) -> Done {
        let step = Step {
            at: Wall(0),
            began: Mono::from_millis(began),
            epoch: Epoch::default(),
            name: name.to_owned(),
            why: String::new(),
            took_ms: Some(took_ms),
            outcome: None,
        };
        (member.to_owned(), step)
    }

    #[test]
    fn phases_are_relative_to_the_fault_and_end_with_the_first_write() {
        let done = [
            step("b", "claim-lease", 3_010, 4),
            step("b", "fence", 3_014, 20),
            step("b", "start-postgres", 3_040, 60),
            step("a", "register", 3_200, 1),
        ];
        let fault = Mono::from_millis(1_000);
        let phases = phases(&done, fault, Mono::from_millis(3_112));
        let told: Vec<_> = phases
            .iter()
            .map(|p| (p.name.as_str(), p.start_ms, p.duration_ms))
            .collect();
        let expected = [
            ("claim", 2010, 4),
            ("fence", 2014, 20),
            ("start", 2040, 60),
            ("first-write", 2100, 12),
        ];
        assert_eq!(told, expected);
        assert_eq!(detection_ms(&done, fault), Some(2010));
        assert_eq!(detection_ms(&done[3..], fault), None);
    }
}
