//! A cluster on Kubernetes: the custom resource `BatonCluster`, and the names that controller,
//! members and node agent must agree on. Types and names only: nothing here talks to an API server.

pub mod names;
mod several;
mod spec;
mod status;

pub use names::{FIELD_MANAGER, GROUP};
pub use several::{ReplicationSpec, SeedSpec, Site, SiteFailover, SiteSpec, SynchronousMode};
pub use spec::{
    ApiSpec, BatonCluster, BatonClusterSpec, ImagePullPolicy, MemberSpec, PoolerSpec, PostgresSpec,
    SecretKey, VolumeSpec, VolumeTemplate, VolumeTransport,
};
pub use status::{BatonClusterStatus, MemberState, Phase, SiteState};

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
}

#[cfg(test)]
mod tests;
