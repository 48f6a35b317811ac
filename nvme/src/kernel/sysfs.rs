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
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use uuid::Uuid;

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

impl Disk {
    /// Whether this is the namespace with this identifier, be it NGUID or UUID.
    pub fn is(&self, id: Uuid) -> bool {
        !id.is_nil() && (self.nguid == Some(id) || self.uuid == Some(id))
    }
}

impl ControllerState {
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

/// An attribute without its line break; `None` where it is absent, unreadable or empty.
fn attribute(directory: &Path, name: &str) -> Option<String> {
    let text = fs::read_to_string(directory.join(name)).ok()?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Makes a directory tree of a fixture: `path = value` for a file, `path -> target` for a link.
    fn tree(text: &str) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("make a directory");
        for line in text
            .lines()
            .filter(|l| !l.starts_with('#') && !l.trim().is_empty())
        {
            if let Some((path, target)) = line.split_once(" -> ") {
                let path = root.path().join(path);
                fs::create_dir_all(path.parent().expect("a parent")).expect("make it");
                std::os::unix::fs::symlink(root.path().join(target), path).expect("link");
            } else {
                let (path, value) = line.split_once(" = ").expect("a line of the fixture");
                let path = root.path().join(path);
                fs::create_dir_all(path.parent().expect("a parent")).expect("make it");
                fs::write(path, format!("{value}\n")).expect("write");
            }
        }
        root
    }

    #[test]
    fn a_multipath_disk_with_two_paths() {
        let root = tree(include_str!("fixtures/multipath.tree"));
        let found = subsystems(root.path()).expect("read");
        let [subsystem] = found.as_slice() else {
            panic!("one subsystem: {found:?}");
        };
        assert_eq!(subsystem.nqn, "nqn.2026-11.dev.baton:lab");
        let states: Vec<_> = subsystem.controllers.iter().map(|c| &c.state).collect();
        assert_eq!(
            states,
            [&ControllerState::Live, &ControllerState::Connecting]
        );
        assert_eq!(subsystem.controllers[0].keep_alive, Some(5));
        assert_eq!(subsystem.controllers[0].fast_io_fail, Some(5));
        assert_eq!(subsystem.controllers[1].fast_io_fail, None, "off");
        assert_eq!(subsystem.host_identities().len(), 1);
        let [disk] = subsystem.disks.as_slice() else {
            panic!("one disk: {:?}", subsystem.disks);
        };
        assert_eq!(
            (disk.name.as_str(), disk.nsid, disk.multipath),
            ("nvme0n1", Some(1), true)
        );
        assert!(disk.is(uuid::uuid!("6f1d2c3b-4a59-4687-9704-a5b6c7d8e9f0")));
        assert!(disk.is(uuid::uuid!("b0c1d2e3-f405-4617-8839-4a5b6c7d8e9f")));
        assert!(!disk.is(Uuid::nil()));
        assert_eq!(disk.eui64, Some(0x0025_385b_7150_1f2a));
        let paths: Vec<_> = disk
            .paths
            .iter()
            .map(|p| (p.controller.as_str(), p.ana_state.as_deref()))
            .collect();
        assert_eq!(
            paths,
            [
                ("nvme0", Some("optimized")),
                ("nvme1", Some("inaccessible"))
            ]
        );
    }

    #[test]
    fn disks_without_multipath_and_a_local_one() {
        let root = tree(include_str!("fixtures/single-path.tree"));
        let found = subsystems(root.path()).expect("read");
        let names: Vec<_> = found.iter().map(|s| s.name.as_str()).collect();
        assert_eq!(names, ["nvme-subsys0", "nvme-subsys2"]);
        let local = &found[0].controllers[0];
        assert_eq!((local.transport.as_str(), local.host_id), ("pcie", None));
        assert_eq!(found[0].disks[0].nguid, None, "all zeros are no identifier");
        let [first, second] = found[1].disks.as_slice() else {
            panic!("a disk for each controller: {:?}", found[1].disks);
        };
        assert!(!first.multipath && !second.multipath);
        assert_eq!(
            (first.name.as_str(), second.name.as_str()),
            ("nvme2n1", "nvme3n1")
        );
        assert_eq!(first.nguid, second.nguid);
        assert_eq!(
            found[1].host_identities().len(),
            2,
            "two hosts on one kernel: refuse"
        );
    }

    #[test]
    fn no_modules_no_subsystems() {
        let root = tempfile::tempdir().expect("make a directory");
        assert_eq!(subsystems(root.path()).expect("read"), []);
    }

    #[test]
    fn device_names() {
        let path = DeviceName::Path {
            disk: "nvme0n12".to_owned(),
        };
        assert_eq!(DeviceName::parse("nvme0c3n12"), Some(path));
        assert_eq!(DeviceName::parse("nvme10"), Some(DeviceName::Controller));
        assert_eq!(DeviceName::parse("nvme10n2"), Some(DeviceName::Disk));
        for other in [
            "nvme",
            "nvme0n1p1",
            "nvme-subsys0",
            "ng0n1",
            "nvme0c1",
            "nvmen1",
        ] {
            assert_eq!(DeviceName::parse(other), None, "{other}");
        }
    }
}
