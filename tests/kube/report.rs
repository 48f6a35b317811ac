//! What the cases found, as a table and as JSON.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

/// What a case that passed, or was left out, has to tell.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Outcome {
    /// Why it was left out; it counts as skipped, not as passed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skipped: Option<String>,
    /// The longest time without an acknowledged write through the Service, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gap_ms: Option<u64>,
    /// Rows whose commit was acknowledged; all of them were found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acknowledged: Option<u64>,
    /// Requests of the whole cluster to the API server in a minute without any event.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests_per_minute: Option<u64>,
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

/// One case's line.
#[derive(Debug, Serialize)]
pub struct Line {
    pub case: String,
    pub result: &'static str,
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
            Ok(outcome) if outcome.skipped.is_some() => ("skipped", None, outcome),
            Ok(outcome) => ("passed", None, outcome),
            Err(error) => ("failed", Some(format!("{error:#}")), Outcome::default()),
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
    /// `stand-in`, or what a real server says of its version.
    pub api_server: String,
    pub cases: Vec<Line>,
}

impl Report {
    fn count(&self, result: &str) -> usize {
        self.cases
            .iter()
            .filter(|line| line.result == result)
            .count()
    }

    pub fn failed(&self) -> bool {
        self.count("failed") > 0
    }

    /// The table, then the counts on a line of their own.
    pub fn print(&self) {
        println!("\nAPI server: {}", self.api_server);
        println!(
            "{:<24} {:<8} {:>8} {:>9} {:>8}",
            "case", "result", "seconds", "gap", "writes"
        );
        for line in &self.cases {
            let gap = line
                .outcome
                .gap_ms
                .map_or("-".to_owned(), |gap| format!("{gap} ms"));
            let writes = line
                .outcome
                .acknowledged
                .map_or("-".to_owned(), |count| count.to_string());
            println!(
                "{:<24} {:<8} {:>8.1} {gap:>9} {writes:>8}",
                line.case, line.result, line.seconds
            );
            for note in line
                .outcome
                .notes
                .iter()
                .chain(&line.outcome.skipped)
                .chain(&line.failure)
            {
                println!("    {note}");
            }
        }
        let [passed, failed, skipped] =
            ["passed", "failed", "skipped"].map(|result| self.count(result));
        println!("\n{passed} passed, {failed} failed, {skipped} skipped");
    }

    /// `report.json` in `folder`, which is made.
    pub fn write(&self, folder: &Path) -> Result<()> {
        std::fs::create_dir_all(folder).context("make the report's folder")?;
        let text = serde_json::to_string_pretty(self).context("write the report")?;
        std::fs::write(folder.join("report.json"), text + "\n").context("write the report")
    }
}
