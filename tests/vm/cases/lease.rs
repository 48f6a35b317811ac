//! The shared lease directory: locks exclude across machines, and a dead machine's are let go.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::lease;
use crate::machines::Machines;
use crate::report::Outcome;

/// Takes the lock on `node-b` and keeps it.
const HOLD: &str = "cd /srv/lease; exec flock lock sh -c 'echo b >new; mv new record; sleep 1000'";

/// The server's lease time and its next look.
const LET_GO_WITHIN: Duration = Duration::from_secs(30);

pub async fn locks(machines: &mut Machines) -> Result<Outcome> {
    lease::share(machines).await?;
    let Machines {
        storage: _,
        node_a,
        node_b,
        common: _,
    } = machines;
    node_b.start(&["sh", "-c", HOLD], "/tmp/hold.log").await?;
    let wait = "until grep -q b /srv/lease/record 2>/dev/null; do sleep 0.1; done";
    node_a.shell(wait).await?;
    let attempt = ["flock", "--nonblock", "/srv/lease/lock", "true"];
    let held = node_a.run(&attempt).await?.code;
    ensure!(held == 1, "the lock of the other machine excludes nobody");
    node_b.kill().await?;
    let attempt = ["flock", "/srv/lease/lock", "true"];
    let within = node_a.patience(LET_GO_WITHIN);
    let taken = node_a.run_within(&attempt, "", within).await?.code;
    ensure!(taken == 0, "no lock after the other machine's death");
    Ok(Outcome::default())
}
