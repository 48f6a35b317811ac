//! The active goes, and another member serves.

use std::time::Duration;

use anyhow::{Result, ensure};
use kube::api::EvictParams;

use crate::report::Outcome;
use crate::world::World;

const SETTLED: Duration = Duration::from_secs(90);

/// Something happens to the active under load, and the standby serves. Both by their pods' names.
pub async fn takes_over<F>(world: &mut World, mut happen: F) -> Result<(Outcome, String, String)>
where
    F: AsyncFnMut(&mut World, &str) -> Result<()>,
{
    let (active, standby) = world.settled(SETTLED).await?;
    let (was, is) = (active.clone(), standby.clone());
    let outcome = world.under_writes(async |world| {
        happen(world, &was).await?;
        world.leads_to(&is).await
    });
    let outcome = outcome.await?;
    Ok((outcome, active, standby))
}

/// Waits until all is well again, with `owner` serving.
pub async fn serves(world: &mut World, owner: &str) -> Result<String> {
    let (active, standby) = world.settled(SETTLED).await?;
    ensure!(active == owner, "{active} serves instead of {owner}");
    Ok(standby)
}

/// The planned way: the pod hands over within its grace period, and comes back as the standby.
pub async fn delete_active(world: &mut World) -> Result<Outcome> {
    let (outcome, was, is) =
        takes_over(world, async |world, active| world.delete_pod(active).await).await?;
    let standby = serves(world, &is).await?;
    ensure!(
        standby == was,
        "the deleted pod did not come back as the standby"
    );
    Ok(outcome)
}

/// As `kubectl drain` does: the eviction is allowed because two members are ready, and hands over.
pub async fn drain(world: &mut World) -> Result<Outcome> {
    let (outcome, _, is) = takes_over(world, async |world, active| {
        world.pods().evict(active, &EvictParams::default()).await?;
        Ok(())
    })
    .await?;
    serves(world, &is).await?;
    Ok(outcome)
}

/// The agent sees the session's end, proves the tree empty, unmounts, announces clean. Nothing of it waits
/// for the controller.
pub async fn kill_container(world: &mut World) -> Result<Outcome> {
    world.stop_controller().await?;
    let (outcome, _, is) = takes_over(world, async |world, active| {
        let pid = world.first_process(active).await?;
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL)?;
        Ok(())
    })
    .await?;
    world.start_controller().await?;
    serves(world, &is).await?;
    Ok(outcome)
}

/// Longer than a detection without an agent: same owner, same epoch.
pub async fn agent_restart(world: &mut World) -> Result<Outcome> {
    let (active, _) = world.settled(SETTLED).await?;
    let epoch = world.epoch().await?;
    let on = active.clone();
    let mut outcome = world
        .under_writes(async |world| {
            let node = world.node_of(&on)?;
            node.kill_agent().await?;
            tokio::time::sleep(Duration::from_secs(5)).await;
            node.start_agent()
        })
        .await?;
    let (still, _) = world.settled(SETTLED).await?;
    ensure!(still == active, "{still} serves instead of {active}");
    let after = world.epoch().await?;
    ensure!(after == epoch, "the epoch went from {epoch} to {after}");
    // The new agent works: it carries the next handover.
    let planned = delete_active(world).await?;
    outcome.notes.push(format!(
        "5 s without an agent; then a handover through its successor: {} ms",
        planned.gap_ms.unwrap_or_default()
    ));
    Ok(outcome)
}

/// Nothing of the node says a word: the standby fences it at the volume.
pub async fn node_lost(world: &mut World) -> Result<Outcome> {
    let (mut outcome, was, is) = takes_over(world, async |world, active| {
        world.node_of(active)?.lose().await
    })
    .await?;
    let audit = world.storage.audit().await?;
    ensure!(!audit.fences.is_empty(), "nobody was fenced at the volume");
    let count = audit.fences.len();
    outcome
        .notes
        .push(format!("{count} fences at the volume so far"));
    world.restore_node(&was).await?;
    serves(world, &is).await?;
    Ok(outcome)
}
