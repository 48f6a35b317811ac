//! The active goes, and another member serves.

use std::time::Duration;

use anyhow::{Result, ensure};
use kube::api::EvictParams;

use crate::report::Outcome;
use crate::world::World;

const SETTLED: Duration = Duration::from_secs(90);

/// The planned way: the pod hands over within its grace period, and comes back as the standby.
pub async fn delete_active(world: &mut World) -> Result<Outcome> {
    let (active, standby) = world.settled(SETTLED).await?;
    let gone = active.clone();
    let outcome = world
        .under_writes(async |world| world.delete_pod(&gone).await)
        .await?;
    let (new_active, new_standby) = world.settled(SETTLED).await?;
    ensure!(
        new_active == standby,
        "{new_active} serves instead of {standby}"
    );
    ensure!(
        new_standby == active,
        "the deleted pod did not come back as the standby"
    );
    Ok(outcome)
}

/// As `kubectl drain` does: the eviction is allowed because two members are ready, and hands over.
pub async fn drain(world: &mut World) -> Result<Outcome> {
    let (active, standby) = world.settled(SETTLED).await?;
    let gone = active.clone();
    let outcome = world
        .under_writes(async |world| {
            world.pods().evict(&gone, &EvictParams::default()).await?;
            Ok(())
        })
        .await?;
    let (new_active, _) = world.settled(SETTLED).await?;
    ensure!(
        new_active == standby,
        "{new_active} serves instead of {standby}"
    );
    Ok(outcome)
}

/// The agent sees the session's end, proves the tree empty, unmounts, announces clean.
pub async fn kill_container(world: &mut World) -> Result<Outcome> {
    let (active, standby) = world.settled(SETTLED).await?;
    let victim = active.clone();
    // Nothing of it waits for the controller.
    world.stop_controller().await?;
    let outcome = world
        .under_writes(async |world| {
            let pid = world.first_process(&victim).await?;
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL)?;
            Ok(())
        })
        .await?;
    world.start_controller().await?;
    let (new_active, _) = world.settled(SETTLED).await?;
    ensure!(
        new_active == standby,
        "{new_active} serves instead of {standby}"
    );
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
    let (active, standby) = world.settled(SETTLED).await?;
    let lost = active.clone();
    let mut outcome = world
        .under_writes(async |world| world.node_of(&lost)?.lose().await)
        .await?;
    let endpoint = *world.endpoint.borrow();
    ensure!(endpoint.is_some(), "the Service leads nowhere");
    let audit = world.audit().await?;
    outcome.notes.push(format!(
        "{} fences at the volume so far",
        audit.fences.len()
    ));
    world.restore_node(&active).await?;
    let (new_active, _) = world.settled(SETTLED).await?;
    ensure!(
        new_active == standby,
        "{new_active} serves instead of {standby}"
    );
    Ok(outcome)
}
