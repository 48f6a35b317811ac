//! Sites of the test: a directory for a volume, and PostgreSQL on it. All of it is gone at the end.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use baton::postgres::replication::{
    self, Facts, Rejoin, RejoinError, Rejoined, Replication, Seeding, Serving, Shown, Source,
    name_of,
};
use baton::postgres::{
    self, End, Instance, Isolation, Launched, OsUser, Programs, Session, StartedBy, StopBounds,
    StopOutcome, StoppedBy,
};
use fencing::Licence;
use tempfile::TempDir;

/// Far longer than anything here takes, so that only a hang reaches it.
pub const LONG: Duration = Duration::from_secs(60);

pub const USER: &str = "baton_replication";
pub const PASSWORD: &str = r"o'p:e\n sesame";

const BATON: &str = env!("CARGO_BIN_EXE_baton");

pub const BOUNDS: StopBounds = StopBounds {
    fast: LONG,
    immediate: LONG,
    kill: LONG,
};

pub fn licence() -> Licence {
    serde_json::from_str(r#"{"epoch":1,"member":1}"#).unwrap()
}

pub fn started_by() -> StartedBy<'static> {
    StartedBy {
        baton: Path::new(BATON),
        node_lock: None,
        isolation: Isolation::Namespace,
        witness: None,
    }
}

pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

pub fn replication() -> Replication {
    Replication {
        user: USER.to_owned(),
        require_tls: false,
        slot_wal_max: "1GB".to_owned(),
    }
}

pub fn primary(names: &str) -> Serving {
    Serving::Primary {
        names: names.to_owned(),
        replication: replication(),
    }
}

pub fn replica(receive: Option<Source>) -> Serving {
    Serving::Replica {
        receive,
        replication: replication(),
    }
}

pub fn seeding<'a>(source: &'a Source, progress: &'a Shown) -> Seeding<'a> {
    Seeding {
        source,
        system: None,
        connect: LONG,
        stall: LONG,
        command: None,
        progress,
    }
}

/// PostgreSQL of a site that runs.
pub struct Running {
    pub launched: Launched,
    pub session: Session,
}

impl Running {
    pub async fn stop(mut self) {
        let outcome = postgres::stop(&mut self.launched.postmaster, BOUNDS).await;
        let expected = StopOutcome::Stopped {
            by: StoppedBy::Fast,
            end: End::Exited { code: 0 },
        };
        assert_eq!(outcome, expected, "{}", self.launched.starting.log_tail());
    }

    pub async fn kill(self) {
        let _stopped = postgres::kill(&self.launched.postmaster, LONG).await;
    }

    pub async fn facts(&self) -> Facts {
        self.session.facts(LONG).await.unwrap()
    }

    /// Waits until the facts are as described.
    pub async fn until(&self, what: &str, fits: impl Fn(&Facts) -> bool) -> Facts {
        let mut last = None;
        let waiting = async {
            loop {
                let facts = self.facts().await;
                if fits(&facts) {
                    return facts;
                }
                last = Some(facts);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        match tokio::time::timeout(LONG, waiting).await {
            Ok(facts) => facts,
            Err(_) => panic!("not in time: {what}: {last:#?}\n{}", self.log()),
        }
    }

    pub fn log(&self) -> String {
        self.launched.starting.log_tail()
    }
}

/// A site: its volume, its one member.
pub struct Site {
    pub name: &'static str,
    pub directory: TempDir,
    pub instance: Instance,
}

impl Site {
    pub fn new(name: &'static str) -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "this test runs PostgreSQL in a namespace of its own: run it as root"
        );
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(directory.path().join("password"), format!("{PASSWORD}\n")).unwrap();
        let root = directory.path().join("mnt");
        fs::create_dir(&root).unwrap();
        let instance = Instance {
            cluster: "replication-test".to_owned(),
            member: name.to_owned(),
            programs: Programs::detect(None).unwrap(),
            user: OsUser::look_up("postgres").unwrap(),
            data_directory: root.join("pgdata"),
            volume_root: root,
            runtime_directory: directory.path().join("run"),
            socket_directory: directory.path().join("socket"),
            port: free_port(),
            listen_addresses: "127.0.0.1".to_owned(),
            parameters: BTreeMap::from([("shared_buffers".to_owned(), "16MB".to_owned())]),
            hba: vec!["host all all 127.0.0.1/32 trust".to_owned()],
            synchronous: true,
        };
        Self {
            name,
            directory,
            instance,
        }
    }

    pub fn password_file(&self) -> PathBuf {
        self.directory.path().join("password")
    }

    /// Where `of` would receive from if this site were the primary.
    pub fn source_for(&self, of: &Site) -> Source {
        Source {
            // Nobody listens at the first: the site's other member is the active.
            hosts: [1, self.instance.port]
                .map(|port| format!("127.0.0.1:{port}").parse().unwrap())
                .to_vec(),
            user: USER.to_owned(),
            password_file: of.password_file(),
            sslmode: "prefer".to_owned(),
            root_certificate: None,
            application_name: name_of(of.name),
            slot: name_of(of.name),
        }
    }

    pub async fn start(&self, serving: &Serving) -> Running {
        let launched = postgres::launch_as(&licence(), &self.instance, serving, started_by()).await;
        let launched = launched.unwrap_or_else(|error| panic!("{error:?}"));
        let ready = launched.starting.ready(LONG).await;
        ready.unwrap_or_else(|error| panic!("{error}"));
        let session = Session::connect(&self.instance, LONG).await.unwrap();
        Running { launched, session }
    }

    /// A new database as the primary, with role and slots for these sites.
    pub async fn found(&self, others: &[&Site]) -> Running {
        postgres::initdb(&licence(), &self.instance).unwrap();
        let running = self.start(&primary("")).await;
        self.offer(&running, others).await;
        running
    }

    /// Role and slots for these sites.
    pub async fn offer(&self, running: &Running, others: &[&Site]) {
        let role = running.session.ensure_role(USER, PASSWORD, LONG).await;
        role.unwrap();
        let names: BTreeSet<String> = others.iter().map(|site| name_of(site.name)).collect();
        let none = BTreeSet::new();
        let slots = running.session.ensure_slots(&names, &none, LONG).await;
        assert_eq!(slots.unwrap().in_use, none);
    }

    /// Makes this site's database from `primary`'s and starts it as its replica.
    pub async fn join(&self, primary: &Site) -> Running {
        let source = primary.source_for(self);
        let progress = Shown::new(None);
        let (licence, by) = (licence(), started_by());
        let wanted = seeding(&source, &progress);
        let made = replication::basebackup(&licence, &self.instance, &by, &wanted).await;
        made.unwrap_or_else(|error| panic!("{error:?}"));
        self.start(&replica(Some(source))).await
    }

    /// Brings this site's stopped database back to where it can follow `primary`.
    pub async fn rejoin(&self, primary: &Site) -> Result<Rejoined, RejoinError> {
        let source = primary.source_for(self);
        let wanted = Rejoin {
            source: &source,
            label: "term-2",
            connect: LONG,
            stall: LONG,
            progress: &Shown::new(None),
        };
        replication::rejoin(&licence(), &self.instance, &started_by(), &wanted).await
    }

    /// A client's session, over TCP.
    pub async fn client(&self) -> Client {
        let mut config = tokio_postgres::Config::new();
        config
            .host("127.0.0.1")
            .port(self.instance.port)
            .user("postgres")
            .dbname("postgres");
        let (client, connection) = config.connect(tokio_postgres::NoTls).await.unwrap();
        let task = tokio::spawn(async move {
            let _ = connection.await;
        });
        Client { client, task }
    }

    /// All logs of this site's programs.
    pub fn logs(&self) -> String {
        let files = fs::read_dir(&self.instance.runtime_directory).unwrap();
        files
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|end| end == "log"))
            .map(|path| fs::read_to_string(path).unwrap())
            .collect()
    }
}

/// A client.
pub struct Client {
    pub client: tokio_postgres::Client,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Client {
    pub async fn run(&self, sql: &str) {
        self.client.batch_execute(sql).await.unwrap();
    }

    pub async fn value(&self, sql: &str) -> String {
        let row = self.client.query_one(sql, &[]).await.unwrap();
        row.get(0)
    }
}

pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}
