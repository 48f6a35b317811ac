//! A cluster that is deleted: its pods end in order, standbys before the owner, so that nobody takes
//! over from one that is about to end too; of several sites the primary's owner last, so that no site does.
//! Everything else goes with the cluster by its owner references; claims, Secrets and Leases have none
//! and stay: they are needed to bring the database back, and are the user's to remove.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;
use kube::runtime::controller::Action;

use super::progress::{Progress, Stuck, Trouble};
use super::reconcile::{Look, ReconcileError};
use super::rollout::{Step, Waiting};
use super::status::Judged;
use super::story::Note;
use super::view::{PodView, SiteView};
use super::zones::ClusterView;
use super::{look, tell};
use crate::cluster::{BatonCluster, Site, names};

/// Between two looks at pods that end, should their own events be missed.
const ENDING: Duration = Duration::from_secs(10);

/// How long after its grace period a pod is waited for before people are told.
const LATE: SignedDuration = SignedDuration::from_secs(15);

/// The next step of leaving.
pub async fn leave(look: &Look<'_>) -> Result<Action, ReconcileError> {
    let Look { cluster, context } = look;
    let ours = cluster
        .finalizers()
        .iter()
        .any(|name| name == names::FINALIZER);
    if !ours {
        return Ok(Action::await_change());
    }
    let pods = look::pods_now(&context.client, cluster).await?;
    if pods.is_empty() {
        let mut finalizers = cluster.finalizers().to_vec();
        finalizers.retain(|name| name != names::FINALIZER);
        look.set_finalizers(finalizers).await?;
        look.forget();
        look.publish(&Note::of_pod("Removed", what_stays(cluster)))
            .await;
        return Ok(Action::await_change());
    }
    let pods: Vec<_> = pods.into_iter().map(Arc::new).collect();
    let view = look::seen(&context.stores, cluster, &pods)?;
    let seen: Vec<_> = pods.iter().map(|pod| PodView::of(pod)).collect();
    let mut refused = Vec::new();
    for pod in due(&seen, &view) {
        let text = format!("pod {} ends: the cluster is deleted", pod.name);
        let deleted = look.delete_pod(pod, Note::of_pod("Removing", text)).await;
        refused.extend(deleted.err().as_ref().map(Trouble::from));
    }
    let now = tell::now().0;
    let stuck = seen.iter().filter(|pod| overdue(pod, now));
    let progress = match refused.is_empty() {
        true => Progress::Leaving(stuck.map(Stuck::from).collect()),
        false => Progress::Refused(refused),
    };
    let judged = Judged {
        problems: None,
        step: &Step::Wait(Waiting::Leaving),
        progress: &progress,
    };
    look.tell(&view, &judged).await?;
    Ok(Action::requeue(ENDING))
}

/// Whether a pod should have ended. By the API server's clock and ours: it decides nothing, people are told.
fn overdue(pod: &PodView, now: Timestamp) -> bool {
    pod.end.is_some_and(|end| now.duration_since(end) > LATE)
}

fn what_stays(cluster: &BatonCluster) -> String {
    let sites = cluster.sites();
    let claims: Vec<_> = sites.iter().map(Site::claim).collect();
    let mut leases: Vec<_> = sites.iter().map(Site::lease).collect();
    let mut secrets = vec![names::peer_secret(cluster.cluster())];
    if cluster.has_several_sites() {
        leases.push(names::record_lease(cluster.cluster()));
        secrets.push(cluster.replication_password().name);
    }
    format!(
        "the pods have ended; PersistentVolumeClaim {}, Secret {} and Lease {} stay",
        claims.join(", "),
        secrets.join(", "),
        leases.join(", "),
    )
}

/// The pods to delete now: those of nobody who owns a volume; then the owners of replicas; then the
/// primary's.
fn due<'p>(pods: &'p [PodView], view: &ClusterView) -> Vec<&'p PodView> {
    let rank = |pod: &PodView| {
        let owns = |site: &&SiteView| {
            let owner = site.owner().and_then(|owner| owner.pod.as_ref());
            owner.is_some_and(|owner| owner.uid == pod.uid)
        };
        let site = view.sites.iter().find(owns);
        site.map_or(0, |site| if site.primary { 2 } else { 1 })
    };
    let first = pods.iter().map(rank).min();
    pods.iter()
        .filter(|pod| !pod.terminating && Some(rank(pod)) == first)
        .collect()
}
