//! A cluster on Kubernetes: the custom resource `BatonCluster`, and the names that controller,
//! members and node agent must agree on. Types and names only: nothing here talks to an API server.

pub mod names;
mod spec;
mod status;

pub use names::{FIELD_MANAGER, GROUP};
pub use spec::{
    ApiSpec, BatonCluster, BatonClusterSpec, ImagePullPolicy, MemberSpec, PoolerSpec, PostgresSpec,
    SecretKey, VolumeSpec, VolumeTemplate, VolumeTransport,
};
pub use status::{BatonClusterStatus, MemberState, Phase};

use fencing::MemberId;
use kube::CustomResourceExt;

/// The definition of the custom resource, as `deploy/base/crd.yaml` has it.
///
/// # Errors
/// The definition cannot be written as YAML, which no definition made from these types does.
pub fn definition() -> Result<String, serde_saphyr::ser::Error> {
    serde_saphyr::to_string(&BatonCluster::crd())
}

impl BatonCluster {
    /// The cluster's name, which is that of the object.
    pub fn cluster(&self) -> &str {
        self.metadata.name.as_deref().unwrap_or_default()
    }

    /// The namespace of all its objects.
    pub fn namespace(&self) -> &str {
        self.metadata.namespace.as_deref().unwrap_or_default()
    }

    /// The members with their numbers: where the cluster gives none, a member's place in the list,
    /// from 1. Members whose number is none (a list that is too long) are left out; the API server
    /// accepts no such list.
    pub fn numbered(&self) -> Vec<(MemberId, &MemberSpec)> {
        let members = self.spec.members.iter().enumerate();
        members
            .filter_map(|(place, member)| {
                let number = match member.number {
                    Some(number) => number,
                    None => u8::try_from(place + 1).ok()?,
                };
                Some((MemberId::new(number)?, member))
            })
            .collect()
    }

    /// The member with this pod, and its number.
    pub fn member_of_pod(&self, pod: &str) -> Option<(MemberId, &MemberSpec)> {
        self.numbered()
            .into_iter()
            .find(|(_, member)| names::pod(self.cluster(), &member.name) == pod)
    }

    /// The claim of the shared volume: the one that is named, or the one made from the template.
    pub fn claim(&self) -> String {
        match &self.spec.volume.claim_name {
            Some(name) => name.clone(),
            None => names::volume_claim(self.cluster()),
        }
    }
}

#[cfg(test)]
mod tests;
