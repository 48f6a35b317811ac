//! Runs recorded decisions through `decide` again.

use serde_json::Value;

use super::{Contents, Decided, Entry};
use crate::decide::{Config, Decision, decide};

/// A decision that comes out otherwise than it was recorded.
#[derive(Debug, PartialEq)]
pub struct Difference {
    /// The line in the journal.
    pub line: usize,
    /// The places that differ: where, what was recorded, what comes out.
    pub places: Vec<(String, Value, Value)>,
}

/// How a replay went.
#[derive(Debug, Default, PartialEq)]
pub struct Replayed {
    /// Decisions that were run again.
    pub decisions: usize,
    /// Those that come out otherwise.
    pub differences: Vec<Difference>,
    /// Decisions before the first line with a configuration: the file's beginning is missing.
    pub without_config: usize,
}

/// Runs every decision again.
pub fn replay(contents: &Contents) -> Replayed {
    let mut replayed = Replayed::default();
    let mut current: Option<&Config> = None;
    for (line, entry) in &contents.entries {
        match (entry, current) {
            (Entry::Start { config, .. }, _) => current = Some(config),
            (Entry::Lost { .. }, _) => {}
            (Entry::Decision(_), None) => replayed.without_config += 1,
            (Entry::Decision(decided), Some(config)) => {
                replayed.decisions += 1;
                replayed.differences.extend(again(*line, decided, config));
            }
        }
    }
    replayed
}

fn again(line: usize, decided: &Decided, config: &Config) -> Option<Difference> {
    let Decided {
        at: _,
        now,
        memory,
        observation,
        decision,
    } = decided;
    let outcome = decide(config, memory, observation, *now);
    if outcome == *decision {
        return None;
    }
    let mut places = Vec::new();
    compare("", &value(decision), &value(&outcome), &mut places);
    Some(Difference { line, places })
}

/// A decision was read from JSON or is of types that always make JSON.
fn value(decision: &Decision) -> Value {
    serde_json::to_value(decision).unwrap_or(Value::Null)
}

/// Collects the innermost places where two documents differ.
fn compare(
    path: &str,
    recorded: &Value,
    outcome: &Value,
    places: &mut Vec<(String, Value, Value)>,
) {
    match (recorded, outcome) {
        (one, other) if one == other => {}
        (Value::Object(one), Value::Object(other)) => {
            let new = other.keys().filter(|key| !one.contains_key(*key));
            for key in one.keys().chain(new) {
                let (left, right) = (one.get(key), other.get(key));
                let (left, right) = (left.unwrap_or(&Value::Null), right.unwrap_or(&Value::Null));
                compare(&format!("{path}.{key}"), left, right, places);
            }
        }
        (Value::Array(one), Value::Array(other)) if one.len() == other.len() => {
            for (index, (left, right)) in one.iter().zip(other).enumerate() {
                compare(&format!("{path}[{index}]"), left, right, places);
            }
        }
        (one, other) => {
            places.push((
                path.trim_start_matches('.').to_owned(),
                one.clone(),
                other.clone(),
            ));
        }
    }
}
