//! The steps that a member did, with what each took: read back from its journal.

use std::collections::BTreeMap;
use std::path::Path;

use fencing::{Epoch, Mono};
use serde::{Deserialize, Serialize};

use super::write::older;
use super::{Decided, Entry, read};
use crate::clock::Wall;
use crate::decide::memory::Role;
use crate::decide::{Action, Memory, StepId};

/// How many steps are kept: some twenty changes of ownership.
const STEPS_MAX: usize = 400;

/// One step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// When it began, by the member's wall clock: for people only.
    pub at: Wall,
    /// When it began, by the member's own monotonic clock.
    pub began: Mono,
    /// The epoch that it was for.
    pub epoch: Epoch,
    /// Its name: `fence`, `mount`, ….
    pub name: String,
    /// Why it was ordered.
    pub why: String,
    /// What it took in milliseconds; `None` if its end is not recorded.
    pub took_ms: Option<u64>,
    /// How it ended.
    pub outcome: Option<String>,
}

/// The newest steps in the journal at `path` and the file before it, oldest first. What cannot be
/// read is left out.
pub fn steps(path: &Path) -> Vec<Step> {
    let mut steps = Vec::new();
    for file in [older(path), path.to_owned()] {
        let Ok(contents) = read(&file) else { continue };
        let mut begun = BTreeMap::new();
        for (_, entry) in contents.entries {
            match entry {
                // Another run counts its steps anew. What it left unfinished stays so.
                Entry::Start { .. } => begun.clear(),
                Entry::Lost { .. } => {}
                Entry::Decision(decided) => follow(&decided, &mut begun, &mut steps),
            }
        }
    }
    let surplus = steps.len().saturating_sub(STEPS_MAX);
    steps.drain(..surplus);
    steps
}

/// Notes what ended and what began; `begun` holds the places of steps in `steps`.
fn follow(decided: &Decided, begun: &mut BTreeMap<StepId, usize>, steps: &mut Vec<Step>) {
    if let Some(finished) = &decided.observation.finished
        && let Some(index) = begun.remove(&finished.id)
    {
        let step = &mut steps[index];
        let took = finished.at.since(step.began).as_millis();
        step.took_ms = u64::try_from(took).ok();
        step.outcome = Some(format!("{:?}", finished.outcome));
    }
    for action in &decided.decision.actions {
        if let Action::Begin(step) = action {
            begun.insert(step.id, steps.len());
            steps.push(Step {
                at: decided.at,
                began: decided.now,
                epoch: epoch(&decided.decision.memory),
                name: step.work.name().to_owned(),
                why: decided.decision.reason.to_string(),
                took_ms: None,
                outcome: None,
            });
        }
    }
}

fn epoch(memory: &Memory) -> Epoch {
    match &memory.role {
        Role::TakingOver(takeover) => takeover.epoch,
        Role::Active(ownership) => ownership.epoch,
        Role::HandingOver(handover) => handover.epoch,
        Role::Returning { epoch, .. } => *epoch,
        Role::Joining { .. } | Role::Standby | Role::Leaving | Role::Stopped => memory.newest,
    }
}
