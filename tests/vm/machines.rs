//! The three machines.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::accelerator::Accelerator;
use crate::initramfs;
use crate::kernel::Kernel;
use crate::machine::{Common, Machine};
use crate::network::{self, Network};

/// Baton's program, by a path that is the same in every machine.
pub const BATON: &str = env!("CARGO_BIN_EXE_baton");

/// The last number of the target's addresses.
pub const STORAGE_NUMBER: u8 = 10;

/// Names and last numbers of addresses.
const STORAGE: (&str, u8) = ("storage", STORAGE_NUMBER);
const NODE_A: (&str, u8) = ("node-a", 11);
const NODE_B: (&str, u8) = ("node-b", 12);

/// The target's caches and the lease directory, in MiB.
const STORAGE_MEMORY: u32 = 1024;

/// PostgreSQL, Baton and what is written beside the volume, in MiB.
const NODE_MEMORY: u32 = 1536;

/// Needed beside the machines' memory, in MiB: QEMU itself, the disk's pages, the cases.
const SPARE_MEMORY: u32 = 2048;

/// The volume: `/dev/vda` of `storage`. It outlives that machine.
const DISK_BYTES: u64 = 1 << 30;

/// The machines, and what it takes to boot one again.
pub struct Machines {
    pub storage: Machine,
    pub node_a: Machine,
    pub node_b: Machine,
    pub common: Common,
}

impl Machines {
    /// Makes the networks and boots all machines at the same time.
    pub async fn boot(kernel: Kernel, scratch: &Path, no_kvm: bool) -> Result<Self> {
        enough_memory()?;
        let accelerator = if no_kvm {
            Accelerator::Tcg
        } else {
            Accelerator::probe(&kernel, scratch).await?
        };
        let identities = [STORAGE, NODE_A, NODE_B];
        network::make(&identities.map(|(name, _)| name))?;
        let initramfs = scratch.join("machine.cpio");
        std::fs::write(&initramfs, initramfs::real(&kernel)?).context("write the initramfs")?;
        let host = |(name, number)| format!("{name}={}", Network::Peer.address(number));
        let common = Common {
            accelerator,
            kernel,
            initramfs,
            scratch: scratch.to_owned(),
            programs: Path::new(BATON)
                .parent()
                .context("find Baton's program")?
                .to_owned(),
            agent: std::env::current_exe().context("find this program")?,
            hosts: identities.map(host).join(","),
        };
        let disk = Some(disk(scratch)?);
        let mut machines = Self {
            storage: Machine::new(&common, STORAGE, STORAGE_MEMORY, disk),
            node_a: Machine::new(&common, NODE_A, NODE_MEMORY, None),
            node_b: Machine::new(&common, NODE_B, NODE_MEMORY, None),
            common,
        };
        machines.boot_missing().await?;
        Ok(machines)
    }

    /// All three.
    pub fn all(&self) -> [&Machine; 3] {
        [&self.storage, &self.node_a, &self.node_b]
    }

    /// By its name.
    pub fn by_name(&self, name: &str) -> Option<&Machine> {
        self.all().into_iter().find(|machine| machine.name == name)
    }

    /// By its name.
    pub fn by_name_mut(&mut self, name: &str) -> Option<&mut Machine> {
        let all = [&mut self.storage, &mut self.node_a, &mut self.node_b];
        all.into_iter().find(|machine| machine.name == name)
    }

    /// Boots those that do not run, at the same time.
    pub async fn boot_missing(&mut self) -> Result<()> {
        let Self {
            storage,
            node_a,
            node_b,
            common,
        } = self;
        let boot = async |machine: &mut Machine| {
            if machine.lives().await {
                return Ok(());
            }
            machine.boot(common).await
        };
        // Not `try_join`: a machine must not be left half started when another fails.
        let (storage, a, b) = tokio::join!(boot(storage), boot(node_a), boot(node_b));
        storage.and(a).and(b)
    }

    /// After a case: whatever it did to them, all run, and all links are up.
    pub async fn restore(&mut self) -> Result<()> {
        self.boot_missing().await?;
        for machine in self.all() {
            machine.thaw().await?;
            for network in Network::ALL {
                machine.link(network, true).await?;
            }
            let answers = machine.ok(&["true"]).await;
            answers.with_context(|| machine.failure("does not come back"))?;
        }
        Ok(())
    }
}

fn disk(scratch: &Path) -> Result<PathBuf> {
    let path = scratch.join("volume");
    let file = std::fs::File::create(&path).context("create the volume")?;
    file.set_len(DISK_BYTES).context("size the volume")?;
    Ok(path)
}

fn enough_memory() -> Result<()> {
    let text = std::fs::read_to_string("/proc/meminfo").context("read /proc/meminfo")?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u32>().ok());
    let available = kib.context("find MemAvailable in /proc/meminfo")? / 1024;
    let needed = STORAGE_MEMORY + 2 * NODE_MEMORY + SPARE_MEMORY;
    ensure!(
        available >= needed,
        "too little memory: three machines need {needed} MiB, {available} MiB are available"
    );
    Ok(())
}
