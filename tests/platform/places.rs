//! Names, addresses and directories of the test's little data centre.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

/// The bridge to which all pods are connected; in the test's network namespace.
pub const BRIDGE: &str = "pods";

/// This program's own address there: API server, storage.
pub const HOST: Ipv4Addr = Ipv4Addr::new(10, 111, 0, 1);

/// The address of the Service `-rw`.
pub const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 111, 0, 2);

/// That of the cluster in two zones.
pub const ZONES_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 111, 0, 3);

/// The nodes that are always up, of no zone.
pub const NODES: [&str; 2] = ["node-1", "node-2"];

/// The label of a node that names its zone.
pub const ZONE: &str = "topology.kubernetes.io/zone";

/// Two zones with their nodes, which only a case that needs them starts.
pub const ZONES: [(&str, [&str; 2]); 2] = [
    ("zone-a", ["node-3", "node-4"]),
    ("zone-b", ["node-5", "node-6"]),
];

/// All nodes, each with the zone in its label.
pub fn nodes() -> impl Iterator<Item = (&'static str, Option<&'static str>)> {
    let plain = NODES.into_iter().map(|node| (node, None));
    let zones = ZONES.into_iter();
    plain.chain(zones.flat_map(|(zone, nodes)| nodes.map(|node| (node, Some(zone)))))
}

/// The namespace of agent and controller.
pub const SYSTEM: &str = "baton-system";

/// PostgreSQL's user in a pod, as the manifests say.
pub const USER: u32 = 999;

/// Every name that any cluster here has for a member.
pub fn members() -> impl Iterator<Item = String> {
    let of_one_site = ('a'..='e').map(String::from);
    let of_sites = ["a1", "a2", "b1", "b2"].map(str::to_owned);
    of_one_site.chain(of_sites)
}

/// Where the API server is reached from pods.
pub fn api() -> SocketAddr {
    SocketAddr::new(IpAddr::V4(HOST), 6443)
}

/// Where the storage target listens.
pub fn storage() -> SocketAddr {
    SocketAddr::new(IpAddr::V4(HOST), 4420)
}

/// Where the storage of a zone listens.
pub fn zone_storage(place: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(HOST), 4430 + place)
}

/// The address of a pod: by the end of its name, and the same after each restart.
pub fn pod_address(pod: &str) -> Ipv4Addr {
    let mut end = pod.bytes().rev();
    let last = match (end.next(), end.next()) {
        // Of several sites: a letter for the site, a digit for the member.
        (Some(digit @ b'0'..=b'9'), Some(site)) => 120 + (site % 10) * 10 + digit - b'0',
        (last, _) => 10 + last.unwrap_or(b'a') % 100,
    };
    Ipv4Addr::new(10, 111, 0, last)
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
    /// Below it lies what else of its root is written to.
    pub host: PathBuf,
}

impl NodePlaces {
    pub fn new(scratch: &Path, group: &Path, node: &str) -> Self {
        let root = scratch.join(node);
        Self {
            run: root.join("run"),
            group: group.join(node),
            host: root.join("host"),
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
            None => self.host.join(path.trim_start_matches('/')),
        }
    }
}
