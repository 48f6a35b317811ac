//! Everything that a case finds: storage, API server, controller, nodes, one cluster that serves.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use baton::clock;
use baton::cluster::BatonCluster;
use baton::drill::gap;
use baton::drill::verify;
use baton::drill::writer::{self, Plan, Writer};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use tokio::process::{Child, Command};

use crate::api::ApiServer;
use crate::container::program;
use crate::isolate;
use crate::kubelet::{interface, ip};
use crate::manifests;
use crate::node::Node;
use crate::options::Options;
use crate::places;
use crate::proxy;
use crate::report::Outcome;
use crate::scheduler;
use crate::storage::{self, Storage};

/// The cluster under test.
pub const CLUSTER: &str = "main";

/// A namespace of the storage with a filesystem of somebody else.
pub const FOREIGN: u32 = 2;

/// One that is blank.
pub const BLANK: u32 = 3;

/// How long the cluster may take to serve with a standby, from nothing.
const SETTLED: Duration = Duration::from_secs(120);

/// How long writes may take to return.
const RETURNED: Duration = Duration::from_secs(60);

/// Writes before a fault, and after their return.
const AROUND: Duration = Duration::from_secs(2);

/// How many connections write.
const CONNECTIONS: u16 = 4;

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
        let api = ApiServer::start(options.kubeconfig.as_deref()).await?;
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
        Api::namespaced(self.api.client.clone(), &self.api.namespace)
    }

    /// A claim that is bound, as the storage driver leaves it.
    pub async fn make_claim(&self, name: &str, access: &str, mode: &str) -> Result<()> {
        let claims: Api<PersistentVolumeClaim> =
            Api::namespaced(self.api.client.clone(), &self.api.namespace);
        let claim: PersistentVolumeClaim = serde_json::from_value(json!({
            "metadata": { "name": name },
            "spec": {
                "accessModes": [access],
                "volumeMode": mode,
                "storageClassName": "test",
                "volumeName": format!("pv-{name}"),
                "resources": { "requests": { "storage": "1Gi" } },
            },
        }))?;
        claims.create(&PostParams::default(), &claim).await?;
        let bound = Patch::Merge(json!({ "status": { "phase": "Bound" } }));
        claims
            .patch_status(name, &PatchParams::default(), &bound)
            .await?;
        Ok(())
    }

    pub async fn start_controller(&mut self) -> Result<()> {
        let config = self.scratch.join("controller.kubeconfig");
        let text = self
            .api
            .kubeconfig_of(places::SYSTEM, "baton-controller")
            .await?;
        std::fs::write(&config, text)?;
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.scratch.join("logs/controller.log"))?;
        let child = Command::new(program())
            .args([
                "controller",
                "--namespace",
                places::SYSTEM,
                "--identity",
                "controller-1",
            ])
            .env("KUBECONFIG", config)
            .stdin(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .context("start the controller")?;
        self.controller = Some(child);
        Ok(())
    }

    pub async fn stop_controller(&mut self) -> Result<()> {
        match self.controller.take() {
            Some(mut controller) => controller.kill().await.context("kill the controller"),
            None => Ok(()),
        }
    }

    /// The pods of the cluster by what they say of their role: the active's and the standby's names.
    pub async fn roles(&self) -> Result<(Option<String>, Option<String>)> {
        let of = ListParams::default().labels(&format!("baton.dev/cluster={CLUSTER}"));
        let pods = self.pods().list(&of).await?;
        let with = |role: &str| {
            let mut found = pods.iter().filter(|pod| {
                pod.metadata.deletion_timestamp.is_none()
                    && pod
                        .labels()
                        .get("baton.dev/role")
                        .is_some_and(|is| is == role)
                    && is_ready(pod)
            });
            found.next().map(ResourceExt::name_any)
        };
        Ok((with("active"), with("standby")))
    }

    /// Waits until one member serves and another could take over.
    pub async fn settled(&self, within: Duration) -> Result<(String, String)> {
        let until = tokio::time::Instant::now() + within;
        loop {
            let roles = self.roles().await;
            if let Ok((Some(active), Some(standby))) = &roles
                && self.endpoint.borrow().is_some()
            {
                return Ok((active.clone(), standby.clone()));
            }
            if tokio::time::Instant::now() > until {
                bail!("not settled within {within:?}: {roles:?}");
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
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

    /// The site's Lease.
    pub async fn lease(&self) -> Result<Lease> {
        let leases: Api<Lease> = Api::namespaced(self.api.client.clone(), &self.api.namespace);
        Ok(leases.get(&format!("{CLUSTER}-local")).await?)
    }

    /// The epoch in the Lease.
    pub async fn epoch(&self) -> Result<i32> {
        let lease = self.lease().await?;
        lease
            .spec
            .and_then(|spec| spec.lease_transitions)
            .context("no epoch in the Lease")
    }

    /// Deletes a pod as `kubectl delete pod` does.
    pub async fn delete_pod(&self, name: &str) -> Result<()> {
        self.pods().delete(name, &DeleteParams::default()).await?;
        Ok(())
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
        let plan = self.plan(service);
        let writer = Writer::start(&plan, RETURNED)
            .await
            .context("begin to write")?;
        tokio::time::sleep(AROUND).await;
        let fault = clock::now();
        happen(self).await?;
        let returned = writer
            .all_write(clock::now() + writer::ON_THE_WAY, RETURNED)
            .await;
        tokio::time::sleep(AROUND).await;
        let written = writer.finish().await?;
        ensure!(
            returned,
            "not every connection wrote again within {RETURNED:?}"
        );
        let rows = writer::rows(&plan, RETURNED).await?;
        let verdict = verify::verify(&written.entries, &rows);
        ensure!(verdict.holds(), "writes lost or doubled: {verdict:?}");
        let gaps = gap::gaps(&written.entries, CONNECTIONS, fault, written.ended);
        let length: Duration = gaps.longest.length();
        Ok(Outcome {
            gap_ms: Some(u64::try_from(length.as_millis())?),
            acknowledged: Some(verdict.writes.acknowledged),
            ..Outcome::default()
        })
    }

    fn plan(&self, service: Ipv4Addr) -> Plan {
        let mut server = tokio_postgres::Config::new();
        server
            .host(service.to_string())
            .port(5432)
            .user("postgres")
            .dbname("postgres")
            .connect_timeout(Duration::from_secs(1));
        Plan {
            servers: vec![server],
            connections: CONNECTIONS,
            ledger: self.scratch.join(format!("ledger-{}", self.ledgers)),
            insert_timeout: Duration::from_secs(5),
        }
    }
}

/// Whether the kubelet found it ready.
pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_ref());
    let mut conditions = conditions.into_iter().flatten();
    conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True")
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

/// The storage of the cluster under test, with one namespace of somebody else and one that is blank.
async fn storage(scratch: &Path) -> Result<Storage> {
    let name = "storage";
    let directory = storage::directory(scratch, name);
    std::fs::create_dir_all(&directory)?;
    let made = Command::new("mkfs.ext4")
        .args(["-q", "-L", "baton:0123456789"])
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
