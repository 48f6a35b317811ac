//! The objects of a cluster as they should be, from its specification alone. Pure.

mod access;
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

pub use pod::{pod, template};
pub use settings::{check, member_toml};

use crate::cluster::{BatonCluster, names};

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
        json(&disruption_budget(cluster))?,
    ];
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
    for (number, member) in cluster.numbered() {
        files.insert(
            format!("{}.toml", member.name),
            member_toml(cluster, number, member)?,
        );
    }
    Ok(ConfigMap {
        metadata: owned(cluster, names::config_map(cluster.cluster())),
        data: Some(files),
        ..ConfigMap::default()
    })
}

/// A drain waits while only one member could serve.
fn disruption_budget(cluster: &BatonCluster) -> PodDisruptionBudget {
    PodDisruptionBudget {
        metadata: owned(cluster, names::access(cluster.cluster())),
        spec: Some(PodDisruptionBudgetSpec {
            min_available: Some(IntOrString::Int(1)),
            selector: Some(LabelSelector {
                match_labels: Some(selector(cluster.cluster())),
                ..LabelSelector::default()
            }),
            ..PodDisruptionBudgetSpec::default()
        }),
        status: None,
    }
}

/// The claim made from the template, if the cluster has one. Made once, never changed or removed.
pub fn volume_claim(cluster: &BatonCluster) -> Option<PersistentVolumeClaim> {
    let template = cluster.spec.volume.template.as_ref()?;
    let requests = BTreeMap::from([("storage".to_owned(), template.size.clone())]);
    Some(PersistentVolumeClaim {
        metadata: kept(cluster, cluster.claim()),
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
    let content = ByteString(secret.into_bytes());
    Secret {
        metadata: kept(cluster, names::peer_secret(cluster.cluster())),
        data: Some(BTreeMap::from([(
            names::PEER_SECRET_KEY.to_owned(),
            content,
        )])),
        immutable: Some(true),
        type_: Some("Opaque".to_owned()),
        string_data: None,
    }
}

#[cfg(test)]
mod tests;
