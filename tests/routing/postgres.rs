//! A PostgreSQL and a PgBouncer of the test's own, on loopback.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::unistd::User;
use tempfile::TempDir;
use tokio_postgres::NoTls;

/// The password of every user of the pooler.
pub const PASSWORD: &str = "a secret of sixteen and more";

/// A port that nobody uses just now.
fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    listener.local_addr().unwrap().port()
}

fn bin(program: &str) -> String {
    let mut found: Vec<_> = fs::read_dir("/usr/lib/postgresql")
        .expect("PostgreSQL is installed")
        .filter_map(|entry| Some(entry.ok()?.path().join("bin").join(program)))
        .filter(|path| path.exists())
        .collect();
    found.sort();
    let newest = found.pop().expect("PostgreSQL is installed");
    newest.display().to_string()
}

/// A command of the user postgres, as neither program runs as root.
fn as_postgres(program: &str) -> Command {
    let user = User::from_name("postgres").unwrap().expect("its user");
    let mut command = Command::new(program);
    command
        .uid(user.uid.as_raw())
        .gid(user.gid.as_raw())
        .current_dir("/")
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

fn folder() -> TempDir {
    let user = User::from_name("postgres").unwrap().expect("its user");
    let folder = TempDir::new().unwrap();
    let ids = (Some(user.uid.as_raw()), Some(user.gid.as_raw()));
    chown(folder.path(), ids.0, ids.1).unwrap();
    folder
}

/// A database that can be stopped and started again.
pub struct Postgres {
    folder: TempDir,
    pub port: u16,
    running: Option<Child>,
}

impl Postgres {
    pub async fn start() -> Self {
        let folder = folder();
        let made = as_postgres(&bin("initdb"))
            .args(["-A", "trust", "-U", "postgres", "--no-sync", "-D"])
            .arg(folder.path().join("data"))
            .status();
        assert!(made.unwrap().success());
        let mut postgres = Self {
            folder,
            port: free_port(),
            running: None,
        };
        postgres.go().await;
        postgres
    }

    /// Starts it and waits until it answers.
    pub async fn go(&mut self) {
        let data = self.folder.path().join("data");
        let child = as_postgres(&bin("postgres"))
            .args(["-h", "127.0.0.1", "-c", "fsync=off", "-k", ""])
            .args(["-p", &self.port.to_string(), "-D"])
            .arg(&data)
            .spawn();
        self.running = Some(child.unwrap());
        let dsn = format!("host=127.0.0.1 port={} user=postgres", self.port);
        answering(&dsn).await;
    }

    /// Stops it as a handover does: every session is disconnected.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.running.take() {
            signal(&child, nix::sys::signal::Signal::SIGINT);
            child.wait().unwrap();
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if let Some(mut child) = self.running.take() {
            signal(&child, nix::sys::signal::Signal::SIGQUIT);
            let _reaped = child.wait();
        }
    }
}

fn signal(child: &Child, signal: nix::sys::signal::Signal) {
    let id = i32::try_from(child.id()).unwrap();
    let _gone = nix::sys::signal::kill(nix::unistd::Pid::from_raw(id), signal);
}

/// A pooler before one database.
pub struct PgBouncer {
    folder: TempDir,
    pub port: u16,
    running: Child,
}

impl PgBouncer {
    /// In `transaction` or `session` mode.
    pub async fn start(database: &Postgres, mode: &str) -> Self {
        let folder = folder();
        let port = free_port();
        let write = |name: &str, text: String| {
            let path = folder.path().join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
            path
        };
        let users = write(
            "users",
            format!("\"baton\" \"{PASSWORD}\"\n\"app\" \"{PASSWORD}\"\n"),
        );
        let settings = write(
            "pgbouncer.ini",
            format!(
                "[databases]\napp = host=127.0.0.1 port={} dbname=postgres user=postgres\n\
                 [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n\
                 auth_type = scram-sha-256\nauth_file = {}\nadmin_users = baton\n\
                 pool_mode = {mode}\nserver_login_retry = 1\n",
                database.port,
                users.display()
            ),
        );
        let running = as_postgres("pgbouncer").arg(settings).spawn().unwrap();
        let pooler = Self {
            folder,
            port,
            running,
        };
        answering(&pooler.dsn()).await;
        pooler
    }

    /// How clients connect.
    pub fn dsn(&self) -> String {
        format!(
            "host=127.0.0.1 port={} user=app password='{PASSWORD}' dbname=app",
            self.port
        )
    }

    /// The settings of a member that knows it.
    pub fn section(&self) -> String {
        let file = self.folder.path().join("password");
        fs::write(&file, format!("{PASSWORD}\n")).unwrap();
        format!(
            "[pooler]\naddress = \"127.0.0.1:{}\"\nuser = \"baton\"\npassword_file = \"{}\"\n",
            self.port,
            file.display()
        )
    }

    /// Whether it is paused, by its own word.
    pub async fn paused(&self) -> bool {
        let dsn = format!(
            "host=127.0.0.1 port={} user=baton password='{PASSWORD}' dbname=pgbouncer",
            self.port
        );
        let (client, connection) = tokio_postgres::connect(&dsn, NoTls).await.unwrap();
        let connection = tokio::spawn(connection);
        // Nothing shows a pause of the whole pooler but that only a paused one can be resumed.
        let was = client.simple_query("RESUME").await.is_ok();
        if was {
            client.simple_query("PAUSE").await.unwrap();
        }
        connection.abort();
        was
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        let _gone = self.running.kill();
        let _reaped = self.running.wait();
    }
}

async fn answering(dsn: &str) {
    for _ in 0..200 {
        if let Ok((client, connection)) = tokio_postgres::connect(dsn, NoTls).await {
            let connection = tokio::spawn(connection);
            let answered = client.simple_query("SELECT 1").await.is_ok();
            connection.abort();
            if answered {
                return;
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{dsn} does not answer");
}

/// Whether the programs are here; says so where they are not.
pub fn available(test: &str) -> bool {
    let there = Path::new("/usr/sbin/pgbouncer").exists();
    if !there {
        println!("skipped, as there is no pgbouncer: {test}");
    }
    there
}
