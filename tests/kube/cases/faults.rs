//! The platform fails; the data must not care.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::moves;
use crate::report::Outcome;
use crate::world::World;

const SETTLED: Duration = Duration::from_secs(90);

/// Requests of one cluster in steady state, at most, in a minute.
const BUDGET: u64 = 40;

/// Counted by the stand-in, without the test's own requests and those of the kubelets.
pub async fn idle_requests(world: &mut World) -> Result<Outcome> {
    world.settled(SETTLED).await?;
    let Some(server) = world.api.stand_in() else {
        return Ok(Outcome::skipped(
            "a real API server counts for all its clients",
        ));
    };
    // What the settling itself asked for is over.
    tokio::time::sleep(Duration::from_secs(5)).await;
    server.forget_requests();
    tokio::time::sleep(Duration::from_secs(60)).await;
    let mut by_whom = std::collections::BTreeMap::<String, u64>::new();
    for request in server.requests() {
        if request.user.starts_with("system:serviceaccount:") {
            let what = format!("{} {} {}", request.user, request.verb, request.resource);
            *by_whom.entry(what).or_default() += 1;
        }
    }
    let total: u64 = by_whom.values().sum();
    ensure!(
        total <= BUDGET,
        "{total} requests in an idle minute: {by_whom:#?}"
    );
    Ok(Outcome {
        requests_per_minute: Some(total),
        notes: by_whom
            .iter()
            .map(|(what, count)| format!("{count} × {what}"))
            .collect(),
        ..Outcome::default()
    })
}

/// Longer than every detection and lease age.
pub async fn api_outage(world: &mut World) -> Result<Outcome> {
    outage_of(world, Duration::from_secs(20)).await
}

/// Five minutes.
pub async fn long_api_outage(world: &mut World) -> Result<Outcome> {
    outage_of(world, Duration::from_secs(300)).await
}

async fn outage_of(world: &mut World, length: Duration) -> Result<Outcome> {
    let Some(faults) = world.api.faults() else {
        return Ok(Outcome::skipped("a real API server is not taken away"));
    };
    let (active, _) = world.settled(SETTLED).await?;
    let epoch = world.epoch().await?;
    let outcome = world
        .under_writes(async |_| {
            faults.outage(true);
            tokio::time::sleep(length).await;
            faults.outage(false);
            Ok(())
        })
        .await?;
    let (still, _) = world.settled(SETTLED).await?;
    ensure!(still == active, "{still} serves instead of {active}");
    ensure!(world.epoch().await? == epoch, "the epoch has changed");
    let gap = outcome.gap_ms.unwrap_or_default();
    ensure!(gap < 2_000, "writes stood still for {gap} ms");
    Ok(outcome)
}

/// Every second write meets a conflict while the active hands over.
pub async fn conflict_storm(world: &mut World) -> Result<Outcome> {
    let Some(faults) = world.api.faults() else {
        return Ok(Outcome::skipped("a real API server has its own conflicts"));
    };
    faults.conflicts(2);
    let outcome = moves::delete_active(world).await;
    faults.conflicts(0);
    outcome
}

/// The history of all watches is gone in the middle of a handover: they list again.
pub async fn expired(world: &mut World) -> Result<Outcome> {
    let Some(faults) = world.api.faults() else {
        return Ok(Outcome::skipped("a real API server forgets when it likes"));
    };
    let (outcome, _, is) = moves::takes_over(world, async |world, active| {
        world.delete_pod(active).await?;
        faults.expire_history();
        Ok(())
    })
    .await?;
    moves::serves(world, &is).await?;
    Ok(outcome)
}

/// Its agent still reaches the volume: it sees a standby there that is better connected, and hands over.
pub async fn partition(world: &mut World) -> Result<Outcome> {
    let moved = moves::takes_over(world, async |world, active| world.link(active, false).await);
    let (outcome, was, is) = moved.await?;
    world.link(&was, true).await?;
    moves::serves(world, &is).await?;
    Ok(outcome)
}
