//! Kubernetes on the machines: API server, controller and scheduler here, on each node an agent, a kubelet
//! and the pods that it runs. The volume is attached by the node's kernel, as a storage driver does it.

pub mod driver;
pub mod guest;
mod node;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use baton::lab::layout::postgres_bin;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use tokio::process::Child;
use tokio::task::JoinHandle;

use crate::machine::Machine;
use crate::machines::Machines;
use crate::network::Network;
use crate::platform::api::ApiServer;
use crate::platform::cluster::{self, CLUSTER};
use crate::platform::network::ip;
use crate::platform::{manifests, places, proxy, scheduler, writes};

pub use node::Node;

/// The claim of both members.
const CLAIM: &str = "main-data";

/// How long the cluster may take to serve with a standby, under KVM.
const SETTLED: Duration = Duration::from_secs(75);

/// How long writes may take to return, under KVM.
const RETURNED: Duration = Duration::from_secs(30);

/// Everything but the machines.
pub struct Kubernetes<'a> {
    pub api: ApiServer,
    pub nodes: [Node<'a>; 2],
    endpoint: proxy::Endpoint,
    scratch: PathBuf,
    ledgers: u32,
    _controller: Child,
    _scheduler: Stopped,
}

/// A task that ends with this value.
struct Stopped(JoinHandle<()>);

impl Drop for Stopped {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl<'a> Kubernetes<'a> {
    /// The cluster is applied; nothing of it is waited for.
    pub async fn up(machines: &'a Machines) -> Result<Self> {
        let scratch = machines.common.scratch.join("kubernetes");
        std::fs::create_dir_all(&scratch).context("make a folder")?;
        for address in [places::HOST, places::SERVICE] {
            let bridge = Network::Peer.name();
            ip(&format!("addr replace {address}/24 dev {bridge}")).await?;
        }
        let api = ApiServer::stand_in_for("baton-test".to_owned()).await?;
        manifests::apply(&api.client)
            .await
            .context("apply deploy/base")?;
        let scheduler = scheduler::run(api.client.clone(), api.namespace.clone());
        let scheduler = Stopped(tokio::spawn(scheduler));
        let service = format!("{CLUSTER}-rw");
        let address = (places::SERVICE, 5432);
        let endpoint = proxy::run(api.client.clone(), &api.namespace, &service, address).await?;
        let start = async |machine: &'a Machine, name| Node::start(machine, name, &api).await;
        let nodes = [
            start(&machines.node_a, places::NODES[0]).await?,
            start(&machines.node_b, places::NODES[1]).await?,
        ];
        let controller = cluster::controller(&api, &scratch, &scratch).await?;
        api.make_claim(CLAIM, "ReadWriteMany", "Block").await?;
        let kubernetes = Self {
            api,
            nodes,
            endpoint,
            scratch,
            ledgers: 0,
            _controller: controller,
            _scheduler: scheduler,
        };
        kubernetes.apply().await.context("apply the cluster")?;
        Ok(kubernetes)
    }

    async fn apply(&self) -> Result<()> {
        let clusters: Api<baton::cluster::BatonCluster> =
            Api::namespaced(self.api.client.clone(), &self.api.namespace);
        let apply = PatchParams::apply("baton-test").force();
        let object = cluster_object(&self.api.namespace)?;
        clusters
            .patch(CLUSTER, &apply, &Patch::Apply(&object))
            .await?;
        Ok(())
    }

    /// Waits until one member serves and another could take over: their pods.
    pub async fn settled(&self) -> Result<(String, String)> {
        let within = self.nodes[0].machine.patience(SETTLED);
        cluster::settled(&self.api, &self.endpoint, within).await
    }

    /// The node of a member's pod.
    pub fn node_of(&self, pod: &str) -> &Node<'a> {
        &self.nodes[usize::from(pod.ends_with('b'))]
    }

    /// Writes while something happens to the cluster, until the Service leads to this pod and all write.
    pub async fn under_writes<F>(&mut self, leads_to: &str, happen: F) -> Result<writes::Written>
    where
        F: AsyncFnOnce(&Self) -> Result<()>,
    {
        self.ledgers += 1;
        let ledger = self.scratch.join(format!("ledger-{}", self.ledgers));
        let returned = self.nodes[0].machine.patience(RETURNED);
        let this = &*self;
        writes::around(places::SERVICE, ledger, returned, async || {
            happen(this).await?;
            this.leads_to(leads_to, returned).await
        })
        .await
    }

    async fn leads_to(&self, pod: &str, within: Duration) -> Result<()> {
        let address = places::pod_address(pod);
        let mut endpoint = self.endpoint.clone();
        let there = endpoint.wait_for(|to| to.is_some_and(|to| to.ip() == address));
        let there = tokio::time::timeout(within, there).await;
        there.with_context(|| format!("the Service does not lead to {pod}"))??;
        Ok(())
    }

    /// The last lines of everybody, for whoever looks for the cause of a failure.
    pub async fn logs(&self) -> String {
        let mut logs = String::new();
        let controller = std::fs::read_to_string(self.scratch.join("controller.log"));
        let controller = controller.unwrap_or_default();
        let lines: Vec<_> = controller.lines().rev().take(10).collect();
        for line in lines.iter().rev() {
            logs += &format!("  controller: {line}\n");
        }
        for node in &self.nodes {
            logs += &node.logs().await;
        }
        logs
    }
}

/// The custom resource: the volume is found by the agents, at the claim's device.
fn cluster_object(namespace: &str) -> Result<Value> {
    Ok(json!({
        "apiVersion": "baton.dev/v1alpha1",
        "kind": "BatonCluster",
        "metadata": { "name": CLUSTER, "namespace": namespace },
        "spec": {
            "image": "baton:test",
            "postgres": {
                "binDir": postgres_bin().context("find PostgreSQL")?,
                "hba": ["host all all 10.111.0.0/24 trust"],
            },
            "volume": {
                "claimName": CLAIM,
                "transport": "kernel",
                // The kernel's target forgets its reservations.
                "requirePersistence": false,
            },
            "members": [
                { "name": "a", "node": places::NODES[0] },
                { "name": "b", "node": places::NODES[1] },
            ],
            "timings": timings(),
        },
    }))
}

/// As for the members of the drills, but for the lease, which is renewed more rarely here, and the
/// keep-alive, which must not be shorter than the storage driver's.
fn timings() -> Value {
    let all = crate::drill::TIMINGS.iter();
    let all = all.filter(|(name, _)| ["detection", "sample_gap"].contains(name));
    all.map(|(name, value)| ((*name).to_owned(), json!(value)))
        .collect::<serde_json::Map<_, _>>()
        .into()
}
