//! Stopping PostgreSQL: fast, then immediate, then kill, each for a bounded time.

use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::control_data::{ControlData, DatabaseState, ReadError};
use super::process::{End, Postmaster, Request};

/// How long each way of stopping is given before the next, harder one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopBounds {
    /// For a fast stop: disconnect, write a checkpoint, send it to the replicas, end. Zero skips it.
    pub fast: Duration,
    /// For an immediate stop: end without a checkpoint. Zero skips it.
    pub immediate: Duration,
    /// For the kernel to empty the process tree after SIGKILL.
    pub kill: Duration,
}

/// By which means PostgreSQL stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StoppedBy {
    /// It had ended before it was asked.
    Itself,
    /// The fast stop.
    Fast,
    /// The immediate stop.
    Immediate,
    /// SIGKILL.
    Kill,
}

/// What became of a stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[must_use]
pub enum StopOutcome {
    /// The process tree is empty.
    Stopped {
        /// By which means.
        by: StoppedBy,
        /// How the postmaster ended.
        end: End,
    },
    /// Even SIGKILL did not empty the tree in time: a process hangs in the kernel, most likely on
    /// the volume. It may still write.
    Stuck,
}

/// Stops PostgreSQL; each step's bound is its own, so the whole takes at most their sum.
pub async fn stop(postmaster: &mut Postmaster, bounds: StopBounds) -> StopOutcome {
    if let Some(end) = postmaster.ended() {
        return StopOutcome::Stopped {
            by: StoppedBy::Itself,
            end,
        };
    }
    let polite = [
        (Request::StopFast, StoppedBy::Fast, bounds.fast),
        (
            Request::StopImmediate,
            StoppedBy::Immediate,
            bounds.immediate,
        ),
    ];
    for (request, by, bound) in polite {
        // A request that cannot be made, because the tree is ending or frozen, leaves the wait.
        if !bound.is_zero()
            && postmaster.ask(request).is_ok()
            && let Some(end) = postmaster.wait_within(bound).await
        {
            return StopOutcome::Stopped { by, end };
        }
    }
    kill(postmaster, bounds.kill).await
}

/// Kills the whole tree at once and waits until it is empty.
pub async fn kill(postmaster: &Postmaster, bound: Duration) -> StopOutcome {
    // An error can only mean that it is gone, which the wait tells.
    let _ = postmaster.kill();
    match postmaster.wait_within(bound).await {
        Some(end) => StopOutcome::Stopped {
            by: StoppedBy::Kill,
            end,
        },
        None => StopOutcome::Stuck,
    }
}

/// Why a stop does not count as orderly.
#[derive(Debug, thiserror::Error)]
pub enum NotShutDown {
    /// The control file could not be read.
    #[error("verifying the stop")]
    Control(#[from] ReadError),
    /// It says that PostgreSQL was not stopped in order; the next start replays.
    #[error(
        "the control file says {state:?} instead of {expected:?}: the next start will replay the write-ahead log"
    )]
    State {
        /// What it says.
        state: DatabaseState,
        /// What an orderly stop leaves.
        expected: DatabaseState,
    },
}

/// After a fast stop: whether the control file agrees that nothing is left to replay.
pub fn verify_shut_down(data_directory: &Path, replica: bool) -> Result<ControlData, NotShutDown> {
    let control = ControlData::read(data_directory)?;
    let expected = if replica {
        DatabaseState::ShutDownInRecovery
    } else {
        DatabaseState::ShutDown
    };
    if control.state == expected {
        Ok(control)
    } else {
        Err(NotShutDown::State {
            state: control.state,
            expected,
        })
    }
}
