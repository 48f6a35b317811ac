//! What the plugin reads: a cluster, its sites' Leases and its pods.

use std::time::Duration;

use anyhow::{Context, bail};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::api::{Api, ListParams};
use kube::{Client, ResourceExt};
use tokio::time::timeout;

use crate::cluster::{self, BatonCluster, names};
use crate::controller::{ClusterView, Record, SiteView, Zones};
use crate::lease::Ownership;

/// How long the API server may take for one answer.
const DEADLINE: Duration = Duration::from_secs(15);

/// One cluster and the way to it.
pub struct Site {
    pub client: Client,
    pub namespace: String,
    pub cluster: String,
}

/// All of it at one time.
pub struct Seen {
    pub cluster: BatonCluster,
    /// The Lease of the site with the primary.
    pub lease: Option<Lease>,
    /// The site with the primary.
    pub view: SiteView,
    /// All sites.
    pub all: ClusterView,
}

impl Site {
    pub fn new(client: Client, namespace: &str, cluster: &str) -> Self {
        Self {
            client,
            namespace: namespace.to_owned(),
            cluster: cluster.to_owned(),
        }
    }

    /// Reads all.
    pub async fn look(&self) -> anyhow::Result<Seen> {
        let cluster = self.read().await?;
        let zones = self.zones(&cluster).await?;
        let pods: Api<Pod> = self.api();
        let which = format!("{}={}", names::CLUSTER, self.cluster);
        let which = ListParams::default().labels(&which);
        let pods = within("list the pods", pods.list(&which)).await?;
        let pods: Vec<_> = pods.items.into_iter().map(std::sync::Arc::new).collect();
        let (mut sites, mut of_primary) = (Vec::new(), None);
        for site in cluster.sites() {
            let lease = self.lease(&site).await?;
            // What pods should be made from is the controller's business.
            let templates = vec![String::new(); site.members.len()];
            let view = SiteView::of(&site, &zones, templates, lease.as_ref(), &pods);
            if view.primary {
                of_primary = Some((view.clone(), lease));
            }
            sites.push(view);
        }
        let (view, lease) = of_primary.context(
            "it is unknown which site has the primary: see the condition ReplicationHealthy",
        )?;
        let all = ClusterView { sites, zones };
        Ok(Seen {
            cluster,
            lease,
            view,
            all,
        })
    }

    async fn zones(&self, cluster: &BatonCluster) -> anyhow::Result<Zones> {
        if !cluster.has_several_sites() {
            return Ok(Zones::One);
        }
        let leases: Api<Lease> = self.api();
        let name = names::record_lease(&self.cluster);
        let lease = within("read the record of all sites", leases.get_opt(&name)).await?;
        Ok(Zones::of(lease.as_ref(), cluster.first_primary()))
    }

    async fn lease(&self, site: &cluster::Site<'_>) -> anyhow::Result<Option<Lease>> {
        let leases: Api<Lease> = self.api();
        within("read the Lease", leases.get_opt(&site.lease())).await
    }

    /// Reads the cluster.
    pub async fn read(&self) -> anyhow::Result<BatonCluster> {
        let clusters: Api<BatonCluster> = self.api();
        let found = within("read the cluster", clusters.get_opt(&self.cluster)).await?;
        let Self {
            namespace, cluster, ..
        } = self;
        found
            .with_context(|| format!("there is no BatonCluster {cluster} in namespace {namespace}"))
    }

    /// The token for the members' API.
    pub async fn token(&self, cluster: &BatonCluster) -> anyhow::Result<String> {
        let api = cluster.spec.api.as_ref();
        let Some(from) = api.and_then(|api| api.token_secret.as_ref()) else {
            bail!(
                "members take no orders over HTTP: set spec.api.tokenSecret and spec.api.tlsSecret; or delete \
                 the active's pod, which hands over too"
            );
        };
        let secrets: Api<Secret> = self.api();
        let secret = within("read the token's Secret", secrets.get(&from.name)).await?;
        let data = secret.data.unwrap_or_default();
        let token = data
            .get(&from.key)
            .with_context(|| format!("Secret {} has no key {}", from.name, from.key))?;
        let token = std::str::from_utf8(&token.0).context("read the token")?;
        Ok(token.trim().to_owned())
    }

    pub fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }
}

impl Seen {
    /// The changes of ownership in the Lease, the oldest first.
    pub fn history(&self) -> anyhow::Result<Vec<Ownership>> {
        let Some(lease) = &self.lease else {
            return Ok(Vec::new());
        };
        let Some(text) = lease.annotations().get(names::HISTORY) else {
            return Ok(Vec::new());
        };
        serde_json::from_str(text).context("understand the history in the Lease")
    }

    /// The epoch in the Lease.
    pub fn epoch(&self) -> Option<u32> {
        self.view.record.known().map(|record| record.epoch.number())
    }

    /// Whether automatic take-over is off; unknown without a Lease that can be read.
    pub fn paused(&self) -> Option<bool> {
        match &self.view.record {
            Record::Known(record) => Some(record.paused),
            Record::None => Some(false),
            Record::Unreadable(_) => None,
        }
    }
}

/// The answer of the API server within the deadline.
pub async fn within<T>(
    what: &'static str,
    request: impl Future<Output = kube::Result<T>>,
) -> anyhow::Result<T> {
    let answer = timeout(DEADLINE, request).await;
    answer
        .with_context(|| format!("{what}: no answer within {DEADLINE:?}"))?
        .context(what)
}
