//! The journal: every decision that changed something, with all its inputs, one JSON object a line.
//!
//! Each line replays through `decide` ([`replay`]), so any incident can be run again at a desk. A file
//! begins with the configuration of the run that writes it, again after each rotation.

mod read;
mod replay;
mod steps;
mod write;

use fencing::Mono;
use serde::{Deserialize, Serialize};

use crate::clock::Wall;
use crate::decide::{Config, Decision, Incarnation, Memory, Observation};

pub use read::{Contents, read};
pub use replay::{Difference, Replayed, replay};
pub use steps::{Step, steps};
pub use write::{Journal, JournalError};

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Entry {
    /// A run begins, or goes on in a new file.
    Start {
        /// When, for people.
        at: Wall,
        /// The program's version.
        version: String,
        /// The member's name.
        member: String,
        /// Which run.
        incarnation: Incarnation,
        /// On what its decisions rest.
        config: Box<Config>,
    },
    /// A decision.
    Decision(Box<Decided>),
    /// Lines were left out because the disk was too slow or full.
    Lost {
        /// How many.
        count: u64,
    },
}

/// A decision with all its inputs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Decided {
    /// When, for people.
    pub at: Wall,
    /// The time that was given to `decide`.
    pub now: Mono,
    /// The memory that was given to it.
    pub memory: Memory,
    /// The observation that was given to it.
    pub observation: Observation,
    /// What it said.
    pub decision: Decision,
}
