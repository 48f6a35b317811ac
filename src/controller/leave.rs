//! A cluster that is deleted: its pods end in order, standbys before the owner, so that nobody takes
//! over from one that is about to end too. Everything else goes with the cluster by its owner references;
//! the claim, the peers' Secret and the site's Lease have none and stay: they are needed to bring the
//! database back, and are the user's to remove.

use std::sync::Arc;
use std::time::Duration;

use kube::ResourceExt;
use kube::runtime::controller::Action;

use super::look;
use super::reconcile::{Look, ReconcileError};
use super::story::Note;
use super::view::{PodView, SiteView};
use crate::cluster::names;

/// Between two looks at pods that end, should their own events be missed.
const ENDING: Duration = Duration::from_secs(10);

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
        let text = format!(
            "the pods have ended; PersistentVolumeClaim {}, Secret {} and Lease {} stay",
            cluster.claim(),
            names::peer_secret(cluster.cluster()),
            names::lease(cluster.cluster(), &cluster.spec.site),
        );
        look.publish(&Note::of_pod("Removed", text)).await?;
        let mut finalizers = cluster.finalizers().to_vec();
        finalizers.retain(|name| name != names::FINALIZER);
        look.set_finalizers(finalizers).await?;
        look.forget();
        return Ok(Action::await_change());
    }
    let pods: Vec<_> = pods.into_iter().map(Arc::new).collect();
    let lease = context.stores.lease_of(cluster);
    let templates = look::templates(cluster)?;
    let site = SiteView::of(cluster, templates, lease.as_deref(), &pods);
    let owner = site.owner().and_then(|owner| owner.pod.as_ref());
    for pod in due(
        &pods.iter().map(|pod| PodView::of(pod)).collect::<Vec<_>>(),
        owner,
    ) {
        let text = format!("pod {} ends: the cluster is deleted", pod.name);
        look.delete_pod(pod, Note::of_pod("Removing", text)).await?;
    }
    Ok(Action::requeue(ENDING))
}

/// The pods to delete now: all but the owner's, then the owner's.
fn due<'p>(pods: &'p [PodView], owner: Option<&PodView>) -> Vec<&'p PodView> {
    let is_owner = |pod: &PodView| owner.is_some_and(|owner| owner.uid == pod.uid);
    let others_left = pods.iter().any(|pod| !is_owner(pod));
    pods.iter()
        .filter(|pod| !pod.terminating)
        .filter(|pod| !(others_left && is_owner(pod)))
        .collect()
}
