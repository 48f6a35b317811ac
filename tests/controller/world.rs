//! A namespace with a claim in it, a controller that looks after it, and the members' part, played.

use std::fmt::Debug;
use std::time::Duration;

use apiserver::{ADMIN, Server};
use baton::cluster::{BatonCluster, names};
use baton::controller::{self, Election, Options};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Namespace, PersistentVolumeClaim, Pod};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::conditions::is_crd_established;
use kube::runtime::wait::await_condition;
use kube::{Client, CustomResourceExt, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// How long anything may take; the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How long a controller must be silent here before another takes over.
pub const LEASE: Duration = Duration::from_secs(3);

/// An API server, and a namespace of this test's own.
pub struct World {
    /// The stand-in, unless the API server is one that KUBECONFIG names.
    pub server: Option<Server>,
    pub client: Client,
    pub namespace: String,
}

/// A controller that ends with this value, as if it had been killed.
pub struct Controller(JoinHandle<()>);

impl Drop for Controller {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl World {
    pub async fn new() -> Self {
        let (server, client) = match std::env::var_os("KUBECONFIG") {
            Some(_) => (None, Client::try_default().await.unwrap()),
            None => {
                let server = Server::start(apiserver::Options::default()).await.unwrap();
                let client = server.client(ADMIN).await;
                (Some(server), client)
            }
        };
        let namespace = format!("baton-{}", uuid::Uuid::new_v4().simple());
        let world = Self {
            server,
            client,
            namespace,
        };
        world.prepare().await;
        world
    }

    async fn prepare(&self) {
        let definitions: Api<CustomResourceDefinition> = Api::all(self.client.clone());
        let definition = BatonCluster::crd();
        let how = PatchParams::apply("test").force();
        let name = definition.name_any();
        definitions
            .patch(&name, &how, &Patch::Apply(&definition))
            .await
            .unwrap();
        let established = await_condition(definitions, &name, is_crd_established());
        timeout(PATIENCE, established).await.unwrap().unwrap();
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        let namespace = serde_json::from_value(json!({
            "metadata": {"name": self.namespace,
                "labels": {"pod-security.kubernetes.io/enforce": "privileged"}},
        }))
        .unwrap();
        namespaces
            .create(&PostParams::default(), &namespace)
            .await
            .unwrap();
        self.claim("disk", "ReadWriteMany", "Block").await;
    }

    /// Labels the namespace with what its pods may be.
    pub async fn pod_security(&self, level: &str) {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        let labels = json!({"pod-security.kubernetes.io/enforce": level});
        let patch = Patch::Merge(json!({"metadata": {"labels": labels}}));
        let how = PatchParams::default();
        namespaces
            .patch(&self.namespace, &how, &patch)
            .await
            .unwrap();
    }

    /// Removes what a real server would keep. The stand-in goes with its value.
    pub async fn end(self) {
        if self.server.is_none() {
            let namespaces: Api<Namespace> = Api::all(self.client.clone());
            let _gone = namespaces
                .delete(&self.namespace, &DeleteParams::default())
                .await;
        }
    }

    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    pub fn controller(&self, name: &str) -> Controller {
        self.controller_by(self.client.clone(), name, &self.namespace)
    }

    pub fn controller_by(&self, client: Client, name: &str, lease: &str) -> Controller {
        let options = Options {
            election: Election {
                namespace: lease.to_owned(),
                identity: name.to_owned(),
                duration: LEASE,
            },
            only_namespace: Some(self.namespace.clone()),
        };
        let run = controller::run(client, options, std::future::pending());
        Controller(tokio::spawn(run))
    }

    pub async fn claim(&self, name: &str, mode: &str, volume: &str) {
        let claim: PersistentVolumeClaim = serde_json::from_value(json!({
            "metadata": {"name": name},
            "spec": {"accessModes": [mode], "volumeMode": volume, "storageClassName": "none",
                "resources": {"requests": {"storage": "1Gi"}}},
        }))
        .unwrap();
        self.make(&claim).await;
    }

    pub async fn make<K>(&self, object: &K) -> K
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + Debug
            + DeserializeOwned
            + Serialize,
    {
        let api = self.api::<K>();
        api.create(&PostParams::default(), object).await.unwrap()
    }

    /// The cluster `main`, members a and b, with a change to its specification.
    pub fn cluster(&self, name: &str, change: impl FnOnce(&mut Value)) -> BatonCluster {
        let mut object = json!({
            "apiVersion": "baton.dev/v1alpha1",
            "kind": "BatonCluster",
            "metadata": {"name": name},
            "spec": {
                "image": "baton:1",
                "volume": {"claimName": "disk"},
                "members": [{"name": "a"}, {"name": "b"}],
                // No node has this: on a real server the pods stay as they are made.
                "nodeSelector": {"baton.dev/test": "none"},
            },
        });
        change(&mut object["spec"]);
        serde_json::from_value(object).unwrap()
    }

    pub async fn change(&self, name: &str, spec: Value) {
        let clusters = self.api::<BatonCluster>();
        let patch = Patch::Merge(json!({"spec": spec}));
        clusters
            .patch(name, &PatchParams::default(), &patch)
            .await
            .unwrap();
    }

    /// Waits until the object is as wished, and returns it.
    pub async fn until<K>(&self, name: &str, what: &str, condition: impl Fn(&K) -> bool) -> K
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + Debug
            + DeserializeOwned
            + Send
            + 'static,
    {
        let api = self.api::<K>();
        let wished = await_condition(api.clone(), name, |object: Option<&K>| {
            object.is_some_and(&condition)
        });
        match timeout(PATIENCE, wished).await {
            Ok(found) => found.unwrap().unwrap(),
            Err(_) => panic!("{name} never: {what}; it is {:#?}", api.get_opt(name).await),
        }
    }

    pub async fn until_gone<K>(&self, name: &str)
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + Debug
            + DeserializeOwned
            + Send
            + 'static,
    {
        let gone = await_condition(self.api::<K>(), name, |object: Option<&K>| object.is_none());
        let gone = timeout(PATIENCE, gone).await;
        gone.unwrap_or_else(|_| panic!("{name} is still there"))
            .unwrap();
    }

    /// Waits until a condition of the cluster has this status and reason, and returns its message.
    pub async fn until_condition(
        &self,
        name: &str,
        type_: &str,
        status: &str,
        reason: &str,
    ) -> String {
        let of = |cluster: &BatonCluster| {
            let found = cluster.status.as_ref()?.condition(type_)?;
            let same = (found.status.as_str(), found.reason.as_str()) == (status, reason);
            same.then(|| found.message.clone())
        };
        let what = format!("{type_}={status} {reason}");
        let cluster = self.until::<BatonCluster>(name, &what, |cluster| of(cluster).is_some());
        of(&cluster.await).unwrap()
    }

    /// Waits for a pod, another one than that with the UID `not`.
    pub async fn pod(&self, name: &str, not: Option<&str>) -> Pod {
        self.until(name, "made", |pod: &Pod| {
            pod.metadata.deletion_timestamp.is_none() && pod.uid().as_deref() != not
        })
        .await
    }

    /// What a member writes on its pod, and what its kubelet finds.
    pub async fn play(&self, pod: &str, role: &str, ready: bool) {
        let pods = self.api::<Pod>();
        let serving = (role == "active").then_some("true");
        let primary = (role == "active").then_some("primary");
        let labels = json!({names::ROLE: role, names::SERVING: serving, "role": primary});
        let patch = Patch::Merge(json!({"metadata": {"labels": labels}}));
        let how = PatchParams {
            field_manager: Some("baton-member".to_owned()),
            ..PatchParams::default()
        };
        pods.patch(pod, &how, &patch).await.unwrap();
        let ready = if ready { "True" } else { "False" };
        let condition = json!({"type": "Ready", "status": ready});
        let patch = Patch::Merge(json!({"status": {"conditions": [condition]}}));
        pods.patch_status(pod, &how, &patch).await.unwrap();
    }

    /// What a member writes on its pod when it cannot get on, and when it can again.
    pub async fn call(&self, pod: &str, text: Option<&str>) {
        let patch =
            Patch::Merge(json!({"metadata": {"annotations": {names::NEEDS_OPERATOR: text}}}));
        let how = PatchParams::default();
        self.api::<Pod>().patch(pod, &how, &patch).await.unwrap();
    }

    /// What the owner writes into the site's Lease.
    pub async fn own(&self, cluster: &str, number: u8, epoch: u32, planned: bool) {
        self.own_site(cluster, "local", number, epoch, planned)
            .await;
    }

    /// As [`Self::own`], of one site among several.
    pub async fn own_site(&self, cluster: &str, site: &str, number: u8, epoch: u32, planned: bool) {
        let record = json!({
            "epoch": epoch, "newest": epoch, "holder": number, "incarnation": 1, "sequence": 1,
            "clean": false, "planned": planned, "initialized": true, "paused": false,
        });
        let mut labels = names::labels(cluster);
        labels.insert(names::SITE.to_owned(), site.to_owned());
        let lease = json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"labels": labels, "annotations": {names::RECORD: record.to_string()}},
            "spec": {"leaseTransitions": epoch},
        });
        let name = names::lease(cluster, site);
        let leases = self.api::<Lease>();
        let how = PatchParams::apply("baton-member").force();
        leases
            .patch(&name, &how, &Patch::Apply(lease))
            .await
            .unwrap();
    }

    /// A cluster that serves: a is active with epoch 1, b its standby.
    pub async fn healthy(&self, name: &str) {
        let (a, b) = (names::pod(name, "a"), names::pod(name, "b"));
        self.pod(&a, None).await;
        self.pod(&b, None).await;
        self.own(name, 1, 1, false).await;
        self.play(&a, "active", true).await;
        self.play(&b, "standby", true).await;
        self.until_condition(name, "StandbyReady", "True", "StandbyReady")
            .await;
        self.until_condition(name, "Ready", "True", "Serving").await;
    }

    /// Waits until these Events were made, in this order, whatever is between; returns all. The status is
    /// written before.
    pub async fn told(&self, cluster: &str, order: &[&str]) -> Vec<String> {
        let begun = tokio::time::Instant::now();
        loop {
            let told = self.events(cluster).await;
            let mut rest = told.iter();
            if order.iter().all(|reason| rest.any(|found| found == reason)) {
                return told;
            }
            assert!(begun.elapsed() < PATIENCE, "never {order:?}: {told:?}");
            // Events have no condition that could be awaited.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The reasons of the cluster's Events, warnings with a mark, in the order in which they were made.
    pub async fn events(&self, cluster: &str) -> Vec<String> {
        let events = self
            .api::<Event>()
            .list(&ListParams::default())
            .await
            .unwrap();
        let mut found: Vec<_> = events
            .items
            .into_iter()
            .filter(|event| {
                let regarding = event.regarding.as_ref();
                regarding.and_then(|regarding| regarding.name.as_deref()) == Some(cluster)
            })
            .collect();
        found.sort_by_key(|event| event.event_time.clone().map(|time| time.0));
        let word = |event: Event| {
            let mark = if event.type_.as_deref() == Some("Warning") {
                "!"
            } else {
                ""
            };
            format!("{}{mark}", event.reason.unwrap_or_default())
        };
        found.into_iter().map(word).collect()
    }
}
