//! Checks a node before and while a member runs on it, and says in plain words what is wrong and what
//! to do about it.
//!
//! Looks only: nothing is written, no module is loaded, no watchdog is opened, and the volume is asked
//! (Identify, Reservation Report), never told. Facts are gathered from a tree, so that the judgement
//! is tested on recorded ones.

mod identity;
mod machine;
mod paths;
#[cfg(test)]
mod tests;
mod tree;
mod volume;

use serde::Serialize;

use crate::config::{Config, Volume};

pub use tree::Tree;

/// How one thing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// It works, but worse than it could, or it may bite later.
    Warning,
    /// A member does not work here, or not safely.
    Problem,
    /// Unknown, for the reason given.
    NotChecked,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What, in a word or two.
    pub name: &'static str,
    /// How it is.
    pub verdict: Verdict,
    /// What was found.
    pub says: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

impl Check {
    fn ok(name: &'static str, says: impl Into<String>) -> Self {
        Self::new(name, Verdict::Ok, says, None)
    }

    fn not_checked(name: &'static str, why: impl Into<String>) -> Self {
        Self::new(name, Verdict::NotChecked, why, None)
    }

    fn warning(name: &'static str, says: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::new(name, Verdict::Warning, says, Some(advice.into()))
    }

    fn problem(name: &'static str, says: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::new(name, Verdict::Problem, says, Some(advice.into()))
    }

    fn new(
        name: &'static str,
        verdict: Verdict,
        says: impl Into<String>,
        advice: Option<String>,
    ) -> Self {
        Self {
            name,
            verdict,
            says: says.into(),
            advice,
        }
    }
}

/// Everything that was looked at.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// In the order in which a member needs it.
    pub checks: Vec<Check>,
}

impl Report {
    /// Whether a member can run here.
    pub fn is_sound(&self) -> bool {
        self.count(Verdict::Problem) == 0
    }

    /// How many checks came to this.
    pub fn count(&self, verdict: Verdict) -> usize {
        self.checks
            .iter()
            .filter(|check| check.verdict == verdict)
            .count()
    }
}

/// Whose node and volume are looked at.
#[derive(Clone, Debug)]
pub struct Subject {
    /// The member's configuration.
    pub config: Config,
    /// The volume in it.
    pub volume: Volume,
}

impl Subject {
    /// The member with this configuration; `None` where the node agent alone knows the volume.
    pub fn of(config: Config) -> Option<Self> {
        let volume = config.volume()?.clone();
        Some(Self { config, volume })
    }
}

/// Checks this node; with a configuration, what its member needs and the volume too.
pub async fn examine(tree: &Tree, subject: Option<&Subject>) -> Report {
    let mut checks = machine::checks(tree, subject);
    checks.push(machine::boot_clock().await);
    checks.push(machine::postgres(subject).await);
    checks.extend(identity::checks(tree, subject));
    checks.extend(paths::checks(tree, subject));
    checks.extend(volume::checks(subject).await);
    Report { checks }
}
