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
use crate::cluster::{BatonCluster, names};

/// All that decides whether a cluster is accepted.
///
/// # Errors
/// The API server did not say: then nothing is known, and nothing refused.
pub async fn surroundings(
    client: &Client,
    stores: &Stores,
    cluster: &BatonCluster,
    wanted: &[Wanted],
    site: &SiteView,
) -> Result<Surroundings, RequestError> {
    let pods = site.members.iter();
    let pods = pods.filter_map(|member| Some((member.name.clone(), member.pod.as_ref()?.number?)));
    let record = site.record.known();
    let owner = record.filter(|record| record.epoch.number() > 0);
    Ok(Surroundings {
        claim: claim(client, cluster).await?,
        secrets: secrets(client, cluster).await?,
        rivals: rivals(cluster, &stores.clusters.state()),
        numbers: pods.collect(),
        owner: owner.and_then(|record| Some(record.holder?.number())),
        taken: taken(client, stores, cluster, wanted).await?,
        settings: objects::check(cluster),
    })
}

/// The claim of the volume.
///
/// # Errors
/// The API server did not say.
pub async fn claim(
    client: &Client,
    cluster: &BatonCluster,
) -> Result<Option<PersistentVolumeClaim>, RequestError> {
    let name = cluster.claim();
    let api: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), cluster.namespace());
    ask(
        || format!("read PersistentVolumeClaim {name}"),
        api.get_opt(&name),
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
    let mut found = BTreeMap::new();
    for name in all {
        let secret = ask(|| format!("read Secret {name}"), api.get_opt(&name)).await?;
        let keys = secret.map(|secret| secret.data.unwrap_or_default().into_keys().collect());
        found.insert(name, keys);
    }
    Ok(found)
}

/// Clusters with the same claim that go before: those for which something was made already, then the older;
/// of two made within one second, the one with the smaller UID.
fn rivals(cluster: &BatonCluster, all: &[Arc<BatonCluster>]) -> Vec<String> {
    let age = |cluster: &BatonCluster| {
        let made = cluster.creation_timestamp().map(|time| time.0);
        // What protects it is written before anything is made. False sorts first.
        let unmade = !cluster
            .finalizers()
            .iter()
            .any(|name| name == names::FINALIZER);
        (unmade, made, cluster.uid())
    };
    all.iter()
        .filter(|other| other.namespace() == cluster.namespace())
        .filter(|other| other.claim() == cluster.claim() && other.uid() != cluster.uid())
        .filter(|other| age(other) < age(cluster))
        .map(|other| other.cluster().to_owned())
        .collect()
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

/// The site as it is now, not as it was last heard of: before a pod is taken away.
///
/// # Errors
/// The API server did not say, or what should be cannot be written down.
pub async fn site_now(client: &Client, cluster: &BatonCluster) -> Result<SiteView, LookError> {
    let pods = pods_now(client, cluster).await?;
    let leases: Api<Lease> = Api::namespaced(client.clone(), cluster.namespace());
    let name = names::lease(cluster.cluster(), &cluster.spec.site);
    let lease = ask(|| format!("read Lease {name}"), leases.get_opt(&name)).await?;
    let pods: Vec<_> = pods.into_iter().map(Arc::new).collect();
    Ok(SiteView::of(
        cluster,
        templates(cluster)?,
        lease.as_ref(),
        &pods,
    ))
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
pub fn templates(cluster: &BatonCluster) -> Result<Vec<String>, ObjectError> {
    let members = cluster.numbered().into_iter();
    members
        .map(|(number, member)| objects::template(cluster, number, member))
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
