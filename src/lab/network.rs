//! The networks of a lab with two sites: a network namespace for each, and three links.
//!
//! ```text
//!            clients (where the lab was brought up: drills, psql)
//!             .1 ║                                ║ .5
//!             .2 ║ clients                clients ║ .6
//!           ┌────╨────┐                      ┌────╨────┐
//!           │ site a  │ sites          sites │ site b  │
//!           │ target  ╞══ .9 ══ line ══ .10 ══╡ target  │
//!           │ a1, a2  │      (wan/)          │ b1, b2  │
//!           └─────────┘                      └─────────┘
//! ```
//!
//! So the line between the sites can be damaged while clients reach both. The addresses are sixteen
//! of 198.18.0.0/15, which is set apart for tests of networks (RFC 2544); nothing routes between the
//! links.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::ifaddrs::getifaddrs;
use nix::sched::{CloneFlags, setns};
use serde::{Deserialize, Serialize};
use tokio::process::Command;
use tokio::time::timeout;

use super::wan::Line;

/// Where `ip netns` keeps the namespaces.
const NAMESPACES: &str = "/run/netns";

/// The first address of all labs' networks, and how many networks of 16 addresses there are.
const FIRST: u32 = u32::from_be_bytes([198, 18, 0, 0]);
const NETWORKS: u16 = 8192;

/// How often another network is drawn before giving up.
const DRAWS: usize = 100;

/// How long one `ip` may take. The kernel waits for other users of its lock, no longer.
const IP_WITHIN: Duration = Duration::from_secs(10);

/// The network of one lab, by its number. It is remembered, so that a lab that was killed finds what
/// is left of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Network {
    number: u16,
}

/// One site's part of the network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SiteNetwork {
    /// The namespace's file.
    pub namespace: PathBuf,
    /// Where its clients come from.
    pub clients: Ipv4Addr,
    /// The site's address for its clients.
    pub address: Ipv4Addr,
    /// The site's address on the line to the other site.
    pub line: Ipv4Addr,
}

/// A network could not be made or taken away.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// `ip` could not run.
    #[error("run `ip {arguments}`")]
    Run {
        /// Its arguments.
        arguments: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// `ip` refused.
    #[error("`ip {arguments}`: {said}")]
    Refused {
        /// Its arguments.
        arguments: String,
        /// Its words.
        said: String,
    },
    /// The two devices of the line could not be joined.
    #[error("join the line between the sites")]
    Line(#[source] io::Error),
}

impl Network {
    /// A network that nobody on this machine has.
    ///
    /// # Errors
    /// The addresses of this machine cannot be read, or all draws are taken.
    pub fn draw() -> io::Result<Self> {
        for _ in 0..DRAWS {
            let number = rand::random_range(0..NETWORKS);
            let network = Self { number };
            if !network.is_taken()? {
                return Ok(network);
            }
        }
        Err(io::Error::other("no free network in 198.18.0.0/15"))
    }

    /// One site's part: `a` or `b`.
    pub fn site(self, name: &str) -> SiteNetwork {
        let second = u32::from(name != "a");
        SiteNetwork {
            namespace: Path::new(NAMESPACES).join(self.namespace(name)),
            clients: self.address(1 + 4 * second),
            address: self.address(2 + 4 * second),
            line: self.address(9 + second),
        }
    }

    /// Makes namespaces, devices and addresses; whatever was left of them goes first.
    ///
    /// # Errors
    /// [`NetworkError`]; what was made until then stays for [`Network::remove`].
    pub async fn make(self, owner: &Path) -> Result<(), NetworkError> {
        self.remove().await?;
        let (line, owner) = (self.namespace("line"), mark(owner));
        ip(&format!("netns add {line}")).await?;
        for (name, end) in [("a", "left"), ("b", "right")] {
            let (site, outside) = (self.namespace(name), self.device(name));
            let SiteNetwork {
                clients,
                address,
                line: on_line,
                ..
            } = self.site(name);
            for arguments in [
                format!("netns add {site}"),
                format!("-n {site} link set lo up"),
                format!("link add {outside} type veth peer name clients netns {site}"),
                format!("link set {outside} alias {owner}"),
                format!("address add {clients}/30 dev {outside}"),
                format!("link set {outside} up"),
                format!("-n {site} address add {address}/30 dev clients"),
                format!("-n {site} link set clients up"),
                format!("-n {line} link add {end} type veth peer name sites netns {site}"),
                // the line carries frames, and does not cut longer ones into such
                format!("-n {site} link set sites gso_max_segs 1"),
                format!("-n {site} address add {on_line}/30 dev sites"),
                format!("-n {site} link set sites up"),
                // no address of any kind: what arrives here is not for this namespace
                format!("-n {line} link set {end} addrgenmode none"),
                format!("-n {line} link set {end} up"),
            ] {
                ip(&arguments).await?;
            }
        }
        Ok(())
    }

    /// The line between the sites, as long as it is kept.
    ///
    /// # Errors
    /// [`NetworkError::Line`].
    pub fn join(self) -> Result<Line, NetworkError> {
        let namespace = Path::new(NAMESPACES).join(self.namespace("line"));
        Line::join(&namespace, "left", "right").map_err(NetworkError::Line)
    }

    /// Takes everything away that is there.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub async fn remove(self) -> Result<(), NetworkError> {
        for name in ["a", "b"] {
            if self.alias(name).is_some() {
                ip(&format!("link delete {}", self.device(name))).await?;
            }
        }
        for name in self.left() {
            ip(&format!("netns delete {name}")).await?;
        }
        Ok(())
    }

    /// The namespaces that are there.
    pub fn left(self) -> Vec<String> {
        let names = ["a", "b", "line"].map(|name| self.namespace(name));
        let there = |name: &String| Path::new(NAMESPACES).join(name).exists();
        names.into_iter().filter(there).collect()
    }

    /// Whether another lab than that of `owner` uses it.
    pub fn is_another_s(self, owner: &Path) -> bool {
        let owner = mark(owner);
        ["a", "b"]
            .into_iter()
            .filter_map(|name| self.alias(name))
            .any(|alias| alias != owner)
    }

    /// What the clients' device of a site says of whose it is; none if it is not there.
    fn alias(self, site: &str) -> Option<String> {
        let file = format!("/sys/class/net/{}/ifalias", self.device(site));
        let alias = std::fs::read_to_string(file).ok()?;
        Some(alias.trim_end().to_owned())
    }

    fn is_taken(self) -> io::Result<bool> {
        let first = u32::from(self.address(0));
        let mut interfaces = getifaddrs()?;
        let inside = interfaces.any(|interface| {
            let address = interface
                .address
                .as_ref()
                .and_then(|a| a.as_sockaddr_in())
                .map(|a| a.ip());
            address.is_some_and(|address| u32::from(address) & !15 == first)
        });
        Ok(inside || !self.left().is_empty())
    }

    fn address(self, offset: u32) -> Ipv4Addr {
        Ipv4Addr::from(FIRST + u32::from(self.number) * 16 + offset)
    }

    fn namespace(self, name: &str) -> String {
        format!("baton-{:04x}-{name}", self.number)
    }

    /// The clients' device of a site; a device's name has 15 bytes at most.
    fn device(self, site: &str) -> String {
        format!("baton-{:04x}-{site}", self.number)
    }
}

impl SiteNetwork {
    /// The address for clients.
    pub fn ip(&self) -> IpAddr {
        self.address.into()
    }
}

/// How a lab's devices tell whose they are: by its directory, without spaces.
fn mark(owner: &Path) -> String {
    owner.display().to_string().replace(' ', "_")
}

/// Runs `ip` of iproute2. No argument may hold a space.
///
/// # Errors
/// [`NetworkError::Run`], [`NetworkError::Refused`].
pub async fn ip(arguments: &str) -> Result<(), NetworkError> {
    let failed = |source| NetworkError::Run {
        arguments: arguments.to_owned(),
        source,
    };
    let mut command = Command::new("ip");
    command
        .args(arguments.split(' '))
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = timeout(IP_WITHIN, command.output()).await;
    let output = output
        .unwrap_or_else(|late| Err(late.into()))
        .map_err(failed)?;
    match output.status.success() {
        true => Ok(()),
        false => Err(NetworkError::Refused {
            arguments: arguments.to_owned(),
            said: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        }),
    }
}

/// Runs something in a network namespace, on a thread of its own: the sockets that it makes stay
/// there, wherever they are used.
///
/// # Errors
/// The namespace cannot be entered.
pub fn enter<T: Send + 'static>(
    namespace: &Path,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let namespace = std::fs::File::open(namespace)?;
    let inside = move || {
        setns(&namespace, CloneFlags::CLONE_NEWNET)?;
        Ok(work())
    };
    let thread = std::thread::Builder::new()
        .name("network".to_owned())
        .spawn(inside)?;
    thread
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// A network for a test, taken away when it ends.
#[cfg(test)]
pub(super) struct Drawn(Network);

#[cfg(test)]
impl Drawn {
    pub(super) async fn make() -> Self {
        let drawn = Self(Network::draw().unwrap());
        drawn.make(Path::new("/a/test")).await.unwrap();
        drawn
    }
}

#[cfg(test)]
impl std::ops::Deref for Drawn {
    type Target = Network;

    fn deref(&self) -> &Network {
        &self.0
    }
}

#[cfg(test)]
impl Drop for Drawn {
    fn drop(&mut self) {
        for name in self.0.left() {
            drop(
                std::process::Command::new("ip")
                    .args(["netns", "delete", &name])
                    .status(),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_network_is_nobody_else_s_and_leaves_nothing() {
        let network = Drawn::make().await;
        assert!(network.is_taken().unwrap());
        assert!(
            network.is_another_s(Path::new("/another"))
                && !network.is_another_s(Path::new("/a/test"))
        );
        assert_eq!(network.left().len(), 3);
        // what a killed lab left does not keep it from coming up again
        network.make(Path::new("/a/test")).await.unwrap();
        network.remove().await.unwrap();
        assert_eq!(network.left(), Vec::<String>::new());
        assert!(!network.is_taken().unwrap());
    }

    #[test]
    fn the_sites_addresses_differ_and_lie_on_their_links() {
        let network = Network { number: 0x1fff };
        let (a, b) = (network.site("a"), network.site("b"));
        assert_eq!(a.line, Ipv4Addr::new(198, 19, 255, 249));
        assert_eq!(b.line, Ipv4Addr::new(198, 19, 255, 250));
        assert_eq!(
            (a.clients, a.address),
            ([198, 19, 255, 241].into(), [198, 19, 255, 242].into())
        );
        assert_eq!(
            (b.clients, b.address),
            ([198, 19, 255, 245].into(), [198, 19, 255, 246].into())
        );
        assert!(network.device("b").len() <= 15);
        assert_ne!(a.namespace, b.namespace);
    }
}
