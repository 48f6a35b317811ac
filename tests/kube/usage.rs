//! What processes take of their machine, as the kernel counts it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};

/// The kernel's unit of CPU time in `/proc` (USER_HZ), per second.
const TICKS_PER_SECOND: f64 = 100.0;

/// Processes at one moment.
#[derive(Clone, Debug)]
pub struct Usage {
    at: Instant,
    /// User and system time of each that lives, in seconds.
    cpu: BTreeMap<i32, f64>,
    /// Their share of the memory (PSS), in MiB.
    pub memory: f64,
    pub threads: usize,
    pub processes: usize,
}

impl Usage {
    /// Of these processes. One that ends meanwhile counts as none.
    pub fn of(processes: &BTreeSet<i32>) -> Self {
        let mut usage = Self {
            at: Instant::now(),
            cpu: BTreeMap::new(),
            memory: 0.0,
            threads: 0,
            processes: 0,
        };
        for process in processes {
            let place = format!("/proc/{process}");
            let Some(cpu) = cpu_seconds(Path::new(&place)) else {
                continue;
            };
            let tasks = std::fs::read_dir(format!("{place}/task"));
            usage.cpu.insert(*process, cpu);
            usage.memory += share_of_memory(Path::new(&place)).unwrap_or(0.0);
            usage.threads += tasks.map_or(0, Iterator::count);
            usage.processes += 1;
        }
        usage
    }

    /// Per cent of one CPU that those that live took since `before`.
    pub fn load_since(&self, before: &Self) -> f64 {
        let elapsed = self.at.duration_since(before.at).as_secs_f64();
        let took = |(process, now): (&i32, &f64)| Some(now - before.cpu.get(process)?);
        100.0 * self.cpu.iter().filter_map(took).sum::<f64>() / elapsed
    }
}

/// Fields 14 and 15 of `stat`.
fn cpu_seconds(process: &Path) -> Option<f64> {
    let stat = std::fs::read_to_string(process.join("stat")).ok()?;
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<f64>().ok();
    Some((next()? + next()?) / TICKS_PER_SECOND)
}

fn share_of_memory(process: &Path) -> Option<f64> {
    let rollup = std::fs::read_to_string(process.join("smaps_rollup")).ok()?;
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    let kibibytes: f64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kibibytes / 1024.0)
}

/// The processes in a control group and those below it.
pub fn in_group(group: &Path) -> BTreeSet<i32> {
    let own = std::fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    let mut found: BTreeSet<i32> = own.lines().filter_map(|pid| pid.parse().ok()).collect();
    let below = std::fs::read_dir(group).into_iter().flatten().flatten();
    for entry in below.filter(|entry| entry.path().is_dir()) {
        found.extend(in_group(&entry.path()));
    }
    found
}

/// The one child of a process.
pub fn only_child(process: u32) -> Result<i32> {
    let children = std::fs::read_to_string(format!("/proc/{process}/task/{process}/children"))?;
    let child = children.split_whitespace().next();
    let child = child.with_context(|| format!("process {process} has no child"))?;
    Ok(child.parse()?)
}
