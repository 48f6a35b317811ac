//! A target in this process, bridges to it, and what is done with their devices.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nvme::bridge::{Announcement, Behind, Left, UblkDevice};
use nvme::initiator::Options;
use nvme::target::{NamespaceConfig, Target, TargetConfig, default_subsystem};
use nvme::{HostId, HostIdentity};
use serde_json::Value;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::machines::BATON;

/// Size of the volume in bytes.
const SIZE: u64 = 256 << 20;

/// What the target keeps unflushed, in bytes.
const CACHE: usize = 64 << 20;

/// How long the kernel may take to end a killed bridge's device, under emulation.
const GONE_WITHIN: Duration = Duration::from_secs(20);

/// A direct write's size and alignment, in bytes.
pub const PAGE: usize = 4096;

/// The host of the bridges, and another that takes the volume from it.
pub const BRIDGED: u8 = 1;
pub const OTHER: u8 = 2;

/// The target and a folder.
pub struct Ground {
    pub runtime: Runtime,
    target: Target,
    pub folder: TempDir,
}

impl Ground {
    pub fn new() -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("namespace");
        let mut namespace = NamespaceConfig::new(file, Some(SIZE));
        namespace.block_size = 4096;
        namespace.volatile_cache = Some(CACHE);
        let target = runtime.block_on(Target::start(TargetConfig::local(namespace)));
        Ok(Self {
            runtime,
            target: target.context("start the target")?,
            folder,
        })
    }

    pub fn address(&self) -> String {
        self.target.address().to_string()
    }

    /// Asks the target's control socket, as it were.
    pub fn control(&self, request: Value) -> Result<Value> {
        let request = serde_json::from_value(request)?;
        let answer = self.runtime.block_on(self.target.control(request));
        ensure!(answer["ok"] == true, "the target says {answer}");
        Ok(answer)
    }

    /// Flushes and writes of all hosts that the target carried out.
    pub fn counted(&self) -> Result<(u64, u64)> {
        let audit = self.control(serde_json::json!({"do": "audit"}))?;
        let hosts = audit["hosts"]
            .as_array()
            .context("an audit without hosts")?;
        let counters = |host: &Value| host["namespaces"][0]["counters"].clone();
        let sum = |name: &str| {
            let counts = hosts
                .iter()
                .filter_map(|host| counters(host)[name].as_u64());
            counts.sum()
        };
        Ok((sum("flushes"), sum("writes")))
    }

    pub fn options(&self, host: u8) -> Result<Options> {
        Ok(Options::new(
            self.address(),
            default_subsystem(),
            1,
            identity(host)?,
        ))
    }

    pub fn bridge(&self, backend: &str) -> Result<Bridged> {
        Bridged::start(self, backend)
    }
}

fn identity(number: u8) -> Result<HostIdentity> {
    Ok(HostIdentity {
        nqn: format!("nqn.2026-11.dev.baton:host:{number}").parse()?,
        id: HostId::from_bytes([number; 16]),
    })
}

/// A bridge's process; killed at the end.
pub struct Bridged {
    process: Child,
    pub device: PathBuf,
    behind: Behind,
}

impl Bridged {
    fn start(ground: &Ground, backend: &str) -> Result<Self> {
        let host = identity(BRIDGED)?;
        let mut process = Command::new(BATON)
            .args(["bridge", "--address", &ground.address()])
            .args(["--subsystem", default_subsystem().as_str()])
            .args(["--host-nqn", host.nqn.as_str()])
            .args(["--host-id", &host.id.to_string()])
            .arg("--directory")
            .arg(ground.folder.path().join("bridge"))
            .args(["--backend", backend])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("start the bridge")?;
        let mut line = String::new();
        let output = process.stdout.take().context("no output")?;
        BufReader::new(output).read_line(&mut line)?;
        let said = serde_json::from_str(&line);
        let Announcement { device, behind } = said.with_context(|| format!("it says {line:?}"))?;
        Ok(Self {
            process,
            device,
            behind,
        })
    }

    pub fn ublk(&self) -> Result<UblkDevice> {
        match self.behind {
            Behind::Ublk(device) => Ok(device),
            Behind::Fuse(_) => bail!("a loop device where a ublk device is wanted"),
        }
    }

    /// A setting of its queue, in sysfs.
    pub fn setting(&self, name: &str) -> Result<String> {
        let disk = self.device.file_name().context("no name")?;
        let file = Path::new("/sys/block").join(disk).join("queue").join(name);
        let text = std::fs::read_to_string(&file);
        Ok(text
            .with_context(|| file.display().to_string())?
            .trim()
            .to_owned())
    }

    pub fn kill(&mut self) -> Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        Ok(())
    }

    /// Ends it by the end of its input. Its device and what was behind it are gone afterwards.
    pub fn end(mut self) -> Result<()> {
        drop(self.process.stdin.take());
        let status = self.process.wait()?;
        ensure!(status.success(), "the bridge ends with {status}");
        if let Behind::Ublk(device) = self.behind {
            let left = device.remove()?;
            ensure!(left == Left::Nothing, "{left:?} of it");
        }
        Ok(())
    }

    /// Waits until a killed bridge's ublk device is so far gone.
    pub fn removed(&self, ground: &Ground, wanted: Left) -> Result<()> {
        let removed = self.ublk()?.remove_within(wanted, GONE_WITHIN);
        let left = ground.runtime.block_on(removed)?;
        ensure!(left == wanted, "{left:?} and not {wanted:?}");
        Ok(())
    }

    /// Opens the device without its page cache.
    pub fn direct(&self, flags: i32) -> Result<File> {
        let opened = File::options()
            .read(true)
            .write(true)
            .custom_flags(libc::O_DIRECT | flags)
            .open(&self.device);
        Ok(opened?)
    }

    pub fn format(&self) -> Result<()> {
        let device = self.device.display().to_string();
        tool(
            "mkfs.ext4",
            &["-q", "-F", "-E", "lazy_itable_init=1", &device],
        )
    }

    /// The file system must be sound.
    pub fn check(&self) -> Result<()> {
        let device = self.device.display().to_string();
        tool("e2fsck", &["-f", "-n", &device])
    }

    pub fn mount(&self, ground: &Ground) -> Result<Mounted> {
        let place = tempfile::tempdir_in(ground.folder.path())?;
        let none = None::<&str>;
        let flags = MsFlags::empty();
        mount(Some(&self.device), place.path(), Some("ext4"), flags, none).context("mount")?;
        Ok(Mounted(place))
    }
}

impl Drop for Bridged {
    fn drop(&mut self) {
        // Both fail on one that has ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A mounted file system.
pub struct Mounted(TempDir);

impl Mounted {
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn unmount(self) -> Result<()> {
        umount2(self.0.path(), MntFlags::empty()).context("unmount")
    }
}

pub fn tool(program: &str, arguments: &[&str]) -> Result<()> {
    let ran = Command::new(program).args(arguments).output();
    let ran = ran.with_context(|| format!("run {program}"))?;
    let said = String::from_utf8_lossy(&ran.stderr);
    ensure!(
        ran.status.success(),
        "{program} {arguments:?}: {} {said}",
        ran.status
    );
    Ok(())
}

/// An aligned page of one byte.
pub struct Page {
    buffer: Vec<u8>,
    from: usize,
}

impl Page {
    pub fn of(byte: u8) -> Self {
        let buffer = vec![byte; 2 * PAGE];
        let from = buffer.as_ptr().align_offset(PAGE);
        Self { buffer, from }
    }

    pub fn bytes(&self) -> &[u8] {
        &self.buffer[self.from..self.from + PAGE]
    }

    /// What the device has at this page number, past every cache; it must be of one byte.
    pub fn read(device: &File, number: u64) -> Result<u8> {
        let mut page = Self::of(0xee);
        let from = page.from;
        let bytes = &mut page.buffer[from..from + PAGE];
        device.read_exact_at(bytes, number * PAGE as u64)?;
        let first = bytes[0];
        ensure!(
            bytes.iter().all(|byte| *byte == first),
            "page {number} is torn"
        );
        Ok(first)
    }
}

/// Writes one page.
pub fn write(device: &File, number: u64, byte: u8) -> std::io::Result<()> {
    device.write_all_at(Page::of(byte).bytes(), number * PAGE as u64)
}
