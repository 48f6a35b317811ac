//! Looks at what a cluster rests on beside its own objects: claim, Secrets, other clusters, names.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Secret};
use kube::api::{Api, ListParams};
use kube::{Client, ResourceExt};

use super::accept::{Surroundings, named_secrets};
use super::apply::{Wanted, belongs};
use super::objects::{self, ObjectError};
use super::request::{RequestError, ask};
use super::view::SiteView;
use super::watch::Stores;
use super::zones::{ClusterView, Zones};
use crate::cluster::{BatonCluster, Site, names};

/// All that decides whether a cluster is accepted.
///
/// # Errors
/// The API server did not say: then nothing is known, and nothing refused.
pub async fn surroundings(
    client: &Client,
    stores: &Stores,
    cluster: &BatonCluster,
    wanted: &[Wanted],
    view: &ClusterView,
) -> Result<Surroundings, RequestError> {
    let pods = view.members();
    let numbers =
        pods.filter_map(|(_, member)| Some((member.name.clone(), member.pod.as_ref()?.number?)));
    let owners = view.sites.iter().filter_map(|site| {
        let record = site.record.known();
        let owned = record.filter(|record| record.epoch.number() > 0)?;
        Some((site.name.clone(), owned.holder?.number()))
    });
    let mut claims = BTreeMap::new();
    for site in cluster.sites() {
        let name = site.claim();
        let found = claim(client, cluster, &name).await?;
        claims.insert(name, found);
    }
    Ok(Surroundings {
        claims,
        secrets: secrets(client, cluster).await?,
        rivals: rivals(cluster, &stores.clusters.state()),
        numbers: numbers.collect(),
        owners: owners.collect(),
        taken: taken(client, stores, cluster, wanted).await?,
        settings: objects::check(cluster),
    })
}

/// The claim of a volume.
///
/// # Errors
/// The API server did not say.
pub async fn claim(
    client: &Client,
    cluster: &BatonCluster,
    name: &str,
) -> Result<Option<PersistentVolumeClaim>, RequestError> {
    let api: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), cluster.namespace());
    ask(
        || format!("read PersistentVolumeClaim {name}"),
        api.get_opt(name),
    )
    .await
}

/// The keys of the Secrets; their values are not kept.
async fn secrets(
    client: &Client,
    cluster: &BatonCluster,
) -> Result<BTreeMap<String, Option<BTreeSet<String>>>, RequestError> {
    let api: Api<Secret> = Api::namespaced(client.clone(), cluster.namespace());
    let named = named_secrets(cluster).into_iter();
    let mut all: BTreeSet<String> = named.map(|(_, name, _)| name).collect();
    all.insert(names::peer_secret(cluster.cluster()));
    if cluster.has_several_sites() {
        all.insert(cluster.replication_password().name);
    }
    let mut found = BTreeMap::new();
    for name in all {
        let secret = ask(|| format!("read Secret {name}"), api.get_opt(&name)).await?;
        let keys = secret.map(|secret| secret.data.unwrap_or_default().into_keys().collect());
        found.insert(name, keys);
    }
    Ok(found)
}

/// Clusters with a claim of this one's that go before, by claim: those for which something was made already, then the older;
/// of two made within one second, the one with the smaller UID.
fn rivals(cluster: &BatonCluster, all: &[Arc<BatonCluster>]) -> BTreeMap<String, String> {
    let age = |cluster: &BatonCluster| {
        let made = cluster.creation_timestamp().map(|time| time.0);
        // What protects it is written before anything is made. False sorts first.
        let unmade = !cluster
            .finalizers()
            .iter()
            .any(|name| name == names::FINALIZER);
        (unmade, made, cluster.uid())
    };
    let claims = |cluster: &BatonCluster| -> BTreeSet<String> {
        cluster.sites().iter().map(Site::claim).collect()
    };
    let ours = claims(cluster);
    let others = all
        .iter()
        .filter(|other| other.namespace() == cluster.namespace() && other.uid() != cluster.uid())
        .filter(|other| age(other) < age(cluster));
    let mut found = BTreeMap::new();
    for other in others {
        for claim in claims(other).intersection(&ours) {
            let rival = || other.cluster().to_owned();
            found.entry(claim.clone()).or_insert_with(rival);
        }
    }
    found
}

/// Objects that are in the way. Those that were seen with our label are ours.
async fn taken(
    client: &Client,
    stores: &Stores,
    cluster: &BatonCluster,
    wanted: &[Wanted],
) -> Result<Vec<String>, RequestError> {
    let namespace = cluster.namespace();
    let mut taken = Vec::new();
    for one in wanted {
        let found = match stores.kept(&one.resource, namespace, &one.name) {
            Some(seen) => Some(seen.as_ref().clone()),
            None => one.find(client, namespace).await?,
        };
        if found.is_some_and(|found| !belongs(&found, cluster)) {
            taken.push(one.shown());
        }
    }
    Ok(taken)
}

/// The cluster as it was last heard of.
///
/// # Errors
/// What should be cannot be written down.
pub fn seen(
    stores: &Stores,
    cluster: &BatonCluster,
    pods: &[Arc<Pod>],
) -> Result<ClusterView, ObjectError> {
    let lease = |name: &str| stores.lease(cluster, name);
    view(cluster, lease, pods)
}

fn view<L: AsRef<Lease>>(
    cluster: &BatonCluster,
    lease: impl Fn(&str) -> Option<L>,
    pods: &[Arc<Pod>],
) -> Result<ClusterView, ObjectError> {
    let zones = match cluster.has_several_sites() {
        false => Zones::One,
        true => {
            let found = lease(&names::record_lease(cluster.cluster()));
            let found = found.as_ref().map(AsRef::as_ref);
            Zones::of(found, cluster.first_primary())
        }
    };
    let mut sites = Vec::new();
    for site in cluster.sites() {
        let found = lease(&site.lease());
        let found = found.as_ref().map(AsRef::as_ref);
        let templates = templates(&site)?;
        sites.push(SiteView::of(&site, &zones, templates, found, pods));
    }
    Ok(ClusterView { sites, zones })
}

/// The cluster as it is now, not as it was last heard of: before a pod is taken away.
///
/// # Errors
/// The API server did not say, or what should be cannot be written down.
pub async fn now(client: &Client, cluster: &BatonCluster) -> Result<ClusterView, LookError> {
    let pods = pods_now(client, cluster).await?;
    let pods: Vec<_> = pods.into_iter().map(Arc::new).collect();
    let api: Api<Lease> = Api::namespaced(client.clone(), cluster.namespace());
    let mut wanted: Vec<_> = cluster.sites().iter().map(Site::lease).collect();
    if cluster.has_several_sites() {
        wanted.push(names::record_lease(cluster.cluster()));
    }
    let mut leases = BTreeMap::new();
    for name in wanted {
        let lease = ask(|| format!("read Lease {name}"), api.get_opt(&name)).await?;
        leases.extend(lease.map(|lease| (name, Arc::new(lease))));
    }
    let lease = |name: &str| leases.get(name).cloned();
    Ok(view(cluster, lease, &pods)?)
}

/// The pods of a cluster as they are now.
///
/// # Errors
/// The API server did not say.
pub async fn pods_now(client: &Client, cluster: &BatonCluster) -> Result<Vec<Pod>, RequestError> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), cluster.namespace());
    let which = format!("{}={}", names::CLUSTER, cluster.cluster());
    let which = ListParams::default().labels(&which);
    let found = ask(|| "list the pods".to_owned(), pods.list(&which)).await?;
    Ok(found.items)
}

/// What each member's pod should be made from.
///
/// # Errors
/// It cannot be written down.
fn templates(site: &Site<'_>) -> Result<Vec<String>, ObjectError> {
    let members = site.numbered().into_iter();
    members
        .map(|(number, member)| objects::template(site, number, member))
        .collect()
}

/// Why a site could not be looked at.
#[derive(Debug, thiserror::Error)]
pub enum LookError {
    /// The API server did not say.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// What should be cannot be written down.
    #[error(transparent)]
    Objects(#[from] ObjectError),
}
