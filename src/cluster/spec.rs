//! What a user writes: the specification of a `BatonCluster`.
//!
//! Every field's comment is what `kubectl explain` shows. Rules between fields are in CEL
//! (`x-kubernetes-validations`), so that the API server refuses what could never work; what depends on
//! other objects is judged by the controller, in the condition `Accepted`.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Affinity, ResourceRequirements, Toleration};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::several::{ReplicationSpec, SiteSpec};
use super::status::BatonClusterStatus;

/// A PostgreSQL database on one shared block volume, and the members that can serve it.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "baton.dev",
    version = "v1alpha1",
    kind = "BatonCluster",
    plural = "batonclusters",
    shortname = "baton",
    category = "all",
    namespaced,
    derive = "PartialEq",
    status = "BatonClusterStatus",
    doc = "A PostgreSQL database that moves between nodes without losing an acknowledged write",
    printcolumn(
        name = "Active",
        type_ = "string",
        json_path = ".status.active",
        description = "The member that owns the volume"
    ),
    printcolumn(
        name = "Standby",
        type_ = "string",
        json_path = ".status.standby",
        description = "The member that could take over"
    ),
    printcolumn(
        name = "Epoch",
        type_ = "integer",
        json_path = ".status.epoch",
        description = "Counts the changes of ownership"
    ),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    ),
    validation = Rule::new(
        "self.metadata.name.size() <= 40 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')"
    )
    .message(
        "the name becomes part of host names: at most 40 of a-z, 0-9 and inner -, beginning with a letter"
    ),
    validation = Rule::new(
        "has(self.spec.sites) ? !has(self.spec.volume) && !has(self.spec.members) : has(self.spec.volume) && has(self.spec.members)"
    )
    .message("set either volume and members, or sites"),
    validation = Rule::new("has(self.spec.sites) || !has(self.spec.replication)")
        .message("replication is between sites: it needs sites"),
    validation = Rule::new("has(self.spec.sites) == has(oldSelf.spec.sites)")
        .message("a cluster of one site cannot become one of several, nor back")
)]
#[serde(rename_all = "camelCase")]
pub struct BatonClusterSpec {
    /// The image with baton and PostgreSQL.
    #[schemars(length(min = 1, max = 512))]
    pub image: String,
    /// When the image is pulled. Without it: Always for the tag `latest`, else IfNotPresent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_pull_policy: Option<ImagePullPolicy>,
    /// The database.
    #[serde(default)]
    pub postgres: PostgresSpec,
    /// The shared volume of a cluster with one site. It cannot be changed: another volume is another cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self == oldSelf")
        .message("the volume cannot be changed: another volume is another cluster"))]
    pub volume: Option<VolumeSpec>,
    /// The members of a cluster with one site: two, on two nodes, or more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(min = 2, max = 8),
        extend(
            "x-kubernetes-list-type" = "map",
            "x-kubernetes-list-map-keys" = ["name"]
        )
    )]
    #[x_kube(
        validation = Rule::new("self.all(m, self.exists_one(o, o.name == m.name))")
            .message("two members have the same name"),
        validation = Rule::new("self.all(m, has(m.number)) || !self.exists(m, has(m.number))")
            .message("give every member a number, or none"),
        validation = Rule::new("self.all(m, !has(m.number) || self.exists_one(o, has(o.number) && o.number == m.number))")
            .message("two members have the same number"),
        validation = Rule::new("self.all(m, !has(m.node) || self.exists_one(o, has(o.node) && o.node == m.node))")
            .message("two members are on the same node: it would take both with it"),
        validation = Rule::new("self.all(m, oldSelf.all(o, o.name != m.name || (has(o.number) == has(m.number) && (!has(m.number) || o.number == m.number))))")
            .message("a member's number cannot be changed: it is part of its key on the volume"),
    )]
    pub members: Vec<MemberSpec>,
    /// The name of the only site: part of the name of its Lease. Not used with `sites`. Default `local`.
    #[serde(default = "local")]
    #[schemars(length(min = 1, max = 20), regex(pattern = NAME))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("the site cannot be changed"))]
    pub site: String,
    /// Several sites, normally zones, instead of `volume` and `members`: one runs the primary, the others
    /// streaming replicas on volumes of their own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(min = 2, max = 5),
        extend(
            "x-kubernetes-list-type" = "map",
            "x-kubernetes-list-map-keys" = ["name"]
        )
    )]
    pub sites: Vec<SiteSpec>,
    /// How several sites follow each other. Default: commits wait for one other site, as long as one keeps up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replication: Option<ReplicationSpec>,
    /// CPU and memory of each member's container, PostgreSQL included. The members' `/run` and `/dev/shm`
    /// count as memory. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
    /// Tolerations of the pods. Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub tolerations: Vec<Toleration>,
    /// Affinity of the pods. That no two members share a `topologyKey` is added to it. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
    /// Labels that a node must have. Default: none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// Priority class of the pods. Default: that of the Kubernetes cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub priority_class_name: Option<String>,
    /// The label of nodes whose value no two members share. Default `kubernetes.io/hostname`.
    #[serde(default = "hostname")]
    #[schemars(length(min = 1, max = 317))]
    pub topology_key: String,
    /// Seconds that a pod has to hand over when it is deleted; then it is killed and the standby takes
    /// over without its help. Steps of the handover that `timings` does not bound are shortened to fit. Default 120.
    #[serde(default = "grace")]
    #[schemars(range(min = 10, max = 3600))]
    pub termination_grace_period_seconds: i64,
    /// Timings as in `[timings]` of `member.toml`, such as `detection: 3s`. Default: the member's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    pub timings: BTreeMap<String, String>,
    /// A PgBouncer that is paused while the database moves. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pooler: Option<PoolerSpec>,
    /// The members' HTTP API. Default: it answers questions, without TLS, and changes nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api: Option<ApiSpec>,
    /// Whether the controller leaves the pods as they are after a change of this object. Failover goes on;
    /// `kubectl baton pause` stops that. Default false.
    #[serde(default)]
    pub paused: bool,
}

/// A name that becomes part of host names.
pub(super) const NAME: &str = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$";

/// When the image is pulled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ImagePullPolicy {
    /// At each start of a pod.
    Always,
    /// Where the node does not have it.
    IfNotPresent,
    /// Never.
    Never,
}

impl ImagePullPolicy {
    /// The word that Kubernetes has for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::IfNotPresent => "IfNotPresent",
            Self::Never => "Never",
        }
    }
}

/// The database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PostgresSpec {
    /// The port for clients, of the pods and of the Services. Default 5432.
    #[schemars(with = "i32", range(min = 1, max = 65535))]
    pub port: u16,
    /// Settings for `postgresql.conf`, such as `shared_buffers: 1GB`. Default: none.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 256))]
    pub parameters: BTreeMap<String, String>,
    /// Lines for `pg_hba.conf`, such as `host all all 10.0.0.0/8 scram-sha-256`. Default: none, which lets
    /// nobody in over the network.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub hba: Vec<String>,
    /// The directory of the image with `postgres` and `initdb`. Default `/usr/lib/postgresql/15/bin`.
    #[schemars(regex(pattern = "^/"), length(max = 256))]
    pub bin_dir: String,
    /// The data directory, relative to the volume's root. Default `pgdata`.
    #[schemars(
        regex(pattern = "^[A-Za-z0-9_][A-Za-z0-9_.-]*$"),
        length(max = 64),
        extend("x-kubernetes-validations" = [{
            "rule": "self == oldSelf",
            "message": "the data directory cannot be changed",
        }])
    )]
    pub data_directory: String,
}

impl Default for PostgresSpec {
    fn default() -> Self {
        Self {
            port: 5432,
            parameters: BTreeMap::new(),
            hba: Vec::new(),
            bin_dir: "/usr/lib/postgresql/15/bin".to_owned(),
            data_directory: "pgdata".to_owned(),
        }
    }
}

/// The shared volume: a claim with ReadWriteMany and volumeMode Block.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.claimName) != has(self.template)")
        .message("set either claimName or template"),
    validation = Rule::new("has(self.address) == has(self.subsystem)")
        .message("address and subsystem go together"),
)]
pub struct VolumeSpec {
    /// An existing claim in the same namespace. Not with `template`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub claim_name: Option<String>,
    /// What a claim `<cluster>-volume` is made from. It stays when the cluster is deleted. Not with
    /// `claimName`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<VolumeTemplate>,
    /// By which initiator nodes reach the volume. `kernel`: the NVMe device that the storage driver has
    /// attached; its subsystem must have no other volume on the node. `tcp`: Baton's own initiator, where it
    /// has, or without the module `nvme-tcp`. Default `kernel`.
    #[serde(default)]
    pub transport: VolumeTransport,
    /// The target, `host:port`, for transport `tcp`. Default: where the storage driver's device is connected to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 3, max = 261))]
    pub address: Option<String>,
    /// The subsystem's NQN, for transport `tcp`. Default: that of the storage driver's device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 223), regex(pattern = "^nqn\\."))]
    pub subsystem: Option<String>,
    /// The namespace within the subsystem, for transport `tcp`. Default: that of the storage driver's device, or
    /// 1 beside an address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<i64>", range(min = 1, max = 4_294_967_294_u32))]
    pub namespace_id: Option<u32>,
    /// The volume's UUID, NGUID or EUI-64: any other volume is refused. Default: not checked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 16, max = 64))]
    pub identifier: Option<String>,
    /// Whether the volume must keep its reservations through a power loss of the storage (PTPL). Default
    /// true; false leaves some take-overs after a restart of the storage to an operator.
    #[serde(default = "yes")]
    pub require_persistence: bool,
}

/// What a claim is made from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VolumeTemplate {
    /// A storage class whose driver offers block volumes to several nodes at once.
    #[schemars(length(min = 1, max = 253))]
    pub storage_class_name: String,
    /// The size, such as `100Gi`.
    pub size: Quantity,
}

/// By which initiator nodes reach the volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum VolumeTransport {
    /// The NVMe device that the storage driver has attached.
    #[default]
    Kernel,
    /// Baton's own initiator.
    Tcp,
}

/// One member: a pod that can own the volume and serve the database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MemberSpec {
    /// Its name, unique in the cluster; the pod's is `<cluster>-<name>`.
    #[schemars(length(min = 1, max = 16), regex(pattern = NAME))]
    pub name: String,
    /// Its number in its key on the volume, 1 to 255, unique. Without numbers: its place in the list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<i32>", range(min = 1, max = 255))]
    pub number: Option<u8>,
    /// The value of `kubernetes.io/hostname` of the node that it runs on. Default: the scheduler's choice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub node: Option<String>,
}

/// A PgBouncer that is paused while the database moves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PoolerSpec {
    /// Its admin console, `host:port`.
    #[schemars(length(min = 3, max = 261))]
    pub address: String,
    /// A user among PgBouncer's `admin_users`.
    #[schemars(length(min = 1, max = 63))]
    pub user: String,
    /// Where the user's password is.
    pub password_secret: SecretKey,
}

/// The members' HTTP API.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.tokenSecret) || has(self.tlsSecret)")
    .message("a token needs TLS, or it could be overheard: set tlsSecret too"))]
pub struct ApiSpec {
    /// The token for what changes something (`kubectl baton switchover`), at least 16 characters. Default:
    /// none, nothing can be changed over HTTP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_secret: Option<SecretKey>,
    /// A Secret of type kubernetes.io/tls. Default: none, no TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub tls_secret: Option<String>,
}

/// One value of a Secret in the same namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SecretKey {
    /// The Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// The key in it.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

fn local() -> String {
    "local".to_owned()
}

fn hostname() -> String {
    "kubernetes.io/hostname".to_owned()
}

const fn grace() -> i64 {
    120
}

const fn yes() -> bool {
    true
}
