//! Says at the pod, by an Event, why it has no session: its own log is not where people look first.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Resource};
use uuid::Uuid;

use crate::attachment::whole;

/// How long the API server may take to be told.
const TOLD_WITHIN: Duration = Duration::from_secs(5);

/// The longest note that an Event may have (events.k8s.io/v1).
const NOTE_MAX: usize = 1024;

/// What was said of each pod.
pub(super) struct Complaints {
    client: Client,
    reporter: Reporter,
    said: Mutex<HashMap<Uuid, String>>,
}

impl Complaints {
    /// In the name of this node's agent.
    pub fn new(client: Client, node: &str) -> Self {
        Self {
            client,
            reporter: Reporter {
                controller: "baton-agent".to_owned(),
                instance: Some(node.to_owned()),
            },
            said: Mutex::new(HashMap::new()),
        }
    }

    /// Says it once; the same again only after something else. Whether it was new.
    pub async fn say(&self, uid: Uuid, pod: &Pod, why: &str) -> bool {
        let before = self.said().insert(uid, why.to_owned());
        if before.as_deref() == Some(why) {
            return false;
        }
        let event = Event {
            type_: EventType::Warning,
            reason: "VolumeRefused".to_owned(),
            note: Some(why.chars().take(NOTE_MAX).collect()),
            action: "OpenSession".to_owned(),
            secondary: None,
        };
        // A recorder of its own for each: one that is kept merges Events of one reason.
        let recorder = Recorder::new(self.client.clone(), self.reporter.clone());
        let at = pod.object_ref(&());
        match tokio::time::timeout(TOLD_WITHIN, recorder.publish(&event, &at)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(error = %whole(error), "the Event was not taken"),
            Err(_elapsed) => tracing::warn!("the Event was not taken in time"),
        }
        true
    }

    /// The pod has a session.
    pub fn forget(&self, uid: Uuid) {
        self.said().remove(&uid);
    }

    fn said(&self) -> std::sync::MutexGuard<'_, HashMap<Uuid, String>> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
