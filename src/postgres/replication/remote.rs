//! A session with the PostgreSQL of another site.

use std::fmt;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::facts::Probe;
use super::look;
use super::source::{PasswordError, Source, read_password};
use super::tls::{self, TlsError};
use crate::clock;
use crate::config::Endpoint;
use crate::postgres::session::{Rows, SessionError, bounded, rows};

/// Settings of the session: it only looks.
const OPTIONS: &str =
    "-c default_transaction_read_only=on -c statement_timeout=0 -c search_path=pg_catalog";

/// Why another site's PostgreSQL tells nothing.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The password cannot be used.
    #[error("connecting to another site")]
    Password(#[from] PasswordError),
    /// TLS cannot be spoken as configured.
    #[error("connecting to another site")]
    Tls(#[from] TlsError),
    /// It does not accept the role or its password.
    #[error("another site does not let {user} in; give the role the same password at all sites")]
    Rejected {
        /// The role.
        user: String,
        /// What it said.
        #[source]
        source: SessionError,
    },
    /// No member of the site answers as PostgreSQL.
    #[error("no PostgreSQL answers at {hosts}")]
    Unreachable {
        /// Where it was tried.
        hosts: String,
        /// What came of the last one.
        #[source]
        source: SessionError,
    },
    /// It is connected, but did not answer.
    #[error("asking another site")]
    Session(#[from] SessionError),
    /// No host is configured.
    #[error("another site has no host to connect to")]
    NoHost,
}

/// An open session with the PostgreSQL of another site. Dropping it disconnects.
pub struct Remote {
    client: Client,
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remote")
            .field("closed", &self.client.is_closed())
            .finish()
    }
}

impl Remote {
    /// Connects to whichever host of the site answers first: at most one of its members runs PostgreSQL.
    pub async fn connect(source: &Source, deadline: Duration) -> Result<Self, ProbeError> {
        let password = read_password(&source.password_file)?;
        let attempt = |host| connect_one(source, host, &password, deadline);
        let mut attempts: FuturesUnordered<_> = source.hosts.iter().map(attempt).collect();
        let mut why = ProbeError::NoHost;
        while let Some(attempt) = attempts.next().await {
            match attempt {
                Ok(client) => return Ok(Self { client }),
                // A host that refuses the role tells more than one at which nobody listens.
                Err(_) if matches!(why, ProbeError::Rejected { .. }) => {}
                Err(error) => why = error,
            }
        }
        Err(why)
    }

    /// What it says of itself, and of the slot of this name.
    pub async fn look(&self, slot: &str, deadline: Duration) -> Result<Probe, ProbeError> {
        const WHAT: &str = "looking at another site";
        let answer = self.rows(WHAT, &look::probe_sql(slot), deadline).await?;
        let probe = look::read_probe(&answer).ok_or(SessionError::Answer { what: WHAT })?;
        Ok(probe)
    }

    /// Whether the connection is closed for good.
    pub fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    pub(super) async fn rows(
        &self,
        what: &'static str,
        sql: &str,
        deadline: Duration,
    ) -> Result<Vec<Rows>, SessionError> {
        rows(&self.client, what, sql, deadline).await
    }
}

/// Connects to another site, looks, and disconnects.
pub async fn probe(source: &Source, slot: &str, deadline: Duration) -> Result<Probe, ProbeError> {
    let ends = clock::now() + deadline;
    let remote = Remote::connect(source, deadline).await?;
    remote.look(slot, clock::now().until(ends)).await
}

async fn connect_one(
    source: &Source,
    host: &Endpoint,
    password: &str,
    deadline: Duration,
) -> Result<Client, ProbeError> {
    const WHAT: &str = "connecting to another site";
    let tls = tls::of(&source.sslmode, source.root_certificate.as_deref())?;
    let mut config = tokio_postgres::Config::new();
    config
        .host(host.host())
        .port(host.port())
        .user(&source.user)
        .password(password)
        .dbname("postgres")
        .application_name("baton-probe")
        .options(OPTIONS)
        .ssl_mode(tls.mode)
        .connect_timeout(deadline);
    let connected = bounded(WHAT, deadline, config.connect(tls.connect)).await;
    let (client, connection) = connected.map_err(|error| refused(source, host, error))?;
    // Ends with the session or the server; its error is seen by the next statement.
    tokio::spawn(async move {
        let _ = connection.await;
    });
    Ok(client)
}

fn refused(tried: &Source, host: &Endpoint, source: SessionError) -> ProbeError {
    let code = match &source {
        SessionError::Postgres { source, .. } => source.code(),
        SessionError::Deadline { .. } | SessionError::Answer { .. } => None,
    };
    match code {
        Some(code)
            if *code == SqlState::INVALID_PASSWORD
                || *code == SqlState::INVALID_AUTHORIZATION_SPECIFICATION =>
        {
            let user = tried.user.clone();
            ProbeError::Rejected { user, source }
        }
        _ => ProbeError::Unreachable {
            hosts: host.to_string(),
            source,
        },
    }
}
