//! What the table's lines share: labels for each value of a type, for each site, each way to the active.

use std::time::Duration;

use super::Sample;
use crate::control::zone::{ServingAs, SiteStatus, ZoneStatus};
use crate::control::{Status, StepTally};
use crate::decide::{Postgres, RoleName};
use crate::postgres::replication::Progress;
use crate::routing::{Leg, RouteState};

pub(super) const AMONG: [(ServingAs, &str); 3] = [
    (ServingAs::Primary, "primary"),
    (ServingAs::Replica, "replica"),
    (ServingAs::Nothing, "none"),
];

/// Values of a cluster of several sites; none with one.
pub(super) fn zone(status: &Status, values: impl Fn(&ZoneStatus) -> Vec<Sample>) -> Vec<Sample> {
    status.zone.as_ref().map(values).unwrap_or_default()
}

/// One value for each other site of which there is one.
pub(super) fn sites(status: &Status, value: impl Fn(&SiteStatus) -> Option<f64>) -> Vec<Sample> {
    zone(status, |zone| {
        let all = zone.sites.iter();
        all.filter_map(|site| Some((vec![("of", site.name.clone())], value(site)?)))
            .collect()
    })
}

/// A number of bytes of the copy that is under way.
pub(super) fn copying(status: &Status, value: impl Fn(&Progress) -> Option<u64>) -> Vec<Sample> {
    zone(status, |zone| {
        let sample = |copy: &Progress| {
            let by = vec![("by", copy.by.to_string())];
            Some((by, value(copy)? as f64))
        };
        zone.copying.iter().filter_map(sample).collect()
    })
}

pub(super) const ROLES: [(RoleName, &str); 7] = [
    (RoleName::Joining, "joining"),
    (RoleName::Standby, "standby"),
    (RoleName::TakingOver, "taking-over"),
    (RoleName::Active, "active"),
    (RoleName::HandingOver, "handing-over"),
    (RoleName::Returning, "returning"),
    (RoleName::Stopped, "stopped"),
];

pub(super) const POSTGRES: [(Postgres, &str); 5] = [
    (Postgres::Stopped, "stopped"),
    (Postgres::Starting, "starting"),
    (Postgres::Running, "running"),
    (Postgres::Stopping, "stopping"),
    (Postgres::Unknown, "unknown"),
];

/// The ways that are configured.
pub(super) fn legs(status: &Status, is: impl Fn(&Leg) -> bool) -> Vec<Sample> {
    let RouteState {
        endpoints,
        pooler,
        errors: _,
    } = &status.route;
    let sample = |(way, leg): (&str, &Option<Leg>)| {
        let holds = is(leg.as_ref()?);
        Some((vec![("way", way.to_owned())], f64::from(u8::from(holds))))
    };
    [("endpoints", endpoints), ("pooler", pooler)]
        .into_iter()
        .filter_map(sample)
        .collect()
}

pub(super) fn plain(value: f64) -> Sample {
    (Vec::new(), value)
}

pub(super) fn truth(holds: bool) -> Vec<Sample> {
    vec![plain(f64::from(u8::from(holds)))]
}

pub(super) fn one_of<T: Copy>(
    label: &'static str,
    all: &[(T, &'static str)],
    is: impl Fn(T) -> bool,
) -> Vec<Sample> {
    let sample = |(value, name): &(T, &str)| {
        let labels = vec![(label, (*name).to_owned())];
        (labels, f64::from(u8::from(is(*value))))
    };
    all.iter().map(sample).collect()
}

pub(super) fn secs(ms: u64) -> f64 {
    Duration::from_millis(ms).as_secs_f64()
}

/// An age in a document that itself has one.
pub(super) fn aged(status: &Status, ms: u64) -> Sample {
    plain(secs(ms.saturating_add(status.age_ms)))
}

pub(super) fn of_peer(status: &Status, peer: &str, ms: u64) -> Sample {
    let (_, value) = aged(status, ms);
    (vec![("peer", peer.to_owned())], value)
}

pub(super) fn steps(status: &Status) -> Vec<Sample> {
    let outcomes = |(name, step): (&String, &StepTally)| {
        let StepTally {
            done,
            refused,
            failed,
            overdue,
            last_ms: _,
        } = *step;
        let sample = |(outcome, count): (&str, u64)| {
            let labels = vec![("step", name.clone()), ("outcome", outcome.to_owned())];
            (labels, count as f64)
        };
        [
            ("done", done),
            ("refused", refused),
            ("failed", failed),
            ("overdue", overdue),
        ]
        .map(sample)
    };
    status.tally.steps.iter().flat_map(outcomes).collect()
}
