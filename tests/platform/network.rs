//! The networks of pods: a namespace each, connected to the node's bridge.

use std::net::Ipv4Addr;

use anyhow::Result;

use super::places;

/// A pod's network namespace, connected to the bridge; gone when it is dropped.
pub struct Network {
    pub name: String,
    pub address: Ipv4Addr,
}

impl Network {
    pub async fn make(pod: &str, address: Ipv4Addr) -> Result<Self> {
        let name = pod.to_owned();
        let end = interface(address);
        let network = Self { name, address };
        let (name, bridge) = (&network.name, places::BRIDGE);
        let _former = ip(&format!("netns del {name}")).await;
        let _former = ip(&format!("link del {end}")).await;
        ip(&format!("netns add {name}")).await?;
        ip(&format!(
            "link add {end} type veth peer name eth0 netns {name}"
        ))
        .await?;
        ip(&format!("link set {end} master {bridge} up")).await?;
        ip(&format!("-n {name} link set lo up")).await?;
        ip(&format!("-n {name} addr add {address}/24 dev eth0")).await?;
        ip(&format!("-n {name} link set eth0 up")).await?;
        Ok(network)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _deleted = std::process::Command::new("ip")
            .args(["netns", "del", &self.name])
            .output();
    }
}

/// The bridge's end of a pod's link.
pub fn interface(address: Ipv4Addr) -> String {
    format!("pod{}", address.octets()[3])
}

/// One command of iproute2.
pub async fn ip(arguments: &str) -> Result<()> {
    Ok(baton::lab::network::ip(arguments).await?)
}
