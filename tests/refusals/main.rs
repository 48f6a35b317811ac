//! Bad input, each kind against real processes: `baton target` and `baton run`. Whatever is wrong,
//! the member says what was attempted, what happened and what to do, and the volume stays as it was.
//!
//! Wrong, missing and contradictory settings are in `tests/config.rs`; bad usage, and what a machine
//! lacks, in `tests/control.rs`; a target's own refusals in `tests/target_process.rs`.

mod database;
mod scene;
mod start;
mod volume;
