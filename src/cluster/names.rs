//! Names, labels and annotations of the objects of a cluster. Controller, members and node agent find
//! each other's objects by them: a change here is a change of the interface. What members write
//! themselves is in [`crate::kubernetes::names`].

pub use crate::kubernetes::names::{
    CLUSTER, HISTORY, NEEDS_OPERATOR, PORT, READABLE, RECORD, ROLE, SERVING, SITE, labels,
};

/// API group of the custom resource, and the prefix of labels and annotations.
pub const GROUP: &str = "baton.dev";

/// The controller's field manager, under which it applies what it owns.
pub const FIELD_MANAGER: &str = "baton-controller";

/// Keeps a deleted `BatonCluster` until its pods have ended in an orderly way.
pub const FINALIZER: &str = "baton.dev/protect";

/// Label of a pod: the member's name.
pub const MEMBER: &str = "baton.dev/member";
/// Label of a pod: the member's number.
pub const MEMBER_NUMBER: &str = "baton.dev/member-number";
/// Annotation of a pod: what it was made from; another value means that it must be made anew.
pub const TEMPLATE: &str = "baton.dev/template";
/// Annotation: a digest of what the controller applied last.
pub const APPLIED: &str = "baton.dev/applied";
/// Label that Kubernetes recommends: the program.
pub const APP_NAME: &str = "app.kubernetes.io/name";
/// Label that Kubernetes recommends: who keeps the object.
pub const APP_MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// The value of [`APP_NAME`].
pub const APP: &str = "baton";

/// Port of the members' heartbeats.
pub const PEER_PORT: u16 = 7000;
/// Port of the HTTP API.
pub const API_PORT: u16 = 8008;

/// The key with the peer secret in [`peer_secret`].
pub const PEER_SECRET_KEY: &str = "secret";

/// The key with the password in [`replication_secret`].
pub const REPLICATION_SECRET_KEY: &str = "password";

/// What the Lease with the record of all sites has in the place of a site's name.
pub const EVERY_SITE: &str = "cluster";

/// The pod of a member.
pub fn pod(cluster: &str, member: &str) -> String {
    format!("{cluster}-{member}")
}

/// The headless Service by which members find each other.
pub fn members_service(cluster: &str) -> String {
    format!("{cluster}-members")
}

/// The host of a member's pod within the Kubernetes cluster.
pub fn pod_host(cluster: &str, namespace: &str, member: &str) -> String {
    let (pod, service) = (pod(cluster, member), members_service(cluster));
    format!("{pod}.{service}.{namespace}.svc")
}

/// The Service that leads to whoever accepts writes. It has no selector: the active member writes its
/// endpoints.
pub fn read_write_service(cluster: &str) -> String {
    format!("{cluster}-rw")
}

/// The Service of the read replicas.
pub fn replica_service(cluster: &str) -> String {
    format!("{cluster}-ro")
}

/// The Service of everybody who answers reads.
pub fn read_service(cluster: &str) -> String {
    format!("{cluster}-r")
}

/// The EndpointSlice of [`read_write_service`], written by the active member.
pub fn endpoint_slice(cluster: &str) -> String {
    crate::kubernetes::names::endpoint_slice(&read_write_service(cluster))
}

/// The Lease of a site.
pub fn lease(cluster: &str, site: &str) -> String {
    format!("{cluster}-{site}")
}

/// The Lease with the record of all sites. No site has this name.
pub fn record_lease(cluster: &str) -> String {
    lease(cluster, EVERY_SITE)
}

/// What a site of several is called in the names of its objects.
pub fn of_site(cluster: &str, site: &str) -> String {
    format!("{cluster}-{site}")
}

/// The Secret with the password of the replicas, where the cluster names no other.
pub fn replication_secret(cluster: &str) -> String {
    format!("{cluster}-replication")
}

/// The ConfigMap with one `<member>.toml` for each member.
pub fn config_map(cluster: &str) -> String {
    format!("{cluster}-config")
}

/// The Secret with what members authenticate to each other with.
pub fn peer_secret(cluster: &str) -> String {
    format!("{cluster}-peers")
}

/// The claim that is made where the cluster has a template for one.
pub fn volume_claim(cluster: &str) -> String {
    format!("{cluster}-volume")
}

/// ServiceAccount, Role, RoleBinding and PodDisruptionBudget of a cluster.
pub fn access(cluster: &str) -> String {
    cluster.to_owned()
}
