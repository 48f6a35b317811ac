//! Which path leads where.

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{StatusCode, Uri};
use axum::routing::{MethodRouter, get, post};

use super::Office;
use super::answer::Refusal;
use super::health::{self, Question};
use super::{documents, metrics, verbs};

/// Bytes of a request's body: the longest that makes sense has some hundred.
const BODY_BYTES_MAX: usize = 16 << 10;

/// What is asked by a code alone. Patroni answers all of them to GET, HEAD and OPTIONS.
const PROBES: [(&str, Question); 19] = [
    ("/", Question::Primary),
    ("/primary", Question::Primary),
    ("/read-write", Question::Primary),
    ("/master", Question::Primary),
    ("/leader", Question::Leader),
    ("/replica", Question::Replica),
    ("/standby-leader", Question::Replica),
    ("/standby_leader", Question::Replica),
    ("/sync", Question::Sync),
    ("/synchronous", Question::Sync),
    ("/async", Question::Async),
    ("/asynchronous", Question::Async),
    ("/quorum", Question::Sync),
    ("/read-only", Question::ReadOnly),
    ("/read-only-sync", Question::ReadOnlySync),
    ("/read-only-quorum", Question::ReadOnlySync),
    ("/health", Question::Health),
    ("/liveness", Question::Liveness),
    ("/readiness", Question::Readiness),
];

/// The whole API.
pub(super) fn router(office: Arc<Office>) -> Router {
    let probes = PROBES
        .into_iter()
        .fold(Router::new(), |router, (path, question)| {
            router.route(path, probe(question))
        });
    probes
        .route("/patroni", get(documents::patroni))
        .route("/status", get(documents::status))
        .route("/cluster", get(documents::cluster))
        .route("/history", get(documents::history))
        .route("/metrics", get(metrics::scrape))
        .route(
            "/config",
            get(documents::settings).patch(verbs::patch_config),
        )
        .route("/switchover", post(verbs::switchover))
        .route("/failover", post(verbs::failover))
        .route("/pause", post(verbs::pause))
        .route("/resume", post(verbs::resume))
        .route("/restart", post(verbs::restart))
        .route("/reload", post(verbs::reload))
        .fallback(unknown)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(office)
}

/// The document for GET, which axum answers to HEAD without it; for OPTIONS the code alone.
fn probe(question: Question) -> MethodRouter<Arc<Office>> {
    get(move |State(office): State<Arc<Office>>| async move { health::answer(&office, question) })
        .options(
            move |State(office): State<Arc<Office>>| async move { health::code(&office, question) },
        )
}

async fn unknown(uri: Uri) -> Refusal {
    Refusal::new(
        StatusCode::NOT_FOUND,
        format!("there is nothing at {}", uri.path()),
    )
}
