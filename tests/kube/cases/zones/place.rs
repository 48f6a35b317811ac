//! Two zones: their storage, their nodes, the cluster that spans them.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use baton::cluster::BatonClusterStatus;
use serde_json::{Value, json};

use super::super::orders::door_for_orders;
use crate::places;
use crate::proxy::{self, Proxy};
use crate::storage::{self, Storage};
use crate::world::World;

/// Its sites, in the order of the zones, with their members.
pub const SITES: [(&str, [&str; 2]); 2] = [("a", ["a1", "a2"]), ("b", ["b1", "b2"])];

/// How long the Service may take to lead to the promoted site.
const LED: Duration = Duration::from_secs(60);

/// The zones and the cluster in them, while a case runs.
pub struct Zones {
    /// The cluster: of each case its own, because volumes outlive their cluster.
    pub cluster: &'static str,
    storages: Vec<Storage>,
    proxy: Proxy,
}

impl Zones {
    /// Starts both zones and asks for the cluster.
    pub async fn make(world: &mut World, cluster: &'static str, synchronous: &str) -> Result<Self> {
        let mut storages = Vec::new();
        for (place, (zone, _)) in (0..).zip(places::ZONES) {
            let plan = storage::Plan {
                name: format!("storage-{cluster}-{zone}"),
                listen: places::zone_storage(place),
                subsystem: subsystem(zone),
                namespaces: vec![Some("1G")],
            };
            storages.push(Storage::start(&world.scratch, plan).await?);
        }
        let World { api, nodes, .. } = world;
        for node in nodes.iter_mut().skip(places::NODES.len()) {
            node.boot(api).await?;
        }
        let service = format!("{cluster}-rw");
        let address = (places::ZONES_SERVICE, 5432);
        let client = world.api.client.clone();
        let proxy = proxy::serve(client, &world.api.namespace, &service, address).await?;
        for (site, _) in SITES {
            let claim = claim(cluster, site);
            world
                .api
                .make_claim(&claim, "ReadWriteMany", "Block")
                .await?;
        }
        let mut wanted = specification(world, cluster, synchronous);
        wanted["spec"]["api"] = door_for_orders(world, cluster).await?;
        world.apply(&wanted).await.context("apply the cluster")?;
        Ok(Self {
            cluster,
            storages,
            proxy,
        })
    }

    /// Waits until the cluster's status is as wished.
    pub async fn until(
        &self,
        world: &World,
        within: Duration,
        wished: impl Fn(&BatonClusterStatus) -> bool,
    ) -> Result<BatonClusterStatus> {
        let end = tokio::time::Instant::now() + within;
        loop {
            let status = world.clusters().get(self.cluster).await?.status;
            let status = status.unwrap_or_default();
            if wished(&status) {
                return Ok(status);
            }
            let late = tokio::time::Instant::now() > end;
            ensure!(!late, "not as wished within {within:?}: {status:#?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// The whole first zone is gone: storage, nodes with all that runs on them.
    pub async fn lose(&mut self, world: &mut World) -> Result<()> {
        self.storages[0].kill().await?;
        for node in first_zone(world) {
            node.lose().await?;
        }
        Ok(())
    }

    /// And there again, after a boot.
    pub async fn bring_back(&mut self, world: &mut World) -> Result<()> {
        self.storages[0].restart().await?;
        let World { api, nodes, .. } = world;
        let nodes = nodes.iter_mut().skip(places::NODES.len());
        for node in nodes.take(places::ZONES[0].1.len()) {
            node.boot(api).await?;
        }
        Ok(())
    }

    /// The pod of a member.
    pub fn pod(&self, member: &str) -> String {
        format!("{}-{member}", self.cluster)
    }

    /// Waits until the Service for writers leads to this pod.
    pub async fn leads_to(&self, pod: Ipv4Addr) -> Result<()> {
        let mut endpoint = self.proxy.endpoint.clone();
        let there = endpoint.wait_for(|to| to.is_some_and(|to| to.ip() == pod));
        let there = tokio::time::timeout(LED, there).await;
        there.context("the Service does not lead to the other site")??;
        Ok(())
    }

    /// Takes the cluster away, then the zones.
    pub async fn end(mut self, world: &mut World) -> Result<()> {
        world.remove(self.cluster).await?;
        for node in world.nodes.iter_mut().skip(places::NODES.len()) {
            node.lose().await?;
        }
        for storage in &mut self.storages {
            storage.kill().await?;
        }
        Ok(())
    }
}

fn first_zone(world: &mut World) -> impl Iterator<Item = &mut crate::node::Node> {
    let nodes = world.nodes.iter_mut().skip(places::NODES.len());
    nodes.take(places::ZONES[0].1.len())
}

fn claim(cluster: &str, site: &str) -> String {
    format!("{cluster}-{site}-data")
}

fn subsystem(zone: &str) -> String {
    format!("nqn.2026-11.dev.baton:{zone}")
}

/// As `deploy/overlays/zones` has it, on this storage.
fn specification(world: &World, cluster: &str, synchronous: &str) -> Value {
    let sites = (0..).zip(SITES).zip(places::ZONES);
    let sites = sites.map(|((place, (site, members)), (zone, _))| {
        json!({
            "name": site,
            "volume": {
                "claimName": claim(cluster, site),
                "transport": "tcp",
                "address": places::zone_storage(place).to_string(),
                "subsystem": subsystem(zone),
            },
            "members": members.map(|name| json!({ "name": name })),
            "nodeSelector": { places::ZONE: zone },
        })
    });
    json!({
        "apiVersion": "baton.dev/v1alpha1",
        "kind": "BatonCluster",
        "metadata": { "name": cluster, "namespace": world.api.namespace },
        "spec": {
            "image": "baton:test",
            "postgres": {
                "binDir": world.postgres,
                "hba": ["host all all 10.111.0.0/24 trust"],
            },
            "sites": sites.collect::<Vec<_>>(),
            "replication": { "synchronous": synchronous, "firstPrimary": SITES[0].0 },
            // Within the bounds of a test; three times `detection` is the least that is taken.
            "timings": { "keep_alive": "3s", "quiesce": "2s", "site_detection": "6s" },
        },
    })
}
