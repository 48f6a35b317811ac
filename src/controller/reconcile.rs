//! One look at one cluster: what is, what should be, and the next steps towards it. The judgement is in
//! `accept`, `rollout`, `status` and `story`; here is their order.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fencing::Mono;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Secret};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::runtime::controller::Action;
use kube::runtime::events::Reporter;
use kube::{Client, Resource, ResourceExt};
use serde_json::json;

use super::accept::{self, Problem};
use super::apply::Wanted;
use super::look::{self, LookError};
use super::objects::{self, ObjectError};
use super::progress::{Progress, Trouble};
use super::request::{RequestError, Written, ask, raced};
use super::rollout::{self, Outage, Step, Waiting};
use super::status::Judged;
use super::story::Note;
use super::view::PodView;
use super::watch::Stores;
use super::zones::ClusterView;
use super::{RETRY, leave};
use crate::clock;
use crate::cluster::{BatonCluster, BatonClusterStatus, FIELD_MANAGER, names};
use crate::hex::hex;

/// Between two looks at a cluster where nothing has changed.
const CALM: Duration = Duration::from_secs(600);

/// Between two looks at a cluster that is not accepted: claims and Secrets are not watched.
const REFUSED: Duration = Duration::from_secs(15);

/// Between two looks at a cluster where something waits for a time to pass.
const PASSING: Duration = Duration::from_secs(10);

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
    /// Since when nobody serves, by UID and site, as far as this controller has seen it.
    pub unserved: Mutex<HashMap<(String, String), Mono>>,
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
        let outage = self.outage(&view);
        let looked = look::surroundings(&context.client, stores, cluster, &wanted, &view).await;
        let around = match looked {
            Ok(around) => around,
            // Whether it is accepted is unknown; who owns and serves is not.
            Err(error) => return self.refused(&view, None, Trouble::from(&error)).await,
        };
        let problems = accept::problems(cluster, &around);
        if !problems.is_empty() {
            self.tell(&view, &Judged::not_accepted(&problems)).await?;
            return Ok(Action::requeue(REFUSED));
        }
        match raced(self.protect().await) {
            Ok(Written::Done) => {}
            Ok(Written::Outdated) => return Ok(Action::requeue(AGAIN)),
            Err(error) => {
                let trouble = Trouble::from(&error);
                return self.refused(&view, Some(&problems), trouble).await;
            }
        }
        let mut making = Making::default();
        self.keep(&wanted, &mut making).await;
        self.make_once(&around, &mut making).await;
        self.keep_pods(&view, &pods, &mut making).await?;
        let step = self.roll(&view, &outage, &mut making).await?;
        let Making {
            troubles, outdated, ..
        } = making;
        let progress = match troubles.is_empty() {
            true => Progress::Made,
            false => Progress::Refused(troubles),
        };
        let judged = Judged {
            problems: Some(&problems),
            step: &step,
            progress: &progress,
        };
        self.tell(&view, &judged).await?;
        Ok(Action::requeue(match progress {
            Progress::Refused(_) => RETRY,
            _ if outdated => AGAIN,
            _ if matches!(&step, Step::Wait(why) if why.passes()) => PASSING,
            _ => CALM,
        }))
    }

    /// Ends a look that could make nothing. The status follows what is, all the same.
    async fn refused(
        &self,
        view: &ClusterView,
        problems: Option<&[Problem]>,
        trouble: Trouble,
    ) -> Result<Action, ReconcileError> {
        let progress = Progress::Refused(vec![trouble]);
        let judged = Judged {
            problems,
            step: &Step::Wait(Waiting::Refused),
            progress: &progress,
        };
        self.tell(view, &judged).await?;
        Ok(Action::requeue(RETRY))
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

    async fn keep(&self, wanted: &[Wanted], making: &mut Making) {
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
                let applied = one.apply(&context.client, namespace).await;
                making.old_settings |= applied.is_err() && one.resource.kind == "ConfigMap";
                making.note(applied.map(|()| Written::Done));
            }
        }
    }

    /// What is made once and never changed: the Secrets of peers and replicas, and the claims from templates.
    async fn make_once(&self, around: &accept::Surroundings, making: &mut Making) {
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
                let made = raced(ask(|| format!("make Secret {name}"), request).await);
                making.note(made.map(|_| Written::Done));
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
                let made =
                    raced(ask(|| format!("make PersistentVolumeClaim {name}"), request).await);
                making.note(made.map(|_| Written::Done));
            }
        }
    }

    /// Makes the pods that are missing, and removes those that have ended for good or whose member is
    /// gone from the specification.
    async fn keep_pods(
        &self,
        view: &ClusterView,
        pods: &[Arc<Pod>],
        making: &mut Making,
    ) -> Result<(), ObjectError> {
        if making.old_settings {
            // A pod bears the mark of the settings that it should have: it would start with older ones.
            return Ok(());
        }
        for site in self.cluster.sites() {
            for (number, member) in site.numbered() {
                let mut members = view.members();
                let found = members.find(|(_, seen)| seen.name == member.name);
                let one = match found.and_then(|(_, seen)| seen.pod.as_ref()) {
                    None => {
                        let pod = objects::pod(&site, number, member)?;
                        self.make_pod(&pod).await
                    }
                    Some(pod) if pod.finished && !pod.terminating => {
                        let text = format!("pod {} has ended and is made anew", pod.name);
                        self.delete_pod(pod, Note::of_pod("PodEnded", text)).await
                    }
                    Some(_) => Ok(Written::Done),
                };
                making.note(one);
            }
        }
        for pod in pods.iter().map(|pod| PodView::of(pod)) {
            if self.cluster.member_of_pod(&pod.name).is_none() && !pod.terminating {
                let text = format!("pod {} is of no member any more and is removed", pod.name);
                let why = Note::of_pod("MemberRemoved", text);
                let removed = self.delete_pod(&pod, why).await;
                making.note(removed.map(|_| Written::Done));
            }
        }
        Ok(())
    }

    async fn make_pod(&self, pod: &Pod) -> Result<Written, RequestError> {
        let name = pod.name_any();
        let pods: Api<Pod> = self.api();
        let how = creation();
        let request = pods.create(&how, pod);
        let written = raced(ask(|| format!("make pod {name}"), request).await)?;
        if written == Written::Done {
            let text = format!("pod {name} is made");
            self.publish(&Note::of_pod("PodMade", text)).await;
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
            self.publish(&why).await;
        }
        Ok(written)
    }

    /// For how long nobody has served, by this host's clock.
    fn outage(&self, view: &ClusterView) -> Outage {
        let uid = self.cluster.uid().unwrap_or_default();
        let unserved = self.context.unserved.lock();
        let mut unserved = unserved.unwrap_or_else(PoisonError::into_inner);
        let now = clock::now();
        let mut lasts = BTreeMap::new();
        for site in &view.sites {
            let key = (uid.clone(), site.name.clone());
            if site.serves() {
                unserved.remove(&key);
            } else {
                let since = *unserved.entry(key).or_insert(now);
                lasts.insert(site.name.clone(), since.until(now));
            }
        }
        Outage {
            lasts,
            takeover: objects::takeover(self.cluster),
            copy: objects::copy(self.cluster),
        }
    }

    /// The next step towards pods that are as specified; done, if nothing else is amiss.
    async fn roll(
        &self,
        view: &ClusterView,
        outage: &Outage,
        making: &mut Making,
    ) -> Result<Step, ObjectError> {
        let step = rollout::next(view, self.cluster.spec.paused, outage);
        match step {
            Step::Replace { .. } if !making.troubles.is_empty() => Ok(Step::Wait(Waiting::Refused)),
            Step::Replace { .. } => match self.replace(&step, outage).await {
                Ok(step) => Ok(step),
                Err(LookError::Objects(error)) => Err(error),
                Err(LookError::Request(error)) => {
                    making.note(Err(error));
                    Ok(Step::Wait(Waiting::Refused))
                }
            },
            Step::Current | Step::Wait(_) => Ok(step),
        }
    }

    /// Replaces the pod that is next, if a second look, past all caches, finds the same.
    async fn replace(&self, first: &Step, outage: &Outage) -> Result<Step, LookError> {
        let view = look::now(&self.context.client, self.cluster).await?;
        let step = rollout::next(&view, self.cluster.spec.paused, outage);
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
}

/// What became of the requests of one look.
#[derive(Default)]
struct Making {
    /// Those that came to nothing.
    troubles: Vec<Trouble>,
    /// Somebody else was faster.
    outdated: bool,
    /// The members' settings are not what they should be.
    old_settings: bool,
}

impl Making {
    fn note(&mut self, outcome: Result<Written, RequestError>) {
        match outcome {
            Ok(Written::Done) => {}
            Ok(Written::Outdated) => self.outdated = true,
            Err(error) => self.troubles.push(Trouble::from(&error)),
        }
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
