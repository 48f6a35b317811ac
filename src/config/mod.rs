//! The configuration of one member: `member.toml`.
//!
//! [`Config::load`] returns a configuration that is complete and free of contradictions, or *all*
//! problems at once. It reads the one file and touches nothing else: no device, no socket. What can
//! only be known on the machine itself (does the program exist, is the secret readable) is
//! [`Config::load_for_run`].

mod api;
mod check;
mod endpoint;
mod fences;
mod machine;
mod platform;
mod read;
mod reader;
mod replication;
mod seed;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use fencing::MemberId;
use nvme::kernel::Identifier;
use nvme::{HostId, HostIdentity, Nqn};
use serde::{Deserialize, Serialize};

pub use api::Api;
pub use endpoint::{Endpoint, InvalidEndpoint};
pub use fences::{FenceCommand, FenceWatchdog, Fencing};
pub(crate) use machine::SECRET_MIN_BYTES;
pub use platform::{Kubernetes, Lease, Pooler};
pub use reader::Problem;
pub use replication::{Failover, Replication, Site};
pub use seed::SeedCommand;

use crate::decide::{self, Timings};

/// Everything that one member must know. `toml::to_string` of it is a file that loads.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Config {
    /// The cluster: one PostgreSQL database system and everything that serves it.
    pub cluster: String,
    /// The site: one shared volume and the members attached to it.
    pub site: String,
    /// The name of this member, unique in its cluster.
    pub member: String,
    /// The number of this member, 1 to 255, unique in its site; it is part of its reservation key.
    pub number: MemberId,
    /// Where this node keeps locks and sockets while it is up; must not survive a reboot.
    pub runtime_dir: PathBuf,
    /// By whom the member is attached to its volume.
    #[serde(flatten)]
    pub attached: Attached,
    /// The fences beside the volume's reservation; none by default.
    pub fencing: Fencing,
    /// The lease store.
    pub lease: Lease,
    /// The other members of this site.
    pub peer: Peer,
    /// The database.
    pub postgres: Postgres,
    /// How long everything may take; proven to fit together.
    pub timings: Timings,
    /// The record of decisions.
    pub journal: Journal,
    /// The socket for `baton status` and the other commands.
    pub control: Control,
    /// The HTTP API; none unless `[api]` is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api: Option<Api>,
    /// The pod that this member is; none outside Kubernetes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kubernetes: Option<Kubernetes>,
    /// The PgBouncer before the database; none unless `[pooler]` is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pooler: Option<Pooler>,
    /// The other sites; none unless `[replication]` is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replication: Option<Replication>,
}

/// By whom a member is attached to its volume.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Attached {
    /// `[volume]`: by itself. It needs root.
    Volume(Volume),
    /// `[agent]`: by the agent of its node. It needs no privilege.
    Agent(Agent),
}

/// `[agent]`
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Agent {
    /// The Unix socket of the node's agent.
    pub socket: PathBuf,
    /// Where the filesystem that the agent mounts appears to this member.
    pub mount_point: PathBuf,
}

/// How the volume is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// NVMe/TCP by Baton's own initiator and bridge; works on any machine.
    Tcp,
    /// The kernel's initiator: `/dev/nvmeXnY` with passthrough.
    Kernel,
}

/// `[volume]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Volume {
    /// How the volume is reached.
    pub transport: Transport,
    /// The NVMe/TCP target.
    pub address: Endpoint,
    /// The subsystem's NQN.
    pub subsystem: Nqn,
    /// The namespace within the subsystem.
    pub namespace_id: u32,
    /// Its UUID, NGUID or EUI-64, if it shall be checked that it is this very volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identifier: Option<Identifier>,
    /// This node's NQN.
    pub host_nqn: Nqn,
    /// This node's 128-bit host identifier, to which reservations belong. Unique per node.
    pub host_id: HostId,
    /// Where the filesystem is mounted, in the member's own mount namespace.
    pub mount_point: PathBuf,
    /// An empty directory for the bridge; `bridge` in `runtime_dir` where it is not set. The kernel's
    /// initiator needs none.
    pub directory: PathBuf,
    /// Whether reservations must survive a power loss of the target (PTPLS = 1). Without it a target
    /// that restarts forgets every fence.
    pub require_persistence: bool,
}

impl Volume {
    /// The node as the subsystem sees it.
    pub fn host(&self) -> HostIdentity {
        HostIdentity {
            nqn: self.host_nqn.clone(),
            id: self.host_id,
        }
    }
}

/// `[peer]`
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Peer {
    /// Where this member listens for the others.
    pub listen: Endpoint,
    /// The file with the secret that all members share, at least 16 bytes, readable to root alone.
    pub secret_file: PathBuf,
    /// The other members of this site.
    pub members: Vec<PeerMember>,
}

/// `[[peer.members]]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PeerMember {
    /// Its name.
    pub name: String,
    /// Its number.
    pub number: MemberId,
    /// Where it listens.
    pub address: Endpoint,
}

/// `[postgres]`
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Postgres {
    /// The directory with `postgres` and `initdb`.
    pub bin_dir: PathBuf,
    /// The port for clients.
    pub port: u16,
    /// The addresses for clients, as PostgreSQL's `listen_addresses`.
    pub listen_addresses: String,
    /// The operating system user that runs PostgreSQL, never root.
    pub os_user: String,
    /// The data directory, relative to the volume's mount point.
    pub data_directory: PathBuf,
    /// Where PostgreSQL puts its Unix socket.
    pub socket_directory: PathBuf,
    /// Further settings for `postgresql.conf`.
    pub parameters: BTreeMap<String, String>,
    /// Lines for `pg_hba.conf`, after those that Baton needs itself.
    pub hba: Vec<String>,
}

/// `[journal]`
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Journal {
    /// The file; one older one is kept beside it with the suffix `.1`.
    pub path: PathBuf,
    /// Bytes after which a new file is begun.
    pub max_bytes: u64,
}

/// `[control]`
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Control {
    /// The Unix socket of the running member.
    pub socket: PathBuf,
}

/// A configuration that cannot be used. The program exits with code 2.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("read the configuration {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is no TOML.
    #[error("{} is not valid TOML:\n{text}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and why, over several lines.
        text: String,
    },
    /// Settings are wrong, missing or contradict each other.
    #[error("{}", Listed { path, problems })]
    Problems {
        /// The file.
        path: PathBuf,
        /// All of them, in the order of the file's sections.
        problems: Vec<Problem>,
    },
}

/// Shows all problems, one a line.
struct Listed<'a> {
    path: &'a Path,
    problems: &'a [Problem],
}

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.problems.len();
        let noun = if count == 1 { "problem" } else { "problems" };
        write!(f, "{} has {count} {noun}:", self.path.display())?;
        self.problems
            .iter()
            .try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// The file cannot be read, is no TOML, or has problems, all of which are named.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let (config, problems) = Self::examine(path)?;
        Self::accept(path, config, problems)
    }

    /// As [`Config::load`], and checks what this machine must have before a member can run:
    /// programs, user, secret. Changes nothing and touches no device.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn load_for_run(path: &Path) -> Result<Self, ConfigError> {
        let (config, mut problems) = Self::examine(path)?;
        if let Some(config) = &config {
            machine::check(config, &mut problems);
        }
        Self::accept(path, config, problems)
    }

    /// Reads and checks the text of a file. `path` is for messages only.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let (config, problems) = Self::examine_text(path, text)?;
        Self::accept(path, config, problems)
    }

    /// What this machine lacks for running the member, with the setting that says so. Changes nothing
    /// and touches no device.
    pub fn missing_here(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        machine::check(self, &mut problems);
        problems
    }

    /// The volume, where the member attaches by itself.
    pub fn volume(&self) -> Option<&Volume> {
        match &self.attached {
            Attached::Volume(volume) => Some(volume),
            Attached::Agent(_) => None,
        }
    }

    /// Where the filesystem appears.
    pub fn mount_point(&self) -> &Path {
        match &self.attached {
            Attached::Volume(volume) => &volume.mount_point,
            Attached::Agent(agent) => &agent.mount_point,
        }
    }

    /// What of it the decisions rest on. The member with the lowest number may format a blank volume:
    /// every member knows that without a further setting.
    pub fn for_decisions(&self) -> decide::Config {
        let others = self.peer.members.iter().map(|member| member.number);
        let members: BTreeSet<_> = others.chain([self.number]).collect();
        let bootstrap = members.first().copied().unwrap_or(self.number);
        decide::Config {
            member: self.number,
            members,
            bootstrap,
            timings: self.timings.clone(),
            routed: self.routed(),
            zone: self.zone(),
        }
    }

    /// Whether something leads clients to the active.
    pub fn routed(&self) -> bool {
        self.kubernetes.is_some() || self.pooler.is_some()
    }

    /// The name of a member of this site; none for a number that nobody has.
    pub fn name_of(&self, number: MemberId) -> Option<&str> {
        if number == self.number {
            return Some(&self.member);
        }
        let found = self
            .peer
            .members
            .iter()
            .find(|member| member.number == number);
        found.map(|member| member.name.as_str())
    }

    /// The number of a member of this site; none for a name that nobody has.
    pub fn number_of(&self, name: &str) -> Option<MemberId> {
        if name == self.member {
            return Some(self.number);
        }
        self.peer
            .members
            .iter()
            .find(|member| member.name == name)
            .map(|member| member.number)
    }

    /// The file that loads as this configuration.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        toml::to_string(self)
    }

    fn examine(path: &Path) -> Result<(Option<Self>, Vec<Problem>), ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Unreadable {
            path: path.to_owned(),
            source,
        })?;
        Self::examine_text(path, &text)
    }

    fn examine_text(path: &Path, text: &str) -> Result<(Option<Self>, Vec<Problem>), ConfigError> {
        let table = text
            .parse::<toml::Table>()
            .map_err(|error| ConfigError::Syntax {
                path: path.to_owned(),
                text: error.to_string(),
            })?;
        let mut problems = Vec::new();
        let draft = read::draft(table, &mut problems);
        check::contradictions(&draft, &mut problems);
        Ok((draft.complete(), problems))
    }

    fn accept(
        path: &Path,
        config: Option<Self>,
        problems: Vec<Problem>,
    ) -> Result<Self, ConfigError> {
        match config {
            Some(config) if problems.is_empty() => Ok(config),
            Some(_) | None => Err(ConfigError::Problems {
                path: path.to_owned(),
                problems,
            }),
        }
    }
}
