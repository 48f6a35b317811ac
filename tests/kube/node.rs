//! A node: its directories, its agent, its kubelet.

use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{major, minor};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;

use crate::container::program;
use crate::kubelet::{Driver, Kubelet};
use crate::places::{self, NodePlaces};
use crate::platform::api::ApiServer;

/// Keeps the agent in a mount namespace of its own, which shares only this node's `/run/baton`.
/// `$1`: other nodes' directories, to be left; the rest is the command.
const AGENT: &str = r#"
set -e
for other in $1; do
    mount --make-rprivate "$other"
    umount --recursive --lazy "$other"
done
shift
exec "$@"
"#;

/// One node.
pub struct Node {
    pub name: String,
    pub places: NodePlaces,
    agent: Option<Child>,
    kubelet: Option<JoinHandle<()>>,
    kubeconfig: PathBuf,
    logs: PathBuf,
    /// Directories of the other nodes.
    others: Vec<PathBuf>,
    attached_host: uuid::Uuid,
}

impl Node {
    /// Makes the directories. Those of all nodes must be there before any agent is started.
    pub fn make(scratch: &Path, group: &Path, name: &str) -> Result<Self> {
        let places = NodePlaces::new(scratch, group, name);
        std::fs::create_dir_all(&places.run)?;
        let none: Option<&str> = None;
        mount(none, &places.run, Some("tmpfs"), MsFlags::empty(), none)
            .context("mount the node's /run")?;
        mount(none, &places.run, none, MsFlags::MS_SHARED, none)
            .context("share the node's /run")?;
        for directory in ["agent", "members", "state"] {
            std::fs::create_dir_all(places.run.join(directory))?;
        }
        std::fs::create_dir_all(&places.group).context("make the node's control group")?;
        let identity = uuid::Uuid::new_v4();
        std::fs::write(places.root.join("hostid"), identity.to_string())?;
        let nqn = format!("nqn.2014-08.org.nvmexpress:uuid:{identity}");
        std::fs::write(places.root.join("hostnqn"), nqn)?;
        symlink("/sys", places.sysfs()).context("link the node's sysfs")?;
        let others = places::nodes().filter(|(other, _)| *other != name);
        Ok(Self {
            name: name.to_owned(),
            kubeconfig: places.root.join("agent.kubeconfig"),
            logs: scratch.join("logs"),
            others: others
                .map(|(other, _)| scratch.join(other).join("run"))
                .collect(),
            places,
            attached_host: uuid::Uuid::new_v4(),
            agent: None,
            kubelet: None,
        })
    }

    /// Starts agent and kubelet.
    pub async fn start(&mut self, api: &ApiServer) -> Result<()> {
        let agent = api.kubeconfig_of(places::SYSTEM, "baton-agent").await?;
        std::fs::write(&self.kubeconfig, agent)?;
        self.start_agent()?;
        let kubelet = Kubelet {
            node: self.name.clone(),
            places: self.places.clone(),
            client: api.client.clone(),
            kubeconfig: api.kubeconfig()?,
            logs: self.logs.clone(),
            driver: Box::new(Linked(self.places.clone())),
        };
        self.kubelet = Some(tokio::spawn(Arc::new(kubelet).run()));
        Ok(())
    }

    /// Starts the agent.
    pub fn start_agent(&mut self) -> Result<()> {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.logs.join(format!("agent-{}.log", self.name)))?;
        let others: Vec<_> = self
            .others
            .iter()
            .map(|other| other.display().to_string())
            .collect();
        let group = self.places.group.join("agent");
        std::fs::create_dir_all(&group)?;
        let run = &self.places.run;
        let root = self
            .places
            .group
            .ancestors()
            .nth(2)
            .context("no root of control groups")?;
        let bridges = self.places.group.join("bridges");
        let child = Command::new("unshare")
            .args(["--mount", "--propagation", "unchanged", "--kill-child"])
            .args(["bash", "-c", AGENT, "agent"])
            .arg(others.join(" "))
            .arg(program())
            .arg("agent")
            .args(["--node", &self.name])
            .arg("--socket")
            .arg(run.join("agent/agent.sock"))
            .arg("--members")
            .arg(run.join("members"))
            .arg("--state")
            .arg(run.join("state"))
            .arg("--kubelet")
            .arg(self.places.host_path("/var/lib/kubelet"))
            .arg("--sysfs")
            .arg(self.places.sysfs())
            .arg("--control-groups")
            .arg(root)
            .arg("--bridges")
            .arg(bridges.strip_prefix(root)?)
            .arg("--host-nqn")
            .arg(self.places.root.join("hostnqn"))
            .arg("--host-id")
            .arg(self.places.root.join("hostid"))
            .env("KUBECONFIG", &self.kubeconfig)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .context("start the agent")?;
        self.agent = Some(child);
        Ok(())
    }

    /// Kills the agent, as when its pod is evicted.
    pub async fn kill_agent(&mut self) -> Result<()> {
        let mut agent = self.agent.take().context("there is no agent")?;
        agent.kill().await.context("kill the agent")
    }

    /// The whole node is gone: agent, pods, bridges.
    pub async fn lose(&mut self) -> Result<()> {
        if let Some(kubelet) = self.kubelet.take() {
            kubelet.abort();
        }
        if let Some(mut agent) = self.agent.take() {
            let _killed = agent.start_kill();
        }
        std::fs::write(self.places.group.join("cgroup.kill"), "1").context("kill all of the node")
    }

    /// Starts again after [`Node::lose`], with an empty `/run` as after a boot.
    pub async fn boot(&mut self, api: &ApiServer) -> Result<()> {
        for directory in ["members", "state"] {
            let directory = self.places.run.join(directory);
            // What was mounted there went with its device.
            let mounts = std::fs::read_to_string("/proc/self/mounts")?;
            for point in mounts.lines().filter_map(|line| line.split(' ').nth(1)) {
                if Path::new(point).starts_with(&directory) {
                    nix::mount::umount2(point, nix::mount::MntFlags::MNT_DETACH)?;
                }
            }
            std::fs::remove_dir_all(&directory)?;
            std::fs::create_dir_all(&directory)?;
        }
        self.start(api).await
    }

    /// Attaches a volume for a claim, as a storage driver and the kernel's initiator show it: `device` is a
    /// namespace of the storage, beside another of the same subsystem.
    pub fn attach(&self, claim: &str, device: &Path, namespace: u32) -> Result<()> {
        let devices = self.places.devices();
        std::fs::create_dir_all(&devices)?;
        symlink(device, devices.join(claim))?;
        let number = std::fs::metadata(device)?.rdev();
        let number = format!("{}:{}", major(number), minor(number));
        let tree = self.places.root.join("tree");
        let write = |path: &str, text: &str| {
            let path = tree.join(path);
            std::fs::create_dir_all(path.parent().context("no parent")?)?;
            std::fs::write(path, format!("{text}\n")).context("write a file of sysfs")
        };
        let subsystem = "class/nvme-subsystem/nvme-subsys0";
        write(
            &format!("{subsystem}/subsysnqn"),
            nvme::target::DEFAULT_SUBSYSTEM,
        )?;
        for nsid in [1, namespace] {
            write(&format!("{subsystem}/nvme0n{nsid}/nsid"), &nsid.to_string())?;
            write(
                &format!("class/nvme/nvme0/nvme0c0n{nsid}/ana_state"),
                "optimized",
            )?;
        }
        let (storage, host) = (places::storage(), self.attached_host());
        for (name, value) in [
            ("state", "live".to_owned()),
            ("transport", "tcp".to_owned()),
            (
                "address",
                format!("traddr={},trsvcid={}", storage.ip(), storage.port()),
            ),
            ("hostnqn", format!("nqn.2014-08.org.nvmexpress:uuid:{host}")),
            ("hostid", host.to_string()),
        ] {
            write(&format!("class/nvme/nvme0/{name}"), &value)?;
        }
        symlink(
            tree.join("class/nvme/nvme0"),
            tree.join(subsystem).join("nvme0"),
        )?;
        std::fs::create_dir_all(tree.join("dev/block"))?;
        let disk = format!("../../devices/nvme0n{namespace}");
        symlink(disk, tree.join("dev/block").join(number))?;
        self.show(&tree)
    }

    /// The node has no NVMe again.
    pub fn detach(&self) -> Result<()> {
        std::fs::remove_dir_all(self.places.devices())?;
        std::fs::remove_dir_all(self.places.root.join("tree"))?;
        self.show(Path::new("/sys"))
    }

    fn show(&self, tree: &Path) -> Result<()> {
        let sysfs = self.places.sysfs();
        std::fs::remove_file(&sysfs)?;
        symlink(tree, &sysfs).context("link the node's sysfs")
    }

    /// Whom the storage knows the kernel of this node as, when a volume is attached: not whom the agent's own
    /// files say.
    pub fn attached_host(&self) -> uuid::Uuid {
        self.attached_host
    }

    /// The agent's process.
    pub fn agent_pid(&self) -> Option<u32> {
        self.agent.as_ref().and_then(Child::id)
    }
}

/// Shows the devices that [`Node::attach`] has attached.
struct Linked(NodePlaces);

impl Driver for Linked {
    fn publish(&self, claim: &str, pod: &str) -> Result<()> {
        let device = self.0.devices().join(claim);
        let plugin = format!("/var/lib/kubelet/pods/{pod}/volumeDevices/kubernetes.io~csi");
        let plugin = self.0.host_path(&plugin);
        let to = plugin.join(format!("pv-{claim}"));
        if device.exists() && !to.exists() {
            std::fs::create_dir_all(&plugin)?;
            symlink(device, to)?;
        }
        Ok(())
    }

    fn withdraw(&self, _claim: &str, _pod: &str) -> Result<()> {
        Ok(())
    }
}
