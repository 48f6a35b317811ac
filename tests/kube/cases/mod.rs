//! The cases. To add one: a function here or in a file beside, and a line in [`ALL`].

mod crowd;
mod faults;
mod isolation;
mod moves;
mod orders;
mod refusals;
mod rights;
mod zones;

use std::future::Future;
use std::pin::Pin;

use anyhow::{Context, Result};

use crate::report::Outcome;
use crate::world::World;

type Running<'a> = Pin<Box<dyn Future<Output = Result<Outcome>> + 'a>>;

type Run = for<'a> fn(&'a mut World) -> Running<'a>;

/// One case. What it shows is said where its function is.
pub struct Case {
    pub name: &'static str,
    /// Part of the long form only.
    pub long: bool,
    pub run: Run,
}

/// Every case, in the order in which they run.
pub const ALL: &[Case] = &[
    short("delete-active", |world| {
        Box::pin(moves::delete_active(world))
    }),
    short("kill-container", |world| {
        Box::pin(moves::kill_container(world))
    }),
    short("agent-restart", |world| {
        Box::pin(moves::agent_restart(world))
    }),
    short("drain", |world| Box::pin(moves::drain(world))),
    short("isolation", |world| Box::pin(isolation::isolation(world))),
    short("foreign-volume", |world| {
        Box::pin(refusals::foreign_volume(world))
    }),
    short("no-modules", |world| Box::pin(refusals::no_modules(world))),
    short("attached", |world| Box::pin(refusals::attached(world))),
    short("api-outage", |world| Box::pin(faults::api_outage(world))),
    short("conflict-storm", |world| {
        Box::pin(faults::conflict_storm(world))
    }),
    short("expired", |world| Box::pin(faults::expired(world))),
    short("partition", |world| Box::pin(faults::partition(world))),
    short("drill", |world| Box::pin(orders::drill(world))),
    short("pooler", |world| Box::pin(orders::pooler(world))),
    short("node-lost", |world| Box::pin(moves::node_lost(world))),
    short("zones", |world| Box::pin(zones::zones(world))),
    short("unsafe-zone", |world| Box::pin(zones::unsafe_zone(world))),
    short("rights", |world| Box::pin(rights::rights(world))),
    long("idle-requests", |world| {
        Box::pin(faults::idle_requests(world))
    }),
    long("long-api-outage", |world| {
        Box::pin(faults::long_api_outage(world))
    }),
    long("hundred-volumes", |world| {
        Box::pin(crowd::hundred_volumes(world))
    }),
];

const fn short(name: &'static str, run: Run) -> Case {
    Case {
        name,
        long: false,
        run,
    }
}

const fn long(name: &'static str, run: Run) -> Case {
    Case {
        name,
        long: true,
        run,
    }
}

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
