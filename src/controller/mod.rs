//! The controller: makes the objects of each `BatonCluster`, keeps them as they should be, replaces pods
//! in order after a change, and tells how the cluster is.
//!
//! It is not needed for failover: members decide by the volume and the site's Lease, and nothing in them
//! waits for a controller. It decides nothing about ownership; the one thing that it does to an owner is to
//! delete its pod, in a rolling update or when the cluster is deleted.
//!
//! ```text
//! watch ─► stores ─► SiteView ┐
//! API server ─► Surroundings ─┴─► accept, rollout, status, story (pure) ─► apply, make, delete, tell
//! ```

mod accept;
mod apply;
mod election;
mod leave;
mod look;
pub mod objects;
mod progress;
mod reconcile;
mod request;
mod rollout;
mod status;
mod story;
mod tell;
mod view;
mod watch;
mod zones;

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt;
use kube::Client;
use kube::runtime::controller::{self, Action};
use kube::runtime::events::Reporter;

pub use accept::Problem;
pub use election::{Election, LEASE};
pub use view::{MemberView, PodView, Record, SiteView};
pub use zones::{ClusterView, Zones};

use crate::cluster::FIELD_MANAGER;
use election::Candidate;
use reconcile::Context;

/// Changes that come together are looked at once.
const DEBOUNCE: Duration = Duration::from_millis(50);

/// How many clusters are looked at at the same time.
const CONCURRENCY: u16 = 8;

/// After a look that failed, or could not do everything.
const RETRY: Duration = Duration::from_secs(5);

/// What a controller is told.
#[derive(Clone, Debug)]
pub struct Options {
    /// How one of several is chosen.
    pub election: Election,
    /// The only namespace whose clusters are its business; `None` for all.
    pub only_namespace: Option<String>,
}

/// Acts as controller whenever it is elected, until `stop` is ready. Then it resigns.
pub async fn run(client: Client, options: Options, stop: impl Future<Output = ()>) {
    let Options {
        election,
        only_namespace,
    } = options;
    let identity = election.identity.clone();
    let mut candidate = Candidate::new(client.clone(), election);
    let mut stop = std::pin::pin!(stop);
    loop {
        tokio::select! {
            () = candidate.elected() => {}
            () = &mut stop => return,
        }
        tracing::info!(identity, "elected");
        tokio::select! {
            () = act(client.clone(), &identity, only_namespace.as_deref()) => {}
            why = candidate.lost() => tracing::warn!(identity, why, "no longer elected"),
            () = &mut stop => {
                if let Err(error) = candidate.resign().await {
                    tracing::warn!(error = %anyhow::Error::from(error), "cannot resign");
                }
                return;
            }
        }
    }
}

/// Watches and looks, for as long as it is polled.
async fn act(client: Client, identity: &str, namespace: Option<&str>) {
    let scope = watch::Scope {
        client: &client,
        namespace,
    };
    let (stores, requests) = watch::watch(&scope);
    let reporter = Reporter {
        controller: FIELD_MANAGER.to_owned(),
        instance: Some(identity.to_owned()),
    };
    let clusters = stores.clusters.clone();
    let context = Arc::new(Context {
        reporter,
        client,
        stores,
        told: Mutex::new(HashMap::new()),
        unserved: Mutex::new(HashMap::new()),
    });
    let limits = controller::Config::default()
        .debounce(DEBOUNCE)
        .concurrency(CONCURRENCY);
    let looks = controller::applier(
        |cluster, context: Arc<Context>| {
            Box::pin(async move {
                // A look that begins before all is seen would make what is there already.
                if context.stores.ready().await.is_err() {
                    return Ok(Action::requeue(RETRY));
                }
                reconcile::reconcile(cluster, context).await
            })
        },
        |_, _, _| Action::requeue(RETRY),
        context,
        clusters,
        requests,
        limits,
    );
    looks
        .for_each(|looked| {
            match looked {
                Ok(_) | Err(controller::Error::ObjectNotFound(_)) => {}
                Err(error) => {
                    let error = anyhow::Error::from(error);
                    tracing::warn!(error = %format!("{error:#}"), "a look failed");
                }
            }
            std::future::ready(())
        })
        .await;
}
