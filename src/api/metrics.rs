//! `GET /metrics`: every metric that Baton has, with help and unit, defined in the one [table].
//!
//! Values are read from a status when somebody asks; nothing is counted here. Names follow
//! Prometheus' conventions: the unit at the end, `_total` on counters. Dashboards and alerts may rely on
//! them: a metric that changes its meaning gets another name.

mod table;
mod values;

use std::fmt;
use std::sync::Arc;

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
use crate::control::Status;
use table::METRICS;

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
