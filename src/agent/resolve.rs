//! What a pod may have: its volume, as the API server and this node's kernel know it.
//!
//! The pod is known by the UID in its control group. Everything else follows from the pod's object: its
//! cluster and member by labels that must agree with the `BatonCluster`, its volume by the claim.

use std::fs::File;
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
use sha2::{Digest, Sha256};
use tokio::task::JoinSet;
use uuid::Uuid;

use super::attached;
use super::complain::Complaints;
use super::found::FoundVolumes;
use super::protocol::Hello;
use super::refusal::{Refusal, later, parsed, refuse};
use crate::attachment::whole;
use crate::cluster::names;
use crate::cluster::{BatonCluster, Site, VolumeSpec, VolumeTransport};
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

/// What a pod may have.
#[derive(Debug)]
pub(super) struct Resolved {
    /// `<namespace>/<pod>`.
    pub key: String,
    pub volume: Volume,
    /// Keeps the kernel's own device of the volume from being mounted, where there is one.
    pub guard: Option<File>,
    /// The same for all members that could reach this volume from this node.
    pub runtime_dir: PathBuf,
}

/// What the API server says of this node's pods.
pub struct Platform {
    client: Client,
    node: Node,
    pods: Store<Pod>,
    complaints: Complaints,
    found: FoundVolumes,
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
            found: FoundVolumes::at(node.state.join("found")),
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
    /// Whether it was told something new.
    pub(super) async fn tell(&self, uid: Uuid, refused: Option<&str>) -> bool {
        match (refused, self.pod(uid)) {
            (Some(why), Some(pod)) => self.complaints.say(uid, &pod, why).await,
            (Some(_), None) => true,
            (None, _) => {
                self.complaints.forget(uid);
                true
            }
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
        let site = compare(&cluster, &pod, hello)?;
        self.admit_claim(&site, &pod).await?;
        let mount_point = self.node.members.join(&namespace).join(&name).join("data");
        let (found, guard) = self.volume(site.volume, uid)?;
        let runtime_dir = self.runtime_dir(&found);
        Ok(Resolved {
            key: format!("{namespace}/{name}"),
            volume: Volume {
                mount_point,
                directory: runtime_dir.join("bridge"),
                ..found
            },
            guard,
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

    /// The pod must have the claim of its site, and that must be a block volume that several nodes can have.
    async fn admit_claim(&self, site: &Site<'_>, pod: &Pod) -> Result<(), Refusal> {
        let claim = site.claim();
        let (namespace, name) = (site.cluster.namespace(), pod.name_any());
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

    /// The volume of the pod with this UID, and what guards it.
    fn volume(&self, spec: &VolumeSpec, pod: Uuid) -> Result<(Volume, Option<File>), Refusal> {
        let (node, uid) = (&self.node, &*pod.to_string());
        match (spec.transport, self.named(spec)?) {
            (VolumeTransport::Kernel, _) => {
                attached::require_nvme(node)?;
                // Whoever mounts it claims it.
                Ok((self.of_kernel(spec, pod)?, None))
            }
            (VolumeTransport::Tcp, Some(named)) => {
                let attached = attached::look(node, uid)?;
                let guard = attached.map(|attached| {
                    attached.require_same(&named)?;
                    attached.guard()
                });
                Ok((named, guard.transpose()?))
            }
            (VolumeTransport::Tcp, None) => {
                let attached = attached::find(node, uid)?;
                Ok((attached.for_tcp(spec)?, Some(attached.guard()?)))
            }
        }
    }

    /// The volume of the kernel's device, as it was found when the pod was new; see [`FoundVolumes`].
    fn of_kernel(&self, spec: &VolumeSpec, pod: Uuid) -> Result<Volume, Refusal> {
        let known = self
            .found
            .of(pod)
            .map_err(|error| later(format!("read what was found for pod {pod}: {error}")))?;
        if let Some(known) = known {
            return attached::again(&self.node, known, spec);
        }
        let found = attached::find(&self.node, &pod.to_string())?.for_kernel(spec)?;
        let is_there = |other| self.pod(other).is_some();
        self.found
            .keep(pod, &found, is_there)
            .map_err(|error| later(format!("write down what was found for pod {pod}: {error}")))?;
        Ok(found)
    }

    /// The guard of a session that an earlier agent has opened.
    pub(super) fn guard_again(&self, uid: Uuid, volume: &Volume) -> Result<Option<File>, Refusal> {
        if volume.transport == Transport::Kernel {
            return Ok(None);
        }
        let attached = attached::look(&self.node, &uid.to_string())?;
        attached.map(|attached| attached.guard()).transpose()
    }

    /// The volume as the cluster names it, for Baton's own initiator and in this node's name.
    fn named(&self, spec: &VolumeSpec) -> Result<Option<Volume>, Refusal> {
        let (address, subsystem) = match (&spec.address, &spec.subsystem) {
            (Some(address), Some(subsystem)) => (address, subsystem),
            (None, None) => return Ok(None),
            (Some(_), None) | (None, Some(_)) => {
                return Err(refuse("volume.address and volume.subsystem go together"));
            }
        };
        Ok(Some(Volume {
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
        }))
    }

    fn runtime_dir(&self, volume: &Volume) -> PathBuf {
        let named = format!("{} {}", volume.subsystem.as_str(), volume.namespace_id);
        let digest = Sha256::digest(named.as_bytes());
        self.node.state.join("volumes").join(hex(&digest[..8]))
    }
}

/// What the pod says of itself must be what the API server says of it. Its site.
fn compare<'c>(cluster: &'c BatonCluster, pod: &Pod, hello: &Hello) -> Result<Site<'c>, Refusal> {
    let name = pod.name_any();
    let (site, number, member) = cluster.member_of_pod(&name).ok_or_else(|| {
        refuse(format!(
            "pod {name} is no member of cluster {}",
            cluster.cluster()
        ))
    })?;
    let said = (
        hello.cluster.as_str(),
        hello.site.as_str(),
        &hello.member,
        hello.number,
    );
    let known = (cluster.cluster(), site.name, &member, number);
    if said != known {
        return Err(refuse(format!(
            "pod {name} is member {} ({number}) of cluster {}, site {}, not {} ({}) of {}, site {}",
            member, known.0, known.1, hello.member, hello.number, hello.cluster, hello.site,
        )));
    }
    if hello.data_directory != Path::new(&cluster.spec.postgres.data_directory) {
        return Err(refuse(format!(
            "the data directory is {}, not {}",
            cluster.spec.postgres.data_directory,
            hello.data_directory.display()
        )));
    }
    Ok(site)
}

/// The volume's identifier, where the cluster names one.
pub(super) fn identifier(spec: &VolumeSpec) -> Result<Option<Identifier>, Refusal> {
    let identifier = spec.identifier.as_deref();
    identifier
        .map(|text| parsed("volume.identifier", text))
        .transpose()
}
