//! Everything that a case finds: storage, API server, controller, nodes, one cluster that serves.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use baton::cluster::BatonCluster;
use baton::volume::Label;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use tokio::process::{Child, Command};

use crate::api;
use crate::isolate;
use crate::manifests;
use crate::network::{interface, ip};
use crate::node::Node;
use crate::options::Options;
use crate::places;
use crate::platform::api::ApiServer;
pub use crate::platform::cluster::{CLUSTER, is_ready};
use crate::platform::{cluster, writes};
use crate::proxy;
use crate::report::Outcome;
use crate::scheduler;
use crate::storage::{self, Storage};

/// A namespace of the storage with a filesystem of somebody else.
pub const FOREIGN: u32 = 2;

/// One that is blank.
pub const BLANK: u32 = 3;

/// How long the cluster may take to serve with a standby, from nothing.
const SETTLED: Duration = Duration::from_secs(120);

/// How long writes may take to return.
const RETURNED: Duration = Duration::from_secs(60);

/// The whole.
pub struct World {
    pub api: ApiServer,
    pub nodes: Vec<Node>,
    pub scratch: PathBuf,
    pub endpoint: proxy::Endpoint,
    /// The directory with PostgreSQL's programs.
    pub postgres: PathBuf,
    /// Of the cluster under test.
    pub storage: Storage,
    controller: Option<Child>,
    ledgers: u32,
}

impl World {
    pub async fn make(options: &Options) -> Result<Self> {
        let scratch = options.scratch.clone();
        std::fs::create_dir_all(scratch.join("logs"))?;
        network().await?;
        let group = isolate::control_group()?;
        let mut nodes = Vec::new();
        for (name, _) in places::nodes() {
            nodes.push(Node::make(&scratch, &group, name)?);
        }
        let storage = storage(&scratch).await?;
        let api = api::start(options.kubeconfig.as_deref()).await?;
        manifests::apply(&api.client)
            .await
            .context("apply deploy/base")?;
        tokio::spawn(scheduler::run(api.client.clone(), api.namespace.clone()));
        let service = format!("{CLUSTER}-rw");
        let address = (places::SERVICE, 5432);
        let endpoint = proxy::run(api.client.clone(), &api.namespace, &service, address).await?;
        for node in nodes.iter_mut().take(places::NODES.len()) {
            node.start(&api).await?;
        }
        let mut world = Self {
            api,
            nodes,
            scratch,
            endpoint,
            postgres: options.postgres.clone(),
            storage,
            controller: None,
            ledgers: 0,
        };
        world.start_controller().await?;
        world
            .api
            .make_claim("main-data", "ReadWriteMany", "Block")
            .await?;
        let cluster = world.cluster(&world.postgres);
        world.apply(&cluster).await.context("apply the cluster")?;
        world.settled(SETTLED).await?;
        Ok(world)
    }

    /// The custom resource.
    pub fn cluster(&self, postgres: &Path) -> Value {
        json!({
            "apiVersion": "baton.dev/v1alpha1",
            "kind": "BatonCluster",
            "metadata": { "name": CLUSTER, "namespace": self.api.namespace },
            "spec": {
                "image": "baton:test",
                "postgres": {
                    "binDir": postgres,
                    "hba": ["host all all 10.111.0.0/24 trust"],
                },
                "volume": {
                    "claimName": "main-data",
                    "transport": "tcp",
                    "address": places::storage().to_string(),
                    "subsystem": nvme::target::DEFAULT_SUBSYSTEM,
                },
                "members": [
                    { "name": "a", "node": places::NODES[0] },
                    { "name": "b", "node": places::NODES[1] },
                ],
                // Made again after a crash within the bounds of a test.
                "timings": { "keep_alive": "3s", "quiesce": "2s" },
            },
        })
    }

    pub async fn apply(&self, cluster: &Value) -> Result<BatonCluster> {
        let apply = PatchParams::apply("baton-test").force();
        let name = cluster["metadata"]["name"].as_str().context("no name")?;
        Ok(self
            .clusters()
            .patch(name, &apply, &Patch::Apply(cluster))
            .await?)
    }

    pub fn clusters(&self) -> Api<BatonCluster> {
        Api::namespaced(self.api.client.clone(), &self.api.namespace)
    }

    pub fn pods(&self) -> Api<Pod> {
        cluster::pods(&self.api)
    }

    pub async fn start_controller(&mut self) -> Result<()> {
        let logs = self.scratch.join("logs");
        let child = cluster::controller(&self.api, &self.scratch, &logs).await?;
        self.controller = Some(child);
        Ok(())
    }

    pub async fn stop_controller(&mut self) -> Result<()> {
        match self.controller.take() {
            Some(mut controller) => controller.kill().await.context("kill the controller"),
            None => Ok(()),
        }
    }

    /// Waits until one member serves and another could take over.
    pub async fn settled(&self, within: Duration) -> Result<(String, String)> {
        cluster::settled(&self.api, &self.endpoint, within).await
    }

    /// Waits until the Service leads to this pod.
    pub async fn leads_to(&self, pod: &str) -> Result<()> {
        let address = places::pod_address(pod);
        let mut endpoint = self.endpoint.clone();
        let there = endpoint.wait_for(|to| to.is_some_and(|to| to.ip() == address));
        let there = tokio::time::timeout(RETURNED, there).await;
        there.with_context(|| format!("the Service does not lead to {pod}"))??;
        Ok(())
    }

    /// The epoch in the Lease.
    pub async fn epoch(&self) -> Result<i32> {
        cluster::epoch(&self.api).await
    }

    /// Deletes a pod as `kubectl delete pod` does.
    pub async fn delete_pod(&self, name: &str) -> Result<()> {
        cluster::delete_pod(&self.api, name).await
    }

    pub fn node_of(&mut self, pod: &str) -> Result<&mut Node> {
        let place = usize::from(pod.ends_with('b'));
        self.nodes.get_mut(place).context("no such node")
    }

    /// The node comes back after it was lost: a new boot, and its pods as the API server has them.
    pub async fn restore_node(&mut self, pod: &str) -> Result<()> {
        let place = usize::from(pod.ends_with('b'));
        let World { api, nodes, .. } = self;
        let node = nodes.get_mut(place).context("no such node")?;
        node.boot(api).await
    }

    /// The first process of a pod's container.
    pub async fn first_process(&self, pod: &str) -> Result<i32> {
        self.process_on(usize::from(pod.ends_with('b')), pod).await
    }

    /// The same, of a pod on the node at this place.
    pub async fn process_on(&self, place: usize, pod: &str) -> Result<i32> {
        let uid = self.pods().get(pod).await?.uid().context("no uid")?;
        let group = self.nodes[place]
            .places
            .group
            .join(format!("kubepods/pod{uid}"));
        let containers = std::fs::read_dir(group)?.flatten();
        let mut first =
            containers.filter_map(|entry| crate::container::first_process(&entry.path()));
        first
            .next()
            .with_context(|| format!("no process of pod {pod}"))
    }

    /// Cuts a pod's link, or joins it again.
    pub async fn link(&self, pod: &str, up: bool) -> Result<()> {
        let end = interface(places::pod_address(pod));
        ip(&format!(
            "link set {end} {}",
            if up { "up" } else { "down" }
        ))
        .await
    }

    /// Writes through the Service while something happens to the cluster, and checks every row.
    pub async fn under_writes<F>(&mut self, happen: F) -> Result<Outcome>
    where
        F: AsyncFnMut(&mut Self) -> Result<()>,
    {
        self.under_writes_at(places::SERVICE, happen).await
    }

    /// The same through another Service.
    pub async fn under_writes_at<F>(&mut self, service: Ipv4Addr, mut happen: F) -> Result<Outcome>
    where
        F: AsyncFnMut(&mut Self) -> Result<()>,
    {
        self.ledgers += 1;
        let ledger = self.scratch.join(format!("ledger-{}", self.ledgers));
        let written =
            writes::around(service, ledger, RETURNED, async || happen(self).await).await?;
        Ok(Outcome {
            gap_ms: Some(written.gap_ms),
            acknowledged: Some(written.acknowledged),
            ..Outcome::default()
        })
    }
}

/// The bridge, with this program's addresses.
async fn network() -> Result<()> {
    let (bridge, host) = (places::BRIDGE, places::HOST);
    // Named network namespaces are mounts: here they are this run's alone.
    std::fs::create_dir_all("/run/netns").context("make /run/netns")?;
    let none: Option<&str> = None;
    nix::mount::mount(
        none,
        "/run/netns",
        Some("tmpfs"),
        nix::mount::MsFlags::empty(),
        none,
    )
    .context("mount /run/netns")?;
    ip("link set lo up").await?;
    ip(&format!("link add {bridge} type bridge")).await?;
    ip(&format!("addr add {host}/24 dev {bridge}")).await?;
    for service in [places::SERVICE, places::ZONES_SERVICE] {
        ip(&format!("addr add {service}/24 dev {bridge}")).await?;
    }
    ip(&format!("link set {bridge} up")).await
}

/// The storage of the cluster under test, with one namespace of somebody else and one that is blank. The
/// first has the label of a cluster `foreign` that is in no namespace of Kubernetes.
async fn storage(scratch: &Path) -> Result<Storage> {
    let name = "storage";
    let directory = storage::directory(scratch, name);
    std::fs::create_dir_all(&directory)?;
    let made = Command::new("mkfs.ext4")
        .args(["-q", "-L", &Label::of("foreign", "local").finished()])
        .arg(storage::volume(&directory, FOREIGN))
        .arg("256M")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .await?;
    ensure!(made.success(), "mkfs.ext4 failed");
    let plan = storage::Plan {
        name: name.to_owned(),
        listen: places::storage(),
        subsystem: nvme::target::DEFAULT_SUBSYSTEM.to_owned(),
        namespaces: vec![Some("1G"), None, Some("1G")],
    };
    Storage::start(scratch, plan).await
}

impl World {
    /// Deletes a cluster as a user does, and waits until it is gone.
    pub async fn remove(&self, cluster: &str) -> Result<()> {
        let clusters = self.clusters();
        clusters.delete(cluster, &DeleteParams::default()).await?;
        let until = tokio::time::Instant::now() + SETTLED;
        while clusters.get_opt(cluster).await?.is_some() {
            ensure!(
                tokio::time::Instant::now() < until,
                "the deleted cluster is not gone"
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    /// Takes the cluster away, and what a real API server keeps.
    pub async fn end(&mut self) -> Result<()> {
        self.remove(CLUSTER).await?;
        let claims: Api<PersistentVolumeClaim> =
            Api::namespaced(self.api.client.clone(), &self.api.namespace);
        claims
            .get("main-data")
            .await
            .context("the claim must outlive its cluster")?;
        self.api.clean_up().await
    }
}
