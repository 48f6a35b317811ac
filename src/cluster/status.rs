//! What the controller tells: the status of a `BatonCluster`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What the controller sees of a cluster. Failover does not rest on it: members decide by the volume and
/// the site's Lease.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct BatonClusterStatus {
    /// The `metadata.generation` that this status is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// All in one word.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// The site whose active runs the primary, of several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub primary_site: Option<String>,
    /// The member that owns the volume, by the site's Lease; of several sites, that of the primary's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub active: Option<String>,
    /// The member that could take over; of several, the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub standby: Option<String>,
    /// Counts the changes of ownership.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<i64>")]
    pub epoch: Option<u32>,
    /// Accepted, Ready, StandbyReady, FenceProven, ReplicationHealthy, MembersAble, UpToDate, Reconciled.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend(
        "x-kubernetes-list-type" = "map",
        "x-kubernetes-list-map-keys" = ["type"]
    ))]
    pub conditions: Vec<Condition>,
    /// Each of several sites.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend(
        "x-kubernetes-list-type" = "map",
        "x-kubernetes-list-map-keys" = ["name"]
    ))]
    pub sites: Vec<SiteState>,
    /// Each member.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend(
        "x-kubernetes-list-type" = "map",
        "x-kubernetes-list-map-keys" = ["name"]
    ))]
    pub members: Vec<MemberState>,
}

/// One of several sites.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SiteState {
    /// The site.
    pub name: String,
    /// What it runs: primary or replica; absent while that is unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// The member that owns its volume, by its Lease.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active: Option<String>,
    /// The member that could take over; of several, the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub standby: Option<String>,
    /// Counts the changes of ownership of its volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<i64>")]
    pub epoch: Option<u32>,
    /// Whether its active serves what it should.
    #[serde(default)]
    pub ready: bool,
}

impl BatonClusterStatus {
    /// The condition of this type.
    pub fn condition(&self, type_: &str) -> Option<&Condition> {
        self.conditions.iter().find(|found| found.type_ == type_)
    }
}

/// A cluster in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Phase {
    /// The specification is not accepted: see the condition Accepted.
    Pending,
    /// No member has served yet.
    Provisioning,
    /// It serves and a standby could take over.
    Healthy,
    /// Ownership is passing from one member to another.
    HandingOver,
    /// It serves, but no standby could take over.
    Degraded,
    /// It does not serve.
    Failed,
}

/// One member, as its pod shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MemberState {
    /// The member.
    pub name: String,
    /// Its site, of several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub site: Option<String>,
    /// The node that its pod is on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Which pod of that name it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_uid: Option<String>,
    /// What the member says of itself: active, standby, taking-over, handing-over, returning, joining.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// Whether it serves or could take over.
    #[serde(default)]
    pub ready: bool,
}
