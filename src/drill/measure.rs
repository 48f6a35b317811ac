//! One fault under the writer, against any PostgreSQL cluster: how long did writes stop, and is
//! every acknowledged row there? The drills and the benchmark measure with the same code.

use std::process::Stdio;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::process::Command;

use super::gap;
use super::verify::{self, Writes};
use super::writer::{self, Plan, Writer, WriterError};
use crate::clock;

/// How long the cluster may take to accept the first writes, before the fault.
const BEGIN_WITHIN: Duration = Duration::from_secs(60);

/// What is measured, and for how long.
#[derive(Clone, Debug)]
pub struct Measure {
    /// The writer.
    pub plan: Plan,
    /// A shell command that runs to its end before the fault, under the writer.
    pub prelude: Option<String>,
    /// A shell command that injects the fault.
    pub fault: String,
    /// How long writes run before the fault.
    pub before: Duration,
    /// How long every connection may take to write again.
    pub within: Duration,
    /// How long writes go on after that.
    pub after: Duration,
}

/// What was measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Measured {
    /// Whether every connection wrote again, the commands succeeded and the ledger holds.
    pub passed: bool,
    /// The longest interval without any acknowledged write that ends after the fault began.
    pub write_gap_ms: u64,
    /// The same for the connection that was worst off.
    pub connection_gap_ms: u64,
    /// Acknowledged writes per second before the fault.
    pub writes_per_second: u64,
    /// The ledger against the table.
    pub writes: Writes,
    /// What is wrong, in words.
    pub failures: Vec<String>,
}

impl Measure {
    /// Writes, injects the fault, waits for the writes to return, compares ledger and table.
    pub async fn run(&self) -> Result<Measured, WriterError> {
        let begun = clock::now();
        let writer = Writer::start(&self.plan, BEGIN_WITHIN).await?;
        tokio::time::sleep(self.before).await;
        let mut failures = Vec::new();
        if let Some(prelude) = &self.prelude {
            failures.extend(shell(prelude).await.err());
        }

        let fault = clock::now();
        failures.extend(shell(&self.fault).await.err());
        let struck = clock::now() + writer::ON_THE_WAY;
        let recovered = writer.all_write(struck, self.within).await;
        if !recovered {
            failures.push(format!(
                "not every connection wrote again within {:?}",
                self.within
            ));
        }
        tokio::time::sleep(self.after).await;

        let written = writer.finish().await?;
        let before = written
            .entries
            .iter()
            .filter(|entry| entry.at <= fault)
            .count() as u128;
        let rows = writer::rows(&self.plan, BEGIN_WITHIN).await?;
        let verdict = verify::verify(&written.entries, &rows);
        failures.extend(verdict.examples);
        let gaps = gap::gaps(
            &written.entries,
            self.plan.connections,
            fault,
            written.ended,
        );
        let worst = gaps.per_connection.values().map(|gap| gap.length()).max();
        Ok(Measured {
            passed: failures.is_empty(),
            write_gap_ms: millis(gaps.longest.length()),
            connection_gap_ms: millis(worst.unwrap_or_default()),
            writes_per_second: (before * 1000 / fault.since(begun).as_millis().max(1)) as u64,
            writes: verdict.writes,
            failures,
        })
    }
}

/// Runs a command; its failure in words. Its output goes to standard error, because
/// standard output is for the measurement.
async fn shell(command: &str) -> Result<(), String> {
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("{{ {command}\n}} >&2")]);
    match shell.stdin(Stdio::null()).kill_on_drop(true).status().await {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("the command {command:?} ended with {status}")),
        Err(error) => Err(format!("the command {command:?} could not run: {error}")),
    }
}

/// Whole milliseconds, saturating.
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
