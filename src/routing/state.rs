//! What routing says now: for people, for metrics, and for who waits for it.

use std::fmt;

use fencing::Epoch;
use serde::{Deserialize, Serialize};

use super::Order;

/// What one way of routing says now, for people and metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum Leg {
    /// Nothing was wanted yet, or it is being worked on.
    #[default]
    Pending,
    /// It leads clients here.
    Published {
        /// As owner of this epoch.
        epoch: Epoch,
    },
    /// It leads no client here.
    Withdrawn,
    /// A later owner is routed to.
    Superseded {
        /// Its epoch.
        by: Epoch,
    },
    /// It was not told; it is tried again.
    Failing {
        /// Why.
        error: String,
        /// How many times in a row.
        tries: u32,
    },
}

impl fmt::Display for Leg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pending => f.write_str("being told"),
            Self::Published { epoch } => write!(f, "here (epoch {epoch})"),
            Self::Withdrawn => f.write_str("elsewhere"),
            Self::Superseded { by } => write!(f, "elsewhere (epoch {by})"),
            Self::Failing { error: _, tries } => write!(f, "not told ({tries} tries)"),
        }
    }
}

/// What routing says now. A way that is not configured is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteState {
    /// EndpointSlice and labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoints: Option<Leg>,
    /// PgBouncer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pooler: Option<Leg>,
    /// Failures since the process began.
    pub errors: u64,
}

impl RouteState {
    /// What it says, for people; none where nothing is configured.
    pub fn says(&self) -> Option<String> {
        let named = [("endpoints", &self.endpoints), ("pooler", &self.pooler)];
        let texts: Vec<_> = named
            .into_iter()
            .filter_map(|(way, leg)| Some(format!("{way} {}", leg.as_ref()?)))
            .collect();
        (!texts.is_empty()).then(|| texts.join(", "))
    }

    /// What could not be told, for people.
    pub fn failures(&self) -> Vec<String> {
        let named = [("endpoints", &self.endpoints), ("pooler", &self.pooler)];
        let failing = |(way, leg): (&str, &Option<Leg>)| match leg {
            Some(Leg::Failing { error, tries }) => Some(format!(
                "clients are not led as wanted, {way}, tried {tries} times: {error}"
            )),
            Some(
                Leg::Pending | Leg::Published { .. } | Leg::Withdrawn | Leg::Superseded { .. },
            )
            | None => None,
        };
        named.into_iter().filter_map(failing).collect()
    }

    /// Whether clients are led here, as far as this member was able to say.
    pub fn published(&self) -> bool {
        [&self.endpoints, &self.pooler]
            .into_iter()
            .flatten()
            .any(|leg| matches!(leg, Leg::Published { .. }))
    }
}

/// The state, and which order each way has dealt with, or tried to.
#[derive(Clone, Debug, Default)]
pub(super) struct Told {
    pub state: RouteState,
    pub endpoints: Option<Order>,
    pub pooler: Option<Order>,
}

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Endpoints,
    Pooler,
}

impl Told {
    pub fn leg(&mut self, way: Way) -> (&mut Option<Leg>, &mut Option<Order>) {
        match way {
            Way::Endpoints => (&mut self.state.endpoints, &mut self.endpoints),
            Way::Pooler => (&mut self.state.pooler, &mut self.pooler),
        }
    }

    /// The way's failure, or that it is done, for this order; none while it is under way.
    pub fn outcome(&self, way: Way, order: &Order) -> Option<Result<(), String>> {
        let (leg, dealt) = match way {
            Way::Endpoints => (
                &self.state.endpoints,
                // They know no pause.
                self.endpoints.map(|dealt| dealt.wanted) == Some(order.wanted),
            ),
            Way::Pooler => (&self.state.pooler, self.pooler == Some(*order)),
        };
        let leg = match leg {
            None => return Some(Ok(())),
            Some(_) if !dealt => return None,
            Some(leg) => leg,
        };
        match leg {
            Leg::Failing { error, .. } => Some(Err(error.clone())),
            Leg::Pending => None,
            Leg::Published { .. } | Leg::Withdrawn | Leg::Superseded { .. } => Some(Ok(())),
        }
    }
}
