//! Names of labels and annotations on the objects of a cluster: what members and controller agree on.

use std::collections::BTreeMap;

/// The cluster an object belongs to.
pub const CLUSTER: &str = "baton.dev/cluster";
/// Its site.
pub const SITE: &str = "baton.dev/site";
/// On a pod: the member's role, as [`crate::decide::RoleName`] is written.
pub const ROLE: &str = "baton.dev/role";
/// On a pod: `true` where PostgreSQL accepts writes, absent elsewhere.
pub const SERVING: &str = "baton.dev/serving";
/// On a pod: `true` where PostgreSQL answers reads, of the primary or of a replica, absent elsewhere.
pub const READABLE: &str = "baton.dev/readable";
/// On a pod: `primary` where PostgreSQL accepts writes, `replica` where it follows another site's,
/// absent elsewhere; for selectors made for others' operators.
pub const PLAIN_ROLE: &str = "role";
/// The value of [`PLAIN_ROLE`].
pub const PRIMARY: &str = "primary";
/// The value of [`PLAIN_ROLE`] where PostgreSQL follows the primary of another site.
pub const REPLICA: &str = "replica";
/// On a pod: why the member cannot get on without an operator, absent where it can.
pub const NEEDS_OPERATOR: &str = "baton.dev/needs-operator";
/// On the EndpointSlice: the epoch of the owner that wrote it.
pub const EPOCH: &str = "baton.dev/epoch";
/// On the EndpointSlice of a cluster with several sites: the term in which that owner's site has the
/// primary. Epochs of different sites cannot be compared; terms can.
pub const TERM: &str = "baton.dev/term";
/// On the Lease: the record, as JSON.
pub const RECORD: &str = "baton.dev/record";
/// On the Lease: the changes of ownership, as JSON.
pub const HISTORY: &str = "baton.dev/history";
/// On an EndpointSlice: the Service it belongs to.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// On an EndpointSlice: who writes it, so that nobody else does.
pub const SLICE_MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// The value of [`SLICE_MANAGED_BY`].
pub const SLICE_MANAGER: &str = "baton.dev";
/// The field manager of what members write.
pub const FIELD_MANAGER: &str = "baton-member";
/// The port's name in Services and EndpointSlices: they must have the same.
pub const PORT: &str = "postgres";

/// The labels of every object of a cluster.
pub fn labels(cluster: &str) -> BTreeMap<String, String> {
    [
        ("app.kubernetes.io/name", "baton"),
        ("app.kubernetes.io/instance", cluster),
        ("app.kubernetes.io/managed-by", "baton-controller"),
        (CLUSTER, cluster),
    ]
    .map(|(label, value)| (label.to_owned(), value.to_owned()))
    .into()
}

/// The EndpointSlice of a Service whose endpoints the active writes.
pub fn endpoint_slice(service: &str) -> String {
    format!("{service}-baton")
}
