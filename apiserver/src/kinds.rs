//! What the server serves: one `Kind` per resource, the built-in ones from a table, the custom
//! ones from their CustomResourceDefinitions. Nothing about a request is decided here.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use k8s_openapi::api::{
    apps::v1 as apps, batch::v1 as batch, coordination::v1 as coordination, core::v1 as core,
    discovery::v1 as discovery, networking::v1 as networking, policy::v1 as policy,
    rbac::v1 as rbac, scheduling::v1 as scheduling, storage::v1 as storage,
};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1 as extensions;

use crate::events;

/// Reads a built-in object with its Rust type and writes it again: types are checked, fields
/// that the type does not know fall away.
pub(crate) type Normalise = fn(Value) -> Result<Value, serde_json::Error>;

/// One served version of a resource.
#[derive(Clone, Debug)]
pub(crate) struct Version {
    /// `v1`
    pub name: String,
    /// Structural schema of a custom resource.
    pub schema: Option<Arc<Value>>,
    /// Whether `/status` is a subresource.
    pub status: bool,
}

/// How one of two resources over the same objects is written as the other.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facade {
    /// From the served form to the stored one.
    pub store: fn(Value) -> Value,
    /// From the stored form to the served one.
    pub serve: fn(Value) -> Value,
}

/// A resource.
#[derive(Clone, Debug)]
pub(crate) struct Kind {
    /// Key of the objects in the store: `pods`, `leases.coordination.k8s.io`.
    pub id: Arc<str>,
    pub group: String,
    pub kind: String,
    pub plural: String,
    pub singular: String,
    pub short_names: Vec<String>,
    pub categories: Vec<String>,
    pub namespaced: bool,
    /// Whether `metadata.generation` counts the changes of what is wished for.
    pub generation: bool,
    /// Whether a PUT to a name that does not exist makes the object.
    pub create_on_update: bool,
    /// Whether a PUT without resourceVersion overwrites whatever is there.
    pub unconditional_update: bool,
    /// Served versions, the stored (and preferred) one first.
    pub versions: Vec<Version>,
    /// `None` for custom resources.
    pub native: Option<Normalise>,
    pub facade: Option<Facade>,
}

impl Kind {
    /// The version in which objects lie in the store.
    pub(crate) fn stored(&self) -> &Version {
        &self.versions[0]
    }

    /// A version by its name.
    pub(crate) fn version(&self, name: &str) -> Option<&Version> {
        self.versions.iter().find(|version| version.name == name)
    }

    /// `coordination.k8s.io/v1`, or `v1` of the core group.
    pub(crate) fn api_version(&self, version: &str) -> String {
        if self.group.is_empty() {
            version.to_owned()
        } else {
            format!("{}/{version}", self.group)
        }
    }

    /// Whether objects of this kind are pods.
    pub(crate) fn is(&self, id: &str) -> bool {
        &*self.id == id
    }
}

/// Every resource that is served.
#[derive(Debug)]
pub(crate) struct Kinds {
    by_name: BTreeMap<(String, String), Arc<Kind>>,
}

impl Kinds {
    /// The built-in resources.
    pub(crate) fn built_in() -> Self {
        let mut kinds = Self {
            by_name: BTreeMap::new(),
        };
        for kind in table() {
            kinds.serve(kind);
        }
        kinds
    }

    /// Serves a resource from now on, in place of what has its name.
    pub(crate) fn serve(&mut self, kind: Kind) {
        self.by_name
            .insert((kind.group.clone(), kind.plural.clone()), Arc::new(kind));
    }

    /// Serves it no more.
    pub(crate) fn withdraw(&mut self, group: &str, plural: &str) -> Option<Arc<Kind>> {
        self.by_name.remove(&(group.to_owned(), plural.to_owned()))
    }

    /// A resource by group and plural.
    pub(crate) fn find(&self, group: &str, plural: &str) -> Option<Arc<Kind>> {
        self.by_name
            .get(&(group.to_owned(), plural.to_owned()))
            .cloned()
    }

    /// All, by group and plural.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Kind>> {
        self.by_name.values()
    }
}

fn normalise<T: DeserializeOwned + Serialize>(value: Value) -> Result<Value, serde_json::Error> {
    serde_json::to_value(serde_json::from_value::<T>(value)?)
}

/// What a row of the table may say about a resource beyond its names.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Trait {
    /// Not in a namespace.
    Cluster,
    /// Has `/status`.
    Status,
    /// Counts generations.
    Generation,
    /// PUT may create.
    CreateOnUpdate,
    /// PUT needs a resourceVersion.
    Conditional,
}
use Trait::{Cluster, Conditional, CreateOnUpdate, Generation, Status};

fn row<T: DeserializeOwned + Serialize>(
    group: &str,
    kind: &str,
    plural: &str,
    short_names: &[&str],
    traits: &[Trait],
) -> Kind {
    let has = |wanted| traits.contains(&wanted);
    let id = if group.is_empty() {
        plural.to_owned()
    } else {
        format!("{plural}.{group}")
    };
    Kind {
        id: id.into(),
        group: group.to_owned(),
        kind: kind.to_owned(),
        plural: plural.to_owned(),
        singular: kind.to_lowercase(),
        short_names: short_names.iter().map(|name| (*name).to_owned()).collect(),
        categories: Vec::new(),
        namespaced: !has(Cluster),
        generation: has(Generation),
        create_on_update: has(CreateOnUpdate),
        unconditional_update: !has(Conditional),
        versions: vec![Version {
            name: "v1".to_owned(),
            schema: None,
            status: has(Status),
        }],
        native: Some(normalise::<T>),
        facade: None,
    }
}

/// The built-in resources; which PUTs create and which need a resourceVersion is as in the
/// strategies of Kubernetes 1.33 (`AllowCreateOnUpdate`, `AllowUnconditionalUpdate`).
fn table() -> Vec<Kind> {
    let mut kinds = core_rows();
    kinds.extend(group_rows());
    // The same objects as the core group's events, under other field names.
    let mut newer = row::<core::Event>("events.k8s.io", "Event", "events", &["ev"], &[]);
    newer.id = "events".into();
    newer.create_on_update = true;
    newer.facade = Some(Facade {
        store: events::to_core,
        serve: events::from_core,
    });
    kinds.push(newer);
    kinds
}

#[rustfmt::skip]
fn core_rows() -> Vec<Kind> {
    vec![
        row::<core::ConfigMap>("", "ConfigMap", "configmaps", &["cm"], &[]),
        row::<core::Endpoints>("", "Endpoints", "endpoints", &["ep"], &[CreateOnUpdate]),
        row::<core::Event>("", "Event", "events", &["ev"], &[CreateOnUpdate]),
        row::<core::LimitRange>("", "LimitRange", "limitranges", &["limits"], &[CreateOnUpdate]),
        row::<core::Namespace>("", "Namespace", "namespaces", &["ns"], &[Cluster, Status]),
        row::<core::Node>("", "Node", "nodes", &["no"], &[Cluster, Status]),
        row::<core::PersistentVolumeClaim>("", "PersistentVolumeClaim", "persistentvolumeclaims", &["pvc"], &[Status]),
        row::<core::PersistentVolume>("", "PersistentVolume", "persistentvolumes", &["pv"], &[Cluster, Status]),
        row::<core::Pod>("", "Pod", "pods", &["po"], &[Status]),
        row::<core::ResourceQuota>("", "ResourceQuota", "resourcequotas", &["quota"], &[Status]),
        row::<core::Secret>("", "Secret", "secrets", &[], &[]),
        row::<core::ServiceAccount>("", "ServiceAccount", "serviceaccounts", &["sa"], &[]),
        row::<core::Service>("", "Service", "services", &["svc"], &[Status, CreateOnUpdate]),
    ]
}

#[rustfmt::skip]
fn group_rows() -> Vec<Kind> {
    const RBAC: &str = "rbac.authorization.k8s.io";
    let mut kinds = vec![
        row::<extensions::CustomResourceDefinition>("apiextensions.k8s.io", "CustomResourceDefinition", "customresourcedefinitions", &["crd", "crds"], &[Cluster, Status, Generation, Conditional]),
        row::<apps::DaemonSet>("apps", "DaemonSet", "daemonsets", &["ds"], &[Status, Generation]),
        row::<apps::Deployment>("apps", "Deployment", "deployments", &["deploy"], &[Status, Generation]),
        row::<apps::ReplicaSet>("apps", "ReplicaSet", "replicasets", &["rs"], &[Status, Generation]),
        row::<apps::StatefulSet>("apps", "StatefulSet", "statefulsets", &["sts"], &[Status, Generation]),
        row::<batch::Job>("batch", "Job", "jobs", &[], &[Status, Generation]),
        row::<coordination::Lease>("coordination.k8s.io", "Lease", "leases", &[], &[CreateOnUpdate, Conditional]),
        row::<discovery::EndpointSlice>("discovery.k8s.io", "EndpointSlice", "endpointslices", &[], &[Generation]),
        row::<networking::NetworkPolicy>("networking.k8s.io", "NetworkPolicy", "networkpolicies", &["netpol"], &[Generation]),
        row::<policy::PodDisruptionBudget>("policy", "PodDisruptionBudget", "poddisruptionbudgets", &["pdb"], &[Status, Generation, Conditional]),
        row::<rbac::ClusterRole>(RBAC, "ClusterRole", "clusterroles", &[], &[Cluster, CreateOnUpdate]),
        row::<rbac::ClusterRoleBinding>(RBAC, "ClusterRoleBinding", "clusterrolebindings", &[], &[Cluster, CreateOnUpdate]),
        row::<rbac::Role>(RBAC, "Role", "roles", &[], &[CreateOnUpdate]),
        row::<rbac::RoleBinding>(RBAC, "RoleBinding", "rolebindings", &[], &[CreateOnUpdate]),
        row::<scheduling::PriorityClass>("scheduling.k8s.io", "PriorityClass", "priorityclasses", &["pc"], &[Cluster, Generation]),
        row::<storage::CSIDriver>("storage.k8s.io", "CSIDriver", "csidrivers", &[], &[Cluster, Conditional]),
        row::<storage::CSINode>("storage.k8s.io", "CSINode", "csinodes", &[], &[Cluster, Conditional]),
        row::<storage::StorageClass>("storage.k8s.io", "StorageClass", "storageclasses", &["sc"], &[Cluster]),
        row::<storage::VolumeAttachment>("storage.k8s.io", "VolumeAttachment", "volumeattachments", &[], &[Cluster, Status, Conditional]),
    ];
    for kind in &mut kinds {
        if matches!(kind.plural.as_str(), "deployments" | "daemonsets" | "replicasets" | "statefulsets" | "jobs") {
            kind.categories.push("all".to_owned());
        }
        if kind.plural == "customresourcedefinitions" {
            kind.categories.push("api-extensions".to_owned());
        }
    }
    kinds
}
