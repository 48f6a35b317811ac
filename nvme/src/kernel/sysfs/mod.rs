//! What the kernel tells of its NVMe subsystems in sysfs.
//!
//! ```text
//! class/nvme-subsystem/nvme-subsysS/   subsysnqn, nvmeC ─► controller, and with multipath nvmeSnN (the disk)
//! class/nvme/nvmeC/                    state, transport, address, hostnqn, hostid, cntlid, …
//! class/nvme/nvmeC/nvmeScCnN           with multipath: the hidden path to the disk, ana_state
//! class/nvme/nvmeC/nvmeCnN             without multipath: the disk itself
//! ```
//!
//! Attributes come and go with kernel versions and controllers: what is absent is `None`, and a
//! controller that vanishes while it is read is left out.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use crate::HostIdentity;

/// One NVM subsystem as this kernel sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subsystem {
    /// The kernel's name for it, `nvme-subsysS`.
    pub name: String,
    /// Its NVMe Qualified Name.
    pub nqn: String,
    /// The controllers: one for each connection, of whatever host identity.
    pub controllers: Vec<Controller>,
    /// The disks.
    pub disks: Vec<Disk>,
}

/// One controller: an association with the subsystem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Controller {
    /// The kernel's name for it, `nvmeC`.
    pub name: String,
    /// Whether it can carry commands.
    pub state: ControllerState,
    /// `tcp`, `pcie`, `rdma`, `fc`, `loop`.
    pub transport: String,
    /// Its address in the transport's own format, such as `traddr=192.0.2.7,trsvcid=4420`.
    pub address: Option<String>,
    /// CNTLID.
    pub controller_id: Option<u16>,
    /// The host's name, by which this connection was made. PCIe controllers have none.
    pub host_nqn: Option<String>,
    /// The host's identifier.
    pub host_id: Option<Uuid>,
    /// KATO in seconds.
    pub keep_alive: Option<u32>,
    /// After so many seconds without a path, I/O fails; `None` for "off" or where absent.
    pub fast_io_fail: Option<u32>,
    /// After so many seconds without a path, the controller is removed.
    pub controller_loss: Option<u32>,
    /// Seconds between two attempts to reconnect.
    pub reconnect_delay: Option<u32>,
}

/// A controller's state, in the kernel's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControllerState {
    /// Commands flow.
    Live,
    /// Being set up or reset.
    Resetting,
    /// The connection is lost; the kernel tries again.
    Connecting,
    /// Being removed.
    Deleting,
    /// Given up.
    Dead,
    /// Anything else, in the kernel's words.
    Other(String),
}

/// One namespace as a block device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Its device's name in `/dev`: of the multipath disk where there is one.
    pub name: String,
    /// Namespace identifier.
    pub nsid: Option<u32>,
    /// Namespace Globally Unique Identifier.
    pub nguid: Option<Uuid>,
    /// Namespace UUID.
    pub uuid: Option<Uuid>,
    /// EUI-64.
    pub eui64: Option<u64>,
    /// The kernel's choice among the identifiers, such as `uuid.…`.
    pub wwid: Option<String>,
    /// Whether the kernel merges several paths under this disk.
    pub multipath: bool,
    /// The ways to it.
    pub paths: Vec<DiskPath>,
}

/// A way to a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskPath {
    /// The controller, `nvmeC`.
    pub controller: String,
    /// Asymmetric namespace access: `optimized`, `inaccessible`, …; only with multipath.
    pub ana_state: Option<String>,
}

/// Why sysfs could not be read.
#[derive(Debug, thiserror::Error)]
#[error("read {}", path.display())]
pub struct SysfsError {
    /// The directory.
    pub path: PathBuf,
    /// What the system said.
    #[source]
    pub source: io::Error,
}

impl Subsystem {
    /// The host identities under which this kernel is connected. More than one, or one that is
    /// incomplete: reservations cannot tell this kernel's parts apart, and no fence is provable.
    pub fn host_identities(&self) -> BTreeSet<(Option<String>, Option<Uuid>)> {
        self.controllers
            .iter()
            .map(|c| (c.host_nqn.clone(), c.host_id))
            .collect()
    }
}

impl Controller {
    /// Where an NVMe/TCP controller is connected to. `None` for another transport, or an address
    /// that is not understood.
    pub fn remote(&self) -> Option<SocketAddr> {
        let address = self.address.as_deref()?;
        let field = |name: &str| {
            address
                .split(',')
                .find_map(|pair| pair.trim().strip_prefix(name)?.strip_prefix('='))
        };
        // The scope of a link-local address follows a percent sign.
        let ip = field("traddr")?.split('%').next()?;
        Some(SocketAddr::new(
            ip.parse().ok()?,
            field("trsvcid")?.parse().ok()?,
        ))
    }

    /// Whether it was made as this host.
    pub fn is_of(&self, host: &HostIdentity) -> bool {
        self.host_nqn.as_deref() == Some(host.nqn.as_str()) && self.host_id == Some(host.id.0)
    }
}

impl Disk {
    /// Whether this is the namespace with this identifier, be it NGUID or UUID.
    pub fn is(&self, id: Uuid) -> bool {
        !id.is_nil() && (self.nguid == Some(id) || self.uuid == Some(id))
    }
}

impl fmt::Display for ControllerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Live => "live",
            Self::Resetting => "resetting",
            Self::Connecting => "connecting",
            Self::Deleting => "deleting",
            Self::Dead => "dead",
            Self::Other(text) => text,
        })
    }
}

impl ControllerState {
    /// Whether it is on its way out: its name and address are soon free, and nothing connects it again.
    pub fn is_ending(&self) -> bool {
        matches!(self, Self::Deleting | Self::Dead)
    }

    fn parse(text: &str) -> Self {
        match text {
            "live" => Self::Live,
            "new" | "resetting" => Self::Resetting,
            "connecting" | "reconnecting" => Self::Connecting,
            "deleting" | "deleting (no IO)" => Self::Deleting,
            "dead" => Self::Dead,
            other => Self::Other(other.to_owned()),
        }
    }
}

/// All subsystems below `sysfs`, normally `/sys`. None at all without the kernel's NVMe modules.
pub fn subsystems(sysfs: &Path) -> Result<Vec<Subsystem>, SysfsError> {
    let class = sysfs.join("class/nvme-subsystem");
    let mut found = Vec::new();
    for name in entries(&class)? {
        let directory = class.join(&name);
        if let Some(nqn) = attribute(&directory, "subsysnqn") {
            found.push(subsystem(sysfs, &directory, name, nqn)?);
        }
    }
    Ok(found)
}

fn subsystem(
    sysfs: &Path,
    directory: &Path,
    name: String,
    nqn: String,
) -> Result<Subsystem, SysfsError> {
    let mut controllers = Vec::new();
    let mut disks = Vec::new();
    let names: Vec<_> = entries(directory)?
        .into_iter()
        .filter_map(|name| DeviceName::parse(&name).map(|parsed| (name, parsed)))
        .collect();
    for (entry, parsed) in &names {
        if matches!(parsed, DeviceName::Disk) {
            disks.push(disk(&directory.join(entry), entry.clone(), true));
        }
    }
    for (entry, parsed) in names {
        let DeviceName::Controller = parsed else {
            continue;
        };
        let at = sysfs.join("class/nvme").join(&entry);
        let Some(found) = controller(&at, entry) else {
            continue;
        };
        add_paths(&at, &found.name, &mut disks)?;
        controllers.push(found);
    }
    Ok(Subsystem {
        name,
        nqn,
        controllers,
        disks,
    })
}

fn controller(at: &Path, name: String) -> Option<Controller> {
    let number = |attribute_name| attribute(at, attribute_name)?.parse().ok();
    Some(Controller {
        name,
        state: ControllerState::parse(&attribute(at, "state")?),
        transport: attribute(at, "transport")?,
        address: attribute(at, "address"),
        controller_id: attribute(at, "cntlid").and_then(|text| text.parse().ok()),
        host_nqn: attribute(at, "hostnqn"),
        host_id: attribute(at, "hostid").and_then(|text| text.parse().ok()),
        keep_alive: number("kato"),
        fast_io_fail: number("fast_io_fail_tmo"),
        controller_loss: number("ctrl_loss_tmo"),
        reconnect_delay: number("reconnect_delay"),
    })
}

/// Adds a controller's paths to the disks that they lead to, or its own disks without multipath.
fn add_paths(at: &Path, controller: &str, disks: &mut Vec<Disk>) -> Result<(), SysfsError> {
    for entry in entries(at)? {
        let directory = at.join(&entry);
        match DeviceName::parse(&entry) {
            Some(DeviceName::Path { disk: name }) => {
                let path = DiskPath {
                    controller: controller.to_owned(),
                    ana_state: attribute(&directory, "ana_state"),
                };
                if let Some(disk) = disks.iter_mut().find(|disk| disk.name == name) {
                    disk.paths.push(path);
                }
            }
            Some(DeviceName::Disk) => {
                let mut disk = disk(&directory, entry, false);
                disk.paths.push(DiskPath {
                    controller: controller.to_owned(),
                    ana_state: None,
                });
                disks.push(disk);
            }
            Some(DeviceName::Controller) | None => {}
        }
    }
    Ok(())
}

fn disk(at: &Path, name: String, multipath: bool) -> Disk {
    let id = |attribute_name| {
        attribute(at, attribute_name)
            .and_then(|text| text.parse::<Uuid>().ok())
            .filter(|id| !id.is_nil())
    };
    Disk {
        nsid: attribute(at, "nsid").and_then(|text| text.parse().ok()),
        nguid: id("nguid"),
        uuid: id("uuid"),
        eui64: attribute(at, "eui").and_then(|text| parse_eui64(&text)),
        wwid: attribute(at, "wwid"),
        name,
        multipath,
        paths: Vec::new(),
    }
}

/// Eight bytes in hexadecimal, separated by spaces in all kernels known.
fn parse_eui64(text: &str) -> Option<u64> {
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    if digits.len() != 16 {
        return None;
    }
    u64::from_str_radix(&digits, 16)
        .ok()
        .filter(|eui| *eui != 0)
}

/// The kernel's names for NVMe devices.
#[derive(Clone, Debug, PartialEq, Eq)]
enum DeviceName {
    /// `nvmeC`.
    Controller,
    /// `nvmeXnN`.
    Disk,
    /// `nvmeScCnN`, the hidden path to the disk `nvmeSnN`.
    Path { disk: String },
}

impl DeviceName {
    fn parse(name: &str) -> Option<Self> {
        let (first, rest) = leading_number(name.strip_prefix("nvme")?)?;
        if rest.is_empty() {
            return Some(Self::Controller);
        }
        if let Some(rest) = rest.strip_prefix('n') {
            let (_, rest) = leading_number(rest)?;
            return rest.is_empty().then_some(Self::Disk);
        }
        let (_, rest) = leading_number(rest.strip_prefix('c')?)?;
        let (namespace, rest) = leading_number(rest.strip_prefix('n')?)?;
        rest.is_empty().then(|| Self::Path {
            disk: format!("nvme{first}n{namespace}"),
        })
    }
}

fn leading_number(text: &str) -> Option<(u32, &str)> {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    Some((text[..end].parse().ok()?, &text[end..]))
}

/// The names in a directory, sorted. A directory that is not there has none.
fn entries(directory: &Path) -> Result<Vec<String>, SysfsError> {
    let failed = |source| SysfsError {
        path: directory.to_owned(),
        source,
    };
    let read = match fs::read_dir(directory) {
        Ok(read) => read,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(failed(e)),
    };
    let mut names = Vec::new();
    for entry in read {
        let name = entry.map_err(failed)?.file_name();
        names.extend(name.into_string().ok());
    }
    names.sort_by_key(|name| (name.len(), name.clone()));
    Ok(names)
}

/// The number of a block device's medium; see [`crate::block::disk_sequence`]. `None` where the device
/// is gone, or the kernel is older than 5.15.
pub fn disk_sequence(sysfs: &Path, name: &str) -> Option<u64> {
    attribute(&sysfs.join("class/block").join(name), "diskseq")?
        .parse()
        .ok()
}

/// An attribute without its line break; `None` where it is absent, unreadable or empty.
pub(super) fn attribute(directory: &Path, name: &str) -> Option<String> {
    let text = fs::read_to_string(directory.join(name)).ok()?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

#[cfg(test)]
pub(super) mod tests;
