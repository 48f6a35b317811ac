//! Baton's own session with its PostgreSQL, over the Unix socket.

use std::fmt;
use std::future::Future;
use std::time::Duration;

use fencing::Epoch;
use serde::{Deserialize, Serialize};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

use super::configuration::SUPERUSER;
use super::control_data::Lsn;
use super::instance::Instance;

/// Settings of the session. A commit proves that *this* volume has it, so it waits for the local
/// disk and for no other site; read-only defaults and time-outs of the user's are not for Baton.
/// All are known since PostgreSQL 14, the oldest version here.
const OPTIONS: &str = "-c synchronous_commit=local -c default_transaction_read_only=off \
                       -c statement_timeout=0 -c lock_timeout=0 -c idle_session_timeout=0 \
                       -c client_min_messages=warning -c search_path=pg_catalog";

/// Who owned the volume when, told by the database itself: one row per epoch.
const CREATE_OWNERSHIP: &str = "\
    CREATE SCHEMA IF NOT EXISTS baton; \
    CREATE TABLE IF NOT EXISTS baton.ownership ( \
        epoch bigint PRIMARY KEY, \
        member text NOT NULL, \
        first_write timestamptz NOT NULL DEFAULT clock_timestamp(), \
        last_start timestamptz NOT NULL DEFAULT clock_timestamp(), \
        last_seen timestamptz NOT NULL DEFAULT clock_timestamp(), \
        starts bigint NOT NULL DEFAULT 1)";

/// An open session. Dropping it disconnects.
pub struct Session {
    client: Client,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("closed", &self.client.is_closed())
            .finish()
    }
}

/// Why PostgreSQL did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// No answer in time. The statement may still be carried out.
    #[error("{what}: no answer from PostgreSQL within {deadline:?}")]
    Deadline {
        /// What was asked.
        what: &'static str,
        /// How long was waited.
        deadline: Duration,
    },
    /// PostgreSQL refused, or the connection is lost.
    #[error("{what}{}", server_words(source))]
    Postgres {
        /// What was asked.
        what: &'static str,
        /// What it said.
        #[source]
        source: tokio_postgres::Error,
    },
    /// PostgreSQL answered something that Baton does not understand.
    #[error("{what}: PostgreSQL answered something unexpected")]
    Answer {
        /// What was asked.
        what: &'static str,
    },
}

/// The error's own text says only "db error"; the server's words are what a person needs.
fn server_words(error: &tokio_postgres::Error) -> String {
    error
        .as_db_error()
        .map_or_else(String::new, |db| format!(": {}", db.message()))
}

impl SessionError {
    /// Whether PostgreSQL gave no answer at all in time.
    pub fn is_silence(&self) -> bool {
        matches!(self, Self::Deadline { .. })
    }

    /// Whether the session is of no more use.
    pub fn is_disconnected(&self) -> bool {
        matches!(self, Self::Postgres { source, .. } if source.is_closed() || source.as_db_error().is_none())
    }

    /// Whether PostgreSQL is starting, stopping or recovering: it lives, but takes no connections.
    pub fn is_not_accepting(&self) -> bool {
        matches!(self, Self::Postgres { source, .. }
            if source.code() == Some(&SqlState::CANNOT_CONNECT_NOW))
    }

    fn is_missing_table(&self) -> bool {
        matches!(self, Self::Postgres { source, .. }
            if matches!(source.code(), Some(code) if *code == SqlState::UNDEFINED_TABLE
                || *code == SqlState::INVALID_SCHEMA_NAME))
    }
}

/// What PostgreSQL says of itself when asked whether it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pulse {
    /// Whether it replays, as a replica does.
    pub in_recovery: bool,
    /// On a primary what is flushed, on a replica what is replayed.
    pub position: Lsn,
}

impl Session {
    /// Connects as superuser over the Unix socket.
    pub async fn connect(instance: &Instance, deadline: Duration) -> Result<Self, SessionError> {
        const WHAT: &str = "connecting to PostgreSQL";
        let mut config = tokio_postgres::Config::new();
        config
            .host_path(&instance.socket_directory)
            .port(instance.port)
            .user(SUPERUSER)
            .dbname("postgres")
            .application_name("baton")
            .options(OPTIONS);
        let (client, connection) = bounded(WHAT, deadline, config.connect(NoTls)).await?;
        // Ends with the session or the server; its error is seen by the next statement.
        tokio::spawn(async move {
            let _ = connection.await;
        });
        Ok(Self { client })
    }

    /// Commits a row that names this epoch's owner: the proof that PostgreSQL writes.
    ///
    /// When it returns, the commit is on the volume.
    pub async fn commit_ownership(
        &self,
        epoch: Epoch,
        member: &str,
        deadline: Duration,
    ) -> Result<(), SessionError> {
        const WHAT: &str = "committing the proof of ownership";
        let upsert = format!(
            "INSERT INTO baton.ownership AS known (epoch, member) VALUES ({}, {}) \
             ON CONFLICT (epoch) DO UPDATE SET member = excluded.member, \
             last_start = clock_timestamp(), starts = known.starts + 1",
            epoch.number(),
            literal(member),
        );
        match self.execute(WHAT, &upsert, deadline).await {
            Err(error) if error.is_missing_table() => {
                self.execute("making baton.ownership", CREATE_OWNERSHIP, deadline)
                    .await?;
                self.execute(WHAT, &upsert, deadline).await
            }
            other => other,
        }
    }

    /// Commits a sign of life of this epoch: unlike a query, it shows that PostgreSQL can write.
    pub async fn commit_sign_of_life(
        &self,
        epoch: Epoch,
        deadline: Duration,
    ) -> Result<(), SessionError> {
        const WHAT: &str = "committing a sign of life";
        let update = format!(
            "UPDATE baton.ownership SET last_seen = clock_timestamp() WHERE epoch = {}",
            epoch.number()
        );
        self.execute(WHAT, &update, deadline).await
    }

    /// CHECKPOINT, so that the stop to come has little left to write. At the deadline it goes on.
    pub async fn checkpoint(&self, deadline: Duration) -> Result<(), SessionError> {
        self.execute("CHECKPOINT", "CHECKPOINT", deadline).await
    }

    /// Whether PostgreSQL lives and answers.
    pub async fn pulse(&self, deadline: Duration) -> Result<Pulse, SessionError> {
        const WHAT: &str = "feeling PostgreSQL's pulse";
        const SQL: &str = "SELECT pg_is_in_recovery(), CASE WHEN pg_is_in_recovery() \
                           THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END";
        let messages = bounded(WHAT, deadline, self.client.simple_query(SQL)).await?;
        let row = messages.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some((row.get(0)?, row.get(1).unwrap_or("0/0"))),
            _ => None,
        });
        let (in_recovery, position) = row.ok_or(SessionError::Answer { what: WHAT })?;
        Ok(Pulse {
            in_recovery: in_recovery == "t",
            position: position
                .parse()
                .map_err(|_| SessionError::Answer { what: WHAT })?,
        })
    }

    /// The settings of PostgreSQL, for a check of what is really in force.
    pub async fn setting(&self, name: &str, deadline: Duration) -> Result<String, SessionError> {
        const WHAT: &str = "reading a setting";
        let sql = format!("SELECT current_setting({})", literal(name));
        let messages = bounded(WHAT, deadline, self.client.simple_query(&sql)).await?;
        messages
            .iter()
            .find_map(|message| match message {
                SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
                _ => None,
            })
            .ok_or(SessionError::Answer { what: WHAT })
    }

    /// Whether the connection is closed for good.
    pub fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    pub(super) async fn execute(
        &self,
        what: &'static str,
        sql: &str,
        deadline: Duration,
    ) -> Result<(), SessionError> {
        bounded(what, deadline, self.client.batch_execute(sql)).await
    }

    /// The rows of each statement in `sql`, as text.
    pub(super) async fn rows(
        &self,
        what: &'static str,
        sql: &str,
        deadline: Duration,
    ) -> Result<Vec<Rows>, SessionError> {
        rows(&self.client, what, sql, deadline).await
    }
}

/// One statement's rows; each value as text, `None` for NULL.
pub(super) type Rows = Vec<Vec<Option<String>>>;

/// The rows of each statement in `sql`, as text.
pub(super) async fn rows(
    client: &Client,
    what: &'static str,
    sql: &str,
    deadline: Duration,
) -> Result<Vec<Rows>, SessionError> {
    let mut statements = Vec::new();
    let mut current = Rows::new();
    for message in bounded(what, deadline, client.simple_query(sql)).await? {
        match message {
            SimpleQueryMessage::Row(row) => {
                let values = (0..row.len()).map(|i| row.get(i).map(str::to_owned));
                current.push(values.collect());
            }
            SimpleQueryMessage::CommandComplete(_) => {
                statements.push(std::mem::take(&mut current));
            }
            _ => {}
        }
    }
    Ok(statements)
}

pub(super) async fn bounded<T>(
    what: &'static str,
    deadline: Duration,
    answer: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, SessionError> {
    match tokio::time::timeout(deadline, answer).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(source)) => Err(SessionError::Postgres { what, source }),
        Err(_elapsed) => Err(SessionError::Deadline { what, deadline }),
    }
}

/// A string literal whatever `standard_conforming_strings` says.
pub(super) fn literal(text: &str) -> String {
    format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_cannot_be_left() {
        assert_eq!(literal("a"), "E'a'");
        assert_eq!(literal(r"a'; DROP \"), r"E'a\'; DROP \\'");
    }
}
