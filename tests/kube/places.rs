//! Names, addresses and directories of the test's little data centre.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

/// The bridge to which all pods are connected; in the test's network namespace.
pub const BRIDGE: &str = "pods";

/// This program's own address there: API server, storage.
pub const HOST: Ipv4Addr = Ipv4Addr::new(10, 111, 0, 1);

/// The address of the Service `-rw`.
pub const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 111, 0, 2);

/// The nodes.
pub const NODES: [&str; 2] = ["node-1", "node-2"];

/// The namespace of agent and controller.
pub const SYSTEM: &str = "baton-system";

/// PostgreSQL's user in a pod, as the manifests say.
pub const USER: u32 = 999;

/// Where the API server is reached from pods.
pub fn api() -> SocketAddr {
    SocketAddr::new(IpAddr::V4(HOST), 6443)
}

/// Where the storage target listens.
pub fn storage() -> SocketAddr {
    SocketAddr::new(IpAddr::V4(HOST), 4420)
}

/// The address of a pod: by its place among the members, and the same after each restart.
pub fn pod_address(pod: &str) -> Ipv4Addr {
    let last = pod.bytes().next_back().unwrap_or(b'a');
    Ipv4Addr::new(10, 111, 0, 10 + (last % 100))
}

/// Directories of one node.
#[derive(Clone, Debug)]
pub struct NodePlaces {
    /// All of them.
    pub root: PathBuf,
    /// `/run/baton` of the node: shared between its agent and its pods.
    pub run: PathBuf,
    /// Its control group.
    pub group: PathBuf,
}

impl NodePlaces {
    pub fn new(scratch: &Path, group: &Path, node: &str) -> Self {
        let root = scratch.join(node);
        Self {
            run: root.join("run"),
            group: group.join(node),
            root,
        }
    }

    /// What the node's agent takes for sysfs: a link.
    pub fn sysfs(&self) -> PathBuf {
        self.root.join("sys")
    }

    /// The block devices of this node's volumes, by their claims' names.
    pub fn devices(&self) -> PathBuf {
        self.root.join("devices")
    }

    /// Where a path of the node's host is.
    pub fn host_path(&self, path: &str) -> PathBuf {
        match path.strip_prefix("/run/baton") {
            Some(below) => PathBuf::from(format!("{}{below}", self.run.display())),
            None => self.root.join("host").join(path.trim_start_matches('/')),
        }
    }
}
