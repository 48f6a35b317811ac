//! A stopped replica replays all that it has received, without a primary and without clients.
//!
//! Only then is it known how far it is: what was received and not replayed may lie beyond where the new primary's
//! history begins, and would be replayed by the next start, before anybody is asked.

use std::time::Duration;

use fencing::Licence;

use super::look;
use super::source::{Replication, Serving, Source};
use crate::clock;
use crate::postgres::session::{Session, SessionError};
use crate::postgres::{
    Instance, Launched, NotReady, StartError, StartedBy, StopBounds, StopOutcome, StoppedBy,
    launch_as, stop,
};

/// Between two looks at how far it is: nothing announces the end.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// How long the kernel is given to end a killed process: it may wait for the volume.
const KILL: Duration = Duration::from_secs(20);

/// Why a replica did not replay all that it has.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// It could not be started.
    #[error("replaying what was received")]
    Start(#[from] Box<StartError>),
    /// It does not become ready.
    #[error("replaying what was received")]
    NotReady(#[from] NotReady),
    /// It does not answer.
    #[error("replaying what was received")]
    Session(#[from] SessionError),
    /// It does not get any further.
    #[error("nothing more of what was received is replayed for {stall:?}")]
    Stalled {
        /// For how long.
        stall: Duration,
    },
    /// It could not be stopped in order afterwards.
    #[error("what was received is replayed, but PostgreSQL does not stop in order")]
    NotStopped,
}

/// Starts PostgreSQL for the member's own session alone, waits until it has replayed everything, and stops it.
pub(super) async fn replay_all(
    licence: &Licence,
    instance: &Instance,
    by: &StartedBy<'_>,
    source: &Source,
    stall: Duration,
) -> Result<(), ReplayError> {
    let mut alone = instance.clone();
    alone.listen_addresses = String::new();
    alone.hba.clear();
    let serving = Serving::Replica {
        receive: None,
        replication: Replication {
            user: source.user.clone(),
            require_tls: true,
            slot_wal_max: "-1".to_owned(),
        },
    };
    let by = by.again().map_err(StartError::lock).map_err(Box::new)?;
    let launched = launch_as(licence, &alone, &serving, by).await;
    let Launched {
        mut postmaster,
        starting,
    } = launched.map_err(Box::new)?;
    starting.ready(stall).await?;
    let session = connect(&alone, stall).await?;
    await_all(&session, stall).await?;
    drop(session);
    let bounds = StopBounds {
        fast: stall,
        immediate: Duration::ZERO,
        kill: KILL,
    };
    match stop(&mut postmaster, bounds).await {
        StopOutcome::Stopped {
            by: StoppedBy::Fast,
            ..
        } => Ok(()),
        StopOutcome::Stopped { .. } | StopOutcome::Stuck => Err(ReplayError::NotStopped),
    }
}

/// PostgreSQL takes connections once it is consistent, which may be later than that it says that it replays.
async fn connect(instance: &Instance, stall: Duration) -> Result<Session, ReplayError> {
    let ends = clock::now() + stall;
    loop {
        match Session::connect(instance, clock::now().until(ends)).await {
            Err(error) if error.is_not_accepting() && clock::now() < ends => {
                tokio::time::sleep(LOOK_EVERY).await;
            }
            other => return Ok(other?),
        }
    }
}

async fn await_all(session: &Session, stall: Duration) -> Result<(), ReplayError> {
    let (mut position, mut moved) = (None, clock::now());
    loop {
        let now = look::received(session, stall).await?;
        if now.complete {
            return Ok(());
        }
        if position != Some(now.position) {
            (position, moved) = (Some(now.position), clock::now());
        } else if moved.elapsed(stall, clock::now()) {
            return Err(ReplayError::Stalled { stall });
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
