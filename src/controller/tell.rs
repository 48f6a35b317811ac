//! Tells people how a cluster is: the status first, which must follow what is, then Events and the log. An
//! Event is a courtesy: one that cannot be written (a namespace that is being deleted takes none) stops nothing.

use std::sync::PoisonError;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::events::Recorder;
use kube::{Resource, ResourceExt};
use serde_json::json;

use super::reconcile::Look;
use super::request::{RequestError, ask};
use super::status::{self, Judged};
use super::story::{self, Note};
use super::zones::ClusterView;
use crate::clock;
use crate::cluster::{BatonCluster, BatonClusterStatus, FIELD_MANAGER};

impl Look<'_> {
    /// Writes the status and tells what has changed, if something has.
    ///
    /// # Errors
    /// The status could not be written.
    pub async fn tell(&self, view: &ClusterView, judged: &Judged<'_>) -> Result<(), RequestError> {
        let Self { cluster, context } = self;
        let uid = cluster.uid().unwrap_or_default();
        let told = {
            let told = context.told.lock().unwrap_or_else(PoisonError::into_inner);
            told.get(&uid).cloned()
        };
        let before = told.or_else(|| cluster.status.clone()).unwrap_or_default();
        let generation = cluster.metadata.generation;
        let after = status::status(view, judged, generation, &before, &now());
        if after == before {
            return Ok(());
        }
        self.write_status(&after).await?;
        let record = view.primary().and_then(|site| site.record.known());
        let planned = record.is_some_and(|record| record.planned);
        let problems = judged.problems.unwrap_or_default();
        let notes = story::between(&before, &after, problems, planned);
        {
            let mut told = context.told.lock().unwrap_or_else(PoisonError::into_inner);
            told.insert(uid, after);
        }
        for note in notes {
            self.publish(&note).await;
        }
        Ok(())
    }

    /// Forgets what was told of a cluster that is gone.
    pub fn forget(&self) {
        let uid = self.cluster.uid().unwrap_or_default();
        let told = self.context.told.lock();
        told.unwrap_or_else(PoisonError::into_inner).remove(&uid);
        let unserved = self.context.unserved.lock();
        let mut unserved = unserved.unwrap_or_else(PoisonError::into_inner);
        unserved.retain(|(of, _), _| *of != uid);
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

    /// Tells it in the log, and as an Event of the cluster where the API server takes it.
    pub async fn publish(&self, note: &Note) {
        let Self { cluster, context } = self;
        let (name, namespace) = (cluster.cluster(), cluster.namespace());
        tracing::info!(
            cluster = name,
            namespace,
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
        let written = ask(|| format!("write the Event {}", note.reason), request).await;
        if let Err(error) = written {
            let error = format!("{:#}", anyhow::Error::from(error));
            tracing::warn!(cluster = name, namespace, error, "an Event is lost");
        }
    }
}

/// Now, for people, in whole seconds, as the API writes it.
pub fn now() -> Time {
    let seconds = i64::try_from(clock::wall().0 / 1000).unwrap_or(i64::MAX);
    Time(Timestamp::from_second(seconds).unwrap_or(Timestamp::UNIX_EPOCH))
}
