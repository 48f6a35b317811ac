//! Pods on the kernel's own block device: the node's agent finds it where the kubelet has it, fences and
//! mounts; the pod has no privilege.

use anyhow::{Context, Result, ensure};
use kube::ResourceExt;

use crate::drill::trace::Trace;
use crate::drill::volume;
use crate::kubernetes::Kubernetes;
use crate::machines::Machines;
use crate::nvmet::Target;
use crate::platform::cluster;
use crate::report::Outcome;

/// A pod is deleted; then a container is killed; then an agent is, and its successor carries a handover. Who
/// was active comes back as the standby each time.
pub async fn pods(machines: &mut Machines) -> Result<Outcome> {
    volume::blank(&machines.storage).await?;
    Target::up(&machines.storage).await?;
    let done = with_nodes(machines).await;
    // The nodes' end undoes what was made of them.
    let killed = machines
        .node_a
        .kill()
        .await
        .and(machines.node_b.kill().await);
    let stopped = volume::stop(&machines.storage).await;
    let outcome = done?;
    killed.and(stopped)?;
    Ok(outcome)
}

async fn with_nodes(machines: &Machines) -> Result<Outcome> {
    let mut kubernetes = Kubernetes::up(machines).await?;
    let done = course(machines, &mut kubernetes).await;
    match done {
        Ok(outcome) => Ok(outcome),
        Err(error) => {
            let logs = kubernetes.logs().await;
            Err(error.context(logs))
        }
    }
}

async fn course(machines: &Machines, kubernetes: &mut Kubernetes<'_>) -> Result<Outcome> {
    let (active, _) = kubernetes.settled().await.context("at the start")?;
    let agent = machines.common.agent.display().to_string();
    let owner = kubernetes.node_of(&active).machine.host_id().to_string();
    let trace = Trace::begin(&machines.storage, &agent, owner).await?;
    let deleted = takes_over(kubernetes, async |kubernetes, active| {
        cluster::delete_pod(&kubernetes.api, active).await
    });
    let deleted = deleted.await.context("a pod is deleted")?;
    let killed = takes_over(kubernetes, async |kubernetes, active| {
        let pod = cluster::pods(&kubernetes.api).get(active).await?;
        let uid = pod.uid().context("no uid")?;
        kubernetes.node_of(active).kill_container(&uid).await
    });
    let killed = killed.await.context("a container is killed")?;
    let restarted = agent_restarts(kubernetes).await;
    let restarted = restarted.context("an agent is killed")?;
    let again = takes_over(kubernetes, async |kubernetes, active| {
        cluster::delete_pod(&kubernetes.api, active).await
    });
    let again = again
        .await
        .context("a pod is deleted under the new agent")?;
    let audit = trace.audit(&machines.storage).await?;
    trace.end(&machines.storage).await?;
    ensure!(
        audit.violations == 0,
        "{} writes of fenced nodes were applied",
        audit.violations
    );
    let refused = audit.fences.iter().map(|fence| fence.refused_writes).sum();
    Ok(Outcome {
        gap_ms: Some(deleted.gap_ms.max(killed.gap_ms).max(again.gap_ms)),
        refused_writes: Some(refused),
        notes: vec![
            deleted.note("pod deleted"),
            killed.note("container killed"),
            restarted.note("agent killed and started again"),
            again.note("pod deleted under the new agent"),
        ],
        ..Outcome::default()
    })
}

/// What was seen of one take-over.
struct Moved {
    gap_ms: u64,
    acknowledged: u64,
    epochs: (i32, i32),
}

impl Moved {
    fn note(&self, what: &str) -> String {
        let Self {
            gap_ms,
            acknowledged,
            epochs: (before, after),
        } = self;
        format!(
            "{what}: gap {gap_ms} ms, {acknowledged} writes acknowledged, none lost or doubled; epoch {before} to {after}"
        )
    }
}

/// The active's agent is killed and started again: same owner, same epoch.
async fn agent_restarts(kubernetes: &mut Kubernetes<'_>) -> Result<Moved> {
    let (active, standby) = kubernetes.settled().await?;
    let before = cluster::epoch(&kubernetes.api).await?;
    let written = kubernetes
        .under_writes(&active, async |kubernetes| {
            kubernetes.node_of(&active).restart_agent().await
        })
        .await?;
    let now = kubernetes.settled().await?;
    ensure!(
        now == (active, standby),
        "{now:?} are active and standby now"
    );
    let after = cluster::epoch(&kubernetes.api).await?;
    ensure!(after == before, "the epoch went from {before} to {after}");
    Ok(Moved {
        gap_ms: written.gap_ms,
        acknowledged: written.acknowledged,
        epochs: (before, after),
    })
}

/// Something happens to the active: the standby's node holds the volume, and the former active comes back
/// as the standby.
async fn takes_over<F>(kubernetes: &mut Kubernetes<'_>, happen: F) -> Result<Moved>
where
    F: AsyncFnOnce(&Kubernetes<'_>, &str) -> Result<()>,
{
    let (active, standby) = kubernetes.settled().await?;
    let before = cluster::epoch(&kubernetes.api).await?;
    let written = kubernetes
        .under_writes(&standby, async |kubernetes| {
            happen(kubernetes, &active).await
        })
        .await?;
    let node = kubernetes.node_of(&standby);
    let (holder, host) = (node.holder().await?, node.machine.host_id());
    ensure!(
        holder == host.simple().to_string(),
        "host {holder} holds the volume, not {host} of {standby}"
    );
    let after = cluster::epoch(&kubernetes.api).await?;
    ensure!(after > before, "the epoch is {after}, as before");
    let now = kubernetes.settled().await;
    let now = now.context("after the take-over")?;
    ensure!(
        now == (standby.clone(), active.clone()),
        "{now:?} are active and standby, not {standby} and {active}"
    );
    Ok(Moved {
        gap_ms: written.gap_ms,
        acknowledged: written.acknowledged,
        epochs: (before, after),
    })
}
