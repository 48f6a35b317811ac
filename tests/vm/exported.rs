//! Further namespaces of nvmet, beside the volume: in memory, or so slow that commands can be caught
//! while they are under way.

use std::time::Duration;

use anyhow::{Context, Result};
use nvme::Nqn;

use crate::machine::Machine;
use crate::network::Network;

/// The subsystem's name.
const SUBSYSTEM: &str = "nqn.2026-11.dev.baton:further";

/// Not the volume's port.
const PORT: u16 = 4421;

const IN_MEMORY: &str = r#"
modprobe brd rd_nr="$COUNT" rd_size=1024
DISK=/dev/ram
"#;

const SLOW: &str = r#"
modprobe null_blk nr_devices=0
mkdir /sys/kernel/config/nullb/nullb0
cd /sys/kernel/config/nullb/nullb0
echo 1 >memory_backed
echo 16 >size
echo 2 >irqmode # complete by a timer
echo "$NANOSECONDS" >completion_nsec
echo 1 >power
DISK=/dev/nullb
"#;

const UP: &str = r#"
cd /sys/kernel/config/nvmet
mkdir "subsystems/$SUBSYSTEM"
echo 1 >"subsystems/$SUBSYSTEM/attr_allow_any_host"
for n in $(seq "$COUNT"); do
    namespace=subsystems/$SUBSYSTEM/namespaces/$n
    mkdir "$namespace"
    echo "$DISK$((n - 1))" >"$namespace/device_path"
    echo 1 >"$namespace/resv_enable"
    echo 1 >"$namespace/enable"
done
mkdir ports/2
echo tcp >ports/2/addr_trtype
echo ipv4 >ports/2/addr_adrfam
echo "$ADDRESS" >ports/2/addr_traddr
echo "$PORT" >ports/2/addr_trsvcid
ln -s "/sys/kernel/config/nvmet/subsystems/$SUBSYSTEM" ports/2/subsystems/
"#;

const DOWN: &str = r#"
cd /sys/kernel/config/nvmet 2>/dev/null || exit 0
rm -f "ports/2/subsystems/$SUBSYSTEM"
[ ! -d ports/2 ] || rmdir ports/2
for namespace in "subsystems/$SUBSYSTEM"/namespaces/*; do
    [ ! -d "$namespace" ] || rmdir "$namespace"
done
[ ! -d "subsystems/$SUBSYSTEM" ] || rmdir "subsystems/$SUBSYSTEM"
[ ! -e /dev/ram0 ] || rmmod brd
[ ! -d /sys/kernel/config/nullb/nullb0 ] || rmdir /sys/kernel/config/nullb/nullb0
"#;

const CONFIGFS: &str = r#"
modprobe -a nvmet nvmet-tcp
mountpoint -q /sys/kernel/config || mount -t configfs configfs /sys/kernel/config
"#;

/// What to export.
#[derive(Clone, Copy, Debug)]
pub enum Disks {
    /// As many disks of 1 MiB.
    InMemory(u32),
    /// One whose commands each take so long.
    Slow(Duration),
}

/// Disks that are exported, numbered from 1.
pub struct Exported<'a> {
    storage: &'a Machine,
}

impl<'a> Exported<'a> {
    /// Takes away what an earlier case left first.
    pub async fn up(storage: &'a Machine, disks: Disks) -> Result<Self> {
        let exported = Self { storage };
        let (make, settings) = match disks {
            Disks::InMemory(count) => (IN_MEMORY, format!("COUNT={count}")),
            Disks::Slow(each) => {
                let nanoseconds = each.as_nanos();
                (SLOW, format!("COUNT=1 NANOSECONDS={nanoseconds}"))
            }
        };
        let script = format!("{CONFIGFS}({DOWN})\n{settings}\n{make}{UP}");
        exported.script(&script).await.context("export disks")?;
        Ok(exported)
    }

    /// Takes them away.
    pub async fn down(self) -> Result<()> {
        self.script(DOWN).await.context("take the disks away")
    }

    /// `host:port`.
    pub fn address(&self) -> String {
        format!("{}:{PORT}", self.storage.address(Network::Storage))
    }

    /// The subsystem's name.
    pub fn subsystem(&self) -> Result<Nqn> {
        Ok(SUBSYSTEM.parse()?)
    }

    async fn script(&self, script: &str) -> Result<()> {
        let address = self.storage.address(Network::Storage);
        let settings = format!("SUBSYSTEM={SUBSYSTEM} ADDRESS={address} PORT={PORT}\n");
        self.storage.shell(&(settings + script)).await.map(drop)
    }
}
