//! One cluster in two zones, each with a volume and members of its own: the primary's zone is lost, the
//! other is promoted, the lost one comes back as a replica and is given the primary again.

mod checks;
mod place;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
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

pub async fn zones(world: &mut World) -> Result<Outcome> {
    let mut zones = Zones::make(world).await?;
    let began = Instant::now();
    let status = zones.until(world, MADE, |status| well(status, "a")).await?;
    let made = began.elapsed();
    let (first, copy) = (active(&status, "a")?, active(&status, "b")?);
    checks::objects(world).await?;
    let system = checks::follows(&first, &copy).await?;
    checks::led(world, &first, &copy).await?;
    let mut outcome = lose(world, &mut zones, &copy).await?;
    let lost = zones.until(world, PROMOTED, |status| {
        status.primary_site.as_deref() == Some("b") && holds(status, "Ready")
    });
    let lost = lost.await?;
    checks::lost(world, &lost).await?;
    checks::led_to_one(world, &copy).await?;
    let began = Instant::now();
    zones.bring_back(world).await?;
    let status = zones.until(world, BACK, |status| well(status, "b")).await?;
    let back = began.elapsed();
    let (primary, replica) = (active(&status, "b")?, active(&status, "a")?);
    ensure!(
        primary == copy,
        "{primary} is the primary instead of {copy}"
    );
    let same = checks::follows(&primary, &replica).await?;
    ensure!(
        same == system,
        "another database: {same} instead of {system}"
    );
    checks::led(world, &primary, &replica).await?;
    checks::healthy_again(world).await?;
    if world.api.stand_in().is_some() {
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

/// Nodes and storage of the primary's zone go at once, under writes.
async fn lose(world: &mut World, zones: &mut Zones, next: &str) -> Result<Outcome> {
    let address = places::pod_address(next);
    let happen = async |world: &mut World| {
        zones.lose(world).await?;
        zones.leads_to(address).await
    };
    let outcome = world.under_writes_at(places::ZONES_SERVICE, happen).await?;
    ensure!(outcome.acknowledged > Some(0), "nothing was written");
    Ok(outcome)
}

/// As an operator does who wants the primary where it was. Only the stand-in reaches the pods of this test.
async fn give_back(world: &mut World, zones: &Zones, to: &str) -> Result<String> {
    let said = plugin(world, &["status", place::CLUSTER]).await?;
    ensure!(
        said.contains("now would lose nothing") && said.contains("| streaming"),
        "status says {said}"
    );
    let address = places::pod_address(to);
    let happen = async |world: &mut World| {
        plugin(world, &["switchover", place::CLUSTER, "--site", "a"]).await?;
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

/// Both sites serve with a standby each, and commits wait for the other.
fn well(status: &BatonClusterStatus, primary: &str) -> bool {
    let sites = status.sites.iter();
    let mut sites = sites.map(|site| site.ready && site.standby.is_some());
    status.primary_site.as_deref() == Some(primary)
        && status.phase == Some(Phase::Healthy)
        && status.sites.len() == places::ZONES.len()
        && sites.all(|well| well)
}

fn holds(status: &BatonClusterStatus, type_: &str) -> bool {
    let found = status.condition(type_);
    found.is_some_and(|found| found.status == "True")
}

/// The pod of a site's active.
fn active(status: &BatonClusterStatus, site: &str) -> Result<String> {
    let found = status.sites.iter().find(|found| found.name == site);
    let active = found.and_then(|site| site.active.as_ref());
    let active = active.with_context(|| format!("site {site} has no active"))?;
    Ok(format!("{}-{active}", place::CLUSTER))
}
