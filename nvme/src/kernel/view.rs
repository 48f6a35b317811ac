//! What the kernel has of one subsystem, in the eyes of one host that wants one namespace of it.

use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;

use super::sysfs::{self, Controller, Disk, Subsystem, SysfsError};
use super::{KernelDisk, Options, PathView, select};
use crate::HostIdentity;

/// One look.
pub(super) struct View<'a> {
    options: &'a Options,
    subsystems: Vec<Subsystem>,
}

/// One controller: this very one, not whatever has its name later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Incarnation {
    pub name: String,
    /// The number of its directory, another one for another controller of the same name.
    inode: u64,
}

impl Incarnation {
    fn of(options: &Options, name: &str) -> Option<Self> {
        let at = options.sysfs.join("class/nvme").join(name);
        Some(Self {
            name: name.to_owned(),
            inode: std::fs::metadata(at).ok()?.ino(),
        })
    }

    /// Whether the kernel still has it.
    pub fn is_there(&self, options: &Options) -> bool {
        Self::of(options, &self.name).as_ref() == Some(self)
    }
}

impl<'a> View<'a> {
    /// Looks.
    pub fn of(options: &'a Options) -> Result<Self, SysfsError> {
        let mut subsystems = sysfs::subsystems(&options.sysfs)?;
        subsystems.retain(|subsystem| subsystem.nqn == options.subsystem.as_str());
        Ok(Self {
            options,
            subsystems,
        })
    }

    /// The subsystem's controllers, of whatever host.
    pub fn controllers(&self) -> impl Iterator<Item = &Controller> {
        self.subsystems.iter().flat_map(|s| &s.controllers)
    }

    /// A controller of another host identity: this kernel would merge the two hosts' paths into one
    /// disk, and a command could travel under either.
    pub fn foreign(&self) -> Option<&Controller> {
        let host: &HostIdentity = &self.options.host;
        self.controllers()
            .find(|controller| !controller.state.is_ending() && !controller.is_of(host))
    }

    /// Whether a controller leads there, or tries to.
    pub fn leads_to(&self, address: SocketAddr) -> bool {
        self.controllers()
            .any(|controller| !controller.state.is_ending() && controller.remote() == Some(address))
    }

    /// The controllers as they are now, those on their way out included.
    pub fn incarnations(&self) -> Vec<Incarnation> {
        self.controllers()
            .filter_map(|controller| Incarnation::of(self.options, &controller.name))
            .collect()
    }

    /// The disk that is meant, of which a path is usable; else any that is meant.
    pub fn disk(&self) -> Option<(&Subsystem, &Disk)> {
        let meant = self.disks().filter(|(_, disk)| self.is_meant(disk));
        meant.max_by_key(|(subsystem, disk)| {
            let paths = select::paths(subsystem, disk);
            paths.iter().any(PathView::is_usable)
        })
    }

    /// The disks that are meant: with multipath off, one for each controller.
    pub fn meant(&self) -> Vec<KernelDisk> {
        self.disks()
            .filter(|(_, disk)| self.is_meant(disk))
            .filter_map(|(_, disk)| self.kernel_disk(disk))
            .collect()
    }

    /// Other namespaces that hang on the same controllers.
    pub fn others(&self) -> Vec<KernelDisk> {
        self.disks()
            .filter(|(_, disk)| !self.is_meant(disk))
            .filter_map(|(_, disk)| self.kernel_disk(disk))
            .collect()
    }

    /// The ways to the disk that is meant.
    pub fn paths(&self) -> Vec<PathView> {
        match self.disk() {
            Some((subsystem, disk)) => select::paths(subsystem, disk),
            None => Vec::new(),
        }
    }

    /// The disk as one that can be told from a later one of its name; `None` where it is just going.
    pub fn kernel_disk(&self, disk: &Disk) -> Option<KernelDisk> {
        Some(KernelDisk {
            sysfs: self.options.sysfs.clone(),
            sequence: sysfs::disk_sequence(&self.options.sysfs, &disk.name)?,
            path: self.options.dev.join(&disk.name),
            name: disk.name.clone(),
        })
    }

    /// What there is, for people.
    pub fn describe(&self) -> String {
        let controllers = self.controllers().map(|controller| {
            let address = controller.address.as_deref().unwrap_or("no address");
            format!("{} {} ({address})", controller.name, controller.state)
        });
        let disks = self.disks().map(|(_, disk)| {
            let nsid = disk.nsid.map_or("?".to_owned(), |nsid| nsid.to_string());
            let wwid = disk.wwid.as_deref().unwrap_or("no identifier");
            format!("{} (namespace {nsid}, {wwid})", disk.name)
        });
        let all: Vec<_> = controllers.chain(disks).collect();
        if all.is_empty() {
            "no controller".to_owned()
        } else {
            all.join("; ")
        }
    }

    fn disks(&self) -> impl Iterator<Item = (&Subsystem, &Disk)> {
        self.subsystems
            .iter()
            .flat_map(|subsystem| subsystem.disks.iter().map(move |disk| (subsystem, disk)))
    }

    fn is_meant(&self, disk: &Disk) -> bool {
        self.options.namespace.fits(disk)
    }
}
