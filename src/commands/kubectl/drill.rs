//! `kubectl baton drill`: one handover, and what the Kubernetes API shows of it.
//!
//! It measures no write gap: that needs a writer beside the database (`baton drill`). What it says are
//! times that this program saw, and those that the Lease and the Events carry.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use k8s_openapi::api::events::v1::Event;
use kube::api::{Api, ListParams};
use kube::runtime::wait::await_condition;
use serde::Serialize;
use tokio::time::timeout;

use super::super::reach::{Output, print_json, print_table};
use super::site::{Site, within};
use super::verbs;
use crate::clock::{self, Wall};
use crate::cluster::{BatonCluster, BatonClusterStatus};

/// What was seen.
#[derive(Serialize)]
struct Report {
    cluster: String,
    namespace: String,
    from: String,
    to: String,
    epoch_before: u32,
    epoch_after: u32,
    /// From the request to the answer, which comes when the new active has committed a write. The way
    /// through the API server is part of it.
    switchover_ms: u64,
    /// When the new owner wrote itself into the Lease, by its wall clock.
    claimed_at: Option<Wall>,
    /// Whether the Lease has it as planned.
    planned: bool,
    /// From the request until the controller saw a standby ready again; none if that was not waited for
    /// long enough, or no controller runs.
    standby_again_ms: Option<u64>,
    /// What the controller told of it.
    events: Vec<Told>,
    not_measured: &'static str,
}

/// An Event.
#[derive(Serialize)]
struct Told {
    at: String,
    reason: String,
    note: String,
}

/// Hands over once and reports.
pub async fn drill(site: &Site, patience: Duration, output: Output) -> anyhow::Result<ExitCode> {
    let before = site.look().await?;
    let from = before.view.owner().context("no member owns the volume")?;
    let from = from.name.clone();
    let standby = before.view.standby();
    if standby.is_none() {
        bail!("no standby is ready: a drill would end the service");
    }
    let epoch_before = before.epoch().context("the Lease has no epoch")?;
    let began = (clock::now(), clock::wall());
    verbs::hand_over(site, &before, None, patience).await?;
    let switchover_ms = since(began.0);
    let after = site.look().await?;
    let epoch_after = after.epoch().context("the Lease has no epoch")?;
    if epoch_after <= epoch_before {
        bail!("the member says that it is done, but the Lease still has epoch {epoch_before}");
    }
    let history = after.history()?;
    let change = history
        .iter()
        .find(|change| change.epoch.number() == epoch_after);
    let standby_again_ms = standby_again(site, epoch_after, patience)
        .await
        .then(|| since(began.0));
    let report = Report {
        cluster: site.cluster.clone(),
        namespace: site.namespace.clone(),
        from,
        to: after
            .view
            .owner()
            .map(|owner| owner.name.clone())
            .unwrap_or_default(),
        epoch_before,
        epoch_after,
        switchover_ms,
        claimed_at: change.map(|change| change.at),
        planned: change.is_some_and(|change| change.planned),
        standby_again_ms,
        events: events(site, began.1).await?,
        not_measured: "the write gap: no writer ran beside the database",
    };
    match output {
        Output::Json => print_json(&report)?,
        Output::Text => print(&report),
    }
    Ok(if report.standby_again_ms.is_some() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn since(began: clock::Mono) -> u64 {
    u64::try_from(clock::now().since(began).as_millis()).unwrap_or(u64::MAX)
}

/// Waits until the controller tells that the owner of this epoch, or a later one, serves and a standby is
/// ready: its Events of the handover are there then.
async fn standby_again(site: &Site, epoch: u32, patience: Duration) -> bool {
    let clusters: Api<BatonCluster> = site.api();
    let again = |cluster: Option<&BatonCluster>| {
        let status = cluster.and_then(|cluster| cluster.status.as_ref());
        status.is_some_and(|status: &BatonClusterStatus| {
            let serves = status.condition("Ready");
            status.epoch >= Some(epoch)
                && status.standby.is_some()
                && serves.is_some_and(|found| found.status == "True")
        })
    };
    let seen = await_condition(clusters, &site.cluster, again);
    matches!(timeout(patience, seen).await, Ok(Ok(_)))
}

/// The Events of the cluster since then, the oldest first.
async fn events(site: &Site, since: Wall) -> anyhow::Result<Vec<Told>> {
    let api: Api<Event> = site.api();
    let which = format!(
        "regarding.kind=BatonCluster,regarding.name={}",
        site.cluster
    );
    let which = ListParams::default().fields(&which);
    let found = within("list the Events", api.list(&which)).await?;
    let since = i64::try_from(since.0).unwrap_or(i64::MAX);
    let mut told: Vec<_> = found
        .items
        .into_iter()
        .filter_map(|event| {
            let at = event.event_time?.0;
            (at.as_millisecond() >= since).then(|| Told {
                at: at.to_string(),
                reason: event.reason.unwrap_or_default(),
                note: event.note.unwrap_or_default(),
            })
        })
        .collect();
    told.sort_by(|one, two| one.at.cmp(&two.at));
    Ok(told)
}

fn print(report: &Report) {
    let planned = if report.planned {
        "planned"
    } else {
        "not planned"
    };
    println!(
        "{}/{}: member {} handed over to {}, epoch {} -> {}, {planned}",
        report.namespace,
        report.cluster,
        report.from,
        report.to,
        report.epoch_before,
        report.epoch_after
    );
    println!(
        "  until the new active had committed a write  {} ms",
        report.switchover_ms
    );
    match report.standby_again_ms {
        Some(ms) => println!("  until a standby was ready again             {ms} ms"),
        None => println!("  no standby was seen to be ready again; is the controller running?"),
    }
    println!("  not measured: {}", report.not_measured);
    let rows: Vec<_> = report
        .events
        .iter()
        .map(|told| [told.at.clone(), told.reason.clone(), told.note.clone()])
        .collect();
    print_table(["At", "Event", "What"], &rows);
}
