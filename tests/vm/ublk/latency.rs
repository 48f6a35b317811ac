//! How long a small durable write takes, by ublk and by FUSE and loop, in turn.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use anyhow::Result;
use nix::time::{ClockId, clock_gettime};

use super::bridged::{Ground, PAGE};

/// Writes of each turn.
const WRITES: usize = 300;

/// Not measured: caches and the processor's frequency settle.
const WARM: usize = 50;

/// Turns of each backend.
const TURNS: usize = 3;

/// The median of each, and their ratio.
pub fn compared(ground: &Ground) -> Result<String> {
    let mut ublk = Vec::new();
    let mut fuse = Vec::new();
    for _ in 0..TURNS {
        ublk.extend(measured(ground, "ublk")?);
        fuse.extend(measured(ground, "fuse")?);
    }
    let (ublk, fuse) = (median(ublk), median(fuse));
    let ratio = ublk.as_secs_f64() / fuse.as_secs_f64();
    Ok(format!(
        "fdatasync of 4 KiB on ext4, median of {}: ublk {} µs, FUSE and loop {} µs, ratio {ratio:.2}",
        TURNS * WRITES,
        ublk.as_micros(),
        fuse.as_micros(),
    ))
}

fn measured(ground: &Ground, backend: &str) -> Result<Vec<Duration>> {
    let bridge = ground.bridge(backend)?;
    bridge.format()?;
    let mounted = bridge.mount(ground)?;
    let file = File::create(mounted.path("file"))?;
    // Overwritten, as PostgreSQL's log is: no block is allocated.
    file.write_all_at(&vec![0; 1 << 20], 0)?;
    file.sync_all()?;
    let mut took = Vec::with_capacity(WRITES);
    for round in 0..WARM + WRITES {
        let at = (round % 256 * PAGE) as u64;
        let began = now()?;
        file.write_all_at(&[round as u8; PAGE], at)?;
        file.sync_data()?;
        if round >= WARM {
            took.push(now()? - began);
        }
    }
    drop(file);
    mounted.unmount()?;
    bridge.end()?;
    Ok(took)
}

/// Finer than Baton's own clock.
fn now() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_MONOTONIC)?.into())
}

fn median(mut took: Vec<Duration>) -> Duration {
    took.sort_unstable();
    took[took.len() / 2]
}
