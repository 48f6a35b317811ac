//! Leads clients to the active: the Service's endpoints, the pods' labels, PgBouncer.
//!
//! ```text
//! PublishRole, Withdraw ─► wanted ─┬─► endpoints: EndpointSlice, labels ─┐
//!                                  └─► pooler: PAUSE, RESUME ────────────┴─► RouteState
//! ```
//!
//! What is wanted is one value; a task for each way of routing works until the world says the same,
//! with a pause after each failure. Nothing here decides who serves, and nothing waits for
//! it but a handover, for a bounded time: an API server or a pooler that is away only delays clients.

mod endpoints;
mod labels;
mod pooler;
mod slice;
mod state;
#[cfg(test)]
mod tests;

use std::time::Duration;

use fencing::{Epoch, Mono};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{debug, info, warn};

use crate::config::Config;
use crate::decide::RoleName;
use crate::kubernetes::{Access, Failure, PodFacts, PodFactsError};
use crate::{backoff, clock};
use endpoints::Endpoints;
use pooler::Pooler;
use slice::Target;
use state::{Told, Way};

pub use pooler::PoolerError;
pub use state::{Leg, RouteState};

/// The pause after a failure, doubled with each further one up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// How often the endpoints of a member that serves are looked at again, in case somebody changed
/// them: two requests a minute.
const RECHECK: Duration = Duration::from_secs(60);

/// How long the pooler waits for the endpoints before clients go on: they may lead through them.
const ENDPOINTS_FIRST: Duration = Duration::from_secs(1);

/// What shall be said of this member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Its role.
    pub role: RoleName,
    /// The epoch it owns or knows.
    pub epoch: Epoch,
    /// The term in which this site has the primary; 0 with one site, and where it has none.
    pub term: u64,
    /// PostgreSQL accepts writes, and clients shall be led here.
    pub serving: bool,
    /// PostgreSQL follows the primary of another site.
    pub follows: bool,
}

/// What is wanted, and whether a handover waits for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Order {
    wanted: Wanted,
    /// Until when the pooler may take to pause; none where it is not to be paused.
    pause: Option<Mono>,
}

/// How a way of routing came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reached {
    /// It says what is wanted.
    Done,
    /// A later owner is routed to.
    Superseded(Epoch),
}

/// Why it did not.
#[derive(Debug, thiserror::Error)]
pub enum RouteError {
    /// A request of the API server failed.
    #[error("{attempt} failed")]
    Request {
        /// What was attempted.
        attempt: &'static str,
        /// How.
        #[source]
        source: Failure,
    },
    /// The EndpointSlice cannot be written over.
    #[error("the EndpointSlice {slice} cannot be used: {what}")]
    Unusable {
        /// Its name.
        slice: String,
        /// Why, and what to do.
        what: String,
    },
    /// It changed again and again.
    #[error("the EndpointSlice changed each time before it could be written")]
    Conflicts,
    /// The pooler.
    #[error(transparent)]
    Pooler(#[from] PoolerError),
}

impl RouteError {
    fn code(&self) -> Option<u16> {
        match self {
            Self::Request { source, .. } => source.code(),
            Self::Unusable { .. } | Self::Conflicts | Self::Pooler(_) => None,
        }
    }
}

/// A withdrawal that did not come about in time. It goes on.
#[derive(Debug, thiserror::Error)]
pub enum WithdrawError {
    /// A way of routing could not be told.
    #[error("clients are not led away: {0}")]
    Failed(String),
    /// It takes longer.
    #[error("clients are not led away within the bound")]
    Overdue,
}

/// Routes clients to and from this member. Dropping it ends its tasks.
pub struct Router {
    order: watch::Sender<Option<Order>>,
    state: watch::Receiver<Told>,
    _tasks: JoinSet<()>,
}

impl Router {
    /// The router that the configuration asks for. Tells nobody anything yet. Call it within a runtime.
    ///
    /// # Errors
    /// This is to be a pod and the environment does not say which.
    pub fn start(config: &Config, access: &Access) -> Result<Self, PodFactsError> {
        let facts = match &config.kubernetes {
            Some(_) => Some(PodFacts::from_env()?),
            None => None,
        };
        Ok(Self::start_as(config, access, facts))
    }

    /// As [`Router::start`], for this pod.
    pub fn start_as(config: &Config, access: &Access, facts: Option<PodFacts>) -> Self {
        let request = config.timings.lease_deadline;
        let endpoints = config.kubernetes.as_ref().zip(facts);
        let endpoints = endpoints.map(|(own, facts)| Endpoints {
            access: access.clone(),
            target: Target {
                cluster: config.cluster.clone(),
                namespace: own.namespace.clone(),
                pod: own.pod.clone(),
                service: own.service.clone(),
                facts,
                port: config.postgres.port,
            },
            request,
            slice: None,
        });
        let pooler = config.pooler.as_ref();
        let pooler = pooler.map(|pooler| Pooler::new(pooler, request));
        let (order, orders) = watch::channel(None);
        let told = watch::Sender::new(Told {
            state: RouteState {
                endpoints: endpoints.as_ref().map(|_| Leg::Pending),
                pooler: pooler.as_ref().map(|_| Leg::Pending),
                errors: 0,
            },
            ..Told::default()
        });
        let state = told.subscribe();
        let mut tasks = JoinSet::new();
        if let Some(endpoints) = endpoints {
            tasks.spawn(route_endpoints(endpoints, orders.clone(), told.clone()));
        }
        if let Some(pooler) = pooler {
            tasks.spawn(route_pooler(pooler, orders, told));
        }
        Self {
            order,
            state,
            _tasks: tasks,
        }
    }

    /// Says what is wanted from now on.
    pub fn want(&self, wanted: Wanted) {
        self.order.send_if_modified(|order| {
            let same = order.is_some_and(|order| order.wanted == wanted);
            if !same {
                *order = Some(Order {
                    wanted,
                    pause: None,
                });
            }
            !same
        });
    }

    /// Leads clients away from the owner of `epoch`, while PostgreSQL still answers: pauses the
    /// pooler, empties the endpoints. Returns when that is done, or has failed once.
    ///
    /// # Errors
    /// Something still leads clients here. Go on all the same: it is tried again beside.
    pub async fn withdraw(&self, epoch: Epoch, deadline: Mono) -> Result<(), WithdrawError> {
        // An active that restarts its PostgreSQL stays the active.
        let role = match *self.order.borrow() {
            Some(Order { wanted, .. }) if wanted.epoch == epoch => wanted.role,
            Some(_) | None => RoleName::HandingOver,
        };
        let order = Order {
            wanted: Wanted {
                role,
                epoch,
                term: 0,
                serving: false,
                follows: false,
            },
            pause: Some(deadline),
        };
        self.order.send_replace(Some(order));
        let mut state = self.state.clone();
        let outcomes = |told: &Told| {
            let ways = [Way::Endpoints, Way::Pooler].map(|way| told.outcome(way, &order));
            ways.into_iter().collect::<Option<Vec<_>>>()
        };
        let done = state.wait_for(|told| outcomes(told).is_some());
        match tokio::time::timeout(clock::now().until(deadline), done).await {
            Ok(Ok(told)) => outcomes(&told)
                .unwrap_or_default()
                .into_iter()
                .collect::<Result<(), _>>()
                .map_err(WithdrawError::Failed),
            // The tasks live as long as the router.
            Ok(Err(_)) | Err(_) => Err(WithdrawError::Overdue),
        }
    }

    /// What it says now.
    pub fn state(&self) -> RouteState {
        self.state.borrow().state.clone()
    }
}

async fn route_endpoints(
    mut endpoints: Endpoints,
    mut orders: watch::Receiver<Option<Order>>,
    told: watch::Sender<Told>,
) {
    let mut failures = 0;
    loop {
        let order = *orders.borrow_and_update();
        let mut pause = None;
        if let Some(order) = order {
            let reached = endpoints.reach(&order.wanted).await;
            pause = settle(&told, Way::Endpoints, order, reached, &mut failures);
            if pause.is_none() && order.wanted.serving {
                // What is there must be read anew to be seen.
                endpoints.slice = None;
                pause = Some(RECHECK);
            }
        }
        if !changed_or_after(&mut orders, pause).await {
            return;
        }
    }
}

async fn route_pooler(
    pooler: Pooler,
    mut orders: watch::Receiver<Option<Order>>,
    told: watch::Sender<Told>,
) {
    let mut failures = 0;
    loop {
        let order = *orders.borrow_and_update();
        let mut pause = None;
        if let Some(order) = order {
            let reached = tell_pooler(&pooler, &order, &told).await;
            if order.pause.is_some() && !still(&orders, &order) {
                // The handover was given up meanwhile, and somebody else may serve already.
                let resumed = pooler.resume().await;
                resumed.unwrap_or_else(|error| warn!(%error, "the pooler may still be paused"));
            }
            pause = settle(&told, Way::Pooler, order, reached, &mut failures);
            if !order.wanted.serving {
                // Only whoever serves must be heard; a pause that failed was taken back.
                pause = None;
            }
        }
        if !changed_or_after(&mut orders, pause).await {
            return;
        }
    }
}

/// Whether this is what is wanted still.
fn still(orders: &watch::Receiver<Option<Order>>, order: &Order) -> bool {
    let now = *orders.borrow();
    now.is_some_and(|now| now.wanted == order.wanted)
}

async fn tell_pooler(
    pooler: &Pooler,
    order: &Order,
    told: &watch::Sender<Told>,
) -> Result<Reached, RouteError> {
    match (order.wanted.serving, order.pause) {
        (true, _) => {
            let mut state = told.subscribe();
            let first = state.wait_for(|told| told.outcome(Way::Endpoints, order).is_some());
            // Clients must not wait for an API server that is away.
            let late = tokio::time::timeout(ENDPOINTS_FIRST, first).await.is_err();
            if late {
                debug!("clients go on before the endpoints are written");
            }
            pooler.resume().await?;
        }
        (false, Some(deadline)) if clock::now() < deadline => {
            // Room to take it back within the bound.
            let room = clock::now().until(deadline) / 4;
            let bound = clock::now() + room * 3;
            pooler.pause(bound).await?;
        }
        (false, _) => {}
    }
    Ok(Reached::Done)
}

/// Tells how it went; the pause before the next try, if one is needed.
fn settle(
    told: &watch::Sender<Told>,
    way: Way,
    order: Order,
    reached: Result<Reached, RouteError>,
    failures: &mut u32,
) -> Option<Duration> {
    let mut pause = None;
    let next = match reached {
        Ok(Reached::Done) if order.wanted.serving => Leg::Published {
            epoch: order.wanted.epoch,
        },
        Ok(Reached::Done) => Leg::Withdrawn,
        Ok(Reached::Superseded(by)) => Leg::Superseded { by },
        Err(error) => {
            *failures = failures.saturating_add(1);
            let earlier = *failures - 1;
            let chance = rand::random();
            pause = Some(backoff::pause(FIRST_PAUSE, LONGEST_PAUSE, earlier, chance));
            let error = chain(&error);
            if *failures == 1 {
                warn!(
                    ?way,
                    error, "clients are not led as wanted; it is tried again"
                );
            }
            let tries = *failures;
            Leg::Failing { error, tries }
        }
    };
    if pause.is_none() {
        *failures = 0;
    }
    told.send_modify(|told| {
        told.state.errors += u64::from(pause.is_some());
        let (leg, dealt) = told.leg(way);
        if leg.as_ref() != Some(&next) && pause.is_none() {
            info!(?way, leg = ?next, "routed");
        }
        *leg = Some(next);
        *dealt = Some(order);
    });
    pause
}

/// Waits for another order, or for the pause to be over; false when there will be none any more.
async fn changed_or_after(
    orders: &mut watch::Receiver<Option<Order>>,
    pause: Option<Duration>,
) -> bool {
    match pause {
        None => orders.changed().await.is_ok(),
        Some(pause) => match tokio::time::timeout(pause, orders.changed()).await {
            Ok(changed) => changed.is_ok(),
            Err(_elapsed) => true,
        },
    }
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
