//! The sites of a cluster as `kubectl baton status` shows them: roles and promises from the Kubernetes API,
//! lag and streaming from the members' own word.

use serde::Serialize;
use serde_json::{Value, json};

use super::super::reach::print_table;
use super::super::topology::{bytes, judged};
use super::proxy;
use super::site::{Seen, Site};
use crate::cluster::{BatonCluster, SiteFailover, SynchronousMode};
use crate::control::zone::{self, Verdict, ZoneStatus};
use crate::controller::{SiteView, Zones};
use crate::decide::zone::{ClusterRecord, SiteName, Synchronous, ZoneConfig};

/// One site.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    role: &'static str,
    active: Option<String>,
    standby: Option<String>,
    /// What the primary says of it, or of itself; none where nobody does.
    state: Option<&'static str>,
    lag_bytes: Option<u64>,
    /// How old its newest replayed commit is.
    lag_ms: Option<u64>,
    /// Whether commits wait for it.
    sync: Option<&'static str>,
    /// Whether it could be promoted now without a loss; none for the primary's.
    failover: Option<Verdict>,
}

/// All sites at one time.
pub struct Sites {
    rows: Vec<Row>,
    verdict: Verdict,
    /// Whose active does not answer, and why.
    silent: Vec<String>,
}

impl Sites {
    /// Asks the active of each site; none for a cluster of one.
    pub async fn look(site: &Site, seen: &Seen) -> Option<Self> {
        if !seen.cluster.has_several_sites() {
            return None;
        }
        let asked = seen.all.sites.iter().map(|view| heard(site, seen, view));
        let heard = futures_util::future::join_all(asked).await;
        let silent = seen.all.sites.iter().zip(&heard);
        let silent = silent.filter_map(|(view, heard)| {
            let why = heard.as_ref().err()?;
            Some(format!("site {}: {why}", view.name))
        });
        let silent = silent.collect();
        let heard: Vec<Option<ZoneStatus>> = heard.into_iter().map(Result::ok).collect();
        let views = seen.all.sites.iter().zip(&heard);
        let primary = views.clone().find(|(view, _)| view.primary);
        let primary = primary.and_then(|(_, heard)| heard.as_ref());
        let rows = views.map(|(view, own)| row(seen, view, primary, own.as_ref()));
        let zone = zone_of(&seen.cluster);
        Some(Self {
            rows: rows.collect(),
            verdict: zone::cluster_verdict(record(seen), &zone),
            silent,
        })
    }

    /// For programs.
    pub fn document(&self) -> Value {
        json!({"sites": self.rows, "failover": self.verdict, "silent": self.silent})
    }

    /// For people.
    pub fn print(&self) {
        let head = [
            "Site", "Role", "Active", "Standby", "State", "Behind", "Sync", "Failover",
        ];
        let rows: Vec<_> = self.rows.iter().map(Row::cells).collect();
        print_table(head, &rows);
        println!("{}", judged(&self.verdict));
        for silent in &self.silent {
            println!("! not asked how far it is, {silent}");
        }
    }
}

/// Whether a failover to this site would lose nothing, by the record.
pub fn verdict_on(seen: &Seen, site: &str) -> Verdict {
    let zone = zone_of(&seen.cluster);
    match record(seen) {
        Some(record) => zone::verdict(record, &zone, &SiteName(site.to_owned())),
        None => zone::cluster_verdict(None, &zone),
    }
}

async fn heard(site: &Site, seen: &Seen, view: &SiteView) -> Result<ZoneStatus, String> {
    let owner = view.owner().ok_or("no member owns its volume")?;
    let said = proxy::zone(site, &seen.cluster, &owner.name).await;
    said.map_err(|error| format!("{} does not answer: {error:#}", owner.name))
}

fn record(seen: &Seen) -> Option<&ClusterRecord> {
    match &seen.all.zones {
        Zones::Known(record) => Some(record),
        Zones::One | Zones::Unmade(_) | Zones::Unreadable(_) => None,
    }
}

/// `primary`: what the primary's active says; `own`: what this site's does.
fn row(
    seen: &Seen,
    view: &SiteView,
    primary: Option<&ZoneStatus>,
    own: Option<&ZoneStatus>,
) -> Row {
    let by = |zone: &ZoneStatus| zone.sites.iter().find(|one| one.name == view.name).cloned();
    let told = primary.and_then(by);
    let told = told.as_ref();
    let record = record(seen);
    let may = zone_of(&seen.cluster)
        .sites
        .get(&SiteName(view.name.clone()))
        == Some(&true);
    let role = match (view.primary, may) {
        (true, _) => "primary",
        (false, true) => "replica",
        (false, false) => "read replica",
    };
    let state = match (view.primary, told) {
        (true, _) if view.serves() => Some("serving"),
        (true, _) => Some("not serving"),
        (false, _) if own.is_some_and(|own| own.copying.is_some()) => Some("copying"),
        (false, Some(told)) if told.cut => Some("follows no more"),
        (false, Some(told)) => match (told.streaming, told.slot_lost) {
            (Some(true), _) => Some("streaming"),
            (Some(false), Some(true)) => Some("away, slot lost"),
            (Some(false), _) => Some("away"),
            (None, _) => None,
        },
        (false, None) => None,
    };
    let replica = own.filter(|_| !view.primary);
    Row {
        name: view.name.clone(),
        role,
        active: view.owner().map(|owner| owner.name.clone()),
        standby: view.standby().map(|standby| standby.name.clone()),
        state,
        lag_bytes: told
            .and_then(|told| told.lag_bytes)
            .or(replica.and_then(|own| own.lag_bytes)),
        lag_ms: replica.and_then(|own| own.lag_ms),
        sync: record.filter(|_| !view.primary).map(|record| {
            let waited = record.sync.sites.iter().any(|site| site.0 == view.name);
            match (waited && record.sync.need > 0, record.sync.confirmed) {
                (true, true) => "synchronous",
                (true, false) => "catching up",
                (false, _) => "asynchronous",
            }
        }),
        failover: record
            .filter(|_| !view.primary)
            .map(|_| verdict_on(seen, &view.name)),
    }
}

impl Row {
    fn cells(&self) -> [String; 8] {
        let dash = || "-".to_owned();
        let text = |text: &Option<String>| text.clone().unwrap_or_else(dash);
        let word = |word: Option<&str>| word.map_or_else(dash, str::to_owned);
        let behind = match (self.lag_bytes, self.lag_ms) {
            (None, _) => dash(),
            (Some(lag), Some(ms)) if ms > 0 => {
                format!("{}, {:.1} s", bytes(lag), ms as f64 / 1000.0)
            }
            (Some(lag), _) => bytes(lag),
        };
        let failover = self.failover.as_ref();
        [
            self.name.clone(),
            self.role.to_owned(),
            text(&self.active),
            text(&self.standby),
            word(self.state),
            behind,
            word(self.sync),
            word(failover.map(|verdict| if verdict.safe { "safe" } else { "not safe" })),
        ]
    }
}

/// The sites of the specification as the record's promises are judged by.
fn zone_of(cluster: &BatonCluster) -> ZoneConfig {
    let wanted = cluster.replication();
    let sites = cluster.spec.sites.iter();
    let sites = sites.map(|site| {
        let may = site.failover == SiteFailover::Allowed;
        (SiteName(site.name.clone()), may)
    });
    let first = SiteName(cluster.first_primary().unwrap_or_default());
    ZoneConfig {
        site: first.clone(),
        sites: sites.collect(),
        synchronous: match wanted.synchronous {
            SynchronousMode::Required => Synchronous::Required,
            SynchronousMode::Preferred => Synchronous::Preferred,
            SynchronousMode::Off => Synchronous::Off,
        },
        quorum: wanted.quorum,
        first,
        // Of no concern to what is promised.
        archive: false,
    }
}
