//! The machines themselves: everything that a case may do to one, and that it comes back.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::machine::Machine;
use crate::machines::{BATON, Machines};
use crate::network::Network;
use crate::report::Outcome;

/// How long a frozen machine is asked for an answer that must not come.
const SILENCE: Duration = Duration::from_secs(2);

/// Commands, background processes, links, a freeze, a death and a boot.
pub async fn faults(machines: &mut Machines) -> Result<Outcome> {
    let Machines {
        storage,
        node_a,
        node_b,
        common,
    } = machines;
    let version = node_a.ok(&[BATON, "--version"]).await?;
    ensure!(version.starts_with("baton"), "baton says {version}");
    let nqn = node_a.ok(&["cat", "/etc/nvme/hostnqn"]).await?;
    ensure!(nqn == node_a.host_nqn(), "{nqn} is not its host name");
    background(node_a).await?;
    for network in Network::ALL {
        ensure!(reaches(node_a, storage, network).await?, "no {network:?}");
        node_a.link(network, false).await?;
        ensure!(
            !reaches(node_a, storage, network).await?,
            "{network:?} is not cut"
        );
        node_a.link(network, true).await?;
        ensure!(
            reaches(node_a, storage, network).await?,
            "{network:?} stays cut"
        );
    }
    node_b.freeze().await?;
    let answer = node_b.run_within(&["true"], "", SILENCE).await;
    ensure!(answer.is_err(), "a frozen machine answers");
    node_b.thaw().await?;
    node_b.ok(&["true"]).await?;
    node_b.shell("echo 1 >/tmp/mark").await?;
    node_b.kill().await?;
    ensure!(!node_b.lives().await, "a killed machine lives");
    node_b.boot(common).await?;
    node_b.shell("[ ! -e /tmp/mark ]").await?;
    let panic = ["sh", "-c", "echo c >/proc/sysrq-trigger"];
    let answer = node_b.run_within(&panic, "", SILENCE).await;
    ensure!(answer.is_err(), "a machine that panicked answers");
    node_b
        .ended(node_b.patience(Duration::from_secs(5)))
        .await?;
    Ok(Outcome::default())
}

async fn background(node: &Machine) -> Result<()> {
    node.write("/tmp/words", "one two\n").await?;
    let pid = node
        .start(&["tail", "-f", "/tmp/words"], "/tmp/log")
        .await?;
    node.shell("until grep two /tmp/log; do sleep 0.1; done")
        .await?;
    node.ok(&["kill", "-TERM", "--", &format!("-{pid}")])
        .await?;
    let code = node
        .wait(pid, node.patience(Duration::from_secs(5)))
        .await?;
    ensure!(
        code == 128 + 15,
        "a process that was terminated ended with {code}"
    );
    Ok(())
}

async fn reaches(from: &Machine, to: &Machine, network: Network) -> Result<bool> {
    let address = to.address(network).to_string();
    let ping = ["busybox", "ping", "-c", "1", "-W", "2", &address];
    let output = from.run(&ping).await.context("ping")?;
    Ok(output.code == 0)
}
