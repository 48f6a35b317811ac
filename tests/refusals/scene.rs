//! Real processes for one case: a target, members, and whatever stands in their way. Everything is
//! in one directory and ends with the case, however that ends.

#![allow(
    clippy::disallowed_methods,
    reason = "processes are looked at from outside: there is no event to await, and no logic to simulate"
)]

use std::any::Any;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use toml::{Table, Value};

pub const BATON: &str = env!("CARGO_BIN_EXE_baton");

/// Far longer than anything here takes, so that only a hang reaches it.
const LONG: Duration = Duration::from_secs(300);

/// Between two looks at something that cannot be waited for as an event.
const LOOK: Duration = Duration::from_millis(100);

/// One case.
pub struct Scene {
    pub directory: TempDir,
    /// The settings of the member that the case is about.
    pub member: Table,
    /// Whatever must stay until the case ends: listeners, other members. Dropped before the directory.
    pub kept: Vec<Box<dyn Any>>,
    /// Users who run the member; root where it is `None`.
    pub user: Option<u32>,
    target: Option<Process>,
}

impl Scene {
    /// A directory that PostgreSQL's user can reach, and the settings of a good member.
    pub fn new() -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "these tests run members: run them as root"
        );
        let directory = tempfile::Builder::new()
            .prefix("baton-refusals-")
            .tempdir()
            .unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(directory.path().join("shared")).unwrap();
        let secret = directory.path().join("secret");
        fs::write(&secret, "0123456789abcdef0123456789abcdef\n").unwrap();
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
        let member = settings(directory.path(), "a", 1);
        Self {
            directory,
            member,
            kept: Vec::new(),
            user: None,
            target: None,
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The file that the target serves.
    pub fn image(&self) -> PathBuf {
        self.path("volume")
    }

    /// Serves the image; every member in this scene goes there.
    pub fn serve(&mut self, options: &[&str]) {
        let image = self.image();
        self.serve_file(&image.display().to_string(), options);
    }

    /// As [`Scene::serve`], for any `--namespace`.
    pub fn serve_file(&mut self, namespace: &str, options: &[&str]) {
        let mut command = Command::new(BATON);
        command
            .args(["target", "--listen", "127.0.0.1:0", "--namespace"])
            .arg(namespace)
            .args(options)
            .stdout(Stdio::piped());
        let mut target = Process::start(command, self.path("target.log"));
        let mut line = String::new();
        BufReader::new(target.child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let ready: serde_json::Value = serde_json::from_str(&line)
            .unwrap_or_else(|error| panic!("{error} in {line:?}: {}", target.log()));
        let address = ready["listen"].as_str().unwrap().to_owned();
        set(&mut self.member, "volume.address", address);
        self.target = Some(target);
    }

    /// Where the target keeps reservations, as its option.
    pub fn state_option(&self) -> String {
        format!("--state={}", self.path("state.json").display())
    }

    /// Ends the target in good order.
    pub fn stop_target(&mut self) {
        if let Some(mut target) = self.target.take() {
            target.terminate();
            assert!(target.wait().success(), "{}", target.log());
        }
    }

    /// The settings of another member on another node, at the same volume.
    pub fn other(&self, name: &str, number: u8) -> Table {
        let node = self.path(&format!("node-{name}-{number}"));
        fs::create_dir_all(&node).unwrap();
        let mut other = settings(&node, name, number);
        for shared in ["volume.address", "lease.path", "peer.secret_file"] {
            set(&mut other, shared, get(&self.member, shared));
        }
        other
    }

    /// Starts the member that the case is about.
    pub fn run(&self) -> Process {
        self.run_member(&self.member)
    }

    /// Starts a member with these settings.
    pub fn run_member(&self, settings: &Table) -> Process {
        let name = format!("{}-{}", get(settings, "member"), self.count());
        let file = self.path(&format!("{name}.toml"));
        fs::write(&file, settings.to_string()).unwrap();
        let mut command = Command::new(BATON);
        if let Some(user) = self.user {
            // A user who reaches neither the build's directory nor root's files.
            let copy = self.path("baton");
            fs::copy(BATON, &copy).unwrap();
            command = Command::new(&copy);
            std::os::unix::process::CommandExt::uid(&mut command, user);
        }
        command
            .args(["run", "--config"])
            .arg(&file)
            .stdin(Stdio::null());
        Process::start(command, self.path(&format!("{name}.log")))
    }

    fn count(&self) -> usize {
        fs::read_dir(self.directory.path()).unwrap().count()
    }

    /// The SHA-256 of the image.
    pub fn digest(&self) -> [u8; 32] {
        let mut hasher = Sha256::new();
        std::io::copy(
            &mut File::open(self.image()).unwrap(),
            &mut Sink(&mut hasher),
        )
        .unwrap();
        hasher.finalize().into()
    }

    /// Waits until no loop device of this scene is left: bridges end with their members.
    pub fn wait_for_devices(&self) {
        let own = self.directory.path().display().to_string();
        let deadline = Instant::now() + LONG;
        while let Some(left) = loop_device_of(&own) {
            assert!(Instant::now() < deadline, "left behind: {left}");
            std::thread::sleep(LOOK);
        }
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.kept.clear();
        self.target = None;
    }
}

struct Sink<'a>(&'a mut Sha256);

impl std::io::Write for Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A loop device whose file lies in this directory.
fn loop_device_of(directory: &str) -> Option<String> {
    let blocks = fs::read_dir("/sys/block").ok()?;
    blocks
        .filter_map(|entry| Some(entry.ok()?.path().join("loop/backing_file")))
        .filter_map(|path| fs::read_to_string(path).ok())
        .find(|backing| backing.contains(directory))
}

/// A process that is killed, by its own id, when the test ends.
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    fn start(mut command: Command, log: PathBuf) -> Self {
        let child = command.stderr(File::create(&log).unwrap()).spawn().unwrap();
        Self { child, log }
    }

    /// What it wrote on standard error.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Asks it to end.
    pub fn terminate(&self) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        kill(pid, Signal::SIGTERM).unwrap();
    }

    /// Waits until it has ended.
    pub fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + LONG;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "does not end: {}", self.log());
            std::thread::sleep(LOOK);
        }
    }

    /// Waits until `baton status` at this member's socket holds.
    pub fn until(&mut self, member: &Table, holds: impl Fn(&str, &serde_json::Value) -> bool) {
        let socket = get(member, "control.socket");
        let deadline = Instant::now() + LONG;
        let mut said = String::new();
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("ended with {status}: {}", self.log());
            }
            let output = Command::new(BATON)
                .args(["status", "--output", "json", "--socket", &socket])
                .output()
                .unwrap();
            if let Ok(status) = serde_json::from_slice::<serde_json::Value>(&output.stdout) {
                said = format!("{}\n{}", status["reason"], status["warnings"]);
                if holds(&said, &status) {
                    println!("{said}");
                    return;
                }
            }
            std::thread::sleep(LOOK);
        }
        panic!("status says {said}\nlog: {}", self.log());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// The settings of a good member whose files are all in `node`. It has no peers, so it may make the
/// database itself.
fn settings(node: &Path, name: &str, number: u8) -> Table {
    let at = |file: &str| node.join(file).display().to_string();
    let bin = baton::postgres::Programs::detect(None).unwrap();
    let mut member = Table::new();
    let texts = [
        ("cluster", "main".to_owned()),
        ("member", name.to_owned()),
        ("runtime_dir", at("run")),
        ("volume.address", "127.0.0.1:4420".to_owned()),
        ("volume.subsystem", "nqn.2026-11.dev.baton:lab".to_owned()),
        (
            "volume.host_nqn",
            format!("nqn.2014-08.org.nvmexpress:uuid:{name}-{number}"),
        ),
        ("volume.host_id", uuid::Uuid::new_v4().to_string()),
        ("volume.mount_point", at("mount")),
        ("volume.directory", at("bridge")),
        ("lease.path", at("shared/main.lease")),
        ("peer.listen", format!("127.0.0.1:{}", free_port())),
        ("peer.secret_file", at("secret")),
        ("postgres.bin_dir", bin.bin_dir.display().to_string()),
        ("postgres.listen_addresses", "127.0.0.1".to_owned()),
        ("postgres.socket_directory", at("sockets")),
        ("journal.path", at("journal.jsonl")),
        ("control.socket", at("control.sock")),
    ];
    for (setting, text) in texts {
        set(&mut member, setting, text);
    }
    set(&mut member, "number", i64::from(number));
    set(&mut member, "postgres.port", i64::from(free_port()));
    member
}

/// Sets `section.setting`.
pub fn set(table: &mut Table, setting: &str, value: impl Into<Value>) {
    match setting.split_once('.') {
        None => {
            table.insert(setting.to_owned(), value.into());
        }
        Some((section, rest)) => {
            let section = table
                .entry(section)
                .or_insert_with(|| Value::Table(Table::new()));
            set(section.as_table_mut().unwrap(), rest, value);
        }
    }
}

/// The text of `section.setting`.
pub fn get(table: &Table, setting: &str) -> String {
    match setting.split_once('.') {
        None => table[setting].as_str().unwrap().to_owned(),
        Some((section, rest)) => get(table[section].as_table().unwrap(), rest),
    }
}

/// Adds a peer.
pub fn add_peer(table: &mut Table, name: &str, number: u8, address: &str) {
    let mut peer = Table::new();
    set(&mut peer, "name", name);
    set(&mut peer, "number", i64::from(number));
    set(&mut peer, "address", address);
    let section = table["peer"].as_table_mut().unwrap();
    section
        .entry("members")
        .or_insert_with(|| Value::Array(Vec::new()))
        .as_array_mut()
        .unwrap()
        .push(Value::Table(peer));
}

/// A port on which nothing listens.
pub fn free_port() -> u16 {
    let [port] = baton::lab::ports::free().unwrap();
    port
}
