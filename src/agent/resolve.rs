//! What a pod may have: its volume, as the API server and this node's kernel know it.
//!
//! The pod is known by the UID in its control group. Everything else follows from the pod's object: its
//! cluster and member by labels that must agree with the `BatonCluster`, its volume by the claim.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::runtime::reflector::{self, Store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use nvme::HostIdentity;
use nvme::kernel::Identifier;
use nvme::kernel::sysfs::{self, Disk, Subsystem};
use sha2::{Digest, Sha256};
use tokio::task::JoinSet;
use uuid::Uuid;

use super::complain::Complaints;
use super::protocol::Hello;
use crate::attachment::whole;
use crate::cluster::names;
use crate::cluster::{BatonCluster, VolumeSpec, VolumeTransport};
use crate::config::{Transport, Volume};
use crate::hex::hex;

/// How long one question to the API server may take.
const ANSWER: Duration = Duration::from_secs(5);

/// This node and its places.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its name in Kubernetes.
    pub name: String,
    /// Its identity at volumes that Baton's own initiator reaches.
    pub host: HostIdentity,
    /// Where filesystems are mounted: `<members>/<namespace>/<pod>/data`.
    pub members: PathBuf,
    /// Where locks, marks and bridges lie while the node is up.
    pub state: PathBuf,
    /// The kubelet's directory.
    pub kubelet: PathBuf,
    /// Where the unified control group hierarchy is mounted.
    pub control_groups: PathBuf,
    /// The control group for what outlives the agent.
    pub bridges: PathBuf,
    /// Where the kernel shows its devices.
    pub sysfs: PathBuf,
}

/// Why a pod gets nothing.
#[derive(Debug, thiserror::Error)]
#[error("{why}")]
pub(super) struct Refusal {
    pub why: String,
    /// Another answer may come later.
    pub again: bool,
}

pub(super) fn refuse(why: impl Into<String>) -> Refusal {
    Refusal {
        why: why.into(),
        again: false,
    }
}

pub(super) fn later(why: impl Into<String>) -> Refusal {
    Refusal {
        why: why.into(),
        again: true,
    }
}

/// What a pod may have.
#[derive(Debug)]
pub(super) struct Resolved {
    /// `<namespace>/<pod>`.
    pub key: String,
    pub volume: Volume,
    /// The same for all members that could reach this volume from this node.
    pub runtime_dir: PathBuf,
}

/// What the API server says of this node's pods.
pub struct Platform {
    client: Client,
    node: Node,
    pods: Store<Pod>,
    complaints: Complaints,
    _watch: JoinSet<()>,
}

impl Platform {
    /// Begins to follow the pods of this node.
    pub fn follow(client: Client, node: Node) -> Self {
        let (pods, writer) = reflector::store();
        let mine = watcher::Config::default().fields(&format!("spec.nodeName={}", node.name));
        let stream = watcher(Api::<Pod>::all(client.clone()), mine)
            .default_backoff()
            .reflect(writer)
            .for_each(|event| async move {
                if let Err(error) = event {
                    tracing::warn!(error = %whole(error), "the pods of this node are not followed just now");
                }
            });
        let mut watch = JoinSet::new();
        watch.spawn(stream);
        Self {
            complaints: Complaints::new(client.clone(), &node.name),
            client,
            node,
            pods,
            _watch: watch,
        }
    }

    /// This node.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// The pod has a session, or why it has none. A pod that the API server has not named cannot be told.
    pub(super) async fn tell(&self, uid: Uuid, refused: Option<&str>) {
        match (refused, self.pod(uid)) {
            (Some(why), Some(pod)) => self.complaints.say(uid, &pod, why).await,
            (Some(_), None) => {}
            (None, _) => self.complaints.forget(uid),
        }
    }

    fn pod(&self, uid: Uuid) -> Option<Arc<Pod>> {
        let uid = uid.to_string();
        self.pods.find(|pod| pod.uid().as_deref() == Some(&uid))
    }

    /// What the pod with this UID may have, if what it says of itself agrees.
    pub(super) async fn resolve(&self, uid: Uuid, hello: &Hello) -> Result<Resolved, Refusal> {
        let pod = self.pod(uid).ok_or_else(|| {
            later(format!(
                "the API server has not named a pod with UID {uid} on node {}",
                self.node.name
            ))
        })?;
        let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
        let cluster = pod.labels().get(names::CLUSTER).ok_or_else(|| {
            refuse(format!(
                "pod {namespace}/{name} has no label {}",
                names::CLUSTER
            ))
        })?;
        let cluster: BatonCluster = self.get(&namespace, cluster).await?;
        compare(&cluster, &pod, hello)?;
        self.admit_claim(&cluster, &pod).await?;
        let mount_point = self.node.members.join(&namespace).join(&name).join("data");
        let spec = &cluster.spec.volume;
        let found = match spec.transport {
            VolumeTransport::Tcp => self.named(spec)?,
            VolumeTransport::Kernel => self.attached(spec, &pod)?,
        };
        let runtime_dir = self.runtime_dir(&found);
        Ok(Resolved {
            key: format!("{namespace}/{name}"),
            volume: Volume {
                mount_point,
                directory: runtime_dir.join("bridge"),
                ..found
            },
            runtime_dir,
        })
    }

    async fn get<K>(&self, namespace: &str, name: &str) -> Result<K, Refusal>
    where
        K: kube::Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>
            + Clone
            + std::fmt::Debug
            + serde::de::DeserializeOwned,
    {
        let api: Api<K> = Api::namespaced(self.client.clone(), namespace);
        let what = format!("{} {namespace}/{name}", K::kind(&()));
        match tokio::time::timeout(ANSWER, api.get_opt(name)).await {
            Ok(Ok(Some(found))) => Ok(found),
            Ok(Ok(None)) => Err(later(format!("there is no {what}"))),
            Ok(Err(error)) => Err(later(format!("ask for {what}: {}", whole(error)))),
            Err(_elapsed) => Err(later(format!(
                "ask for {what}: no answer within {ANSWER:?}"
            ))),
        }
    }

    /// The pod must have the cluster's claim, and that must be a block volume that several nodes can have.
    async fn admit_claim(&self, cluster: &BatonCluster, pod: &Pod) -> Result<(), Refusal> {
        let claim = cluster.claim();
        let (namespace, name) = (cluster.namespace(), pod.name_any());
        let volumes = pod.spec.iter().filter_map(|spec| spec.volumes.as_ref());
        let has = volumes.flatten().any(|volume| {
            let source = volume.persistent_volume_claim.as_ref();
            source.is_some_and(|source| source.claim_name == claim)
        });
        if !has {
            return Err(refuse(format!(
                "pod {namespace}/{name} does not have claim {claim}"
            )));
        }
        let claim: PersistentVolumeClaim = self.get(namespace, &claim).await?;
        let spec = claim.spec.clone().unwrap_or_default();
        if spec.volume_mode.as_deref() != Some("Block") {
            return Err(refuse(format!(
                "claim {} has volumeMode {}: it must be Block, so that two nodes never mount it by themselves",
                claim.name_any(),
                spec.volume_mode.as_deref().unwrap_or("Filesystem"),
            )));
        }
        let modes = spec.access_modes.unwrap_or_default();
        if !modes.iter().any(|mode| mode == "ReadWriteMany") {
            return Err(refuse(format!(
                "claim {} is {}: it must be ReadWriteMany, so that the standby is attached beforehand",
                claim.name_any(),
                modes.join(", "),
            )));
        }
        Ok(())
    }

    /// The volume as the cluster names it, for Baton's own initiator.
    fn named(&self, spec: &VolumeSpec) -> Result<Volume, Refusal> {
        let missing = || refuse("volume.transport tcp needs volume.address and volume.subsystem");
        let address = spec.address.as_deref().ok_or_else(missing)?;
        let subsystem = spec.subsystem.as_deref().ok_or_else(missing)?;
        Ok(Volume {
            transport: Transport::Tcp,
            address: parsed("volume.address", address)?,
            subsystem: parsed("volume.subsystem", subsystem)?,
            namespace_id: spec.namespace_id.unwrap_or(1),
            identifier: identifier(spec)?,
            host_nqn: self.node.host.nqn.clone(),
            host_id: self.node.host.id,
            mount_point: PathBuf::new(),
            directory: PathBuf::new(),
            require_persistence: spec.require_persistence,
        })
    }

    /// The NVMe device that the storage driver has attached for the pod's claim.
    fn attached(&self, spec: &VolumeSpec, pod: &Pod) -> Result<Volume, Refusal> {
        let uid = pod.uid().unwrap_or_default();
        let device = published(&self.node.kubelet, &uid)
            .map_err(|error| later(format!("find the block device of pod {uid}: {error}")))?;
        let subsystems =
            sysfs::subsystems(&self.node.sysfs).map_err(|error| later(whole(error)))?;
        let name = device_name(&self.node.sysfs, device)
            .map_err(|error| later(format!("name device {}:{}: {error}", device.0, device.1)))?;
        let (subsystem, disk) = named_disk(&subsystems, &name).ok_or_else(|| {
            refuse(format!(
                "the claim's device {name} is no NVMe device of this kernel: use an NVMe/TCP volume and load nvme-tcp, or set volume.transport to tcp"
            ))
        })?;
        if let Some(other) = subsystem.disks.iter().find(|other| other.name != disk.name) {
            return Err(refuse(format!(
                "subsystem {} has other namespaces on this node ({}): its controllers cannot be made anew for {name} alone; use volume.transport tcp",
                subsystem.nqn, other.name
            )));
        }
        self.kernel_volume(spec, subsystem, disk)
    }

    fn kernel_volume(
        &self,
        spec: &VolumeSpec,
        subsystem: &Subsystem,
        disk: &Disk,
    ) -> Result<Volume, Refusal> {
        let name = &disk.name;
        let controller = subsystem
            .controllers
            .iter()
            .find(|controller| controller.transport == "tcp" && controller.host_id.is_some())
            .ok_or_else(|| {
                refuse(format!(
                    "{name} has no NVMe/TCP controller that names its host"
                ))
            })?;
        let remote = controller
            .remote()
            .ok_or_else(|| refuse(format!("{name}: its controller's address is not known")))?;
        let known = disk.uuid.or(disk.nguid).map(Identifier::Long);
        let host_nqn = controller.host_nqn.as_deref().unwrap_or_default();
        Ok(Volume {
            transport: Transport::Kernel,
            address: parsed("the controller's address", &remote.to_string())?,
            subsystem: parsed("the subsystem's name", &subsystem.nqn)?,
            namespace_id: disk.nsid.unwrap_or(1),
            identifier: identifier(spec)?.or(known),
            host_nqn: parsed("the host's name", host_nqn)?,
            host_id: nvme::HostId(controller.host_id.unwrap_or_default()),
            mount_point: PathBuf::new(),
            directory: PathBuf::new(),
            require_persistence: spec.require_persistence,
        })
    }

    fn runtime_dir(&self, volume: &Volume) -> PathBuf {
        let named = format!("{} {}", volume.subsystem.as_str(), volume.namespace_id);
        let digest = Sha256::digest(named.as_bytes());
        self.node.state.join("volumes").join(hex(&digest[..8]))
    }
}

/// What the pod says of itself must be what the API server says of it.
fn compare(cluster: &BatonCluster, pod: &Pod, hello: &Hello) -> Result<(), Refusal> {
    let name = pod.name_any();
    let (number, member) = cluster.member_of_pod(&name).ok_or_else(|| {
        refuse(format!(
            "pod {name} is no member of cluster {}",
            cluster.cluster()
        ))
    })?;
    let said = (&hello.cluster, &hello.site, &hello.member, hello.number);
    let known = (
        &cluster.cluster().to_owned(),
        &cluster.spec.site,
        &member.name,
        number,
    );
    if said != known {
        return Err(refuse(format!(
            "pod {name} is member {} ({number}) of cluster {}, site {}, not {} ({}) of {}, site {}",
            member.name, known.0, known.1, hello.member, hello.number, hello.cluster, hello.site,
        )));
    }
    if hello.data_directory != Path::new(&cluster.spec.postgres.data_directory) {
        return Err(refuse(format!(
            "the data directory is {}, not {}",
            cluster.spec.postgres.data_directory,
            hello.data_directory.display()
        )));
    }
    Ok(())
}

fn identifier(spec: &VolumeSpec) -> Result<Option<Identifier>, Refusal> {
    let identifier = spec.identifier.as_deref();
    identifier
        .map(|text| parsed("volume.identifier", text))
        .transpose()
}

fn parsed<T: std::str::FromStr<Err: std::error::Error>>(
    what: &str,
    text: &str,
) -> Result<T, Refusal> {
    text.parse()
        .map_err(|error| refuse(format!("{what}: {}", whole(error))))
}

/// Major and minor number of the block device that the kubelet has for this pod: there is one entry for
/// each `volumeDevices` (`pods/<uid>/volumeDevices/<plugin>/<volume>`, kubernetes/pkg/volume).
fn published(kubelet: &Path, uid: &str) -> io::Result<(u64, u64)> {
    let mut found = Vec::new();
    for plugin in fs::read_dir(kubelet.join("pods").join(uid).join("volumeDevices"))? {
        for entry in fs::read_dir(plugin?.path())? {
            let metadata = fs::metadata(entry?.path())?;
            if metadata.file_type().is_block_device() {
                let number = metadata.rdev();
                found.push((nix::sys::stat::major(number), nix::sys::stat::minor(number)));
            }
        }
    }
    match found.as_slice() {
        [one] => Ok(*one),
        [] => Err(io::Error::new(
            io::ErrorKind::NotFound,
            "the kubelet has none yet",
        )),
        _ => Err(io::Error::other(
            "it has several: one member has one volume",
        )),
    }
}

/// The kernel's name for a device, from `/sys/dev/block/<major>:<minor>`.
fn device_name(sysfs: &Path, (major, minor): (u64, u64)) -> io::Result<String> {
    let link = fs::read_link(sysfs.join(format!("dev/block/{major}:{minor}")))?;
    let name = link.file_name().and_then(|name| name.to_str());
    name.map(str::to_owned)
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn named_disk<'a>(subsystems: &'a [Subsystem], name: &str) -> Option<(&'a Subsystem, &'a Disk)> {
    subsystems.iter().find_map(|subsystem| {
        let disk = subsystem.disks.iter().find(|disk| disk.name == name)?;
        Some((subsystem, disk))
    })
}
