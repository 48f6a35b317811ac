//! The drills on machines: the same writer, ledger and checks as on one machine, the kernel's own
//! NVMe/TCP, and a whole machine's death.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use baton::drill::progress::Progress;
use baton::drill::report::Report;
use baton::drill::run::{self, Options};
use baton::drill::scenario;

use crate::drill::{Freezes, VmGround};
use crate::machines::Machines;
use crate::report::Outcome;

/// Connections that write at the same time.
const CONNECTIONS: u16 = 4;

/// What emulation multiplies the longest gap by. That bound tells service from a hang: how fast PostgreSQL
/// starts under emulation depends on what else the host does, and on how this program was built.
const EMULATED_GAP: u32 = 16;

/// How long they write before the fault and after it.
const WRITING: Duration = Duration::from_secs(3);

/// Runs one drill on members of its own.
pub async fn drill(machines: &mut Machines, name: &str) -> Result<Outcome> {
    let mut of_machines = [&scenario::KERNEL_PANIC, &scenario::STORAGE_REPLAY].into_iter();
    let of_machines = of_machines.find(|scenario| scenario.name == name);
    let found = scenario::find(name).or(of_machines);
    let mut scenario = *found.with_context(|| format!("no drill {name}"))?;
    let accelerator = machines.common.accelerator;
    let longest = accelerator.patience(scenario.expect.max_gap, EMULATED_GAP);
    scenario.expect.max_gap = longest;
    let options = Options {
        connections: CONNECTIONS,
        seconds: WRITING,
        report: folder(machines, scenario.name),
        keep_running: false,
    };
    let mut ground = VmGround::up(machines).await?;
    if name == scenario::STORAGE_REPLAY.name {
        ground.freezes = Freezes::Path;
    }
    let ran = run::run(
        &scenario,
        &options,
        &mut ground,
        &Progress::new(scenario.name),
    )
    .await;
    let logs = ground.logs().await;
    let down = ground.down().await;
    let report = ran.map_err(|error| anyhow::Error::from(error).context(logs.clone()))?;
    println!("{report}");
    if !report.passed {
        bail!("{}\n{logs}", report.failures.join("; "));
    }
    down.map(|()| outcome(&report))
}

/// Below the report's folder if there is one, else among what goes with the test.
fn folder(machines: &Machines, name: &str) -> PathBuf {
    machines.common.scratch.join(format!("drill-{name}"))
}

fn outcome(report: &Report) -> Outcome {
    let fence = report.fence.as_ref();
    let verified = |verified| if verified { "verified" } else { "not verified" };
    let writes = &report.writes;
    Outcome {
        gap_ms: Some(report.write_gap_ms),
        fence: fence.map(|fence| format!("{}, {}", fence.kind, verified(fence.verified))),
        refused_writes: fence.map(|fence| fence.refused_writes),
        notes: vec![
            format!(
                "{} writes acknowledged, {} lost, {} duplicated, {} unknown",
                writes.acknowledged, writes.lost, writes.duplicated, writes.unknown
            ),
            format!("epoch {} to {}", report.epoch_before, report.epoch_after),
        ],
        ..Outcome::default()
    }
}
