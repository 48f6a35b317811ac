//! The NVMe device that the storage driver has attached for a pod's claim, as kubelet and kernel show it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nvme::HostId;
use nvme::kernel::sysfs::{self, Controller, Disk, Subsystem};
use nvme::kernel::{Identifier, paths};

use super::refusal::{Refusal, later, parsed, refuse};
use super::resolve::Node;
use crate::attachment::whole;
use crate::cluster::VolumeSpec;
use crate::config::{Transport, Volume};

/// A block device of a pod.
#[derive(Debug)]
pub(super) struct Published {
    /// Where the kubelet has it.
    path: PathBuf,
    /// Major and minor number.
    number: (u64, u64),
}

/// It is an NVMe device of this kernel.
#[derive(Debug)]
pub(super) struct Attached {
    published: Published,
    subsystem: Subsystem,
    disk: Disk,
}

/// The device of the pod with this UID. There is none yet: an answer that may come later.
pub(super) fn find(node: &Node, uid: &str) -> Result<Attached, Refusal> {
    let published = published(&node.kubelet, uid)
        .map_err(|error| later(format!("find the block device of pod {uid}: {error}")))?;
    of_kernel(&node.sysfs, published)
}

/// As [`find`]; `None` where the kubelet has no device for the pod, or none of NVMe.
pub(super) fn look(node: &Node, uid: &str) -> Result<Option<Attached>, Refusal> {
    let published = match published(&node.kubelet, uid) {
        Ok(published) => published,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            let text = format!("find the block device of pod {uid}: {error}");
            return Err(later(text));
        }
    };
    let subsystems = sysfs::subsystems(&node.sysfs).map_err(|error| later(whole(error)))?;
    let name = device_name(&node.sysfs, published.number);
    if name.is_ok_and(|name| named_disk(&subsystems, &name).is_some()) {
        return of_kernel(&node.sysfs, published).map(Some);
    }
    Ok(None)
}

/// The kernel's initiator is there, or what to do.
pub(super) fn require_nvme(node: &Node) -> Result<(), Refusal> {
    if node.sysfs.join("class/nvme-subsystem").is_dir() {
        return Ok(());
    }
    Err(later(format!(
        "the kernel of node {} has no NVMe modules, and volume.transport is kernel: load nvme-tcp there (modprobe nvme-tcp, and in /etc/modules-load.d), place the member on another node, or make the cluster with volume.transport tcp",
        node.name
    )))
}

/// A volume that was found at this pod's device before, whose controllers may have been made anew since.
pub(super) fn again(node: &Node, found: Volume, spec: &VolumeSpec) -> Result<Volume, Refusal> {
    let number = found.namespace_id;
    require_number("found before", number, spec)?;
    let subsystems = sysfs::subsystems(&node.sysfs).map_err(|error| later(whole(error)))?;
    for subsystem in subsystems {
        if subsystem.nqn == found.subsystem.as_str() {
            let name = format!("namespace {number}");
            require_alone(&subsystem, &name, |other| other.nsid == Some(number))?;
        }
    }
    Ok(Volume {
        identifier: super::resolve::identifier(spec)?.or(found.identifier),
        require_persistence: spec.require_persistence,
        ..found
    })
}

/// The controllers of a subsystem lead to nothing but this volume.
fn require_alone(
    subsystem: &Subsystem,
    name: &str,
    is_it: impl Fn(&Disk) -> bool,
) -> Result<(), Refusal> {
    match subsystem.disks.iter().find(|disk| !is_it(disk)) {
        None => Ok(()),
        Some(other) => Err(refuse(format!(
            "subsystem {} has other namespaces on this node ({}): its controllers cannot be made anew for {name} alone; make the cluster with volume.transport tcp",
            subsystem.nqn, other.name
        ))),
    }
}

fn require_number(name: &str, number: u32, spec: &VolumeSpec) -> Result<(), Refusal> {
    match spec.namespace_id.filter(|wanted| *wanted != number) {
        None => Ok(()),
        Some(wanted) => Err(refuse(format!(
            "the claim's device {name} is namespace {number}, and volume.namespaceId is {wanted}: correct it, or leave it out"
        ))),
    }
}

fn of_kernel(sysfs: &Path, published: Published) -> Result<Attached, Refusal> {
    let subsystems = sysfs::subsystems(sysfs).map_err(|error| later(whole(error)))?;
    let (major, minor) = published.number;
    let name = device_name(sysfs, published.number)
        .map_err(|error| later(format!("name device {major}:{minor}: {error}")))?;
    let found = named_disk(&subsystems, &name).ok_or_else(|| {
        refuse(format!(
            "the claim's device {name} is no NVMe device of this kernel: use an NVMe/TCP volume and load nvme-tcp, or name volume.address, volume.subsystem and volume.namespaceId for volume.transport tcp"
        ))
    })?;
    let (subsystem, disk) = (found.0.clone(), found.1.clone());
    Ok(Attached {
        published,
        subsystem,
        disk,
    })
}

impl Attached {
    /// For the kernel's initiator, whose controllers are made anew: they must serve no other namespace.
    pub fn for_kernel(&self, spec: &VolumeSpec) -> Result<Volume, Refusal> {
        let name = &self.disk.name;
        require_alone(&self.subsystem, name, |other| other.name == *name)?;
        self.volume(spec, Transport::Kernel)
    }

    /// For Baton's own initiator, beside the kernel's and in the name of the same host: that is whom the
    /// storage lets in. Reservations are the host's, so both are one registrant. SAFETY.md I9
    pub fn for_tcp(&self, spec: &VolumeSpec) -> Result<Volume, Refusal> {
        let identities = self.subsystem.host_identities();
        if identities.len() != 1 {
            return Err(refuse(format!(
                "the kernel is connected to subsystem {} as {} different hosts: nothing can be fenced; leave one (nvme disconnect)",
                self.subsystem.nqn,
                identities.len()
            )));
        }
        self.volume(spec, Transport::Tcp)
    }

    fn volume(&self, spec: &VolumeSpec, transport: Transport) -> Result<Volume, Refusal> {
        let name = &self.disk.name;
        let controller = self.controller()?;
        let remote = controller
            .remote()
            .ok_or_else(|| refuse(format!("{name}: its controller's address is not known")))?;
        let number = self
            .disk
            .nsid
            .ok_or_else(|| refuse(format!("{name}: its namespace's number is not known")))?;
        require_number(name, number, spec)?;
        let known = self.disk.uuid.or(self.disk.nguid).map(Identifier::Long);
        let host_nqn = controller.host_nqn.as_deref().unwrap_or_default();
        Ok(Volume {
            transport,
            address: parsed("the controller's address", &remote.to_string())?,
            subsystem: parsed("the subsystem's name", &self.subsystem.nqn)?,
            namespace_id: number,
            identifier: super::resolve::identifier(spec)?.or(known),
            host_nqn: parsed("the host's name", host_nqn)?,
            host_id: HostId(controller.host_id.unwrap_or_default()),
            mount_point: PathBuf::new(),
            directory: PathBuf::new(),
            require_persistence: spec.require_persistence,
        })
    }

    /// The controller that leads to the volume best: usable first, optimized before others.
    fn controller(&self) -> Result<&Controller, Refusal> {
        let ways = paths(&self.subsystem, &self.disk);
        let rank = |controller: &Controller| {
            let way = ways.iter().find(|way| way.controller == controller.name);
            let usable = way.is_some_and(|way| way.is_usable());
            let optimized = way.is_some_and(|way| way.ana_state.as_deref() == Some("optimized"));
            (!usable, !optimized, controller.name.clone())
        };
        let named = |controller: &&Controller| {
            controller.transport == "tcp"
                && controller.host_id.is_some()
                && ways.iter().any(|way| way.controller == controller.name)
        };
        let controllers = self.subsystem.controllers.iter().filter(named);
        controllers
            .min_by_key(|controller| rank(controller))
            .ok_or_else(|| {
                refuse(format!(
                    "{} has no NVMe/TCP controller that names its host",
                    self.disk.name
                ))
            })
    }

    /// The cluster names another volume than the claim has: one of them is wrong.
    pub fn require_same(&self, volume: &Volume) -> Result<(), Refusal> {
        let named = (volume.subsystem.as_str(), Some(volume.namespace_id));
        if named == (self.subsystem.nqn.as_str(), self.disk.nsid) {
            return Ok(());
        }
        let number = self
            .disk
            .nsid
            .map_or("?".to_owned(), |nsid| nsid.to_string());
        Err(refuse(format!(
            "the claim's device {} is namespace {number} of {}, and volume names namespace {} of {}: leave volume.address, volume.subsystem and volume.namespaceId out, or correct them",
            self.disk.name, self.subsystem.nqn, volume.namespace_id, volume.subsystem,
        )))
    }

    /// Keeps everybody from mounting the kernel's device while the file is open: a filesystem there would
    /// write under this host's hold.
    pub fn guard(&self) -> Result<File, Refusal> {
        let (name, Published { path, number }) = (&self.disk.name, &self.published);
        let claimed = nvme::block::claim(path).map_err(|error| later(whole(error)))?;
        let file = claimed.ok_or_else(|| {
            later(format!(
                "{name}, the claim's device, is in use on this node: a filesystem of it is mounted, or a program claims it, and would write under this member's reservation; unmount it, or end that program"
            ))
        })?;
        let metadata = file.metadata().map_err(|error| later(whole(error)))?;
        if numbers(&metadata) == Some(*number) {
            Ok(file)
        } else {
            Err(later(format!(
                "{name}: the claim's device has just changed"
            )))
        }
    }
}

/// The block device that the kubelet has for this pod: there is one entry for each `volumeDevices`
/// (`pods/<uid>/volumeDevices/<plugin>/<volume>`, kubernetes/pkg/volume).
fn published(kubelet: &Path, uid: &str) -> io::Result<Published> {
    let mut found = Vec::new();
    for plugin in fs::read_dir(kubelet.join("pods").join(uid).join("volumeDevices"))? {
        for entry in fs::read_dir(plugin?.path())? {
            let path = entry?.path();
            if let Some(number) = numbers(&fs::metadata(&path)?) {
                found.push(Published { path, number });
            }
        }
    }
    match (found.pop(), found.is_empty()) {
        (Some(one), true) => Ok(one),
        (None, _) => Err(io::Error::new(
            io::ErrorKind::NotFound,
            "the kubelet has none yet",
        )),
        (Some(_), false) => Err(io::Error::other(
            "it has several: one member has one volume",
        )),
    }
}

/// Major and minor number of a block device.
fn numbers(metadata: &fs::Metadata) -> Option<(u64, u64)> {
    let number = metadata.rdev();
    let block = metadata.file_type().is_block_device();
    block.then(|| (nix::sys::stat::major(number), nix::sys::stat::minor(number)))
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

#[cfg(test)]
mod tests;
