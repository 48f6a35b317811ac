//! The bridge by the kernel's ublk driver, with all that it stands on in one machine.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::machines::Machines;
use crate::report::Outcome;

/// For all checks, under KVM.
const WITHIN: Duration = Duration::from_secs(120);

/// Runs this program's checks in `node-a`; each line that they print is a note.
pub async fn bridge(machines: &mut Machines) -> Result<Outcome> {
    let node = &machines.node_a;
    let loaded = node.run(&["modprobe", "ublk_drv"]).await?;
    if loaded.code != 0 {
        let why = loaded.stderr.trim();
        return Ok(Outcome::skipped(format!("the kernel has no ublk: {why}")));
    }
    node.ok(&["modprobe", "-a", "fuse", "loop"]).await?;
    let agent = machines.common.agent.display().to_string();
    let within = node.patience(WITHIN);
    let ran = node.run_within(&[&agent, "ublk"], "", within).await?;
    let (said, errors) = (ran.stdout.trim(), ran.stderr.trim());
    ensure!(ran.code == 0, "after\n{said}\n{errors}");
    Ok(Outcome {
        notes: said.lines().map(str::to_owned).collect(),
        ..Outcome::default()
    })
}
