//! nvmet and Baton's target answer the same command sequences, each as its model predicts.

use std::ops::Range;
use std::time::Duration;

use anyhow::{Context, Result};
use fencing::model::Quirks;
use nvme::target::{NamespaceConfig, Target, TargetConfig, default_subsystem};

use crate::conformance::carry::Carrier;
use crate::conformance::compare::{Side, Summary, run};
use crate::conformance::table;
use crate::exported::{Disks, Exported};
use crate::machines::Machines;
use crate::report::Outcome;

/// Namespaces that are used at the same time: preempt-and-abort waits long in the kernel.
const LANES: u32 = 4;

/// The seeds of the short form.
pub const SHORT: Range<u64> = 0..200;

/// The seeds of the long form.
pub const LONG: Range<u64> = 0..2000;

/// Bytes of each namespace of Baton's target.
const NAMESPACE_BYTES: u64 = 1 << 20;

/// How often the target's kernel may crash under the sequences: Linux 7.3's nvmet does now and then, in a
/// preempt-and-abort (in `percpu_ref_switch_to_atomic_rcu`).
const CRASHES_MAX: usize = 2;

/// How long a kernel that crashed takes to end its machine, under KVM.
const PANIC_WITHIN: Duration = Duration::from_secs(3);

/// Runs the sequences of these seeds. If the target's kernel crashes it is booted again, and all of them
/// are run anew: a crash is told, and shows nothing about any answer.
pub async fn sequences(machines: &mut Machines, seeds: Range<u64>) -> Result<Outcome> {
    let mut crashes = Vec::new();
    loop {
        let error = match pass(machines, seeds.clone()).await {
            Ok(mut outcome) => {
                outcome.notes.extend(crashes);
                return Ok(outcome);
            }
            Err(error) => error,
        };
        let storage = &machines.storage;
        let crashed = storage.ended(storage.patience(PANIC_WITHIN)).await.is_ok();
        if !crashed || crashes.len() == CRASHES_MAX {
            return Err(error);
        }
        let place = storage.console().crash();
        crashes.push(format!(
            "nvmet's kernel crashed ({place}) and was booted again"
        ));
        machines.boot_missing().await?;
    }
}

async fn pass(machines: &Machines, seeds: Range<u64>) -> Result<Outcome> {
    let exported = Exported::up(&machines.storage, Disks::InMemory(LANES)).await?;
    let files = tempfile::tempdir_in(&machines.common.scratch).context("make a directory")?;
    // One target keeps reservations over a power loss, the other cannot, as nvmet.
    let persistent = baton_target(files.path(), "persistent").await?;
    let volatile = baton_target(files.path(), "volatile").await?;
    let lanes = (0..LANES).map(async |lane| {
        let (target, is_volatile) = match lane % 2 {
            0 => (&persistent, false),
            _ => (&volatile, true),
        };
        let quirks = Quirks {
            volatile: is_volatile,
            ..Quirks::NONE
        };
        let (ours, nsid) = (target.address().to_string(), lane / 2 + 1);
        let ours = Carrier::connect(&ours, &default_subsystem(), nsid).await?;
        let theirs = exported.address();
        let theirs = Carrier::connect(&theirs, &exported.subsystem()?, lane + 1).await?;
        let mut sides = [
            Side::new("nvmet", theirs, Quirks::NVMET),
            Side::new("Baton", ours, quirks),
        ];
        let mut summary = Summary::default();
        for seed in seeds.clone().skip(lane as usize).step_by(LANES as usize) {
            run(seed, &mut sides, &mut summary).await?;
        }
        anyhow::Ok(summary)
    });
    let summary = total(lanes.collect()).await?;
    exported.down().await?;
    Ok(Outcome {
        notes: table::lines(seeds, &summary),
        departures: Some(table::counts(&summary)),
        ..Outcome::default()
    })
}

/// The lanes side by side; the first failure ends all.
async fn total(lanes: Vec<impl Future<Output = Result<Summary>>>) -> Result<Summary> {
    let [a, b, c, d] = <[_; LANES as usize]>::try_from(lanes)
        .map_err(|_| anyhow::anyhow!("there are {LANES} lanes"))?;
    let (a, b, c, d) = tokio::try_join!(a, b, c, d)?;
    let mut summary = Summary::default();
    [a, b, c, d].iter().for_each(|lane| summary.add(lane));
    Ok(summary)
}

async fn baton_target(folder: &std::path::Path, name: &str) -> Result<Target> {
    let namespace = |n: u32| {
        let file = folder.join(format!("{name}-{n}"));
        NamespaceConfig::new(file, Some(NAMESPACE_BYTES))
    };
    let mut config = TargetConfig::local(namespace(1));
    config.namespaces.push(namespace(2));
    config.state = (name == "persistent").then(|| folder.join("state"));
    Target::start(config).await.context("start Baton's target")
}
