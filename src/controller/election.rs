//! Which of several controllers acts: the one that holds the Lease `baton-controller`.
//!
//! Only compare-and-set by `resourceVersion`, and no clock of another machine: a Lease that has not
//! changed for its whole duration *by the watcher's own clock* may be taken. A holder that could not renew
//! for two thirds of the duration stops acting, before anybody else may begin. Two that acted at once would
//! do no harm to data: what a controller does is checked by the API server, and ownership of a volume is
//! none of its business.

use std::time::Duration;

use fencing::Mono;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, PostParams};
use kube::{Client, ResourceExt};

use super::request::{RequestError, ask, won};
use crate::clock;
use crate::cluster::{FIELD_MANAGER, names};

/// The name of the Lease.
pub const LEASE: &str = "baton-controller";

/// How the holder is found.
#[derive(Clone, Debug)]
pub struct Election {
    /// The namespace of the Lease.
    pub namespace: String,
    /// Who this is: the pod's name.
    pub identity: String,
    /// How long a Lease must be unchanged before another takes it. 15 s in production.
    pub duration: Duration,
}

/// A candidate, or the holder.
pub struct Candidate {
    leases: Api<Lease>,
    election: Election,
    /// The version that was last seen to be new, and when that was.
    seen: Option<(Option<String>, Mono)>,
    /// The Lease as this one wrote it last: while it is held, nobody need ask for it.
    held: Option<Lease>,
}

impl Candidate {
    /// A candidate.
    pub fn new(client: Client, election: Election) -> Self {
        let leases = Api::namespaced(client, &election.namespace);
        Self {
            leases,
            election,
            seen: None,
            held: None,
        }
    }

    /// Waits until it is this one's turn.
    pub async fn elected(&mut self) {
        loop {
            match self.try_take().await {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(error = %anyhow::Error::from(error), "cannot stand for election")
                }
            }
            tokio::time::sleep(self.beat()).await;
        }
    }

    /// Holds until it is lost, and says why.
    pub async fn lost(&mut self) -> String {
        let mut renewed = clock::now();
        loop {
            tokio::time::sleep(self.beat()).await;
            let began = clock::now();
            let left = (self.election.duration * 2 / 3).saturating_sub(began.since(renewed));
            match tokio::time::timeout(left, self.try_take()).await {
                Ok(Ok(true)) => renewed = began,
                Ok(Ok(false)) => return "another controller has the Lease".to_owned(),
                Ok(Err(error)) => {
                    let error = anyhow::Error::from(error);
                    tracing::warn!(error = %format!("{error:#}"), "cannot renew the Lease");
                }
                Err(_) => return "the Lease could not be renewed in time".to_owned(),
            }
        }
    }

    /// Gives the Lease up, so that the next one need not wait.
    ///
    /// # Errors
    /// The API server did not take it; then the next one waits.
    pub async fn resign(&mut self) -> Result<(), RequestError> {
        let found = match self.held.take() {
            Some(lease) => Some(lease),
            None => self.find().await?,
        };
        let Some(mut lease) = found.filter(|lease| self.is_ours(lease)) else {
            return Ok(());
        };
        let spec = lease.spec.get_or_insert_default();
        spec.holder_identity = None;
        spec.renew_time = Some(now());
        self.write(&lease).await?;
        Ok(())
    }

    fn beat(&self) -> Duration {
        self.election.duration / 3
    }

    fn is_ours(&self, lease: &Lease) -> bool {
        let spec = lease.spec.as_ref();
        let holder = spec.and_then(|spec| spec.holder_identity.as_deref());
        holder == Some(&self.election.identity)
    }

    async fn find(&self) -> Result<Option<Lease>, RequestError> {
        ask(|| format!("read Lease {LEASE}"), self.leases.get_opt(LEASE)).await
    }

    /// Writes the Lease in the place of the version that it names; false if there is another.
    async fn write(&mut self, lease: &Lease) -> Result<bool, RequestError> {
        let how = PostParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PostParams::default()
        };
        let request = self.leases.replace(LEASE, &how, lease);
        self.held = won(ask(|| format!("write Lease {LEASE}"), request).await)?;
        Ok(self.held.is_some())
    }

    /// Takes or renews the Lease, if it is free, ours, or was silent for its whole duration.
    async fn try_take(&mut self) -> Result<bool, RequestError> {
        let known = match self.held.take() {
            Some(lease) => Some(lease),
            None => self.find().await?,
        };
        let Some(mut lease) = known else {
            return self.make().await;
        };
        let holder = lease.spec.as_ref();
        let holder = holder.and_then(|spec| spec.holder_identity.as_deref());
        let free = holder.is_none_or(str::is_empty);
        if !(free || self.is_ours(&lease) || self.silent(&lease)) {
            return Ok(false);
        }
        let ours = self.is_ours(&lease);
        let spec = lease.spec.get_or_insert_default();
        if !ours {
            spec.holder_identity = Some(self.election.identity.clone());
            spec.acquire_time = Some(now());
            spec.lease_transitions = Some(spec.lease_transitions.unwrap_or(0) + 1);
        }
        spec.renew_time = Some(now());
        spec.lease_duration_seconds = i32::try_from(self.election.duration.as_secs().max(1)).ok();
        self.write(&lease).await
    }

    /// Whether the Lease has not changed for its whole duration by this machine's clock.
    fn silent(&mut self, lease: &Lease) -> bool {
        let (version, at) = (lease.resource_version(), clock::now());
        match &self.seen {
            Some((known, since)) if *known == version => at.since(*since) >= self.election.duration,
            Some(_) | None => {
                self.seen = Some((version, at));
                false
            }
        }
    }

    async fn make(&mut self) -> Result<bool, RequestError> {
        let lease = Lease {
            metadata: ObjectMeta {
                name: Some(LEASE.to_owned()),
                labels: Some([(names::APP_NAME.to_owned(), names::APP.to_owned())].into()),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(self.election.identity.clone()),
                acquire_time: Some(now()),
                renew_time: Some(now()),
                lease_duration_seconds: i32::try_from(self.election.duration.as_secs().max(1)).ok(),
                lease_transitions: Some(0),
                ..LeaseSpec::default()
            }),
        };
        let how = PostParams::default();
        let request = self.leases.create(&how, &lease);
        self.held = won(ask(|| format!("make Lease {LEASE}"), request).await)?;
        Ok(self.held.is_some())
    }
}

/// Now, for people.
fn now() -> MicroTime {
    let millis = i64::try_from(clock::wall().0).unwrap_or(i64::MAX);
    MicroTime(Timestamp::from_millisecond(millis).unwrap_or(Timestamp::UNIX_EPOCH))
}
