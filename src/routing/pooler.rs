//! PgBouncer, told over its admin console: `PAUSE` before the old active stops, `RESUME` when the new
//! one serves. Clients wait meanwhile instead of seeing their connections break.
//!
//! A pause must not outlive the handover it was made for: one that does not come about in time, or
//! that this process finds made too late, is taken back at once. Whoever serves next resumes.

use std::path::PathBuf;
use std::time::Duration;

use fencing::Mono;
use tokio_postgres::config::SslMode;
use tokio_postgres::{Client, Config, NoTls};
use tracing::{debug, warn};

use crate::clock;
use crate::config;

/// PgBouncer's words that there is nothing to resume, and nothing to pause.
const NOT_PAUSED: &str = "not paused";
const PAUSED_ALREADY: &str = "already suspended/paused";

/// The console of one PgBouncer.
#[derive(Clone, Debug)]
pub(super) struct Pooler {
    config: Config,
    password_file: Option<PathBuf>,
    /// The deadline of each request but PAUSE.
    request: Duration,
}

/// Why PgBouncer was not told.
#[derive(Debug, thiserror::Error)]
pub enum PoolerError {
    /// The file with the password cannot be read.
    #[error("the password of the pooler cannot be read from {}", path.display())]
    Password {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// No connection, or it broke.
    #[error("the pooler cannot be reached")]
    Unreachable(#[source] tokio_postgres::Error),
    /// It refuses.
    #[error("the pooler refuses {command}")]
    Refused {
        /// What it was told.
        command: &'static str,
        /// What it says.
        #[source]
        source: tokio_postgres::Error,
    },
    /// No answer in time: a client keeps its server connection, as each does in session mode.
    #[error("the pooler did not finish {command} in time")]
    Overdue {
        /// What it was told.
        command: &'static str,
    },
}

impl Pooler {
    pub fn new(settings: &config::Pooler, request: Duration) -> Self {
        let mut config = Config::new();
        config
            .host(settings.address.host())
            .port(settings.address.port())
            .user(&settings.user)
            .dbname(&settings.database)
            .application_name("baton")
            .ssl_mode(SslMode::Disable)
            .connect_timeout(request);
        Self {
            config,
            password_file: settings.password_file.clone(),
            request,
        }
    }

    /// Stops handing out server connections, and waits until none is in use.
    pub async fn pause(&self, deadline: Mono) -> Result<(), PoolerError> {
        let paused = match self.within(deadline, "PAUSE").await {
            Err(PoolerError::Refused { source, .. }) if says(&source, PAUSED_ALREADY) => Ok(()),
            other => other,
        };
        let late = clock::now() >= deadline;
        match paused {
            Ok(()) if !late => Ok(()),
            other => {
                if let Err(error) = self.resume().await {
                    warn!(
                        error = &error as &dyn std::error::Error,
                        "the pooler may still be paused"
                    );
                }
                other.and(Err(PoolerError::Overdue { command: "PAUSE" }))
            }
        }
    }

    /// Closes connections to the old active as soon as they are free, and lets clients go on.
    pub async fn resume(&self) -> Result<(), PoolerError> {
        let deadline = clock::now() + self.request;
        match self.within(deadline, "RECONNECT").await {
            Ok(()) => {}
            // A PgBouncer before 1.9 does not know it.
            Err(error @ PoolerError::Refused { .. }) => debug!(%error, "no reconnect"),
            Err(error) => return Err(error),
        }
        match self.within(deadline, "RESUME").await {
            Err(PoolerError::Refused { source, .. }) if says(&source, NOT_PAUSED) => Ok(()),
            other => other,
        }
    }

    async fn within(&self, deadline: Mono, command: &'static str) -> Result<(), PoolerError> {
        let patience = clock::now().until(deadline);
        let told = async {
            let console = self.connect().await?;
            let answer = console.client.simple_query(command).await;
            answer.map(drop).map_err(|source| {
                if source.as_db_error().is_some() {
                    PoolerError::Refused { command, source }
                } else {
                    PoolerError::Unreachable(source)
                }
            })
        };
        tokio::time::timeout(patience, told)
            .await
            .unwrap_or(Err(PoolerError::Overdue { command }))
    }

    async fn connect(&self) -> Result<Console, PoolerError> {
        let mut config = self.config.clone();
        if let Some(path) = &self.password_file {
            // Read each time: a Secret may have been renewed.
            let password = tokio::fs::read(path).await;
            let password = password.map_err(|source| PoolerError::Password {
                path: path.clone(),
                source,
            })?;
            config.password(password.trim_ascii());
        }
        let connected = config.connect(NoTls).await;
        let (client, connection) = connected.map_err(PoolerError::Unreachable)?;
        let task = tokio::spawn(async move {
            // Whoever asked sees the connection's end as the end of the question.
            let _ended = connection.await;
        });
        Ok(Console {
            client,
            _task: AbortOnDrop(task.abort_handle()),
        })
    }
}

fn says(error: &tokio_postgres::Error, words: &str) -> bool {
    error
        .as_db_error()
        .is_some_and(|error| error.message().contains(words))
}

struct Console {
    client: Client,
    _task: AbortOnDrop,
}

struct AbortOnDrop(tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
