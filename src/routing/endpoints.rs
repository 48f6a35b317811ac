//! Writes what leads clients inside Kubernetes: the EndpointSlice first, then the pods' labels.
//!
//! Order. To serve: the slice, whose epoch shows whether this member still is the newest owner; then
//! its own labels; then the others' are taken away. To withdraw: the slice, then the own labels.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};

use super::slice::{self, Rank, Target, Verdict};
use super::{Reached, RouteError, Wanted, labels};
use crate::clock;
use crate::kubernetes::{Access, Failure, names, within};

/// How many times a slice that changes under our hands is read again before it counts as a failure.
const CONFLICTS: u32 = 5;

/// The writer of slice and labels.
pub(super) struct Endpoints {
    pub access: Access,
    pub target: Target,
    /// The deadline of each request.
    pub request: Duration,
    /// The slice as this member last wrote or found it; none while it is not known.
    pub slice: Option<EndpointSlice>,
}

impl Endpoints {
    /// Writes until everything says what is wanted.
    pub async fn reach(&mut self, wanted: &Wanted) -> Result<Reached, RouteError> {
        let client = self.ask("a client", self.access.client()).await?;
        let reached = self.write_slice(&client, wanted).await?;
        if let Reached::Superseded(_) = reached {
            return Ok(reached);
        }
        let pods: Api<Pod> = Api::namespaced(client, &self.target.namespace);
        let patch = labels::own(&self.target.facts.uid, wanted);
        self.patch(&pods, &self.target.pod, &patch).await?;
        if wanted.serving {
            self.clear_others(&pods).await?;
        }
        Ok(reached)
    }

    async fn ask<T, E: Into<Failure>>(
        &self,
        attempt: &'static str,
        request: impl Future<Output = Result<T, E>>,
    ) -> Result<T, RouteError> {
        within(clock::now() + self.request, request)
            .await
            .map_err(|source| RouteError::Request { attempt, source })
    }

    async fn write_slice(
        &mut self,
        client: &Client,
        wanted: &Wanted,
    ) -> Result<Reached, RouteError> {
        let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), &self.target.namespace);
        for _ in 0..CONFLICTS {
            // Taken: until the answer is here, what is there is not known.
            let found = match self.slice.take() {
                Some(found) => Some(found),
                None => self.find(&slices).await?,
            };
            let verdict = if wanted.serving {
                let rank = Rank {
                    term: wanted.term,
                    epoch: wanted.epoch,
                };
                slice::publish(found.as_ref(), &self.target, rank)
            } else {
                slice::withdraw(found.as_ref(), &self.target)
            };
            match verdict {
                Verdict::Right => {
                    self.slice = found;
                    return Ok(Reached::Done);
                }
                Verdict::Superseded(by) => return Ok(Reached::Superseded(by.epoch)),
                Verdict::Unusable(what) => {
                    let slice = names::endpoint_slice(&self.target.service);
                    return Err(RouteError::Unusable { slice, what });
                }
                Verdict::Write(next) => {
                    let first = found.is_none();
                    if self.write(client, &slices, *next, first).await? {
                        return Ok(Reached::Done);
                    }
                }
            }
        }
        Err(RouteError::Conflicts)
    }

    async fn find(&self, slices: &Api<EndpointSlice>) -> Result<Option<EndpointSlice>, RouteError> {
        let name = names::endpoint_slice(&self.target.service);
        let found = self
            .ask("reading the endpoints", slices.get_opt(&name))
            .await?;
        Ok(found.map(plain))
    }

    /// POST or PUT; false where another was faster.
    async fn write(
        &mut self,
        client: &Client,
        slices: &Api<EndpointSlice>,
        mut slice: EndpointSlice,
        first: bool,
    ) -> Result<bool, RouteError> {
        let name = names::endpoint_slice(&self.target.service);
        let params = PostParams {
            field_manager: Some(names::FIELD_MANAGER.to_owned()),
            ..PostParams::default()
        };
        if slice.metadata.owner_references.is_none() {
            self.give_to_service(client, &mut slice).await;
        }
        let answer = if first {
            self.ask("making the endpoints", slices.create(&params, &slice))
                .await
        } else {
            let request = slices.replace(&name, &params, &slice);
            self.ask("writing the endpoints", request).await
        };
        match answer {
            Ok(written) => {
                self.slice = Some(plain(written));
                Ok(true)
            }
            Err(error) if matches!(error.code(), Some(409)) => Ok(false),
            Err(error) if !first && matches!(error.code(), Some(404)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Best effort: a slice without an owner leads clients as well, and gets it with its next change.
    async fn give_to_service(&self, client: &Client, slice: &mut EndpointSlice) {
        let services: Api<Service> = Api::namespaced(client.clone(), &self.target.namespace);
        let service = self
            .ask("reading the Service", services.get(&self.target.service))
            .await;
        if let Some(uid) = service.ok().and_then(|service| service.metadata.uid) {
            slice::owned_by(slice, &self.target.service, uid);
        }
    }

    async fn patch(
        &self,
        pods: &Api<Pod>,
        name: &str,
        patch: &serde_json::Value,
    ) -> Result<(), RouteError> {
        let params = PatchParams {
            field_manager: Some(names::FIELD_MANAGER.to_owned()),
            ..PatchParams::default()
        };
        let patch = Patch::Merge(patch);
        let request = pods.patch(name, &params, &patch);
        self.ask("labelling the pod", request).await.map(drop)
    }

    async fn clear_others(&self, pods: &Api<Pod>) -> Result<(), RouteError> {
        let selector = format!("{}={}", names::CLUSTER, self.target.cluster);
        let params = ListParams::default().labels(&selector);
        let found = self.ask("listing the pods", pods.list(&params)).await?;
        for pod in found.items {
            let meta = &pod.metadata;
            let name = meta.name.as_deref().unwrap_or_default();
            if name == self.target.pod {
                continue;
            }
            let Some(patch) = labels::others(meta.uid.as_deref(), meta.labels.as_ref()) else {
                continue;
            };
            match self.patch(pods, name, &patch).await {
                // It is gone, or another pod has its name.
                Err(error) if matches!(error.code(), Some(404 | 409)) => {}
                other => other?,
            }
        }
        Ok(())
    }
}

/// Without what nobody here needs.
fn plain(mut slice: EndpointSlice) -> EndpointSlice {
    slice.metadata.managed_fields = None;
    slice
}
