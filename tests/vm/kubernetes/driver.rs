//! A storage driver on the kernel's NVMe/TCP, with what a kubelet does for a block volume beside it.
//!
//! As a kubelet and a CSI driver leave it on a node: the driver connects the kernel and binds the device
//! node to its publish path; the kubelet binds that into the volume's global map, links it into the pod's
//! directory, and keeps a loop device open on it, so that another device cannot take its number.

#![allow(
    clippy::disallowed_methods,
    reason = "a program that plays a platform has a clock and waits of its own"
)]

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::nvmet::NAMESPACE_UUID;
use crate::platform::kubelet::Driver;

/// The kubelet's directory.
pub const DIRECTORY: &str = "/var/lib/kubelet";

/// Where the kernel lists subsystems with their disks.
const SUBSYSTEMS: &str = "/sys/class/nvme-subsystem";

/// How long one program may take, in seconds.
const PROGRAM_WITHIN: &str = "60";

/// How long the disk may take to come after the connection.
const DISK_WITHIN: Duration = Duration::from_secs(60);

/// Attaches one volume.
pub struct Attached {
    address: String,
    port: String,
    subsystem: String,
    /// The loop devices of pods, by the paths that they are open on.
    loops: Mutex<HashMap<PathBuf, String>>,
}

impl Attached {
    pub fn new(address: String, port: u16, subsystem: String) -> Self {
        Self {
            address,
            port: port.to_string(),
            subsystem,
            loops: Mutex::default(),
        }
    }

    /// The disk; connects where the kernel has none.
    fn stage(&self) -> Result<PathBuf> {
        if let Some(disk) = disk()? {
            return Ok(disk);
        }
        let Self {
            address,
            port,
            subsystem,
            ..
        } = self;
        let to = ["-t", "tcp", "-a", address, "-s", port, "-n", subsystem];
        run("nvme", &[&["connect"], &to[..]].concat())?;
        let until = Instant::now() + DISK_WITHIN;
        loop {
            if let Some(disk) = disk()? {
                return Ok(disk);
            }
            ensure!(Instant::now() < until, "no disk of {subsystem}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Driver for Attached {
    fn publish(&self, claim: &str, pod: &str) -> Result<()> {
        let Places { publish, map, link } = Places::of(claim, pod);
        if link.is_symlink() {
            return Ok(());
        }
        let disk = self.stage().context("stage")?;
        bind(&disk, &publish)?;
        bind(&publish, &map)?;
        let map = map.display().to_string();
        let held = run("losetup", &["--find", "--show", &map])?;
        let mut loops = self.loops.lock().unwrap_or_else(PoisonError::into_inner);
        loops.insert(PathBuf::from(map), held);
        make_parent(&link)?;
        std::os::unix::fs::symlink(publish, link).context("link the device")
    }

    fn withdraw(&self, claim: &str, pod: &str) -> Result<()> {
        let Places { publish, map, link } = Places::of(claim, pod);
        if !link.is_symlink() {
            return Ok(());
        }
        std::fs::remove_file(link)?;
        let mut loops = self.loops.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = loops.remove(&map) {
            run("losetup", &["--detach", &held])?;
        }
        for path in [map, publish] {
            run("umount", &[&path.display().to_string()])?;
            std::fs::remove_file(path)?;
        }
        // Whatever there is of it, as a driver does that unstages.
        run("nvme", &["disconnect", "-n", &self.subsystem]).map(drop)
    }
}

/// Where a pod's device is.
struct Places {
    /// The driver's.
    publish: PathBuf,
    /// The kubelet's, for the volume.
    map: PathBuf,
    /// The kubelet's, for the pod.
    link: PathBuf,
}

impl Places {
    fn of(claim: &str, pod: &str) -> Self {
        let all = Path::new(DIRECTORY).join("plugins/kubernetes.io/csi/volumeDevices");
        let volume = format!("pv-{claim}");
        let link = format!("pods/{pod}/volumeDevices/kubernetes.io~csi/{volume}");
        Self {
            publish: all.join("publish").join(&volume).join(pod),
            map: all.join(volume).join("dev").join(pod),
            link: Path::new(DIRECTORY).join(link),
        }
    }
}

/// The volume's device node, by its identifier.
fn disk() -> Result<Option<PathBuf>> {
    let Ok(subsystems) = std::fs::read_dir(SUBSYSTEMS) else {
        return Ok(None);
    };
    for subsystem in subsystems {
        for disk in std::fs::read_dir(subsystem?.path())? {
            let disk = disk?;
            let uuid = std::fs::read_to_string(disk.path().join("uuid")).unwrap_or_default();
            if uuid.trim() == NAMESPACE_UUID {
                return Ok(Some(Path::new("/dev").join(disk.file_name())));
            }
        }
    }
    Ok(None)
}

fn bind(from: &Path, to: &Path) -> Result<()> {
    make_parent(to)?;
    std::fs::File::create(to).context("make a file to bind to")?;
    let (from, to) = (from.display().to_string(), to.display().to_string());
    run("mount", &["--bind", &from, &to]).map(drop)
}

fn make_parent(path: &Path) -> Result<()> {
    let parent = path.parent().context("no directory above")?;
    std::fs::create_dir_all(parent).context("make a directory")
}

/// Its output, without the last newline.
fn run(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new("timeout")
        .args([PROGRAM_WITHIN, program])
        .args(arguments)
        .output()
        .with_context(|| format!("run {program}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{program} {}: {}", arguments.join(" "), said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
