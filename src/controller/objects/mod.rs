//! The objects of a cluster as they should be, from its specification alone. Pure.

mod access;
mod bounds;
mod pod;
mod services;
mod settings;

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{
    ConfigMap, PersistentVolumeClaim, PersistentVolumeClaimSpec, Secret, VolumeResourceRequirements,
};
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::Resource;
use serde::Serialize;
use serde_json::Value;

pub use bounds::{copy, shortened, takeover};
pub use pod::{pod, template};
pub use settings::{check, member_toml};

use crate::cluster::{BatonCluster, Site, names};

/// Why the objects of a cluster could not be written down.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// A member's settings are no TOML.
    #[error("write the settings of member {member}")]
    Settings {
        /// Which.
        member: String,
        /// Why.
        #[source]
        source: toml::ser::Error,
    },
    /// An object is no JSON.
    #[error("write the object")]
    Json(#[from] serde_json::Error),
}

/// Labels that name the pods of a cluster.
pub fn selector(cluster: &str) -> BTreeMap<String, String> {
    BTreeMap::from([(names::CLUSTER.to_owned(), cluster.to_owned())])
}

/// Labels that name the pods of a site.
pub fn site_selector(site: &Site<'_>) -> BTreeMap<String, String> {
    let mut labels = selector(site.cluster.cluster());
    if let Some(own) = site.own {
        labels.insert(names::SITE.to_owned(), own.name.clone());
    }
    labels
}

/// The head of an object that goes with its cluster.
fn owned(cluster: &BatonCluster, name: String) -> ObjectMeta {
    ObjectMeta {
        owner_references: cluster.controller_owner_ref(&()).map(|owner| vec![owner]),
        ..kept(cluster, name)
    }
}

/// The head of an object that stays when its cluster is deleted: what it holds cannot be made again.
fn kept(cluster: &BatonCluster, name: String) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        namespace: Some(cluster.namespace().to_owned()),
        labels: Some(names::labels(cluster.cluster())),
        ..ObjectMeta::default()
    }
}

/// All that is applied and kept as it is here, in the order in which it is needed.
///
/// # Errors
/// One of them could not be written down.
pub fn applied(cluster: &BatonCluster) -> Result<Vec<Value>, ObjectError> {
    let mut all = vec![
        json(&access::service_account(cluster))?,
        json(&access::role(cluster))?,
        json(&access::role_binding(cluster))?,
        json(&config_map(cluster)?)?,
    ];
    for site in cluster.sites() {
        all.push(json(&disruption_budget(&site))?);
    }
    for service in services::all(cluster) {
        all.push(json(&service)?);
    }
    Ok(all)
}

fn json(object: &impl Serialize) -> Result<Value, ObjectError> {
    Ok(serde_json::to_value(object)?)
}

fn config_map(cluster: &BatonCluster) -> Result<ConfigMap, ObjectError> {
    let mut files = BTreeMap::new();
    for site in cluster.sites() {
        for (number, member) in site.numbered() {
            files.insert(
                format!("{}.toml", member.name),
                member_toml(&site, number, member)?,
            );
        }
    }
    Ok(ConfigMap {
        metadata: owned(cluster, names::config_map(cluster.cluster())),
        data: Some(files),
        ..ConfigMap::default()
    })
}

/// A drain waits while only one member of a site could serve.
fn disruption_budget(site: &Site<'_>) -> PodDisruptionBudget {
    let cluster = site.cluster;
    let name = match site.own {
        None => names::access(cluster.cluster()),
        Some(own) => names::of_site(cluster.cluster(), &own.name),
    };
    PodDisruptionBudget {
        metadata: owned(cluster, name),
        spec: Some(PodDisruptionBudgetSpec {
            min_available: Some(IntOrString::Int(1)),
            selector: Some(LabelSelector {
                match_labels: Some(site_selector(site)),
                ..LabelSelector::default()
            }),
            ..PodDisruptionBudgetSpec::default()
        }),
        status: None,
    }
}

/// The claim made from the template, if the site has one. Made once, never changed or removed.
pub fn volume_claim(site: &Site<'_>) -> Option<PersistentVolumeClaim> {
    let template = site.volume.template.as_ref()?;
    let requests = BTreeMap::from([("storage".to_owned(), template.size.clone())]);
    Some(PersistentVolumeClaim {
        metadata: kept(site.cluster, site.claim()),
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(vec!["ReadWriteMany".to_owned()]),
            volume_mode: Some("Block".to_owned()),
            storage_class_name: Some(template.storage_class_name.clone()),
            resources: Some(VolumeResourceRequirements {
                requests: Some(requests),
                limits: None,
            }),
            ..PersistentVolumeClaimSpec::default()
        }),
        status: None,
    })
}

/// The Secret of the peers with this content. Made once, never changed or removed: members with
/// different secrets do not hear each other.
pub fn peer_secret(cluster: &BatonCluster, secret: String) -> Secret {
    let name = names::peer_secret(cluster.cluster());
    made_once(cluster, name, names::PEER_SECRET_KEY, secret)
}

/// The Secret with the replicas' password, where the cluster names no other. Made once, never changed or
/// removed: the volumes' databases know it.
pub fn replication_secret(cluster: &BatonCluster, password: String) -> Secret {
    let name = names::replication_secret(cluster.cluster());
    made_once(cluster, name, names::REPLICATION_SECRET_KEY, password)
}

fn made_once(cluster: &BatonCluster, name: String, key: &str, content: String) -> Secret {
    let content = ByteString(content.into_bytes());
    Secret {
        metadata: kept(cluster, name),
        data: Some(BTreeMap::from([(key.to_owned(), content)])),
        immutable: Some(true),
        type_: Some("Opaque".to_owned()),
        string_data: None,
    }
}

#[cfg(test)]
mod tests;
