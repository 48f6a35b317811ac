//! What must be so of a cluster in two zones: its objects, its databases, where clients are led, what is
//! told.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use baton::cluster::{BatonClusterStatus, Phase};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Secret, Service};
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use tokio_postgres::NoTls;

use super::super::refusals::events;
use super::place::{SITES, Zones};
use crate::places;
use crate::world::{World, is_ready};

/// How long labels may take to follow what they tell of.
const LABELLED: Duration = Duration::from_secs(20);

/// How long a question to PostgreSQL may take.
const ANSWERED: Duration = Duration::from_secs(5);

/// Pods on nodes of their site's zone, a Lease for each site and one for all, the Secret of the replicas.
pub async fn objects(world: &World, zones: &Zones) -> Result<()> {
    for ((site, members), (zone, nodes)) in SITES.into_iter().zip(places::ZONES) {
        let mut taken = BTreeSet::new();
        for member in members {
            let pod = world.pods().get(&zones.pod(member)).await?;
            let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
            let node = node.context("a pod without a node")?;
            ensure!(nodes.contains(&&*node), "{member} of {zone} is on {node}");
            taken.insert(node);
            let label = pod.labels().get("baton.dev/site");
            ensure!(label.is_some_and(|is| is == site), "{member}: {label:?}");
        }
        ensure!(taken.len() == members.len(), "{site}: all on {taken:?}");
    }
    let leases: Api<Lease> = Api::namespaced(world.api.client.clone(), &world.api.namespace);
    for of in ["a", "b", "cluster"] {
        leases.get(&format!("{}-{of}", zones.cluster)).await?;
    }
    let secrets: Api<Secret> = Api::namespaced(world.api.client.clone(), &world.api.namespace);
    let secret = secrets
        .get(&format!("{}-replication", zones.cluster))
        .await?;
    let data = secret.data.unwrap_or_default();
    ensure!(data.contains_key("password"), "no password for replicas");
    Ok(())
}

/// `replica` follows `primary`, and commits wait for it as `sync` says; the system identifier that both have.
/// A replica of which that is true was copied from its primary: `initdb` draws a new one.
pub async fn follows(primary: &str, replica: &str, sync: &str) -> Result<String> {
    let recovery = "SELECT pg_is_in_recovery()::text";
    ensure!(
        ask(primary, recovery).await? == "false",
        "{primary} follows"
    );
    ensure!(ask(replica, recovery).await? == "true", "{replica} leads");
    let streams = "SELECT string_agg(application_name || ' ' || state || ' ' || sync_state, ',') \
                   FROM pg_stat_replication";
    let site = replica.rsplit('-').next();
    let site = site.and_then(|member| member.get(..1)).context("no site")?;
    let is = ask(primary, streams).await?;
    ensure!(is == format!("baton_{site} streaming {sync}"), "{is}");
    let system = "SELECT system_identifier::text FROM pg_control_system()";
    let (one, other) = (ask(primary, system).await?, ask(replica, system).await?);
    ensure!(one == other, "system {one} at the primary, {other} beside");
    Ok(one)
}

/// Waits until one of the replica's members follows `primary`, and no commit waits for it.
pub async fn follows_in_time(primary: &str, members: &[String; 2], within: Duration) -> Result<()> {
    let end = tokio::time::Instant::now() + within;
    loop {
        for replica in members {
            if follows(primary, replica, "async").await.is_ok() {
                return Ok(());
            }
        }
        let late = tokio::time::Instant::now() > end;
        ensure!(!late, "none of {members:?} follows within {within:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Clients for reads alone are led to the replica, those for any reads to both.
pub async fn led(world: &World, zones: &Zones, primary: &str, replica: &str) -> Result<()> {
    selected(world, zones, "ro", &[replica]).await?;
    selected(world, zones, "r", &[primary, replica]).await
}

/// Without a replica.
pub async fn led_to_one(world: &World, zones: &Zones, primary: &str) -> Result<()> {
    selected(world, zones, "ro", &[]).await?;
    selected(world, zones, "r", &[primary]).await
}

/// What the status and the Events say when a zone has just been lost.
pub async fn lost(world: &World, zones: &Zones, status: &BatonClusterStatus) -> Result<()> {
    let replication = status.condition("ReplicationHealthy");
    let replication = replication.context("no word of the replication")?;
    ensure!(
        replication.status == "False" && status.phase == Some(Phase::Degraded),
        "{:?}, {replication:?}",
        status.phase
    );
    ensure!(
        status
            .active
            .as_deref()
            .is_some_and(|active| active.starts_with('b')),
        "the active is {:?}",
        status.active
    );
    told(world, zones, "Warning", "ReplicationDegraded").await?;
    told(world, zones, "Normal", "PrimaryMoved").await
}

/// And when it is back.
pub async fn healthy_again(world: &World, zones: &Zones) -> Result<()> {
    told(world, zones, "Normal", "ReplicationHealthy").await
}

async fn told(world: &World, zones: &Zones, kind: &str, reason: &str) -> Result<()> {
    let all = events(world, zones.cluster, kind).await?;
    ensure!(
        all.iter().any(|told| told == reason),
        "no {reason}: {all:?}"
    );
    Ok(())
}

/// Members, controller and agents have every right that they need.
pub fn refused_nothing(world: &World) -> Result<()> {
    let Some(server) = world.api.stand_in() else {
        return Ok(());
    };
    let requests = server.requests();
    let refused: Vec<_> = requests.iter().filter(|asked| asked.code == 403).collect();
    ensure!(refused.is_empty(), "a right is missing: {refused:#?}");
    Ok(())
}

/// Waits until these are the ready pods that a Service selects: what Kubernetes makes its endpoints from.
async fn selected(world: &World, zones: &Zones, service: &str, wanted: &[&str]) -> Result<()> {
    let services: Api<Service> = Api::namespaced(world.api.client.clone(), &world.api.namespace);
    let service = services
        .get(&format!("{}-{service}", zones.cluster))
        .await?;
    let name = service.name_any();
    let selector: BTreeMap<String, String> = service
        .spec
        .and_then(|spec| spec.selector)
        .context("no selector")?;
    let labels: Vec<_> = selector
        .iter()
        .map(|(key, is)| format!("{key}={is}"))
        .collect();
    let which = ListParams::default().labels(&labels.join(","));
    let wanted: BTreeSet<String> = wanted.iter().map(|&pod| pod.to_owned()).collect();
    let end = tokio::time::Instant::now() + LABELLED;
    loop {
        let pods = world.pods().list(&which).await?.items.into_iter();
        let found: BTreeSet<_> = pods.filter(is_ready).map(|pod| pod.name_any()).collect();
        if found == wanted {
            return Ok(());
        }
        let late = tokio::time::Instant::now() > end;
        ensure!(!late, "{name} leads to {found:?} instead of {wanted:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// One value from the PostgreSQL of a pod.
async fn ask(pod: &str, query: &str) -> Result<String> {
    let mut config = tokio_postgres::Config::new();
    config
        .host(places::pod_address(pod).to_string())
        .user("postgres")
        .dbname("postgres")
        .connect_timeout(ANSWERED);
    let answered = async {
        let (client, connection) = config.connect(NoTls).await?;
        let connection = tokio::spawn(connection);
        let row = client.query_one(query, &[]).await;
        connection.abort();
        let value: Option<String> = row?.get(0);
        anyhow::Ok(value.unwrap_or_default())
    };
    let answer = tokio::time::timeout(ANSWERED, answered).await;
    answer
        .with_context(|| format!("{pod} does not answer"))?
        .with_context(|| format!("ask {pod}: {query}"))
}
