//! A real PgBouncer before the Service, and writers behind it that bear no error at all.

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::unistd::User;
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

use crate::places;

/// Where Debian has it.
const PROGRAM: &str = "/usr/sbin/pgbouncer";

/// The port it listens on.
const PORT: u16 = 6432;

/// Who may use its console.
pub const ADMINISTRATOR: &str = "baton";

/// The password of everybody.
pub const PASSWORD: &str = "a password for this test";

/// How many connections write.
const WRITERS: usize = 4;

/// How long it may take to answer, and the writers to go on.
const PATIENCE: Duration = Duration::from_secs(30);

/// Whether it is installed.
pub fn available() -> bool {
    Path::new(PROGRAM).exists()
}

/// Where its console is reached from pods.
pub fn address() -> String {
    format!("{}:{PORT}", places::HOST)
}

/// PgBouncer; it ends when this is dropped.
pub struct PgBouncer {
    _running: Child,
}

impl PgBouncer {
    /// Before the Service, one server connection for each transaction.
    pub async fn start(folder: &Path) -> Result<Self> {
        std::fs::create_dir_all(folder)?;
        let users = folder.join("users");
        std::fs::write(
            &users,
            format!("\"{ADMINISTRATOR}\" \"{PASSWORD}\"\n\"app\" \"{PASSWORD}\"\n"),
        )?;
        let settings = folder.join("pgbouncer.ini");
        let text = format!(
            "[databases]\napp = host={} port=5432 dbname=postgres user=postgres\n\
             [pgbouncer]\nlisten_addr = {}\nlisten_port = {PORT}\nunix_socket_dir =\n\
             auth_type = scram-sha-256\nauth_file = {}\nadmin_users = {ADMINISTRATOR}\n\
             pool_mode = transaction\nserver_login_retry = 0.1\n",
            places::SERVICE,
            places::HOST,
            users.display()
        );
        std::fs::write(&settings, text)?;
        // It refuses to be root.
        let user = User::from_name("postgres")?.context("there is no user postgres")?;
        let log = std::fs::File::create(folder.join("log"))?;
        let running = Command::new(PROGRAM)
            .arg(settings)
            .uid(user.uid.as_raw())
            .gid(user.gid.as_raw())
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .context("start PgBouncer")?;
        let pooler = Self { _running: running };
        let until = Instant::now() + PATIENCE;
        while connect().await.is_err() {
            ensure!(Instant::now() < until, "PgBouncer does not answer");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(pooler)
    }
}

async fn connect() -> Result<Client> {
    let mut config = tokio_postgres::Config::new();
    config
        .host(places::HOST.to_string())
        .port(PORT)
        .user("app")
        .password(PASSWORD)
        .dbname("app");
    let (client, connection) = config.connect(NoTls).await?;
    // Ends with the client or the pooler.
    tokio::spawn(connection);
    client.simple_query("SELECT 1").await?;
    Ok(client)
}

/// What the writers did.
pub struct Written {
    /// Rows whose commit was acknowledged; the table has just these.
    pub acknowledged: u64,
    /// The longest time in which one of them waited.
    pub pause: Duration,
}

/// Writers, each on one connection from its beginning to its end. Any error is the end of all.
pub struct Writers {
    stop: Arc<AtomicBool>,
    counts: Vec<Arc<AtomicU64>>,
    tasks: Vec<JoinHandle<Result<Duration>>>,
}

impl Writers {
    /// Makes the table anew and begins.
    pub async fn start() -> Result<Self> {
        let table = "DROP TABLE IF EXISTS pooled; CREATE TABLE pooled (writer int, number int)";
        connect().await?.simple_query(table).await?;
        let mut writers = Self {
            stop: Arc::new(AtomicBool::new(false)),
            counts: Vec::new(),
            tasks: Vec::new(),
        };
        for writer in 0..WRITERS {
            let count = Arc::new(AtomicU64::new(0));
            let client = connect().await?;
            let task = write(client, writer, writers.stop.clone(), count.clone());
            writers.counts.push(count);
            writers.tasks.push(tokio::spawn(task));
        }
        Ok(writers)
    }

    /// Waits until each has written so many more.
    pub async fn go_on(&self, more: u64) -> Result<()> {
        let now = |count: &Arc<AtomicU64>| count.load(Ordering::Relaxed);
        let goals: Vec<_> = self.counts.iter().map(|count| now(count) + more).collect();
        let until = Instant::now() + PATIENCE;
        while self
            .counts
            .iter()
            .map(now)
            .zip(&goals)
            .any(|(is, goal)| is < *goal)
        {
            ensure!(Instant::now() < until, "a writer does not go on");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// Stops them and compares the table with what was acknowledged.
    ///
    /// # Errors
    /// A writer saw an error, or a row is lost or doubled.
    pub async fn finish(self) -> Result<Written> {
        self.stop.store(true, Ordering::Relaxed);
        let mut pause = Duration::ZERO;
        for task in self.tasks {
            pause = pause.max(task.await?.context("a writer saw an error")?);
        }
        let mut acknowledged = 0;
        let client = connect().await?;
        for (writer, count) in self.counts.iter().enumerate() {
            let count = count.load(Ordering::Relaxed);
            let found = "SELECT count(*) || ' ' || count(DISTINCT number) || ' ' || max(number)";
            let query = format!("{found} FROM pooled WHERE writer = {writer}");
            let answer = client.simple_query(&query).await?;
            let found = answer.iter().find_map(|message| match message {
                SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
                _ => None,
            });
            let wanted = format!("{count} {count} {count}");
            ensure!(
                found.as_deref() == Some(&*wanted),
                "writer {writer}: {found:?} instead of {wanted:?}"
            );
            acknowledged += count;
        }
        Ok(Written {
            acknowledged,
            pause,
        })
    }
}

async fn write(
    client: Client,
    writer: usize,
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
) -> Result<Duration> {
    let (mut pause, mut last) = (Duration::ZERO, Instant::now());
    while !stop.load(Ordering::Relaxed) {
        let number = count.load(Ordering::Relaxed) + 1;
        let insert = format!("INSERT INTO pooled VALUES ({writer}, {number})");
        client.simple_query(&insert).await?;
        count.store(number, Ordering::Relaxed);
        pause = pause.max(last.elapsed());
        last = Instant::now();
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(pause)
}
