//! What becomes of a command that failed: repeat it after a reconnect, or which error to show.

use std::future::Future;
use std::time::Duration;

use tokio::time::Instant;

use super::Backend;
use crate::Error;

/// Runs a block command, and runs it again after a reconnect while that may help.
///
/// Only for commands that give the same result when repeated: reads, writes of whole blocks,
/// flushes. A late first copy can do no harm that the reservation would not have prevented: the
/// kernel's initiator repeats in the same way.
///
/// Not repeated: what the target refused, and what ran into its own deadline on a living
/// connection, for its first copy may still be at work there.
pub(super) async fn with_replay<B, T, F, Fut>(
    backend: &B,
    path_loss: Duration,
    mut attempt: F,
) -> Result<T, i32>
where
    B: Backend,
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, Error>>,
{
    let mut give_up: Option<Instant> = None;
    loop {
        let error = match attempt().await {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        let limit = *give_up.get_or_insert_with(|| Instant::now() + path_loss);
        let lost = matches!(error, Error::ConnectionLost { .. } | Error::NoPath { .. });
        if !lost || Instant::now() >= limit || !backend.usable(path_loss).await {
            tracing::debug!(%error, "request fails");
            return Err(errno(&error));
        }
    }
}

/// The error number that the block layer understands. Never success, whatever happened.
pub(super) fn errno(error: &Error) -> i32 {
    match error {
        // The block layer's BLK_STS_RESV_CONFLICT.
        Error::Status { status, .. } if status.is_conflict() => libc::EBADE,
        Error::Deadline { .. } => libc::ETIMEDOUT,
        Error::Status { .. }
        | Error::ConnectionLost { .. }
        | Error::NoPath { .. }
        | Error::Protocol { .. }
        | Error::Io { .. } => libc::EIO,
    }
}
