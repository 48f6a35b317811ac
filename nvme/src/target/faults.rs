//! Injected faults, as plain rules: who is cut off, refused, slow or broken. Connections and commands
//! look them up; [`super::control`] sets them.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::audit::Operation;
use crate::{Nqn, Status};

/// Which hosts a fault is for: one NQN, or `*` for all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum HostSelector {
    /// Every host.
    #[default]
    All,
    /// The host of this name.
    One(Nqn),
}

impl HostSelector {
    /// Whether this host is meant.
    pub fn selects(&self, host: &Nqn) -> bool {
        match self {
            Self::All => true,
            Self::One(one) => one == host,
        }
    }
}

impl TryFrom<String> for HostSelector {
    type Error = crate::identity::InvalidNqn;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        if text == "*" {
            Ok(Self::All)
        } else {
            Ok(Self::One(text.parse()?))
        }
    }
}

impl From<HostSelector> for String {
    fn from(selector: HostSelector) -> Self {
        match selector {
            HostSelector::All => "*".to_owned(),
            HostSelector::One(nqn) => nqn.into(),
        }
    }
}

/// Commands take longer: the time lies between the reservation check and the effect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Delay {
    /// Whose commands.
    pub host: HostSelector,
    /// How long.
    pub ms: u64,
    /// Only these; `None` for all I/O commands.
    pub operation: Option<Operation>,
}

/// Commands on these blocks end with a media error and have no effect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// Whose commands.
    pub host: HostSelector,
    /// First logical block.
    pub first: u64,
    /// Number of logical blocks.
    pub blocks: u64,
    /// Only these; `None` for all.
    pub operation: Option<Operation>,
}

/// All faults in force.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Faults {
    /// Nothing is received from these hosts, nothing is sent to them; the connections stay.
    pub blackholed: Vec<HostSelector>,
    /// These hosts cannot connect anew.
    pub refused: Vec<HostSelector>,
    /// Slow commands.
    pub delays: Vec<Delay>,
    /// Failing blocks.
    pub failures: Vec<Failure>,
}

impl Faults {
    /// Whether the path to this host is cut.
    pub fn is_blackholed(&self, host: &Nqn) -> bool {
        self.blackholed.iter().any(|s| s.selects(host))
    }

    /// Whether every host's path is cut, those unknown yet too.
    pub fn is_blackholed_for_all(&self) -> bool {
        self.blackholed.contains(&HostSelector::All)
    }

    /// Whether this host may not connect.
    pub fn is_refused(&self, host: &Nqn) -> bool {
        self.refused.iter().any(|s| s.selects(host))
    }

    /// How long to hold this command back: the longest delay that applies.
    pub fn delay(&self, host: &Nqn, operation: Operation) -> Option<Duration> {
        let applies = |d: &&Delay| d.host.selects(host) && meets(d.operation, operation);
        let longest = self.delays.iter().filter(applies).map(|d| d.ms).max()?;
        Some(Duration::from_millis(longest))
    }

    /// The error for this command on `blocks` blocks from `lba`, if it is to fail.
    pub fn failure(
        &self,
        host: &Nqn,
        operation: Operation,
        lba: u64,
        blocks: u64,
    ) -> Option<Status> {
        let hits = |f: &&Failure| {
            f.host.selects(host)
                && meets(f.operation, operation)
                && lba < f.first.saturating_add(f.blocks)
                && f.first < lba.saturating_add(blocks)
        };
        self.failures.iter().find(hits)?;
        Some(match operation {
            Operation::Read => Status::UNRECOVERED_READ.dnr(),
            Operation::Write | Operation::Flush => Status::WRITE_FAULT.dnr(),
        })
    }

    /// Ends the faults of this selector; `All` ends every fault. Delays and failures set for `*` end
    /// only so.
    pub fn heal(&mut self, selector: &HostSelector) {
        if *selector == HostSelector::All {
            *self = Self::default();
            return;
        }
        self.blackholed.retain(|s| s != selector);
        self.refused.retain(|s| s != selector);
        self.delays.retain(|d| d.host != *selector);
        self.failures.retain(|f| f.host != *selector);
    }
}

fn meets(rule: Option<Operation>, operation: Operation) -> bool {
    rule.is_none_or(|only| only == operation)
}
