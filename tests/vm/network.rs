//! Two networks, each a bridge with one tap a machine, in the test's own network namespace.
//!
//! The host's side is on both of them, so the cases reach the nodes as any client does. Nothing is
//! routed, and the namespace has no way out.

use std::io::Write;
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

/// One of the two networks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// To the volume.
    Storage,
    /// Between the members, to their clients and to the lease store.
    Peer,
}

impl Network {
    pub const ALL: [Self; 2] = [Self::Storage, Self::Peer];

    /// The bridge's name outside, the interface's inside a machine, and the device's in QEMU.
    pub fn name(self) -> &'static str {
        match self {
            Self::Storage => "storage",
            Self::Peer => "peer",
        }
    }

    /// The address of the host with this last number. [`HOST_NUMBER`] is the test itself.
    pub fn address(self, number: u8) -> Ipv4Addr {
        match self {
            Self::Storage => Ipv4Addr::new(10, 77, 1, number),
            Self::Peer => Ipv4Addr::new(10, 77, 2, number),
        }
    }

    /// The tap of a machine on this network.
    pub fn tap(self, machine: &str) -> String {
        match self {
            Self::Storage => format!("s-{machine}"),
            Self::Peer => format!("p-{machine}"),
        }
    }

    /// The machine's hardware address: locally administered.
    pub fn hardware_address(self, number: u8) -> String {
        let network = match self {
            Self::Storage => 1,
            Self::Peer => 2,
        };
        format!("52:54:00:00:{network:02x}:{number:02x}")
    }
}

/// The last number of the test's own addresses.
pub const HOST_NUMBER: u8 = 254;

/// Makes both networks with a tap for each machine.
pub fn make(machines: &[&str]) -> Result<()> {
    let mut script = "link set lo up\n".to_owned();
    for network in Network::ALL {
        let (bridge, address) = (network.name(), network.address(HOST_NUMBER));
        script += &format!("link add {bridge} type bridge\n");
        script += &format!("addr add {address}/24 dev {bridge}\nlink set {bridge} up\n");
        for machine in machines {
            let tap = network.tap(machine);
            script += &format!("tuntap add dev {tap} mode tap\n");
            script += &format!("link set {tap} master {bridge} up\n");
        }
    }
    ip(&script).context("make the test's networks (needs bridges and /dev/net/tun)")
}

fn ip(script: &str) -> Result<()> {
    let mut child = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .context("run ip")?;
    let mut input = child.stdin.take().context("ip has no input")?;
    input.write_all(script.as_bytes()).context("write to ip")?;
    drop(input);
    let status = child.wait().context("wait for ip")?;
    ensure!(status.success(), "ip ended with {status}");
    Ok(())
}
