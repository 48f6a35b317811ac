//! Feels whether a running PostgreSQL still writes: one that hangs neither ends nor says so, and its
//! member would go on calling it healthy.

use std::time::Duration;

use fencing::Epoch;
use tokio::sync::{mpsc, watch};
use tracing::warn;

use super::event::Event;
use crate::postgres::{End, Instance, Session, SessionError};

/// How often. Each is one small transaction.
const INTERVAL: Duration = Duration::from_secs(5);

/// How long PostgreSQL is given to answer: a volume that is busy takes seconds, not half a minute.
const PATIENCE: Duration = Duration::from_secs(30);

/// How many answers in a row must be missing.
const MISSED: u32 = 2;

/// Feels the pulse until PostgreSQL ends; when it hangs, [`Event::PostgresHangs`], once.
///
/// Only silence counts. A refusal (no connection left, a cancelled statement) is an answer.
pub(super) async fn watch(
    instance: Instance,
    epoch: Epoch,
    run: u64,
    mut end: watch::Receiver<Option<End>>,
    events: mpsc::UnboundedSender<Event>,
) {
    let mut session = None;
    let mut missed = 0;
    while missed < MISSED {
        tokio::select! {
            _ended = end.wait_for(Option::is_some) => return,
            () = tokio::time::sleep(INTERVAL) => {}
        }
        let felt = tokio::select! {
            _ended = end.wait_for(Option::is_some) => return,
            felt = feel(&instance, &mut session, epoch) => felt,
        };
        match felt {
            Ok(()) => missed = 0,
            Err(error) if error.is_silence() => {
                warn!(%error, "PostgreSQL gives no sign of life");
                session = None;
                missed += 1;
            }
            Err(_refused) => {
                session = None;
                missed = 0;
            }
        }
    }
    // The loop may have ended: then nobody decides any more.
    let _closed = events.send(Event::PostgresHangs { run });
}

async fn feel(
    instance: &Instance,
    session: &mut Option<Session>,
    epoch: Epoch,
) -> Result<(), SessionError> {
    let open = match session.take() {
        Some(open) => open,
        None => Session::connect(instance, PATIENCE).await?,
    };
    let open = session.insert(open);
    open.commit_sign_of_life(epoch, PATIENCE).await
}
