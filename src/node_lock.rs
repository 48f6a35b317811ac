//! Locks of this node: one process per member, one member per host identity and namespace.
//!
//! A reservation belongs to a host, so two members on one host share its one key and cannot be
//! fenced from each other. The lock keeps them apart. It lives as long as any process that inherited
//! its descriptor: PostgreSQL keeps it when the member is killed, so that no other member of this
//! host begins while the old one's PostgreSQL may still write.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use fs2::FileExt;

use crate::clock;
use crate::config::{Config, Volume};

/// Why a lock is not ours.
#[derive(Debug, thiserror::Error)]
pub enum NodeLockError {
    /// Somebody has it.
    #[error("{what} is in use on this node by {owner}; stop that one first, or correct {setting} (lock {})", path.display())]
    Taken {
        /// What is locked.
        what: String,
        /// By whom, as far as he wrote it down.
        owner: String,
        /// The setting that could be wrong.
        setting: &'static str,
        /// The lock file.
        path: PathBuf,
    },
    /// The lock file cannot be opened.
    #[error("open the lock {}", path.display())]
    Open {
        /// The lock file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// How long a member's earlier process may take to be gone after its death was seen.
const PROCESS_GONE: Duration = Duration::from_secs(2);

/// How long its PostgreSQL may take, which the kernel kills as soon as its init is gone.
const POSTGRES_GONE: Duration = Duration::from_secs(10);

/// Between two tries for a lock that somebody has.
const AGAIN: Duration = Duration::from_millis(20);

/// Who wants the locks, and where they lie.
#[derive(Clone, Copy, Debug)]
pub struct Owner<'a> {
    /// The cluster.
    pub cluster: &'a str,
    /// The member's name.
    pub member: &'a str,
    /// The directory of the locks; the same for all members that could reach one volume from this node.
    pub runtime_dir: &'a Path,
    /// This node's identity, and the namespace.
    pub volume: &'a Volume,
}

impl<'a> Owner<'a> {
    /// The member of this configuration.
    pub fn of(config: &'a Config, volume: &'a Volume) -> Self {
        Self {
            cluster: &config.cluster,
            member: &config.member,
            runtime_dir: &config.runtime_dir,
            volume,
        }
    }
}

impl Owner<'_> {
    fn host_path(&self) -> PathBuf {
        let (host, namespace) = (self.volume.host_id, self.volume.namespace_id);
        self.runtime_dir
            .join(format!("host-{host}-{namespace}.lock"))
    }
}

/// Both locks of a running member. Kept until the process ends.
#[derive(Debug)]
pub struct NodeLock {
    /// One process per member.
    _member: File,
    /// One member per host.
    host: File,
}

impl AsFd for NodeLock {
    /// The host's lock, for the processes of PostgreSQL to inherit.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.host.as_fd()
    }
}

impl NodeLock {
    /// Takes both locks; waits a while for what an earlier process left to be gone. Blocks.
    ///
    /// # Errors
    /// Another process has one, or the directory cannot be written.
    pub fn take(owner: Owner<'_>) -> Result<Self, NodeLockError> {
        Self::take_within(owner, PROCESS_GONE, POSTGRES_GONE)
    }

    /// Whether the lock of the host identity is taken through this very descriptor: by the process that it
    /// was handed to.
    pub fn is_held_through(owner: Owner<'_>, descriptor: BorrowedFd<'_>) -> bool {
        let Ok(handed) = descriptor.try_clone_to_owned() else {
            return false;
        };
        let handed = File::from(handed);
        let same = |one: &File, path: &Path| -> io::Result<bool> {
            let (one, other) = (one.metadata()?, std::fs::metadata(path)?);
            Ok((one.dev(), one.ino()) == (other.dev(), other.ino()))
        };
        // A lock that another descriptor has would refuse; one's own is taken once more.
        same(&handed, &owner.host_path()).unwrap_or(false) && handed.try_lock_exclusive().is_ok()
    }

    /// As [`NodeLock::take`], with other patience.
    ///
    /// # Errors
    /// As [`NodeLock::take`].
    pub fn take_within(
        owner: Owner<'_>,
        process_gone: Duration,
        postgres_gone: Duration,
    ) -> Result<Self, NodeLockError> {
        let Owner {
            cluster,
            member,
            runtime_dir,
            volume,
        } = owner;
        let about = format!(
            "member {member} of {cluster}, process {}",
            std::process::id()
        );
        let name = Wanted {
            path: runtime_dir.join(format!("member-{cluster}-{member}.lock")),
            what: format!("member {member} of cluster {cluster}"),
            setting: "member",
        };
        let host = Wanted {
            path: owner.host_path(),
            what: format!(
                "host identity {} for namespace {}",
                volume.host_id, volume.namespace_id
            ),
            setting: "volume.host_id",
        };
        let _member = name.take(&about, process_gone)?;
        let host = host.take(&about, postgres_gone)?;
        Ok(Self { _member, host })
    }
}

/// A lock to take.
struct Wanted {
    path: PathBuf,
    what: String,
    setting: &'static str,
}

impl Wanted {
    fn take(self, about: &str, patience: Duration) -> Result<File, NodeLockError> {
        let failed = |source| NodeLockError::Open {
            path: self.path.clone(),
            source,
        };
        let mut file = open(&self.path).map_err(failed)?;
        if !wait(&file, patience).map_err(failed)? {
            let mut owner = String::new();
            // Whoever has it may not have written yet, or not be able to be read: then unknown.
            let _ = file.read_to_string(&mut owner);
            let owner = match owner.trim() {
                "" => "another process".to_owned(),
                known => known.to_owned(),
            };
            let Self {
                path,
                what,
                setting,
            } = self;
            return Err(NodeLockError::Taken {
                what,
                owner,
                setting,
                path,
            });
        }
        write(&mut file, about).map_err(failed)?;
        Ok(file)
    }
}

fn open(path: &Path) -> io::Result<File> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .mode(0o600)
        .open(path)
}

/// Asks again and again: the system has no wait for a file lock that ends by itself, and a thread in one
/// that does not end would stay, with its descriptor, for each time that an agent refuses a pod. Whether
/// it came.
#[expect(
    clippy::disallowed_methods,
    reason = "there is no event that could be given up"
)]
fn wait(file: &File, patience: Duration) -> io::Result<bool> {
    let until = clock::now() + patience;
    loop {
        match file.try_lock_exclusive() {
            Ok(()) => return Ok(true),
            Err(error) if error.kind() != fs2::lock_contended_error().kind() => return Err(error),
            Err(_taken) if clock::now() >= until => return Ok(false),
            Err(_taken) => std::thread::sleep(AGAIN),
        }
    }
}

/// For the error message of the next one.
fn write(file: &mut File, about: &str) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(about.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Transport;

    #[test]
    fn a_refused_attempt_leaves_no_descriptor() {
        let directory = tempfile::tempdir().unwrap();
        let runtime_dir = std::fs::canonicalize(directory.path()).unwrap();
        let volume = Volume {
            transport: Transport::Tcp,
            address: "127.0.0.1:4420".parse().unwrap(),
            subsystem: "nqn.2026-11.dev.baton:volume".parse().unwrap(),
            namespace_id: 1,
            identifier: None,
            host_nqn: "nqn.2026-11.dev.baton:host1".parse().unwrap(),
            host_id: nvme::HostId(uuid::Uuid::from_u128(1)),
            mount_point: PathBuf::new(),
            directory: PathBuf::new(),
            require_persistence: false,
        };
        let owner = |member| Owner {
            cluster: "main",
            member,
            runtime_dir: &runtime_dir,
            volume: &volume,
        };
        let descriptors = || {
            let open = std::fs::read_dir("/proc/self/fd").unwrap();
            let open = open.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
            open.filter(|path| path.starts_with(&runtime_dir)).count()
        };
        let held = NodeLock::take(owner("a")).unwrap();
        assert_eq!(descriptors(), 2);
        let patience = Duration::from_millis(30);
        for member in ["a", "b", "b"] {
            let refused = NodeLock::take_within(owner(member), patience, patience);
            assert!(matches!(refused, Err(NodeLockError::Taken { .. })));
        }
        assert_eq!(descriptors(), 2, "of the one who has it");
        drop(held);
        // A child that another test has just forked may have the descriptors until it is another program.
        NodeLock::take(owner("b")).unwrap();
    }
}
