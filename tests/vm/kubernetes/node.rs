//! One node: its network for pods, its agent, its kubelet.

use std::cell::Cell;

use anyhow::{Context, Result};

use super::driver::DIRECTORY as KUBELET;
use crate::machine::Machine;
use crate::machines::BATON;
use crate::network::Network;
use crate::nvmet::{PORT, SUBSYSTEM};
use crate::platform::api::ApiServer;
use crate::platform::places;

/// What is the node's alone, and its logs.
pub const DIRECTORY: &str = "/srv/node";

/// The pods are on the peer network, in a range of their own. The bridge keeps the interface's hardware
/// address, which others know.
const PREPARE: &str = r#"
modprobe -a nvme-tcp loop bridge veth
ip link add "$BRIDGE" type bridge
ip link set "$BRIDGE" address "$(cat "/sys/class/net/$PEER/address")" up
ip addr flush dev "$PEER"
ip link set "$PEER" master "$BRIDGE"
ip addr add "$ADDRESS/24" dev "$BRIDGE"
ip addr add "$POD_ADDRESS/24" dev "$BRIDGE"
mkdir -p "$DIRECTORY/logs" /run/baton "$KUBELET"
mount -t tmpfs -o mode=755 node /run/baton
mount --bind "$KUBELET" "$KUBELET"
mount --make-shared /run/baton
mount --make-shared "$KUBELET"
mkdir -p /run/baton/agent /run/baton/members /run/baton/state
"#;

/// The mounts of `deploy/base/agent.yaml`: the kubelet's directory is read-only and follows the node, and
/// what is mounted below /run/baton arrives there.
const AGENT: &str = r#"
exec unshare --mount --propagation unchanged sh -euc '
    mount --make-slave "$KUBELET"
    mount -o remount,bind,ro "$KUBELET"
    exec "$BATON" agent
'
"#;

/// A node, with an agent and a kubelet that run.
pub struct Node<'a> {
    pub machine: &'a Machine,
    pub name: &'static str,
    settings: String,
    agent: Cell<u32>,
}

impl<'a> Node<'a> {
    /// Makes a node of a machine. Only its end undoes that.
    pub async fn start(machine: &'a Machine, name: &'static str, api: &ApiServer) -> Result<Self> {
        let [a, b, c, _] = places::HOST.octets();
        let pod_address = format!("{a}.{b}.{c}.{}", 20 + machine.number);
        let settings = format!(
            "export BRIDGE={} PEER={} ADDRESS={} POD_ADDRESS={pod_address}
             export DIRECTORY={DIRECTORY} KUBELET={KUBELET} BATON={BATON}
             export NODE_NAME={name} KUBECONFIG={DIRECTORY}/agent.kubeconfig\n",
            places::BRIDGE,
            Network::Peer.name(),
            machine.address(Network::Peer),
        );
        let prepare = settings.clone() + PREPARE;
        machine.shell(&prepare).await.context("prepare the node")?;
        let kubeconfig = api.kubeconfig()?;
        let kubelets = format!("{DIRECTORY}/kubelet.kubeconfig");
        machine.write(&kubelets, &kubeconfig).await?;
        let agents = api.kubeconfig_of(places::SYSTEM, "baton-agent").await?;
        let kubeconfig = format!("{DIRECTORY}/agent.kubeconfig");
        machine.write(&kubeconfig, &agents).await?;
        let node = Self {
            machine,
            name,
            settings,
            agent: Cell::new(0),
        };
        node.start_agent().await?;
        let program = std::env::current_exe().context("find this program")?;
        let storage = Network::Storage.address(crate::machines::STORAGE_NUMBER);
        let kubelet = [
            &program.display().to_string(),
            "kubelet",
            "--node",
            name,
            "--directory",
            DIRECTORY,
            "--address",
            &storage.to_string(),
            "--port",
            &PORT.to_string(),
            "--subsystem",
            SUBSYSTEM,
        ];
        let log = format!("{DIRECTORY}/logs/kubelet.log");
        machine.start(&kubelet, &log).await?;
        Ok(node)
    }

    async fn start_agent(&self) -> Result<()> {
        let script = self.settings.clone() + AGENT;
        let log = format!("{DIRECTORY}/logs/agent.log");
        let started = self.machine.start(&["sh", "-euc", &script], &log).await;
        self.agent.set(started.context("start the agent")?);
        Ok(())
    }

    /// SIGKILL to the agent, and another one.
    pub async fn restart_agent(&self) -> Result<()> {
        let agent = self.agent.get().to_string();
        let killed = self.machine.ok(&["kill", "-KILL", &agent]).await;
        killed.context("kill the agent")?;
        self.start_agent().await
    }

    /// SIGKILL to the first process of the pod with this UID: the kernel ends the others.
    pub async fn kill_container(&self, uid: &str) -> Result<()> {
        let script = format!(
            "for pid in $(cat /sys/fs/cgroup/kubepods/pod{uid}/*/cgroup.procs); do
                 [ \"$(awk '/^NSpid:/ {{ print $NF }}' /proc/$pid/status)\" != 1 ] || exec kill -KILL $pid
             done
             exit 1"
        );
        let killed = self.machine.shell(&script).await;
        killed.map(drop).context("kill the container")
    }

    /// Who holds the reservation, by what this node's kernel device reports: the host's identifier.
    pub async fn holder(&self) -> Result<String> {
        let device =
            "basename $(dirname $(grep -lx \"$UUID\" /sys/class/nvme-subsystem/*/nvme*n*/uuid))";
        let uuid = crate::nvmet::NAMESPACE_UUID;
        let script =
            format!("UUID={uuid}\nnvme resv-report /dev/$({device}) --eds --output-format=json");
        let text = self.machine.shell(&script).await?;
        let parse = || format!("read the report {text}");
        let report: serde_json::Value = serde_json::from_str(&text).with_context(parse)?;
        let registrants = report["regctlext"].as_array().with_context(parse)?;
        let mut holders = registrants
            .iter()
            .filter(|registrant| registrant["rcsts"].as_u64() == Some(1));
        let host = holders.next().and_then(|holder| holder["hostid"].as_str());
        let host = host.with_context(parse)?;
        Ok(host
            .trim_start_matches("0x")
            .replace('-', "")
            .to_lowercase())
    }

    /// The last lines of its agent, its kubelet and its pods.
    pub async fn logs(&self) -> String {
        let tail = format!("cd {DIRECTORY}/logs && tail -n 40 *.log");
        let tail = self.machine.run(&["sh", "-c", &tail]).await;
        let tail = tail.map_or_else(|error| format!("{error:#}"), |output| output.stdout);
        format!("  on {}:\n{tail}\n", self.name)
    }
}
