//! One member: its configuration on its machine, and its process there.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use baton::lab::layout::postgres_bin;

use crate::lease;
use crate::machine::Machine;
use crate::machines::BATON;
use crate::network::Network;
use crate::nvmet::{NAMESPACE_UUID, PORT, SUBSYSTEM};

/// Everything of the member lies here.
const DIRECTORY: &str = "/srv/baton";

/// Its control socket.
pub const SOCKET: &str = "/srv/baton/control.sock";

/// What it logs.
pub const LOG: &str = "/srv/baton/member.log";

/// Its PostgreSQL's port, on the peer network.
pub const POSTGRES_PORT: u16 = 5432;

/// Where it listens for the other member.
const PEER_PORT: u16 = 7432;

/// The data directory below the mount point.
pub const DATA_DIRECTORY: &str = "pgdata";

/// Emulation makes everything late: a member that is busy must not look dead. And a crashed owner is
/// ready again the sooner the shorter the keep-alive is, which no measured gap waits for. Making the database
/// takes two minutes where the machine has other work, too.
pub const TIMINGS: [(&str, &str); 7] = [
    ("format", "8m"),
    ("keep_alive", "3s"),
    ("detection", "4s"),
    ("sample_gap", "2s"),
    ("isolation", "5s"),
    ("lease_deadline", "3s"),
    ("lease_age", "4s"),
];

/// One member.
pub struct Member {
    pub name: &'static str,
    /// Of its machine, and of the member itself.
    pub number: u8,
    config: String,
    pid: Option<u32>,
}

impl Member {
    /// The member of a node that has these nodes for its site.
    pub fn new(node: &Machine, site: &[&Machine]) -> Self {
        Self {
            name: node.name,
            number: node.number,
            config: config(node, site),
            pid: None,
        }
    }

    /// Writes its configuration and starts it.
    pub async fn start(&mut self, node: &Machine) -> Result<()> {
        node.shell(&format!(
            "mkdir -p {DIRECTORY}/mount {DIRECTORY}/run {DIRECTORY}/pg
             chown postgres {DIRECTORY}/pg
             modprobe nvme-tcp
             umask 077; echo a-secret-of-this-test >{DIRECTORY}/secret"
        ))
        .await?;
        let file = format!("{DIRECTORY}/member.toml");
        node.write(&file, &self.config).await?;
        let checked = node
            .run(&[BATON, "run", "--config", &file, "--check"])
            .await?;
        let said = checked.stderr;
        ensure!(
            checked.code == 0,
            "the member's configuration is refused: {said}"
        );
        let started = node.start(&[BATON, "run", "--config", &file], LOG).await;
        self.pid = Some(started.context("start the member")?);
        Ok(())
    }

    /// Sends it a signal.
    pub async fn signal(&self, node: &Machine, signal: &str) -> Result<()> {
        let pid = self.pid.context("the member was not started")?;
        let signal = format!("-{signal}");
        node.ok(&["kill", &signal, &pid.to_string()])
            .await
            .map(drop)
    }

    /// Waits for its end.
    pub async fn ended(&self, node: &Machine, within: Duration) -> Result<()> {
        let pid = self.pid.context("the member was not started")?;
        let wait = format!(
            "while [ -d /proc/{pid} ] && ! grep -q '^State:.Z' /proc/{pid}/status; do sleep 0.1; done"
        );
        let ended = node.run_within(&["sh", "-c", &wait], "", within).await?;
        ensure!(ended.code == 0, "the member of {} goes on", self.name);
        Ok(())
    }

    /// SIGKILL, if it runs.
    pub async fn kill(&self, node: &Machine) -> Result<()> {
        if let Some(pid) = self.pid {
            // it may have ended
            node.run(&["kill", "-KILL", &pid.to_string()]).await?;
            self.ended(node, node.patience(Duration::from_secs(20)))
                .await?;
        }
        Ok(())
    }
}

fn config(node: &Machine, site: &[&Machine]) -> String {
    let Machine { name, number, .. } = node;
    let storage = Network::Storage.address(crate::machines::STORAGE_NUMBER);
    let peer = node.address(Network::Peer);
    let (host_nqn, host_id, lease) = (node.host_nqn(), node.host_id(), lease::DIRECTORY);
    let bin_dir = postgres_bin().unwrap_or_else(|_| PathBuf::from("/usr/lib/postgresql"));
    let bin_dir = bin_dir.display();
    let timings: String = TIMINGS
        .iter()
        .map(|(name, value)| format!("{name} = \"{value}\"\n"))
        .collect();
    let mut text = format!(
        r#"
cluster = "vm"
member = "{name}"
number = {number}
runtime_dir = "{DIRECTORY}/run"

[volume]
transport = "kernel"
address = "{storage}:{PORT}"
subsystem = "{SUBSYSTEM}"
identifier = "{NAMESPACE_UUID}"
host_nqn = "{host_nqn}"
host_id = "{host_id}"
mount_point = "{DIRECTORY}/mount"
# the kernel's target forgets its reservations
require_persistence = false

[lease]
path = "{lease}/lease.json"

[postgres]
bin_dir = "{bin_dir}"
port = {POSTGRES_PORT}
listen_addresses = "{peer}"
data_directory = "{DATA_DIRECTORY}"
socket_directory = "{DIRECTORY}/pg"
hba = ["host all all 10.77.2.0/24 trust"]

[timings]
{timings}
[journal]
path = "{DIRECTORY}/journal.jsonl"

[control]
socket = "{SOCKET}"

[peer]
listen = "{peer}:{PEER_PORT}"
secret_file = "{DIRECTORY}/secret"
"#
    );
    for other in site.iter().filter(|other| other.name != *name) {
        let (name, number, address) = (other.name, other.number, other.address(Network::Peer));
        text += &format!(
            "[[peer.members]]\nname = \"{name}\"\nnumber = {number}\naddress = \"{address}:{PEER_PORT}\"\n"
        );
    }
    text
}
