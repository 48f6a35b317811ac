//! The seeded simulation: the real `decide` and the real fence sequences in a simulated world.
//!
//! `SEED=17` runs one seed and prints what happened; `SEEDS=100000` runs more than the default.

#![allow(clippy::expect_used, reason = "a test")]

mod faults;
mod invariants;
mod member;
mod rng;
mod steps;
mod store;
mod target;
mod world;

use std::sync::atomic::{AtomicU64, Ordering};

use world::{Broken, Outcomes, World};

/// How many seeds `cargo test` runs.
const DEFAULT_SEEDS: u64 = 10_000;

fn run(seed: u64, broken: Broken) -> Result<Outcomes, String> {
    World::new(seed, broken).run()
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Runs seeds on all cores until one fails; the lowest failing seed found.
fn first_failure(seeds: std::ops::Range<u64>, broken: Broken) -> (Option<(u64, String)>, [u64; 4]) {
    let next = AtomicU64::new(seeds.start);
    let totals: [AtomicU64; 4] = Default::default();
    let failure = std::sync::Mutex::new(None::<(u64, String)>);
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let failed = failure.lock().expect("no panic").is_some();
                    if seed >= seeds.end || failed {
                        return;
                    }
                    match run(seed, broken) {
                        Ok(outcomes) => {
                            let Outcomes {
                                decisions,
                                takeovers,
                                acknowledged,
                                refused,
                            } = outcomes;
                            let counts =
                                [decisions, takeovers as u64, acknowledged as u64, refused];
                            for (total, count) in totals.iter().zip(counts) {
                                total.fetch_add(count, Ordering::Relaxed);
                            }
                        }
                        Err(text) => {
                            let mut failure = failure.lock().expect("no panic");
                            if failure.as_ref().is_none_or(|(other, _)| *other > seed) {
                                *failure = Some((seed, text));
                            }
                        }
                    }
                }
            });
        }
    });
    let failure = failure.into_inner().expect("no panic");
    (failure, totals.map(AtomicU64::into_inner))
}

#[test]
fn every_invariant_holds_for_every_seed() {
    if let Some(seed) = number("SEED") {
        let mut world = World::new(seed, Broken::Nothing);
        world.trace = Some(Vec::new());
        let result = world.run();
        for line in world.trace.iter().flatten() {
            println!("{line}");
        }
        if let Err(text) = result {
            panic!("seed {seed}: {text}");
        }
        return;
    }
    let seeds = number("SEEDS").unwrap_or(DEFAULT_SEEDS);
    let (failure, [decisions, takeovers, acknowledged, refused]) =
        first_failure(0..seeds, Broken::Nothing);
    if let Some((seed, text)) = failure {
        panic!(
            "seed {seed} fails: {text}\nsee it with: SEED={seed} cargo test --test simulation every -- --nocapture"
        );
    }
    println!(
        "{seeds} seeds: {decisions} decisions, {takeovers} take-overs, {acknowledged} acknowledged \
         writes kept, {refused} writes of fenced hosts refused"
    );
}

/// For people at work on the core: every failing seed with its reason, `SEEDS=1000 … survey --ignored`.
#[test]
#[ignore = "a survey for people, not a check"]
fn survey() {
    let seeds = number("SEEDS").unwrap_or(1_000);
    let first = number("FROM").unwrap_or(0);
    let next = AtomicU64::new(first);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + seeds {
                        return;
                    }
                    if let Err(text) = run(seed, Broken::Nothing) {
                        println!("seed {seed}: {text}");
                    }
                }
            });
        }
    });
}
