//! One cluster in two zones, each with a volume and members of its own: the primary's zone is lost.

mod checks;
mod place;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use baton::cluster::{BatonClusterStatus, Phase};

use super::orders::plugin;
use crate::places;
use crate::report::Outcome;
use crate::world::World;
use place::Zones;

/// How long making the database and copying it may take.
const MADE: Duration = Duration::from_secs(90);

/// How long the other zone may take to be promoted, and to say so.
const PROMOTED: Duration = Duration::from_secs(60);

/// How long the lost zone may take to follow.
const BACK: Duration = Duration::from_secs(120);

/// Longer than a site must be silent to be replaced.
const UNWANTED: Duration = Duration::from_secs(8);

/// The other site is promoted, the lost one comes back as a replica and is given the primary again.
pub async fn zones(world: &mut World) -> Result<Outcome> {
    let mut zones = Zones::make(world, "wide", "preferred").await?;
    let began = Instant::now();
    let status = zones.until(world, MADE, |status| well(status, "a")).await?;
    let made = began.elapsed();
    let (first, copy) = (active(&zones, &status, "a")?, active(&zones, &status, "b")?);
    checks::objects(world, &zones).await?;
    let system = checks::follows(&first, &copy, "quorum").await?;
    checks::led(world, &zones, &first, &copy).await?;
    let mut outcome = lose(world, &mut zones, &copy).await?;
    let began = Instant::now();
    zones.bring_back(world).await?;
    let replica = follows_again(world, &zones, &copy, &system).await?;
    let back = began.elapsed();
    if can_order(world) {
        let planned = give_back(world, &zones, &replica).await?;
        outcome.notes.push(planned);
    }
    checks::refused_nothing(world)?;
    outcome.notes.extend([
        format!(
            "two zones served after {:.1} s, the copy among it",
            made.as_secs_f64()
        ),
        format!(
            "the lost zone followed {:.1} s after it was there again",
            back.as_secs_f64()
        ),
    ]);
    zones.end(world).await?;
    Ok(outcome)
}

/// Nothing is promised of the other site: it is not promoted, and says why, until an operator accepts the
/// loss. The lost one comes back as its replica all the same.
pub async fn unsafe_zone(world: &mut World) -> Result<Outcome> {
    if !can_order(world) {
        let why = "a real API server does not reach the pods of this test";
        return Ok(Outcome::skipped(why));
    }
    let mut zones = Zones::make(world, "loose", "off").await?;
    let both = |status: &BatonClusterStatus| serve(status, "a");
    let status = zones.until(world, MADE, both).await?;
    let copy = active(&zones, &status, "b")?;
    zones.lose(world).await?;
    tokio::time::sleep(UNWANTED).await;
    let said = plugin(world, &["status", zones.cluster]).await?;
    let judged = "would NOT be safe: acknowledged writes may be missing here";
    ensure!(said.contains(judged), "status says {said}");
    let order = ["failover", zones.cluster, "--site", "b"];
    let refused = match plugin(world, &order).await {
        Ok(said) => bail!("done without a word of the loss: {said}"),
        Err(error) => format!("{error:#}"),
    };
    let why = format!("{copy} answers 412 Precondition Failed: no failover to this site");
    ensure!(refused.contains(&why), "it is refused with {refused}");
    let accepted = [&order[..], &["--allow-data-loss", "--yes"]].concat();
    plugin(world, &accepted).await?;
    zones.leads_to(places::pod_address(&copy)).await?;
    let moved = zones.until(world, PROMOTED, |status| {
        status.primary_site.as_deref() == Some("b") && holds(status, "Ready")
    });
    moved.await?;
    zones.bring_back(world).await?;
    checks::follows_in_time(&copy, &["a1", "a2"].map(|name| zones.pod(name)), BACK).await?;
    zones.end(world).await?;
    Ok(Outcome {
        notes: vec![refused.lines().last().unwrap_or_default().to_owned()],
        ..Outcome::default()
    })
}

/// Only the stand-in reaches the pods of this test.
fn can_order(world: &World) -> bool {
    world.api.stand_in().is_some()
}

/// Nodes and storage of the primary's zone go at once, under writes; the other site is promoted.
async fn lose(world: &mut World, zones: &mut Zones, next: &str) -> Result<Outcome> {
    let address = places::pod_address(next);
    let happen = async |world: &mut World| {
        zones.lose(world).await?;
        zones.leads_to(address).await
    };
    let outcome = world.under_writes_at(places::ZONES_SERVICE, happen).await?;
    ensure!(outcome.acknowledged > Some(0), "nothing was written");
    let moved = |status: &BatonClusterStatus| {
        status.primary_site.as_deref() == Some("b") && holds(status, "Ready")
    };
    let status = zones.until(world, PROMOTED, moved).await?;
    checks::lost(world, zones, &status).await?;
    checks::led_to_one(world, zones, next).await?;
    Ok(outcome)
}

/// The lost zone's active follows `primary`, with the same database; its pod.
async fn follows_again(
    world: &World,
    zones: &Zones,
    primary: &str,
    system: &str,
) -> Result<String> {
    let status = zones.until(world, BACK, |status| well(status, "b")).await?;
    let is = active(zones, &status, "b")?;
    ensure!(is == primary, "{is} is the primary instead of {primary}");
    let replica = active(zones, &status, "a")?;
    let same = checks::follows(primary, &replica, "quorum").await?;
    ensure!(
        same == system,
        "another database: {same} instead of {system}"
    );
    checks::led(world, zones, primary, &replica).await?;
    checks::healthy_again(world, zones).await?;
    Ok(replica)
}

/// As an operator does who wants the primary where it was.
async fn give_back(world: &mut World, zones: &Zones, to: &str) -> Result<String> {
    let said = plugin(world, &["status", zones.cluster]).await?;
    ensure!(
        said.contains("now would lose nothing") && said.contains("| streaming"),
        "status says {said}"
    );
    let address = places::pod_address(to);
    let happen = async |world: &mut World| {
        plugin(world, &["switchover", zones.cluster, "--site", "a"]).await?;
        zones.leads_to(address).await
    };
    let moved = world.under_writes_at(places::ZONES_SERVICE, happen).await?;
    zones.until(world, BACK, |status| well(status, "a")).await?;
    let (gap, writes) = (moved.gap_ms, moved.acknowledged);
    Ok(format!(
        "kubectl baton switchover --site: gap {} ms, {} writes",
        gap.unwrap_or_default(),
        writes.unwrap_or_default()
    ))
}

/// Both sites serve with a standby each.
fn serve(status: &BatonClusterStatus, primary: &str) -> bool {
    let sites = status.sites.iter();
    let mut sites = sites.map(|site| site.ready && site.standby.is_some());
    status.primary_site.as_deref() == Some(primary)
        && status.sites.len() == places::ZONES.len()
        && sites.all(|serves| serves)
}

/// And commits wait for the other.
fn well(status: &BatonClusterStatus, primary: &str) -> bool {
    serve(status, primary) && status.phase == Some(Phase::Healthy)
}

fn holds(status: &BatonClusterStatus, type_: &str) -> bool {
    let found = status.condition(type_);
    found.is_some_and(|found| found.status == "True")
}

/// The pod of a site's active.
fn active(zones: &Zones, status: &BatonClusterStatus, site: &str) -> Result<String> {
    let found = status.sites.iter().find(|found| found.name == site);
    let active = found.and_then(|site| site.active.as_ref());
    let active = active.with_context(|| format!("site {site} has no active"))?;
    Ok(zones.pod(active))
}
