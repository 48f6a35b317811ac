//! Calls an operator: an annotation on this member's own pod says why it cannot get on by itself. The
//! controller makes a condition and an Event of it. Nothing waits for it.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use tokio::sync::watch;
use tracing::{debug, warn};

use super::{Access, Failure, PodFacts, PodFactsError, names, within};
use crate::config::Config;
use crate::{backoff, clock};

/// How long an answer that may soon be another must last before an operator is called.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long nothing must be wrong before the call is taken back: what is tried again fails again.
const RELIEF: Duration = Duration::from_secs(10);

/// The pause after a failure, doubled with each further one up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// The longest text, in characters: as an Event has (events.k8s.io/v1).
const TEXT_MAX: usize = 1000;

/// What one part of the member has to say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Need {
    /// It gets on.
    #[default]
    None,
    /// It does not, and may yet by itself.
    Perhaps(String),
    /// It does not.
    Certain(String),
}

impl Need {
    fn text(&self) -> Option<&str> {
        match self {
            Self::None => None,
            Self::Perhaps(text) | Self::Certain(text) => Some(text),
        }
    }

    /// How long it must last before it is told.
    fn lasts(&self) -> Duration {
        match self {
            Self::None => RELIEF,
            Self::Perhaps(_) => PATIENCE,
            Self::Certain(_) => Duration::ZERO,
        }
    }
}

/// Both parts that may have something to say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Needs {
    session: Need,
    member: Need,
}

impl Needs {
    /// Without a session nothing else counts.
    fn first(&self) -> &Need {
        match &self.session {
            Need::None => &self.member,
            need => need,
        }
    }
}

/// Calls, and takes back. Cheap to clone. Without Kubernetes it does nothing.
#[derive(Clone, Debug)]
pub struct Call {
    needs: watch::Sender<Needs>,
    told: watch::Receiver<Option<String>>,
}

impl Call {
    /// Begins. Call it within a runtime; it ends with its last clone.
    ///
    /// # Errors
    /// This is to be a pod and the environment does not say which.
    pub fn start(config: &Config, access: &Access) -> Result<Self, PodFactsError> {
        let pod = match &config.kubernetes {
            Some(own) => Some((own, PodFacts::from_env()?.uid)),
            None => None,
        };
        let (needs, changes) = watch::channel(Needs::default());
        let (tell, told) = watch::channel(None);
        if let Some((own, uid)) = pod {
            let writer = Writer {
                access: access.clone(),
                namespace: own.namespace.clone(),
                pod: own.pod.clone(),
                uid,
                request: config.timings.lease_deadline,
            };
            tokio::spawn(writer.run(changes, tell));
        }
        Ok(Self { needs, told })
    }

    /// What stands between this member and its node's agent.
    pub fn session(&self, need: Need) {
        self.change(|needs| &mut needs.session, need);
    }

    /// What the member's own decisions need.
    pub fn member(&self, need: Need) {
        self.change(|needs| &mut needs.member, need);
    }

    fn change(&self, which: fn(&mut Needs) -> &mut Need, need: Need) {
        self.needs.send_if_modified(|needs| {
            let before = which(needs);
            let other = *before != need;
            *before = need;
            other
        });
    }

    /// Waits until this is written, for a process that is about to end; not longer than `bound`.
    pub async fn written(&self, bound: Duration) {
        let Some(text) = self.needs.borrow().first().text().map(shortened) else {
            return;
        };
        let mut told = self.told.clone();
        let written = told.wait_for(|told| told.as_ref() == Some(&text));
        if !matches!(tokio::time::timeout(bound, written).await, Ok(Ok(_))) {
            debug!("the pod's annotation is not written");
        }
    }
}

/// Writes the annotation.
struct Writer {
    access: Access,
    namespace: String,
    pod: String,
    uid: String,
    /// The deadline of each request.
    request: Duration,
}

impl Writer {
    async fn run(self, mut needs: watch::Receiver<Needs>, told: watch::Sender<Option<String>>) {
        // An earlier container of this pod may have called: what the pod says is not known at first.
        let mut said: Option<Option<String>> = None;
        let mut failures = 0;
        let mut pause = Duration::ZERO;
        loop {
            let need = needs.borrow_and_update().first().clone();
            let text = need.text().map(shortened);
            if said.as_ref() == Some(&text) {
                if needs.changed().await.is_err() {
                    return;
                }
                continue;
            }
            match tokio::time::timeout(need.lasts().max(pause), needs.changed()).await {
                Ok(Ok(())) => continue,
                Ok(Err(_)) => return,
                Err(_lasted) => {}
            }
            match self.write(text.as_deref()).await {
                Ok(()) => {
                    (failures, pause) = (0, Duration::ZERO);
                    told.send_replace(text.clone());
                    said = Some(text);
                }
                Err(error) => {
                    if failures == 0 {
                        warn!(%error, "the pod's annotation is not written; it is tried again");
                    }
                    pause = backoff::pause(FIRST_PAUSE, LONGEST_PAUSE, failures, rand::random());
                    failures += 1;
                }
            }
        }
    }

    async fn write(&self, text: Option<&str>) -> Result<(), Failure> {
        let deadline = clock::now() + self.request;
        let client = within(deadline, self.access.client()).await?;
        let pods: Api<Pod> = Api::namespaced(client, &self.namespace);
        let how = PatchParams {
            field_manager: Some(names::FIELD_MANAGER.to_owned()),
            ..PatchParams::default()
        };
        let patch = Patch::Merge(annotation(&self.uid, text));
        let request = pods.patch_metadata(&self.pod, &how, &patch);
        within(deadline, request).await.map(drop)
    }
}

/// The merge patch. The UID keeps it from a later pod of the same name.
fn annotation(uid: &str, text: Option<&str>) -> Value {
    json!({"metadata": {"uid": uid, "annotations": {names::NEEDS_OPERATOR: text}}})
}

fn shortened(text: &str) -> String {
    text.chars().take(TEXT_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_session_nothing_else_counts() {
        let mut needs = Needs {
            member: Need::Certain("the volume".to_owned()),
            ..Needs::default()
        };
        assert_eq!(needs.first().text(), Some("the volume"));
        needs.session = Need::Perhaps("the agent".to_owned());
        assert_eq!(needs.first().text(), Some("the agent"));
        assert_eq!(needs.first().lasts(), PATIENCE);
    }

    #[test]
    fn the_patch_names_the_very_pod_and_takes_back_by_null() {
        let patch = annotation("uid-a", None);
        assert_eq!(patch["metadata"]["uid"], "uid-a");
        let annotations = patch["metadata"]["annotations"].as_object().unwrap();
        assert_eq!(annotations[names::NEEDS_OPERATOR], Value::Null);
    }
}
