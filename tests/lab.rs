//! The lab as a program: it comes up, says so, and ends without leaving anything, also after its
//! supervisor was killed. Needs root, as the lab itself.
#![forbid(unsafe_code)]

use std::fs::Permissions;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use baton::clock;
use baton::lab::layout::{self, Lab};
use baton::lab::process::{self, Process};
use baton::lab::protocol::{Request, State, ask_supervisor};
use nix::sys::signal::Signal;

const SOON: Duration = Duration::from_secs(20);

#[test]
fn a_lab_comes_up_serves_and_ends_without_a_trace() {
    let lab = Running::up("whole");
    let again = baton(&["lab", "up"], &lab.dir);
    assert!(!again.status.success(), "a second lab in one directory");
    assert!(
        text(&again.stderr).contains("is up already"),
        "{}",
        text(&again.stderr)
    );
    let status = baton(&["lab", "status"], &lab.dir);
    assert!(status.status.success(), "{}", text(&status.stdout));
    assert!(
        text(&status.stdout).contains("psql -h"),
        "{}",
        text(&status.stdout)
    );

    the_api_answers(&lab.dir);

    let state = lab.state();
    lab.down();
    let services = state.members.values().chain(state.targets.values());
    let mut processes: Vec<_> = services.filter_map(|service| service.process).collect();
    processes.push(state.supervisor);
    assert_eq!(processes.len(), 4);
    assert!(!processes.iter().any(|process| process.lives()));
    assert_eq!(process::left_of(&lab.dir), []);

    let status = baton(&["lab", "status"], &lab.dir);
    assert!(!status.status.success());
    assert!(
        text(&status.stderr).contains("is down"),
        "{}",
        text(&status.stderr)
    );

    // its data stays: the same database comes up again, with the next epoch
    let up = baton(&["lab", "up"], &lab.dir);
    assert!(
        text(&up.stdout).contains("serves (epoch 2)"),
        "{}{}",
        text(&up.stdout),
        text(&up.stderr)
    );
    lab.down();
}

/// One member is the primary and says so to a load balancer and to Prometheus, the other is not.
fn the_api_answers(dir: &Path) {
    let lab = Lab::open(dir).unwrap();
    let answers = ["a", "b"].map(|name| {
        let at = lab.member(name).api();
        let metrics = get(at, "/metrics");
        let serving = |value: u8| {
            metrics.lines().any(|line| {
                line.starts_with("baton_serving{") && line.ends_with(&format!(" {value}.0"))
            })
        };
        let primary = get(at, "/primary");
        assert!(get(at, "/liveness").starts_with("HTTP/1.1 200"));
        assert!(get(at, "/readiness").starts_with("HTTP/1.1 200"));
        match primary.starts_with("HTTP/1.1 200") {
            true => assert!(serving(1), "{primary}{metrics}"),
            false => assert!(
                serving(0) && primary.starts_with("HTTP/1.1 503"),
                "{primary}{metrics}"
            ),
        }
        // without TLS nothing can be changed
        assert!(request(at, "POST", "/pause").starts_with("HTTP/1.1 403"));
        primary.starts_with("HTTP/1.1 200")
    });
    assert_eq!(answers.iter().filter(|primary| **primary).count(), 1);
}

fn get(at: SocketAddr, path: &str) -> String {
    request(at, "GET", path)
}

fn request(at: SocketAddr, method: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(at).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: lab\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// What an operator asks of PostgreSQL itself, with the real one: nobody takes over, and the standby refuses.
#[test]
fn postgresql_takes_up_settings_and_restarts_in_place() {
    let lab = Running::up("settings");
    let (active, standby) = match lab.sql("a", "SELECT 1") {
        Ok(_) => ("a", "b"),
        Err(_) => ("b", "a"),
    };
    let started = lab
        .sql(active, "SELECT pg_postmaster_start_time()")
        .unwrap();
    let settings = "SELECT current_setting('work_mem'), current_setting('max_connections')";
    let before = lab.sql(active, settings).unwrap();
    let file = Lab::open(&lab.dir).unwrap().member(active).config();
    let written = std::fs::read_to_string(&file).unwrap();

    // a mistake anywhere in the file changes nothing
    let mistaken = "[postgres.parameters]\nwork_mem = \"5MB\"\nfsync = \"off\"\n";
    std::fs::write(&file, format!("{written}\n{mistaken}")).unwrap();
    let answer = lab.ask("reload", active);
    let told = text(&answer.stderr);
    assert_eq!(answer.status.code(), Some(1), "{told}");
    assert!(told.contains("postgres.parameters.fsync"), "{told}");
    assert_eq!(lab.sql(active, settings).unwrap(), before);

    // one is taken up at once, the other one waits for a restart
    let fresh = "[postgres.parameters]\nwork_mem = \"5MB\"\nmax_connections = \"77\"\n";
    std::fs::write(&file, format!("{written}\n{fresh}")).unwrap();
    for member in [active, standby] {
        let answer = lab.ask("reload", member);
        assert!(answer.status.success(), "{}", text(&answer.stderr));
    }
    let half = before.replacen(before.split('|').next().unwrap(), "5MB", 1);
    let until = clock::now() + SOON;
    while lab.sql(active, settings).unwrap() != half {
        assert!(clock::now() < until, "work_mem is not taken up");
    }

    let answer = lab.ask("restart", standby);
    let told = text(&answer.stderr);
    assert_eq!(answer.status.code(), Some(1), "{told}");
    assert!(told.contains("not the active"), "{told}");
    let again = "SELECT pg_postmaster_start_time()";
    assert_eq!(lab.sql(active, again).unwrap(), started);

    let answer = lab.ask("restart", active);
    assert!(answer.status.success(), "{}", text(&answer.stderr));
    assert_eq!(lab.sql(active, settings).unwrap(), "5MB|77");
    assert_ne!(lab.sql(active, again).unwrap(), started);
    let owners = "SELECT string_agg(epoch || ':' || starts, ',') FROM baton.ownership";
    assert_eq!(
        lab.sql(active, owners).unwrap(),
        "1:2",
        "the same ownership"
    );
    let journal = Lab::open(&lab.dir).unwrap().member(active).journal();
    let replayed = Command::new(PROGRAM)
        .arg("replay")
        .arg(journal)
        .output()
        .unwrap();
    assert!(replayed.status.success(), "{}", text(&replayed.stderr));
    lab.down();
}

#[test]
fn a_lab_whose_supervisor_was_killed_ends_too() {
    let lab = Running::up("killed");
    let State {
        supervisor,
        targets,
        members,
        ..
    } = lab.state();
    let roots = members
        .values()
        .chain(targets.values())
        .filter_map(|service| service.process);
    let all: Vec<Process> = roots.flat_map(Process::tree).collect();
    assert!(all.len() > 10, "members, bridges, PostgreSQLs: {all:?}");
    supervisor.signal(Signal::SIGKILL).unwrap();
    // the kernel ends what the supervisor started; PostgreSQL ends with its namespace
    let until = clock::now() + SOON;
    while all.iter().any(|process| process.lives()) && clock::now() < until {
        std::thread::yield_now();
    }
    let left: Vec<_> = all.into_iter().filter(|process| process.lives()).collect();
    assert_eq!(left, [], "outlived the supervisor");
    lab.down();
}

/// Two sites come up as one cluster, and nothing is left of their networks, killed or not.
#[test]
fn a_lab_of_two_sites_replicates_and_leaves_no_network() {
    let lab = Running::prepare("sites");
    let up = baton(&["lab", "up", "--sites", "2"], &lab.dir);
    let (told, log) = (text(&up.stdout), text(&up.stderr));
    assert!(
        told.contains("site a, primary: a") && told.contains("site b, replica: b"),
        "{told}{log}"
    );
    let opened = Lab::open(&lab.dir).unwrap();
    let wide = opened.record.wide.clone().unwrap();
    assert_eq!(wide.network.left().len(), 3);
    let recovering = |member: &str| {
        sql(
            opened.member(member).postgres(),
            "SELECT pg_is_in_recovery()",
        )
    };
    let serving = |site: &str| {
        let line = told.lines().find(|line| line.starts_with(site)).unwrap();
        line.split_whitespace().nth(3).unwrap().to_owned()
    };
    assert_eq!(recovering(&serving("site a")), "f");
    assert_eq!(recovering(&serving("site b")), "t");
    let status = baton(&["lab", "status"], &lab.dir);
    assert!(status.status.success() && text(&status.stdout).contains("as good as it gets"));

    let state = lab.state();
    assert_eq!((state.targets.len(), state.members.len()), (2, 4));
    state.supervisor.signal(Signal::SIGKILL).unwrap();
    lab.down();
    assert_eq!(wide.network.left(), Vec::<String>::new());

    // it knows that it has two sites, and refuses to be another lab
    let one = baton(&["lab", "up", "--sites", "1"], &lab.dir);
    assert!(
        text(&one.stderr).contains("has 2 sites"),
        "{}",
        text(&one.stderr)
    );
    let again = baton(&["lab", "up"], &lab.dir);
    let told = text(&again.stdout);
    assert!(
        told.contains("site b, replica: b"),
        "{told}{}",
        text(&again.stderr)
    );
    lab.down();
    assert_eq!(wide.network.left(), Vec::<String>::new());
}

/// A first copy may take hours: a member that is told to leave ends it at once and gives the volume away; the next
/// attempt begins anew.
#[test]
fn a_member_that_is_told_to_leave_ends_its_first_copy() {
    let lab = Running::prepare("copy");
    let up = baton(&["lab", "up", "--sites", "2"], &lab.dir);
    assert!(up.status.success(), "{}", text(&up.stderr));
    let opened = Lab::open(&lab.dir).unwrap();
    let member = || "b1".to_owned();
    for member in ["b2", "b1"] {
        let member = member.to_owned();
        lab.supervisor(&Request::Stop { member });
    }
    lab.blank(&opened, "b");
    let tool = lab.dir.join("../restore");
    std::fs::write(&tool, "#!/bin/sh\nsleep 3602.5 & wait\n").unwrap();
    std::fs::set_permissions(&tool, Permissions::from_mode(0o755)).unwrap();
    let tool = tool.canonicalize().unwrap();
    let file = opened.member("b1").config();
    let written = std::fs::read_to_string(&file).unwrap();
    let seed = format!(
        "[postgres.parameters]\nrestore_command = \"false\"\n[replication.seed]\nprogram = {tool:?}\n\
         arguments = [\"{{data_directory}}\"]\n"
    );
    std::fs::write(&file, format!("{written}\n{seed}")).unwrap();
    lab.supervisor(&Request::Release { member: member() });
    lab.until_it_says("status", "b1", "by replication.seed");
    let told = text(&lab.ask("topology", "b1").stdout);
    assert!(told.contains("copying"), "{told}");
    assert!(is_running("3602.5"));

    let began = clock::now();
    lab.supervisor(&Request::Stop { member: member() });
    assert!(!began.elapsed(Duration::from_secs(10), clock::now()));
    assert!(!is_running("3602.5"), "it outlived its member");
    let lease = std::fs::read_to_string(opened.lease_directory().join("b.json")).unwrap();
    let lease: String = lease.split_whitespace().collect();
    assert!(lease.contains("\"clean\":true"), "{lease}");

    std::fs::write(&file, written).unwrap();
    lab.supervisor(&Request::Release { member: member() });
    lab.until_it_says("status", "b1", "following site a");
    lab.down();
}

/// Whether a process of this machine has this in its arguments.
fn is_running(argument: &str) -> bool {
    let all = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let mut lines = all.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    lines.any(|line| {
        line.split(|byte| *byte == 0)
            .any(|one| one == argument.as_bytes())
    })
}

/// The only value that a statement gives.
fn sql(at: SocketAddr, sql: &str) -> String {
    let program = baton::lab::layout::postgres_bin().unwrap().join("psql");
    let mut psql = Command::new(program);
    psql.args([
        "-XAtU",
        "postgres",
        "-h",
        &at.ip().to_string(),
        "-p",
        &at.port().to_string(),
    ]);
    let output = psql.args(["-c", sql]).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout).trim().to_owned()
}

#[test]
fn bad_usage_is_told_and_changes_nothing() {
    let unknown = Command::new(PROGRAM)
        .args(["drill", "run", "earthquake"])
        .output()
        .unwrap();
    assert_eq!(unknown.status.code(), Some(2));
    let told = text(&unknown.stderr);
    assert!(
        told.contains("earthquake") && told.contains("storage-cut"),
        "{told}"
    );

    let dir = tempfile::tempdir().unwrap();
    for command in ["down", "status"] {
        let none = baton(&["lab", command], dir.path());
        assert!(!none.status.success());
        assert!(
            text(&none.stderr).contains("there is no lab"),
            "{}",
            text(&none.stderr)
        );
    }
    std::fs::write(dir.path().join("thesis.txt"), "mine").unwrap();
    let foreign = baton(&["lab", "up"], dir.path());
    assert!(
        text(&foreign.stderr).contains("no lab: choose"),
        "{}",
        text(&foreign.stderr)
    );
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

const PROGRAM: &str = env!("CARGO_BIN_EXE_baton");

/// Runs a command on the lab in `dir`.
fn baton(command: &[&str], dir: &Path) -> Output {
    Command::new(PROGRAM)
        .args(command)
        .arg("--dir")
        .arg(dir)
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A lab of a test's own; dropping it ends it and removes its files.
struct Running {
    dir: PathBuf,
    _root: tempfile::TempDir,
}

impl Running {
    fn up(name: &str) -> Self {
        let lab = Self::prepare(name);
        let up = baton(&["lab", "up"], &lab.dir);
        let (told, log) = (text(&up.stdout), text(&up.stderr));
        assert!(
            up.status.success() && told.contains("serves (epoch 1)"),
            "{told}{log}"
        );
        lab
    }

    /// A directory for a lab that is not up yet.
    fn prepare(name: &str) -> Self {
        let root = tempfile::Builder::new()
            .prefix("baton-test-")
            .tempdir_in("/var/tmp")
            .unwrap();
        let dir = root.path().join(name);
        // PostgreSQL's user must get through
        std::fs::set_permissions(root.path(), Permissions::from_mode(0o755)).unwrap();
        Self { dir, _root: root }
    }

    fn state(&self) -> State {
        let lab = Lab::open(&self.dir).unwrap();
        serde_json::from_slice(&std::fs::read(lab.processes()).unwrap()).unwrap()
    }

    /// Asks one member for something.
    fn ask(&self, command: &str, member: &str) -> Output {
        Command::new(PROGRAM)
            .args([command, "--socket"])
            .arg(Lab::open(&self.dir).unwrap().member(member).socket())
            .output()
            .unwrap()
    }

    fn supervisor(&self, request: &Request) {
        let socket = Lab::open(&self.dir).unwrap().supervisor_socket();
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let asked = async { ask_supervisor(&socket, request, 2 * SOON).await };
        runtime
            .enable_all()
            .build()
            .unwrap()
            .block_on(asked)
            .unwrap();
    }

    /// The volume of a site whose members are down is as new, and nobody ever owned it.
    fn blank(&self, lab: &Lab, site: &str) {
        let site = || Some(site.to_owned());
        self.supervisor(&Request::StopTarget { site: site() });
        let image = lab.site(site().as_deref()).unwrap().namespace();
        let size = std::fs::metadata(&image).unwrap().len();
        std::fs::File::create(&image)
            .unwrap()
            .set_len(size)
            .unwrap();
        let lease = format!("{}.json", site().unwrap());
        std::fs::remove_file(lab.lease_directory().join(lease)).unwrap();
        self.supervisor(&Request::StartTarget {
            site: site(),
            keep_reservations: false,
            volatile_cache: lab.record.volatile_cache,
        });
    }

    /// Asks one member until its answer has this in it.
    fn until_it_says(&self, command: &str, member: &str, what: &str) {
        let until = clock::now() + 3 * SOON;
        loop {
            let answer = self.ask(command, member);
            let told = text(&answer.stdout);
            if told.contains(what) {
                return;
            }
            let why = text(&answer.stderr);
            assert!(clock::now() < until, "{what:?} is not said: {told}{why}");
        }
    }

    /// One row, as `psql` prints it, or why there is none.
    fn sql(&self, member: &str, query: &str) -> Result<String, String> {
        let at = Lab::open(&self.dir).unwrap().member(member).postgres();
        let output = Command::new(layout::postgres_bin().unwrap().join("psql"))
            .args(["-XAtq", "-U", "postgres", "-d", "postgres", "-c", query])
            .args(["-h", &at.ip().to_string(), "-p", &at.port().to_string()])
            .output()
            .unwrap();
        match output.status.success() {
            true => Ok(text(&output.stdout).trim().to_owned()),
            false => Err(text(&output.stderr)),
        }
    }

    fn down(&self) {
        let down = baton(&["lab", "down"], &self.dir);
        assert!(down.status.success(), "{}", text(&down.stderr));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(baton(&["lab", "down"], &self.dir));
    }
}
