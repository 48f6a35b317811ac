//! The writer: connections that insert rows as fast as PostgreSQL acknowledges them, through
//! take-overs, with a ledger of what was acknowledged.
//!
//! It behaves like an application with a retrying pool: each connection tries all servers at once,
//! keeps the first that accepts writes, inserts one row a transaction, and after any error opens a
//! new session and goes on with a *new* number, so that no row is ever tried twice. The same code
//! measures Baton and, for the benchmark, any other PostgreSQL cluster.

use std::future::poll_fn;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;
use tokio_postgres::config::TargetSessionAttrs;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{AsyncMessage, Client, NoTls, Statement};

use super::ledger::{Entry, Fate, Ledger, LedgerError, Recorder, Row};
use crate::clock::{self, Mono};

/// The table that the writer fills; it is made anew for each run.
pub const TABLE: &str = "baton_drill";

/// How long a session may take to open. A stopped process's listening socket still accepts
/// connections, so without a bound a client waits there for ever.
const OPEN_TIMEOUT: Duration = Duration::from_secs(1);

/// The pause after a refused session, at most; each is drawn from half of it upwards, so that the
/// connections spread and together notice a returning server within a few milliseconds.
const RETRY_PAUSE_MS: u64 = 20;

/// How often it is looked whether all connections write.
const LOOK: Duration = Duration::from_millis(5);

/// Acknowledgements that a server sent before it was killed may still be on their way for this
/// long: only later ones prove that somebody serves.
pub const ON_THE_WAY: Duration = Duration::from_millis(100);

/// What to write, and where.
#[derive(Clone, Debug)]
pub struct Plan {
    /// All servers that may accept writes, one host each.
    pub servers: Vec<tokio_postgres::Config>,
    /// How many connections write at the same time.
    pub connections: u16,
    /// The ledger's file; it must not exist yet.
    pub ledger: PathBuf,
    /// How long an insert may take until its session is given up, its row's fate unknown.
    pub insert_timeout: Duration,
}

/// The writer failed itself; failures of PostgreSQL are what it is there for.
#[derive(Debug, thiserror::Error)]
pub enum WriterError {
    /// The ledger failed.
    #[error("keep the ledger")]
    Ledger(#[from] LedgerError),
    /// No server accepted writes in time.
    #[error("no server accepted writes within {within:?}: {last}")]
    NoServer {
        /// How long it was tried.
        within: Duration,
        /// What the last server said.
        last: String,
    },
    /// The drill's table could not be made or read.
    #[error("{what}")]
    Sql {
        /// What was attempted.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: tokio_postgres::Error,
    },
    /// A connection's task ended by a panic.
    #[error("a writing task panicked")]
    Panicked,
}

/// A running writer.
#[derive(Debug)]
pub struct Writer {
    ledger: Ledger,
    tasks: JoinSet<Result<(), LedgerError>>,
    stop: watch::Sender<bool>,
    counters: Arc<Counters>,
}

/// What is known while it runs, for progress. The ledger alone is the truth.
#[derive(Debug, Default)]
struct Counters {
    unknown: AtomicU64,
    /// When each connection last had a row acknowledged; 0 for never.
    last: Vec<AtomicU64>,
}

/// What a writer did, read back from its ledger.
#[derive(Clone, Debug)]
pub struct Written {
    /// Every entry of the ledger.
    pub entries: Vec<Entry>,
    /// When the last connection had stopped.
    pub ended: Mono,
}

impl Writer {
    /// Makes the table anew and starts writing. Returns once every connection had a row
    /// acknowledged, so that a fault never meets a writer that has not begun.
    pub async fn start(plan: &Plan, within: Duration) -> Result<Self, WriterError> {
        make_table(plan, within).await?;
        let ledger = Ledger::create(&plan.ledger)?;
        let (stop, stopping) = watch::channel(false);
        let last = (0..plan.connections).map(|_| AtomicU64::new(0)).collect();
        let counters = Arc::new(Counters {
            last,
            ..Counters::default()
        });
        let mut tasks = JoinSet::new();
        for connection in 0..plan.connections {
            let line = Line {
                connection,
                servers: plan.servers.clone(),
                insert_timeout: plan.insert_timeout,
                recorder: ledger.recorder(),
                stopping: stopping.clone(),
                counters: Arc::clone(&counters),
            };
            tasks.spawn(line.write());
        }
        let writer = Self {
            ledger,
            tasks,
            stop,
            counters,
        };
        match writer.all_write(Mono::ZERO, within).await {
            true => Ok(writer),
            false => {
                let last = "not every connection could write".to_owned();
                Err(WriterError::NoServer { within, last })
            }
        }
    }

    /// Rows acknowledged and durable in the ledger, rows of unknown fate, so far.
    pub fn progress(&self) -> (u64, u64) {
        let unknown = self.counters.unknown.load(Ordering::Relaxed);
        (self.ledger.durable(), unknown)
    }

    /// Waits until every connection has had a row acknowledged after `after`; false if that does
    /// not happen within `within`.
    pub async fn all_write(&self, after: Mono, within: Duration) -> bool {
        let until = clock::now() + within;
        let all = || {
            let last = self.counters.last.iter();
            last.map(|at| at.load(Ordering::Relaxed))
                .all(|at| at > after.as_millis())
        };
        while !all() {
            if clock::now() >= until {
                return false;
            }
            // waking somebody at each of thousands of rows a second would cost more than looking
            tokio::time::sleep(LOOK).await;
        }
        true
    }

    /// Stops after the inserts under way, and reads the ledger back.
    pub async fn finish(mut self) -> Result<Written, WriterError> {
        self.stop.send_replace(true);
        while let Some(ended) = self.tasks.join_next().await {
            ended.map_err(|_| WriterError::Panicked)??;
        }
        let ended = clock::now();
        let entries = self.ledger.close().await?;
        Ok(Written { entries, ended })
    }
}

/// One connection of the writer.
struct Line {
    connection: u16,
    servers: Vec<tokio_postgres::Config>,
    insert_timeout: Duration,
    recorder: Recorder,
    stopping: watch::Receiver<bool>,
    counters: Arc<Counters>,
}

/// How an insert ended.
enum Insert {
    Acknowledged,
    Unknown,
    /// The server said that it does not write: the row cannot be there.
    Refused,
}

impl Line {
    async fn write(mut self) -> Result<(), LedgerError> {
        let mut number = 0;
        while let Some(session) = self.open().await {
            while !*self.stopping.borrow() {
                number += 1;
                let insert = session.insert(self.connection, number, self.insert_timeout);
                let fate = match insert.await {
                    Insert::Acknowledged => Fate::Acknowledged,
                    Insert::Unknown => Fate::Unknown,
                    Insert::Refused => break,
                };
                self.record(number, fate).await?;
                if fate == Fate::Unknown {
                    break;
                }
            }
        }
        Ok(())
    }

    async fn record(&self, number: u64, fate: Fate) -> Result<(), LedgerError> {
        let at = clock::now();
        match fate {
            Fate::Acknowledged => {
                let last = &self.counters.last[usize::from(self.connection)];
                last.store(at.as_millis(), Ordering::Relaxed);
            }
            Fate::Unknown => {
                self.counters.unknown.fetch_add(1, Ordering::Relaxed);
            }
        }
        let row = Row {
            connection: self.connection,
            number,
        };
        self.recorder.record(Entry { fate, row, at }).await
    }

    /// A session with a server that accepts writes; none once the writer stops.
    async fn open(&mut self) -> Option<Session> {
        tokio::select! {
            stopped = self.stopping.wait_for(|stop| *stop) => {
                drop(stopped);
                None
            }
            session = any_session(&self.servers) => Some(session),
        }
    }
}

/// Tries all servers at once and again, until one accepts writes.
async fn any_session(servers: &[tokio_postgres::Config]) -> Session {
    let mut attempts = JoinSet::new();
    for server in servers {
        let server = server.clone();
        attempts.spawn(async move {
            loop {
                if let Ok(session) = Session::open(&server).await {
                    return session;
                }
                let pause = rand::random_range(RETRY_PAUSE_MS / 2..=RETRY_PAUSE_MS);
                tokio::time::sleep(Duration::from_millis(pause)).await;
            }
        });
    }
    loop {
        match attempts.join_next().await {
            Some(Ok(session)) => return session,
            Some(Err(_)) => {}
            None => std::future::pending().await,
        }
    }
}

/// A session that accepts writes, with its insert prepared.
struct Session {
    client: Client,
    insert: Statement,
    driver: Driver,
}

/// The task that moves a session's bytes; dropping it closes the socket.
struct Driver {
    task: JoinHandle<()>,
    /// A warning came since it was last asked.
    warned: Arc<AtomicBool>,
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Driver {
    fn start<S, T>(mut connection: tokio_postgres::Connection<S, T>) -> Self
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let warned = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&warned);
        let task = tokio::spawn(async move {
            // an error here reaches the client's own calls too, which judge it
            while let Some(Ok(message)) = poll_fn(|cx| connection.poll_message(cx)).await {
                if let AsyncMessage::Notice(notice) = message
                    && notice.code() == &SqlState::WARNING
                {
                    seen.store(true, Ordering::Release);
                }
            }
        });
        Self { task, warned }
    }

    /// Whether a warning came since this was last asked. One that the server sent before an answer
    /// has been seen when the answer has: one task takes both, in their order.
    fn warned(&self) -> bool {
        self.warned.swap(false, Ordering::Acquire)
    }
}

/// Why a session could not be opened.
#[derive(Debug, thiserror::Error)]
enum OpenError {
    #[error("no answer within {OPEN_TIMEOUT:?}")]
    Timeout,
    #[error("refused")]
    Sql(#[from] tokio_postgres::Error),
}

/// Connects to a server that accepts writes; any other refuses.
async fn connect(server: &tokio_postgres::Config) -> Result<(Client, Driver), OpenError> {
    let mut server = server.clone();
    server.target_session_attrs(TargetSessionAttrs::ReadWrite);
    connect_to_any(&server).await
}

async fn connect_to_any(server: &tokio_postgres::Config) -> Result<(Client, Driver), OpenError> {
    let connected = timeout(OPEN_TIMEOUT, server.connect(NoTls)).await;
    let (client, connection) = connected.map_err(|_| OpenError::Timeout)??;
    Ok((client, Driver::start(connection)))
}

impl Session {
    async fn open(server: &tokio_postgres::Config) -> Result<Self, OpenError> {
        let (client, driver) = connect(server).await?;
        let sql = format!("INSERT INTO {TABLE} (connection, number) VALUES ($1, $2)");
        let prepared = timeout(OPEN_TIMEOUT, client.prepare(&sql)).await;
        let insert = prepared.map_err(|_| OpenError::Timeout)??;
        Ok(Self {
            client,
            insert,
            driver,
        })
    }

    async fn insert(&self, connection: u16, number: u64, within: Duration) -> Insert {
        let (connection, number) = (i32::from(connection), number.cast_signed());
        let row: [&(dyn ToSql + Sync); 2] = [&connection, &number];
        match timeout(within, self.client.execute(&self.insert, &row)).await {
            // committed here, but perhaps not where the commit was to wait for: no promise
            Ok(Ok(_)) if self.driver.warned() => Insert::Unknown,
            Ok(Ok(_)) => Insert::Acknowledged,
            Ok(Err(error)) if error.code() == Some(&SqlState::READ_ONLY_SQL_TRANSACTION) => {
                Insert::Refused
            }
            Ok(Err(_)) | Err(_) => Insert::Unknown,
        }
    }
}

/// Runs `sql` on a server that accepts writes, tried until `within` has passed. The statements
/// must bear being run twice: an answer may be lost.
async fn on_any_server<T, F>(
    plan: &Plan,
    within: Duration,
    what: &'static str,
    mut sql: impl FnMut(Client) -> F,
) -> Result<T, WriterError>
where
    F: Future<Output = Result<T, tokio_postgres::Error>>,
{
    let until = clock::now() + within;
    let mut last = "no server is configured".to_owned();
    while clock::now() < until {
        for server in &plan.servers {
            match connect(server).await {
                Ok((client, _driver)) => match sql(client).await {
                    Ok(value) => return Ok(value),
                    Err(source) if source.is_closed() => last = source.to_string(),
                    Err(source) => return Err(WriterError::Sql { what, source }),
                },
                Err(OpenError::Sql(error)) => last = error.to_string(),
                Err(error @ OpenError::Timeout) => last = error.to_string(),
            }
        }
        tokio::time::sleep(Duration::from_millis(RETRY_PAUSE_MS)).await;
    }
    Err(WriterError::NoServer { within, last })
}

/// No unique constraint: a row applied twice must be found, not prevented. The index is there for
/// `pg_amcheck` to compare with the table.
async fn make_table(plan: &Plan, within: Duration) -> Result<(), WriterError> {
    let sql = format!(
        "SET client_min_messages = warning;
         DROP TABLE IF EXISTS {TABLE};
         CREATE TABLE {TABLE} (connection int NOT NULL, number bigint NOT NULL);
         CREATE INDEX ON {TABLE} (connection, number);"
    );
    let sql = &sql;
    on_any_server(
        plan,
        within,
        "make the drill's table",
        |client| async move { client.batch_execute(sql).await },
    )
    .await
}

/// Every row of the table on a server that accepts writes, as often as it is there.
pub async fn rows(plan: &Plan, within: Duration) -> Result<Vec<Row>, WriterError> {
    let what = "read the drill's table";
    let rows = on_any_server(plan, within, what, read_rows).await?;
    parse_rows(&rows)
}

/// Every row of the table on this server, which may be a replica.
pub async fn rows_on(server: &tokio_postgres::Config) -> Result<Vec<Row>, WriterError> {
    let (client, _driver) = connect_to_any(server).await.map_err(|error| match error {
        OpenError::Timeout => WriterError::NoServer {
            within: OPEN_TIMEOUT,
            last: error.to_string(),
        },
        OpenError::Sql(source) => unread(source),
    })?;
    parse_rows(&read_rows(client).await.map_err(unread)?)
}

/// From the heap, never from the index.
async fn read_rows(client: Client) -> Result<Vec<tokio_postgres::Row>, tokio_postgres::Error> {
    client
        .batch_execute("SET enable_indexscan = off; SET enable_indexonlyscan = off; SET enable_bitmapscan = off")
        .await?;
    let sql = format!("SELECT connection, number FROM {TABLE}");
    client.query(&sql, &[]).await
}

fn parse_rows(rows: &[tokio_postgres::Row]) -> Result<Vec<Row>, WriterError> {
    let row = |row: &tokio_postgres::Row| {
        let connection: i32 = row.try_get(0)?;
        let number: i64 = row.try_get(1)?;
        Ok(Row {
            connection: u16::try_from(connection).unwrap_or(u16::MAX),
            number: number.cast_unsigned(),
        })
    };
    rows.iter()
        .map(row)
        .collect::<Result<_, _>>()
        .map_err(unread)
}

fn unread(source: tokio_postgres::Error) -> WriterError {
    WriterError::Sql {
        what: "read the drill's table",
        source,
    }
}
