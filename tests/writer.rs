//! The drill's writer against a real PostgreSQL that each test starts itself: what the ledger
//! claims is there, also after PostgreSQL was stopped in the middle without a checkpoint.
#![forbid(unsafe_code)]

use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use baton::clock;
use baton::drill::ledger::Fate;
use baton::drill::{gap, verify, writer};

const WITHIN: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_acknowledged_row_survives_an_immediate_stop() {
    let mut server = Server::start();
    let plan = server.plan(4);
    let writer = writer::Writer::start(&plan, WITHIN).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;

    let fault = clock::now();
    server.kill();
    let (before, _) = writer.progress();
    server.spawn();
    assert!(
        writer.all_write(clock::now(), WITHIN).await,
        "the writers never came back"
    );
    let (after, _) = writer.progress();
    assert!(before > 0 && after > before, "{before} rows, then {after}");
    let written = writer.finish().await.unwrap();

    let rows = writer::rows(&plan, WITHIN).await.unwrap();
    let verdict = verify::verify(&written.entries, &rows);
    assert!(verdict.holds(), "{verdict:?}");
    assert!(
        verdict.writes.unknown <= 4,
        "one insert in flight a connection: {verdict:?}"
    );

    let gaps = gap::gaps(&written.entries, 4, fault, written.ended);
    assert!(gaps.longest.to > fault, "{gaps:?}");
    assert!(gaps.longest.length() > Duration::from_millis(5), "{gaps:?}");
    let all_are_longer = gaps
        .per_connection
        .values()
        .all(|own| own.length() >= gaps.longest.length());
    assert!(all_are_longer, "{gaps:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_vanishes_or_comes_twice_is_found() {
    let server = Server::start();
    let plan = server.plan(2);
    let writer = writer::Writer::start(&plan, WITHIN).await.unwrap();
    let written = writer.finish().await.unwrap();
    let acknowledged = written
        .entries
        .iter()
        .filter(|e| e.fate == Fate::Acknowledged);
    assert!(acknowledged.count() >= 2);

    let table = writer::TABLE;
    server.sql(&format!(
        "DELETE FROM {table} WHERE connection = 0 AND number = 1;
         INSERT INTO {table} SELECT * FROM {table} WHERE connection = 1 AND number = 1"
    ));
    let rows = writer::rows(&plan, WITHIN).await.unwrap();
    let verdict = verify::verify(&written.entries, &rows);
    assert_eq!(
        (verdict.writes.lost, verdict.writes.duplicated),
        (1, 1),
        "{verdict:?}"
    );
    assert!(!verdict.holds());
}

/// PostgreSQL says so when a commit that was to wait for a replica did not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_whose_wait_was_cancelled_is_in_doubt() {
    let server = Server::start();
    let plan = server.plan(1);
    let writer = writer::Writer::start(&plan, WITHIN).await.unwrap();
    server.sql("ALTER SYSTEM SET synchronous_standby_names = 'nobody'");
    server.sql("SELECT pg_reload_conf()");
    let cancel = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    let until = clock::now() + WITHIN;
    while writer.progress().1 == 0 && clock::now() < until {
        server.sql(cancel);
    }
    assert!(
        writer.progress().1 > 0,
        "the cancelled wait passed for an acknowledgement"
    );
    server.sql("ALTER SYSTEM RESET synchronous_standby_names");
    server.sql("SELECT pg_reload_conf()");
    let written = writer.finish().await.unwrap();
    let rows = writer::rows(&plan, WITHIN).await.unwrap();
    let verdict = verify::verify(&written.entries, &rows);
    assert!(
        verdict.holds() && verdict.unknown_present > 0,
        "{verdict:?}"
    );
}

/// A PostgreSQL of its own in a temporary directory; dropping it stops it.
struct Server {
    dir: tempfile::TempDir,
    port: u16,
    postmaster: Option<Child>,
}

impl Server {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        if nix::unistd::geteuid().is_root() {
            let (uid, gid) = postgres_user();
            std::os::unix::fs::chown(dir.path(), Some(uid), Some(gid)).unwrap();
        }
        let mut server = Self {
            dir,
            port,
            postmaster: None,
        };
        let status = server
            .command("initdb")
            .args(["--no-sync", "--auth=trust", "--username=postgres", "-D"])
            .arg(server.data())
            .status()
            .unwrap();
        assert!(status.success(), "initdb: {status}");
        server.spawn();
        server
    }

    /// Starts the postmaster; it serves a moment later.
    fn spawn(&mut self) {
        let mut command = self.command("postgres");
        command.args(["-k", "", "-c", "listen_addresses=127.0.0.1", "-p"]);
        command
            .arg(self.port.to_string())
            .arg("-D")
            .arg(self.data());
        self.postmaster = Some(command.spawn().unwrap());
    }

    /// SIGQUIT: PostgreSQL's immediate stop, without a checkpoint.
    fn kill(&mut self) {
        if let Some(mut postmaster) = self.postmaster.take() {
            let pid = nix::unistd::Pid::from_raw(postmaster.id().cast_signed());
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGQUIT).unwrap();
            postmaster.wait().unwrap();
        }
    }

    fn plan(&self, connections: u16) -> writer::Plan {
        let mut server = tokio_postgres::Config::new();
        server
            .host("127.0.0.1")
            .port(self.port)
            .user("postgres")
            .dbname("postgres");
        writer::Plan {
            // the first never answers, as a member that does not serve
            servers: vec![nobody(), server],
            connections,
            ledger: self.dir.path().join("ledger"),
            insert_timeout: Duration::from_secs(2),
        }
    }

    fn sql(&self, sql: &str) {
        let status = self
            .command("psql")
            .args(["-q", "-h", "127.0.0.1", "-U", "postgres", "-p"])
            .args([&self.port.to_string(), "-c", sql])
            .status()
            .unwrap();
        assert!(status.success(), "psql: {status}");
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// A program of PostgreSQL, as its user: it refuses to run as root.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(bin_dir().join(program));
        command
            .current_dir(self.dir.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        if nix::unistd::geteuid().is_root() {
            let (uid, gid) = postgres_user();
            command.uid(uid).gid(gid);
        }
        command
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A server that refuses every connection.
fn nobody() -> tokio_postgres::Config {
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let mut server = tokio_postgres::Config::new();
    server.host("127.0.0.1").port(port).user("postgres");
    server
}

fn postgres_user() -> (u32, u32) {
    let user = nix::unistd::User::from_name("postgres")
        .unwrap()
        .expect("no user postgres");
    (user.uid.as_raw(), user.gid.as_raw())
}

/// The newest PostgreSQL under the place where Debian puts them.
fn bin_dir() -> PathBuf {
    let versions = std::fs::read_dir(Path::new("/usr/lib/postgresql")).expect("no PostgreSQL");
    let mut versions: Vec<u32> = versions
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    versions.sort_unstable();
    let newest = versions.last().expect("no PostgreSQL");
    PathBuf::from(format!("/usr/lib/postgresql/{newest}/bin"))
}
