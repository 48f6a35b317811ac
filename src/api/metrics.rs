//! `GET /metrics`: every metric that Baton has, with help and unit, defined in the one table below.
//!
//! Values are read from a status when somebody asks; nothing is counted here. Names follow
//! Prometheus' conventions: the unit at the end, `_total` on counters. Dashboards and alerts may rely on
//! them: a metric that changes its meaning gets another name.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

use super::Office;
use super::answer::Refusal;
use super::documents::newest;
use crate::control::zone::{ServingAs, SiteStatus, ZoneStatus};
use crate::control::{Status, StepTally};
use crate::decide::{Postgres, RoleName};
use crate::postgres::replication::Progress;
use crate::routing::{Leg, RouteState};

/// OpenMetrics, which Prometheus has read since 2.5.
const CONTENT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What every name begins with.
const PREFIX: &str = "baton";

/// A value with its labels.
type Sample = (Vec<(&'static str, String)>, f64);

/// Reads a metric's values.
type Values = fn(&Status) -> Vec<Sample>;

/// How a value behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Gauge,
    /// Grows, and begins at zero with the process; its name gets `_total`.
    Counter,
}

/// One metric.
struct Metric {
    /// Without prefix and unit.
    name: &'static str,
    help: &'static str,
    unit: Option<Unit>,
    kind: Kind,
    values: Values,
}

const fn gauge(name: &'static str, help: &'static str, values: Values) -> Metric {
    metric(name, help, None, Kind::Gauge, values)
}

const fn seconds(name: &'static str, help: &'static str, values: Values) -> Metric {
    metric(name, help, Some(Unit::Seconds), Kind::Gauge, values)
}

const fn bytes(name: &'static str, help: &'static str, values: Values) -> Metric {
    metric(name, help, Some(Unit::Bytes), Kind::Gauge, values)
}

const fn counter(name: &'static str, help: &'static str, values: Values) -> Metric {
    metric(name, help, None, Kind::Counter, values)
}

const fn metric(
    name: &'static str,
    help: &'static str,
    unit: Option<Unit>,
    kind: Kind,
    values: Values,
) -> Metric {
    Metric {
        name,
        help,
        unit,
        kind,
        values,
    }
}

/// All of them.
static METRICS: &[Metric] = &[
    gauge(
        "version",
        "Always 1; the program's version is in the label.",
        |status| vec![(vec![("version", status.version.clone())], 1.0)],
    ),
    gauge("role", "1 for the role that the member has.", |status| {
        let own = status.members.first().and_then(|member| member.role);
        one_of("role", &ROLES, |role| Some(role) == own)
    }),
    gauge(
        "epoch",
        "The epoch that the member owns, or the newest it knows of.",
        |status| {
            let own = status.members.first().and_then(|member| member.epoch);
            own.map(f64::from).map(plain).into_iter().collect()
        },
    ),
    gauge(
        "serving",
        "1 if PostgreSQL accepts writes here.",
        |status| truth(status.serving),
    ),
    gauge(
        "standby_ready",
        "1 if the member is a standby that could take over.",
        |status| truth(status.members.first().is_some_and(|member| member.ready)),
    ),
    gauge(
        "reservation_held",
        "1 if this member holds the volume's reservation by the newest report.",
        |status| truth(status.owner.as_ref() == Some(&status.member)),
    ),
    gauge(
        "postgres_state",
        "1 for the state that PostgreSQL is in here.",
        |status| one_of("state", &POSTGRES, |state| state == status.postgres),
    ),
    gauge(
        "paused",
        "1 if the operator wants no automatic take-over.",
        |status| truth(status.paused),
    ),
    gauge(
        "needs_operator",
        "1 if the member will not get on without a person.",
        |status| truth(status.needs_operator),
    ),
    gauge("warnings", "How many warnings the status has.", |status| {
        vec![plain(status.warnings.len() as f64)]
    }),
    seconds(
        "decision_age",
        "Since the loop's newest decision; it decides at every heartbeat.",
        |status| vec![plain(secs(status.age_ms))],
    ),
    gauge(
        "lease_store_reachable",
        "1 if the lease store could be read at the last attempt.",
        |status| truth(status.lease.reachable),
    ),
    gauge(
        "volume_reachable",
        "1 if the volume's reservations could be read at the last attempt.",
        |status| truth(status.volume.reachable),
    ),
    seconds(
        "lease_read_age",
        "Since the lease was read, or since it cannot be.",
        |status| vec![aged(status, status.lease.age_ms)],
    ),
    seconds(
        "volume_read_age",
        "Since the volume's reservations were read, or since they cannot be.",
        |status| vec![aged(status, status.volume.age_ms)],
    ),
    seconds(
        "lease_age",
        "Since the record in the lease store was last seen to change.",
        |status| {
            let moved = status.signs.lease_ms;
            moved.map(|ms| aged(status, ms)).into_iter().collect()
        },
    ),
    seconds(
        "storage_beat_age",
        "Since a member's key on the volume was last seen to change.",
        |status| {
            let keys = status.signs.keys_ms.iter();
            keys.map(|(name, ms)| of_peer(status, name, *ms)).collect()
        },
    ),
    seconds(
        "heartbeat_age",
        "Since another member was heard over the network.",
        |status| {
            let others = status.members.iter().skip(1);
            let heard = |member: &crate::control::MemberStatus| {
                Some(of_peer(status, &member.name, member.heard_ms?))
            };
            others.filter_map(heard).collect()
        },
    ),
    gauge(
        "route_published",
        "1 for each way that leads clients to this member, as far as it could be told.",
        |status| legs(status, |leg| matches!(leg, Leg::Published { .. })),
    ),
    gauge(
        "route_failing",
        "1 for each way to lead clients that could not be told at the last attempt.",
        |status| legs(status, |leg| matches!(leg, Leg::Failing { .. })),
    ),
    counter(
        "route_errors",
        "How often a way to lead clients could not be told.",
        |status| vec![plain(status.route.errors as f64)],
    ),
    counter(
        "takeovers",
        "How often the member became active.",
        |status| vec![plain(status.tally.takeovers as f64)],
    ),
    counter(
        "steps",
        "Steps by name and outcome; refused: another member was faster.",
        steps,
    ),
    seconds(
        "step_duration",
        "What the newest step of each name took that was done: the phases of the last handover.",
        |status| {
            let steps = status.tally.steps.iter();
            let took = |(name, step): (&String, &StepTally)| {
                Some((vec![("step", name.clone())], secs(step.last_ms?)))
            };
            steps.filter_map(took).collect()
        },
    ),
    seconds(
        "step_running",
        "For how long the step that is under way has been running.",
        |status| {
            let running = status.step.iter();
            let age = status.age_ms;
            running
                .map(|step| {
                    let value = secs(step.running_ms.saturating_add(age));
                    (vec![("step", step.name.clone())], value)
                })
                .collect()
        },
    ),
    gauge(
        "postgres_role",
        "1 for what PostgreSQL here is among the sites; absent with one site.",
        |status| {
            zone(status, |zone| {
                one_of("role", &AMONG, |role| role == zone.serving_as)
            })
        },
    ),
    gauge(
        "cluster_record_reachable",
        "1 if the record of all sites could be read at the last attempt.",
        |status| zone(status, |zone| truth(zone.reachable)),
    ),
    gauge(
        "term",
        "Counts the changes of the primary's site.",
        |status| zone(status, |zone| vec![plain(zone.term as f64)]),
    ),
    gauge(
        "failover_safe",
        "1 if a failover to another site now would lose nothing.",
        |status| zone(status, |zone| truth(zone.failover.safe)),
    ),
    gauge(
        "sync_sites_needed",
        "For how many other sites commits wait; 0: replication is degraded, or off.",
        |status| {
            let needed = |zone: &ZoneStatus| zone.sync.as_ref().map_or(0, |sync| sync.need);
            zone(status, |zone| vec![plain(f64::from(needed(zone)))])
        },
    ),
    bytes(
        "replication_lag",
        "How much log a site is behind: the primary's word on others, a replica's own.",
        |status| sites(status, |site| site.lag_bytes.map(|lag| lag as f64)),
    ),
    seconds(
        "replication_delay",
        "How much older than now the newest commit is that this replica has replayed.",
        |status| {
            let delay = |zone: &ZoneStatus| zone.lag_ms.map(secs).map(plain);
            zone(status, |zone| delay(zone).into_iter().collect())
        },
    ),
    bytes(
        "copy_done",
        "How much of the primary's database has arrived; absent while no copy is under way.",
        |status| copying(status, |copy| Some(copy.done)),
    ),
    bytes(
        "copy_expected",
        "How much will arrive, by an estimate; absent while no copy is under way, or nobody knows.",
        |status| copying(status, |copy| Some(copy.total).filter(|total| *total > 0)),
    ),
    gauge(
        "replica_streaming",
        "1 if a site streams from this primary.",
        |status| sites(status, |site| site.streaming.map(f64::from)),
    ),
    bytes(
        "slot_retained",
        "How much log this primary keeps for a site.",
        |status| sites(status, |site| site.slot_retained.map(|kept| kept as f64)),
    ),
    gauge(
        "slot_lost",
        "1 if a site's slot no longer keeps what it needs.",
        |status| sites(status, |site| site.slot_lost.map(f64::from)),
    ),
    seconds(
        "last_fence_timestamp",
        "When the newest fence was proven, since 1970; absent before the first.",
        |status| {
            let fence = status.tally.last_fence.iter();
            fence.map(|fence| plain(secs(fence.at.0))).collect()
        },
    ),
    seconds(
        "last_fence_duration",
        "What the newest proven fence took; absent before the first.",
        |status| {
            let fence = status.tally.last_fence.iter();
            fence.map(|fence| plain(secs(fence.took_ms))).collect()
        },
    ),
];

const AMONG: [(ServingAs, &str); 3] = [
    (ServingAs::Primary, "primary"),
    (ServingAs::Replica, "replica"),
    (ServingAs::Nothing, "none"),
];

/// Values of a cluster of several sites; none with one.
fn zone(status: &Status, values: impl Fn(&ZoneStatus) -> Vec<Sample>) -> Vec<Sample> {
    status.zone.as_ref().map(values).unwrap_or_default()
}

/// One value for each other site of which there is one.
fn sites(status: &Status, value: impl Fn(&SiteStatus) -> Option<f64>) -> Vec<Sample> {
    zone(status, |zone| {
        let all = zone.sites.iter();
        all.filter_map(|site| Some((vec![("of", site.name.clone())], value(site)?)))
            .collect()
    })
}

/// A number of bytes of the copy that is under way.
fn copying(status: &Status, value: impl Fn(&Progress) -> Option<u64>) -> Vec<Sample> {
    zone(status, |zone| {
        let sample = |copy: &Progress| {
            let by = vec![("by", copy.by.to_string())];
            Some((by, value(copy)? as f64))
        };
        zone.copying.iter().filter_map(sample).collect()
    })
}

const ROLES: [(RoleName, &str); 7] = [
    (RoleName::Joining, "joining"),
    (RoleName::Standby, "standby"),
    (RoleName::TakingOver, "taking-over"),
    (RoleName::Active, "active"),
    (RoleName::HandingOver, "handing-over"),
    (RoleName::Returning, "returning"),
    (RoleName::Stopped, "stopped"),
];

const POSTGRES: [(Postgres, &str); 5] = [
    (Postgres::Stopped, "stopped"),
    (Postgres::Starting, "starting"),
    (Postgres::Running, "running"),
    (Postgres::Stopping, "stopping"),
    (Postgres::Unknown, "unknown"),
];

/// The ways that are configured.
fn legs(status: &Status, is: impl Fn(&Leg) -> bool) -> Vec<Sample> {
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

fn plain(value: f64) -> Sample {
    (Vec::new(), value)
}

fn truth(holds: bool) -> Vec<Sample> {
    vec![plain(f64::from(u8::from(holds)))]
}

fn one_of<T: Copy>(
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

fn secs(ms: u64) -> f64 {
    Duration::from_millis(ms).as_secs_f64()
}

/// An age in a document that itself has one.
fn aged(status: &Status, ms: u64) -> Sample {
    plain(secs(ms.saturating_add(status.age_ms)))
}

fn of_peer(status: &Status, peer: &str, ms: u64) -> Sample {
    let (_, value) = aged(status, ms);
    (vec![("peer", peer.to_owned())], value)
}

fn steps(status: &Status) -> Vec<Sample> {
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

/// The names of all metrics as Prometheus has them, for whoever checks alerts and dashboards.
pub fn names() -> Vec<String> {
    let name = |metric: &Metric| {
        let unit = metric.unit.as_ref();
        let unit = unit.map_or(String::new(), |unit| format!("_{}", unit.as_str()));
        let total = match metric.kind {
            Kind::Gauge => "",
            Kind::Counter => "_total",
        };
        format!("{PREFIX}_{}{unit}{total}", metric.name)
    };
    METRICS.iter().map(name).collect()
}

/// One reading of all of them.
#[derive(Debug)]
struct Reading(Status);

impl Collector for Reading {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        for metric in METRICS {
            let kind = match metric.kind {
                Kind::Gauge => MetricType::Gauge,
                Kind::Counter => MetricType::Counter,
            };
            let mut family =
                encoder.encode_descriptor(metric.name, metric.help, metric.unit.as_ref(), kind)?;
            for (labels, value) in (metric.values)(&self.0) {
                let sample = family.encode_family(&labels)?;
                match metric.kind {
                    Kind::Gauge => ConstGauge::new(value).encode(sample)?,
                    Kind::Counter => ConstCounter::new(value).encode(sample)?,
                }
            }
        }
        Ok(())
    }
}

/// All metrics of a status, as OpenMetrics text.
///
/// # Errors
/// None that could happen: the text goes into memory.
pub fn render(status: Status) -> Result<String, fmt::Error> {
    let labels = [
        ("cluster", status.cluster.clone()),
        ("site", status.site.clone()),
        ("member", status.member.clone()),
    ]
    .map(|(name, value)| (name.into(), value.into()));
    let mut registry = Registry::with_prefix_and_labels(PREFIX, labels.into_iter());
    registry.register_collector(Box::new(Reading(status)));
    let mut document = String::new();
    text::encode(&mut document, &registry)?;
    Ok(document)
}

/// `GET /metrics`.
pub(super) async fn scrape(State(office): State<Arc<Office>>) -> Result<Response, Refusal> {
    let failed =
        |error: fmt::Error| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string());
    let document = render(newest(&office)?).map_err(failed)?;
    Ok(([(CONTENT_TYPE, CONTENT)], document).into_response())
}
