//! What the controller watches, and which cluster each change concerns.
//!
//! Every object of a cluster has the label `app.kubernetes.io/managed-by: baton-controller`, so that only
//! those are watched. The owner renews its Lease every few seconds: only changes of what it *says* concern
//! anybody here.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use futures_util::stream::{self, BoxStream};
use futures_util::{Stream, StreamExt, TryStreamExt};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Service, ServiceAccount};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::api::{Api, DynamicObject};
use kube::core::ApiResource;
use kube::runtime::controller::ReconcileRequest;
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;

use super::view::Record;
use crate::cluster::{BatonCluster, FIELD_MANAGER, names};

/// Which clusters are to be looked at.
type Requests = BoxStream<'static, Result<ReconcileRequest<BatonCluster>, watcher::Error>>;

/// The newest of what is watched.
pub struct Stores {
    /// All clusters.
    pub clusters: Store<BatonCluster>,
    /// The pods of all clusters.
    pub pods: Store<Pod>,
    /// The Leases of all clusters' sites.
    pub leases: Store<Lease>,
    /// What is kept as it should be, by kind.
    kept: Vec<(ApiResource, Store<DynamicObject>)>,
}

impl Stores {
    /// Waits until all of them have seen what there is.
    ///
    /// # Errors
    /// The watches ended before.
    pub async fn ready(&self) -> Result<(), reflector::store::WriterDropped> {
        self.clusters.wait_until_ready().await?;
        self.pods.wait_until_ready().await?;
        self.leases.wait_until_ready().await?;
        for (_, store) in &self.kept {
            store.wait_until_ready().await?;
        }
        Ok(())
    }

    /// An object of a kind that is kept, if it was seen.
    pub fn kept(
        &self,
        resource: &ApiResource,
        namespace: &str,
        name: &str,
    ) -> Option<std::sync::Arc<DynamicObject>> {
        let mut kinds = self.kept.iter();
        let (_, store) = kinds.find(|(kind, _)| kind.kind == resource.kind)?;
        let key = ObjectRef::new_with(name, resource.clone()).within(namespace);
        store.get(&key)
    }

    /// The pods of one cluster.
    pub fn pods_of(&self, cluster: &BatonCluster) -> Vec<std::sync::Arc<Pod>> {
        let mut pods = self.pods.state();
        pods.retain(|pod| {
            concerned(pod.as_ref()).is_some_and(|found| {
                (found.name.as_str(), found.namespace.as_deref())
                    == (cluster.cluster(), Some(cluster.namespace()))
            })
        });
        pods
    }

    /// A Lease of a cluster, by its name.
    pub fn lease(&self, cluster: &BatonCluster, name: &str) -> Option<std::sync::Arc<Lease>> {
        self.leases
            .get(&ObjectRef::new(name).within(cluster.namespace()))
    }
}

/// What is watched: one namespace, or all.
pub struct Scope<'a> {
    /// The way to the API server.
    pub client: &'a Client,
    /// The only namespace; `None` for all.
    pub namespace: Option<&'a str>,
}

impl Scope<'_> {
    fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        match self.namespace {
            Some(namespace) => Api::namespaced(self.client.clone(), namespace),
            None => Api::all(self.client.clone()),
        }
    }

    fn dynamic(&self, resource: &ApiResource) -> Api<DynamicObject> {
        match self.namespace {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, resource),
            None => Api::all_with(self.client.clone(), resource),
        }
    }
}

/// Begins to watch. The stream must be polled, or the stores stay empty.
pub fn watch(scope: &Scope<'_>) -> (Stores, Requests) {
    let mut all: Vec<Requests> = Vec::new();
    let (clusters, writer) = reflector::store();
    let changes = watcher(scope.api::<BatonCluster>(), watcher::Config::default());
    let changes = reflector::reflector(writer, changes.default_backoff());
    let changed = changes.touched_objects();
    all.push(
        changed
            .map_ok(|cluster| ObjectRef::from_obj(&cluster).into())
            .boxed(),
    );

    let (pods, changed) = labelled::<Pod>(scope);
    all.push(concerning(changed.touched_objects()));

    let (leases, changed) = labelled::<Lease>(scope);
    let mut said = HashMap::new();
    let changed = changed.try_filter_map(move |event| {
        let news = news(&mut said, event);
        std::future::ready(Ok(news))
    });
    all.push(concerning(changed));

    let mut kept = Vec::new();
    for resource in kinds() {
        let (store, writer) = {
            let writer = reflector::store::Writer::new(resource.clone());
            (writer.as_reader(), writer)
        };
        let api = scope.dynamic(&resource);
        let changes = reflector::reflector(writer, watcher(api, ours()).default_backoff());
        all.push(concerning(changes.touched_objects()));
        kept.push((resource, store));
    }
    let stores = Stores {
        clusters,
        pods,
        leases,
        kept,
    };
    (stores, stream::select_all(all).boxed())
}

/// The kinds that are applied and kept.
fn kinds() -> [ApiResource; 6] {
    [
        ApiResource::erase::<ConfigMap>(&()),
        ApiResource::erase::<Service>(&()),
        ApiResource::erase::<ServiceAccount>(&()),
        ApiResource::erase::<Role>(&()),
        ApiResource::erase::<RoleBinding>(&()),
        ApiResource::erase::<PodDisruptionBudget>(&()),
    ]
}

fn ours() -> watcher::Config {
    watcher::Config::default().labels(&format!("{}={FIELD_MANAGER}", names::APP_MANAGED_BY))
}

/// Watches objects of one kind that have our label.
fn labelled<K>(
    scope: &Scope<'_>,
) -> (
    Store<K>,
    impl Stream<Item = Result<watcher::Event<K>, watcher::Error>> + Send + 'static,
)
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + std::fmt::Debug
        + Send
        + Sync
        + 'static,
{
    let (store, writer) = reflector::store();
    let changes = watcher(scope.api::<K>(), ours()).default_backoff();
    (store, reflector::reflector(writer, changes))
}

fn concerning<K>(
    changed: impl Stream<Item = Result<K, watcher::Error>> + Send + 'static,
) -> Requests
where
    K: ResourceExt + Send + 'static,
{
    changed
        .try_filter_map(|object| std::future::ready(Ok(concerned(&object).map(Into::into))))
        .boxed()
}

/// The cluster that an object belongs to, by its label.
fn concerned<K: ResourceExt>(object: &K) -> Option<ObjectRef<BatonCluster>> {
    let cluster = object.labels().get(names::CLUSTER)?;
    let namespace = object.namespace()?;
    Some(ObjectRef::new(cluster).within(&namespace))
}

/// The Lease of an event, unless it says what it said before.
fn news(
    said: &mut HashMap<(Option<String>, String), u64>,
    event: watcher::Event<Lease>,
) -> Option<Lease> {
    let key = |lease: &Lease| (lease.namespace(), lease.name_any());
    match event {
        watcher::Event::Apply(lease) | watcher::Event::InitApply(lease) => {
            let now = digest(&lease);
            (said.insert(key(&lease), now) != Some(now)).then_some(lease)
        }
        watcher::Event::Delete(lease) => {
            said.remove(&key(&lease));
            Some(lease)
        }
        watcher::Event::Init | watcher::Event::InitDone => None,
    }
}

/// A number for what a Lease says beside the owner's sign of life.
fn digest(lease: &Lease) -> u64 {
    let mut hasher = DefaultHasher::new();
    lease.metadata.uid.hash(&mut hasher);
    match Record::of(Some(lease)) {
        Record::Known(mut record) => {
            record.sequence = 0;
            // As text: it is what counts, and has no Hash.
            serde_json::to_string(&record).ok().hash(&mut hasher);
        }
        Record::None | Record::Unreadable(_) => {
            lease.annotations().get(names::RECORD).hash(&mut hasher);
        }
    }
    hasher.finish()
}
