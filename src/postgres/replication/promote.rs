//! Promotion: the end of replay, and a new timeline.

use std::time::Duration;

use super::facts::Position;
use super::look;
use crate::clock;
use crate::postgres::session::{Session, SessionError};

/// Between two looks at whether it is done: PostgreSQL does not announce it.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Baton's own sessions have no long transactions.
const MAKE_WAY: &str = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
    WHERE backend_type = 'client backend' AND application_name <> 'baton' AND xact_start IS NOT NULL \
    AND EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'startup' \
    AND (wait_event_type IN ('Lock', 'BufferPin') \
    OR wait_event IN ('RecoveryConflictSnapshot', 'RecoveryConflictTablespace')))";

/// Why a replica is not a primary yet.
#[derive(Debug, thiserror::Error)]
pub enum PromoteError {
    /// PostgreSQL did not answer, or refused.
    #[error("promoting")]
    Session(#[from] SessionError),
    /// It was asked, and goes on.
    #[error("the promotion is not done after {deadline:?}; it goes on")]
    Deadline {
        /// How long was waited.
        deadline: Duration,
    },
}

impl Session {
    /// Promotes a replica, which first replays all that it has. Returns its timeline and a position on it as soon
    /// as it accepts writes; at once if it is a primary already.
    ///
    /// The timeline's number is one more than the newest that this site knows of: see
    /// [`reserve_timelines`](super::reserve_timelines).
    ///
    /// Readers that keep replay waiting are disconnected: with `max_standby_streaming_delay` they could for ever.
    ///
    /// For whom commits wait from the first one on is what [`set_names`](super::set_names) said before.
    /// A checkpoint should follow soon: until then [`rejoin`](super::rejoin) of another site has to wait.
    ///
    /// # Errors
    /// At the deadline the promotion goes on: it cannot be taken back.
    pub async fn promote(&self, deadline: Duration) -> Result<Position, PromoteError> {
        let ends = clock::now() + deadline;
        let left = || clock::now().until(ends);
        let mut asked = false;
        loop {
            if !self.pulse(left()).await?.in_recovery {
                return Ok(self.written(left()).await?);
            }
            if !asked {
                let ask = "SELECT pg_promote(false)";
                self.execute("asking for the promotion", ask, left())
                    .await?;
                asked = true;
            } else if left().is_zero() {
                return Err(PromoteError::Deadline { deadline });
            } else {
                self.make_way(left()).await?;
                tokio::time::sleep(LOOK_EVERY).await;
            }
        }
    }

    /// Disconnects the clients in a transaction if replay waits for such a one.
    pub(super) async fn make_way(&self, deadline: Duration) -> Result<(), SessionError> {
        self.execute("making way for replay", MAKE_WAY, deadline)
            .await
    }

    /// A primary's timeline and the end of what it has flushed.
    async fn written(&self, deadline: Duration) -> Result<Position, SessionError> {
        const WHAT: &str = "reading the timeline";
        let sql = "SELECT substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) || ' ' || pg_current_wal_flush_lsn()";
        let answer = self.rows(WHAT, sql, deadline).await?;
        let position = look::single(&answer).and_then(|text| {
            let (timeline, lsn) = text.split_once(' ')?;
            Some(Position {
                timeline: u32::from_str_radix(timeline, 16).ok()?,
                lsn: lsn.parse().ok()?,
            })
        });
        position.ok_or(SessionError::Answer { what: WHAT })
    }
}
