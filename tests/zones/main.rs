//! The seeded simulation of several sites: the real judgement between sites, over PostgreSQLs, a lease
//! store and a network that are simulated.
//!
//! `SEED=17` runs one seed and prints what happened; `SEEDS=100000` runs more than the default.

#![allow(clippy::expect_used, clippy::indexing_slicing, reason = "a test")]

mod broken;
mod faults;
#[path = "../simulation/rng.rs"]
mod rng;
mod site;
mod steps;
mod view;
mod world;

use broken::Broken;
use world::World;

/// How many seeds `cargo test` runs.
const DEFAULT_SEEDS: u64 = 200;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn no_acknowledged_write_is_lost_between_sites() {
    if let Some(seed) = number("SEED") {
        let mut world = World::new(seed, Broken::Nothing);
        world.tell = true;
        world.run().expect("this seed fails");
        return;
    }
    let mut seen = world::Seen::default();
    for seed in 0..number("SEEDS").unwrap_or(DEFAULT_SEEDS) {
        let mut world = World::new(seed, Broken::Nothing);
        if let Err(what) = world.run() {
            panic!("SEED={seed}: {what}");
        }
        seen.add(&world.seen);
    }
    println!("{seen:?}");
    assert!(seen.failovers > 0 && seen.switchovers > 0, "{seen:?}");
    assert!(seen.degraded > 0 && seen.confirmed > 0, "{seen:?}");
    assert!(seen.superseded > 0 && seen.withdrawn > 0, "{seen:?}");
    assert!(seen.restored > 0, "{seen:?}");
}

/// What would be lost without a rule must be found, or the simulation proves nothing. The search begins
/// at a seed from which it does not take long.
#[test]
fn a_broken_rule_is_found() {
    let broken = [
        (Broken::SpeaksForOthers, 50),
        (Broken::KeepsConfirmed, 25),
        (Broken::DegradesSilently, 0),
        (Broken::StaysPrimary, 0),
        (Broken::PostgresFirst, 770),
        (Broken::ForgetsOwners, 1_090),
        (Broken::TrustsFailure, 300),
        (Broken::TrustsRestored, 340),
    ];
    let seeds = number("SEEDS").unwrap_or(500);
    let missed: Vec<_> = std::thread::scope(|scope| {
        let searches = broken.map(|(broken, from)| {
            scope.spawn(move || {
                let mut seeds = from..from + seeds;
                let found =
                    seeds.find_map(|seed| Some((seed, World::new(seed, broken).run().err()?)));
                let what = found.as_ref().map(|(seed, what)| (seed, what.get(..80)));
                println!("{broken:?}: {what:?}");
                found.is_none().then_some(broken)
            })
        });
        let ended = searches
            .into_iter()
            .map(|search| search.join().expect("no panic"));
        ended.flatten().collect()
    });
    assert!(missed.is_empty(), "not found: {missed:?}");
}
