//! What the cases found, as a table and as JSON.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::accelerator::Accelerator;

/// What a case that passed, or was left out, has to tell.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Outcome {
    /// Why it was left out; it counts as skipped, not as passed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skipped: Option<String>,
    /// The longest time without an acknowledged write, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gap_ms: Option<u64>,
    /// How the former owner was fenced, in a few words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fence: Option<String>,
    /// Writes of fenced hosts that the target refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused_writes: Option<u64>,
    /// How often each named departure from the specification decided a command.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub departures: Option<BTreeMap<&'static str, u64>>,
    /// Whatever else is worth keeping, one thing a line.
    pub notes: Vec<String>,
}

impl Outcome {
    /// The case cannot be run here.
    pub fn skipped(why: impl Into<String>) -> Self {
        Self {
            skipped: Some(why.into()),
            ..Self::default()
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Passed,
    Failed,
    Skipped,
}

/// One case's line.
#[derive(Debug, Serialize)]
pub struct Line {
    pub case: String,
    pub result: Verdict,
    /// What went wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    pub seconds: f64,
    #[serde(flatten)]
    pub outcome: Outcome,
}

impl Line {
    pub fn new(case: &str, done: Result<Outcome>, took: Duration) -> Self {
        let (result, failure, outcome) = match done {
            Ok(outcome) if outcome.skipped.is_some() => (Verdict::Skipped, None, outcome),
            Ok(outcome) => (Verdict::Passed, None, outcome),
            Err(error) => {
                let failure = Some(format!("{error:#}"));
                (Verdict::Failed, failure, Outcome::default())
            }
        };
        Self {
            case: case.to_owned(),
            result,
            failure,
            seconds: took.as_secs_f64(),
            outcome,
        }
    }
}

/// Everything.
#[derive(Debug, Serialize)]
pub struct Report {
    /// As `uname -r` says in the machines.
    pub kernel: String,
    pub accelerator: Accelerator,
    /// From the start of the first machine to the greeting of the last, in milliseconds.
    pub boot_ms: u128,
    pub cases: Vec<Line>,
}

impl Report {
    fn count(&self, result: Verdict) -> usize {
        let of = |line: &&Line| line.result == result;
        self.cases.iter().filter(of).count()
    }

    pub fn failed(&self) -> bool {
        self.count(Verdict::Failed) > 0
    }

    /// The table, then the counts on a line of their own.
    pub fn print(&self) {
        let shown = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
        println!();
        println!(
            "{:<28} {:<8} {:>8} {:>9} {:>8}  fence",
            "case", "result", "seconds", "gap", "refused"
        );
        for line in &self.cases {
            let gap = line.outcome.gap_ms.map(|gap| format!("{gap} ms"));
            let refused = line.outcome.refused_writes.map(|count| count.to_string());
            println!(
                "{:<28} {:<8} {:>8.1} {:>9} {:>8}  {}",
                line.case,
                format!("{:?}", line.result).to_lowercase(),
                line.seconds,
                shown(&gap),
                shown(&refused),
                shown(&line.outcome.fence),
            );
        }
        let [passed, failed, skipped] =
            [Verdict::Passed, Verdict::Failed, Verdict::Skipped].map(|result| self.count(result));
        println!("\n{passed} passed, {failed} failed, {skipped} skipped");
    }

    /// `report.json` in `folder`, which is made.
    pub fn write(&self, folder: &Path) -> Result<()> {
        std::fs::create_dir_all(folder).context("make the report's folder")?;
        let text = serde_json::to_string_pretty(self).context("write the report")?;
        std::fs::write(folder.join("report.json"), text + "\n").context("write the report")
    }
}
