//! One look at one cluster: what is, what should be, and the next steps towards it. The judgement is in
//! `accept`, `rollout`, `status` and `story`; here is their order.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::runtime::controller::Action;
use kube::runtime::events::{Recorder, Reporter};
use kube::{Client, Resource, ResourceExt};
use serde_json::json;

use super::accept::{self, Problem};
use super::apply::Wanted;
use super::look::{self, LookError};
use super::objects::{self, ObjectError};
use super::request::{RequestError, Written, ask, raced};
use super::rollout::{self, Step, Waiting};
use super::story::{self, Note};
use super::view::PodView;
use super::watch::Stores;
use super::zones::ClusterView;
use super::{leave, status};
use crate::clock;
use crate::cluster::{BatonCluster, BatonClusterStatus, FIELD_MANAGER, names};
use crate::hex::hex;

/// Between two looks at a cluster where nothing has changed.
const CALM: Duration = Duration::from_secs(600);

/// Between two looks at a cluster that is not accepted: claims and Secrets are not watched.
const REFUSED: Duration = Duration::from_secs(15);

/// Between two looks at a cluster where somebody else was faster.
const AGAIN: Duration = Duration::from_secs(2);

/// What every look needs.
pub struct Context {
    /// The way to the API server.
    pub client: Client,
    /// What is watched.
    pub stores: Stores,
    /// Who tells, in Events.
    pub reporter: Reporter,
    /// The newest status that was written, by UID. The watched object may still have an older one, and
    /// what is between the two would be told twice.
    pub told: Mutex<HashMap<String, BatonClusterStatus>>,
}

/// A look that did not come to its end. It is repeated.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// The API server did not do or say something.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// What should be cannot be written down.
    #[error(transparent)]
    Objects(#[from] ObjectError),
}

impl From<LookError> for ReconcileError {
    fn from(error: LookError) -> Self {
        match error {
            LookError::Request(error) => Self::Request(error),
            LookError::Objects(error) => Self::Objects(error),
        }
    }
}

/// Looks at one cluster and does what is next.
///
/// # Errors
/// Something could not be done; nothing is undone, the next look goes on.
pub async fn reconcile(
    cluster: Arc<BatonCluster>,
    context: Arc<Context>,
) -> Result<Action, ReconcileError> {
    let one = Look {
        cluster: &cluster,
        context: &context,
    };
    if cluster.metadata.deletion_timestamp.is_some() {
        return leave::leave(&one).await;
    }
    one.go_on().await
}

/// One look.
pub struct Look<'a> {
    /// The cluster.
    pub cluster: &'a BatonCluster,
    /// What is needed.
    pub context: &'a Context,
}

impl Look<'_> {
    async fn go_on(&self) -> Result<Action, ReconcileError> {
        let Self { cluster, context } = self;
        let stores = &context.stores;
        let wanted = objects::applied(cluster)?.into_iter();
        let wanted: Vec<_> = wanted.map(Wanted::new).collect();
        let pods = stores.pods_of(cluster);
        let view = look::seen(stores, cluster, &pods)?;
        let around = look::surroundings(&context.client, stores, cluster, &wanted, &view).await?;
        let problems = accept::problems(cluster, &around);
        if !problems.is_empty() {
            let step = Step::Wait(Waiting::NotAccepted);
            self.tell(&view, &problems, &step).await?;
            return Ok(Action::requeue(REFUSED));
        }
        self.protect().await?;
        self.keep(&wanted).await?;
        self.make_once(&around).await?;
        let waits = self.keep_pods(&view, &pods).await?;
        let mut step = rollout::next(&view, cluster.spec.paused);
        if let Step::Replace { .. } = step {
            step = self.replace(&step).await?;
        }
        self.tell(&view, &problems, &step).await?;
        Ok(Action::requeue(if waits == Written::Outdated {
            AGAIN
        } else {
            CALM
        }))
    }

    /// The finalizer, before anything is made that it protects.
    async fn protect(&self) -> Result<(), RequestError> {
        if self
            .cluster
            .finalizers()
            .iter()
            .any(|name| name == names::FINALIZER)
        {
            return Ok(());
        }
        let mut finalizers = self.cluster.finalizers().to_vec();
        finalizers.push(names::FINALIZER.to_owned());
        self.set_finalizers(finalizers).await
    }

    /// Replaces the list, if the object is still the one that was seen.
    pub async fn set_finalizers(&self, finalizers: Vec<String>) -> Result<(), RequestError> {
        let clusters: Api<BatonCluster> = self.api();
        let metadata = json!({
            "finalizers": finalizers,
            "resourceVersion": self.cluster.resource_version(),
        });
        let patch = Patch::Merge(json!({"metadata": metadata}));
        let how = PatchParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PatchParams::default()
        };
        let name = self.cluster.cluster();
        let request = clusters.patch_metadata(name, &how, &patch);
        ask(|| format!("set the finalizers of {name}"), request).await?;
        Ok(())
    }

    /// The objects of the cluster in its namespace.
    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.context.client.clone(), self.cluster.namespace())
    }

    async fn keep(&self, wanted: &[Wanted]) -> Result<(), RequestError> {
        let Self { cluster, context } = self;
        let namespace = cluster.namespace();
        for one in wanted {
            let live = context.stores.kept(&one.resource, namespace, &one.name);
            if live.is_none_or(|live| !one.is(&live)) {
                tracing::info!(
                    cluster = cluster.cluster(),
                    namespace,
                    object = one.shown(),
                    "applies"
                );
                one.apply(&context.client, namespace).await?;
            }
        }
        Ok(())
    }

    /// What is made once and never changed: the Secrets of peers and replicas, and the claims from templates.
    async fn make_once(&self, around: &accept::Surroundings) -> Result<(), RequestError> {
        let cluster = self.cluster;
        let random = || hex(&rand::random::<[u8; 32]>());
        let mut wanted = vec![objects::peer_secret(cluster, random())];
        if cluster.has_several_sites() && cluster.replication().password_secret.is_none() {
            wanted.push(objects::replication_secret(cluster, random()));
        }
        for secret in wanted {
            let name = secret.name_any();
            if around.secrets.get(&name).is_none_or(Option::is_none) {
                let secrets: Api<Secret> = self.api();
                let how = creation();
                let request = secrets.create(&how, &secret);
                raced(ask(|| format!("make Secret {name}"), request).await)?;
            }
        }
        for site in cluster.sites() {
            let there = around.claims.get(&site.claim());
            let Some(claim) = objects::volume_claim(&site) else {
                continue;
            };
            if there.is_none_or(Option::is_none) {
                let claims: Api<PersistentVolumeClaim> = self.api();
                let name = claim.name_any();
                let how = creation();
                let request = claims.create(&how, &claim);
                raced(ask(|| format!("make PersistentVolumeClaim {name}"), request).await)?;
            }
        }
        Ok(())
    }

    /// Makes the pods that are missing, and removes those that have ended for good or whose member is
    /// gone from the specification.
    async fn keep_pods(
        &self,
        view: &ClusterView,
        pods: &[Arc<Pod>],
    ) -> Result<Written, ReconcileError> {
        let mut all = Written::Done;
        for site in self.cluster.sites() {
            for (number, member) in site.numbered() {
                let mut members = view.members();
                let found = members.find(|(_, seen)| seen.name == member.name);
                let one = match found.and_then(|(_, seen)| seen.pod.as_ref()) {
                    None => {
                        let pod = objects::pod(&site, number, member)?;
                        self.make_pod(&pod).await?
                    }
                    Some(pod) if pod.finished && !pod.terminating => {
                        let text = format!("pod {} has ended and is made anew", pod.name);
                        self.delete_pod(pod, Note::of_pod("PodEnded", text)).await?
                    }
                    Some(_) => Written::Done,
                };
                if one == Written::Outdated {
                    all = one;
                }
            }
        }
        for pod in pods.iter().map(|pod| PodView::of(pod)) {
            if self.cluster.member_of_pod(&pod.name).is_none() && !pod.terminating {
                let text = format!("pod {} is of no member any more and is removed", pod.name);
                self.delete_pod(&pod, Note::of_pod("MemberRemoved", text))
                    .await?;
            }
        }
        Ok(all)
    }

    async fn make_pod(&self, pod: &Pod) -> Result<Written, RequestError> {
        let name = pod.name_any();
        let pods: Api<Pod> = self.api();
        let how = creation();
        let request = pods.create(&how, pod);
        let written = raced(ask(|| format!("make pod {name}"), request).await)?;
        if written == Written::Done {
            let text = format!("pod {name} is made");
            self.publish(&Note::of_pod("PodMade", text)).await?;
        }
        Ok(written)
    }

    /// Deletes the very version of a pod that was looked at, and no other. Its termination grace period
    /// is what it has for a handover.
    pub async fn delete_pod(&self, pod: &PodView, why: Note) -> Result<Written, RequestError> {
        let pods: Api<Pod> = self.api();
        let how = DeleteParams {
            preconditions: Some(Preconditions {
                uid: Some(pod.uid.clone()),
                resource_version: Some(pod.version.clone()),
            }),
            ..DeleteParams::default()
        };
        let request = pods.delete(&pod.name, &how);
        let written = raced(ask(|| format!("delete pod {}", pod.name), request).await)?;
        if written == Written::Done {
            tracing::info!(
                cluster = self.cluster.cluster(),
                pod = pod.name,
                why = why.text,
                "deletes a pod"
            );
            self.publish(&why).await?;
        }
        Ok(written)
    }

    /// Replaces the pod that is next, if a second look, past all caches, finds the same.
    async fn replace(&self, first: &Step) -> Result<Step, ReconcileError> {
        let view = look::now(&self.context.client, self.cluster).await?;
        let step = rollout::next(&view, self.cluster.spec.paused);
        if let (Step::Replace { pod, member, owner }, true) = (&step, same(first, &step)) {
            let text = if *owner {
                format!(
                    "the active {member} hands over and is made anew: pod {}",
                    pod.name
                )
            } else {
                format!("the standby {member} is made anew: pod {}", pod.name)
            };
            self.delete_pod(pod, Note::of_pod("RollingUpdate", text))
                .await?;
        }
        Ok(step)
    }

    /// Writes the status and tells what has changed, if something has.
    async fn tell(
        &self,
        view: &ClusterView,
        problems: &[Problem],
        step: &Step,
    ) -> Result<(), RequestError> {
        let Self { cluster, context } = self;
        let uid = cluster.uid().unwrap_or_default();
        let told = {
            let told = context.told.lock().unwrap_or_else(PoisonError::into_inner);
            told.get(&uid).cloned()
        };
        let before = told.or_else(|| cluster.status.clone()).unwrap_or_default();
        let generation = cluster.metadata.generation;
        let after = status::status(view, problems, step, generation, &before, &now());
        if after == before {
            return Ok(());
        }
        let record = view.primary().and_then(|site| site.record.known());
        let planned = record.is_some_and(|record| record.planned);
        for note in story::between(&before, &after, problems, planned) {
            self.publish(&note).await?;
        }
        self.write_status(&after).await?;
        let mut told = context.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.insert(uid, after);
        Ok(())
    }

    /// Forgets what was told of a cluster that is gone.
    pub fn forget(&self) {
        let uid = self.cluster.uid().unwrap_or_default();
        let mut told = self
            .context
            .told
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        told.remove(&uid);
    }

    async fn write_status(&self, status: &BatonClusterStatus) -> Result<(), RequestError> {
        let clusters: Api<BatonCluster> = self.api();
        let name = self.cluster.cluster();
        let patch = Patch::Apply(json!({
            "apiVersion": BatonCluster::api_version(&()),
            "kind": BatonCluster::kind(&()),
            "status": status,
        }));
        let how = PatchParams::apply(FIELD_MANAGER).force();
        let request = clusters.patch_status(name, &how, &patch);
        ask(|| format!("write the status of {name}"), request).await?;
        Ok(())
    }

    /// Tells it as an Event of the cluster, and in the log.
    pub async fn publish(&self, note: &Note) -> Result<(), RequestError> {
        let Self { cluster, context } = self;
        tracing::info!(
            cluster = cluster.cluster(),
            namespace = cluster.namespace(),
            reason = note.reason,
            warning = note.warning,
            "{}",
            note.text
        );
        let regarding = cluster.object_ref(&());
        let event = note.event();
        // A recorder of its own: one that is kept takes two Events of one reason for the same, and only
        // counts the second, whatever it says.
        let recorder = Recorder::new(context.client.clone(), context.reporter.clone());
        let request = recorder.publish(&event, &regarding);
        ask(|| format!("write the Event {}", note.reason), request).await
    }
}

/// Whether both would replace the same pod.
fn same(first: &Step, second: &Step) -> bool {
    match (first, second) {
        (Step::Replace { pod: one, .. }, Step::Replace { pod: two, .. }) => one.uid == two.uid,
        (Step::Replace { .. } | Step::Current | Step::Wait(_), _) => false,
    }
}

fn creation() -> PostParams {
    PostParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PostParams::default()
    }
}

/// Now, for people, in whole seconds, as the API writes it.
fn now() -> Time {
    let seconds = i64::try_from(clock::wall().0 / 1000).unwrap_or(i64::MAX);
    Time(Timestamp::from_second(seconds).unwrap_or(Timestamp::UNIX_EPOCH))
}
