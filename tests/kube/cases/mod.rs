//! The cases. To add one: a function here or in a file beside, and a line in [`ALL`].

mod faults;
mod isolation;
mod moves;

use std::future::Future;
use std::pin::Pin;

use anyhow::{Context, Result};

use crate::report::Outcome;
use crate::world::World;

type Running<'a> = Pin<Box<dyn Future<Output = Result<Outcome>> + 'a>>;

/// One case.
pub struct Case {
    pub name: &'static str,
    pub about: &'static str,
    /// Part of the long form only.
    pub long: bool,
    pub run: for<'a> fn(&'a mut World) -> Running<'a>,
}

macro_rules! case {
    ($name:literal, $run:path, $about:literal) => {
        case!($name, $run, $about, false)
    };
    ($name:literal, $run:path, $about:literal, $long:literal) => {
        Case {
            name: $name,
            about: $about,
            long: $long,
            run: |world| Box::pin($run(world)),
        }
    };
}

/// Every case, in the order in which they run.
pub const ALL: &[Case] = &[
    case!(
        "delete-active",
        moves::delete_active,
        "kubectl delete pod of the active under load"
    ),
    case!(
        "kill-container",
        moves::kill_container,
        "SIGKILL of the active's first process: no fencing delay"
    ),
    case!(
        "agent-restart",
        moves::agent_restart,
        "the active's agent is killed and comes back: nothing is interrupted"
    ),
    case!(
        "isolation",
        isolation::isolation,
        "forged sessions and 10,000 garbage messages get nothing from an agent"
    ),
    case!(
        "node-lost",
        moves::node_lost,
        "the active's whole node dies"
    ),
    case!(
        "idle-requests",
        faults::idle_requests,
        "requests to the API server in a minute without any event"
    ),
    case!(
        "api-outage",
        faults::api_outage,
        "the API server is away: nothing changes"
    ),
    case!(
        "partition",
        faults::partition,
        "the active is cut off from API server and peer"
    ),
];

/// Those that are asked for.
pub fn chosen(all: bool, names: &[String]) -> Result<Vec<&'static Case>> {
    if names.is_empty() {
        return Ok(ALL.iter().filter(|case| all || !case.long).collect());
    }
    names
        .iter()
        .map(|name| {
            let found = ALL.iter().find(|case| case.name == name);
            found.with_context(|| format!("there is no case {name:?}: see --list"))
        })
        .collect()
}
