//! Namespaces of nvmet for the conformance run alone, beside the volume of the other cases.

use anyhow::{Context, Result};
use nvme::Nqn;

use crate::machine::Machine;
use crate::network::Network;

/// The subsystem's name.
const SUBSYSTEM: &str = "nqn.2026-11.dev.baton:conformance";

/// Not the other cases' port.
const PORT: u16 = 4421;

const UP: &str = r#"
modprobe -a nvmet nvmet-tcp
modprobe brd rd_nr="$LANES" rd_size=1024
mountpoint -q /sys/kernel/config || mount -t configfs configfs /sys/kernel/config
cd /sys/kernel/config/nvmet
mkdir "subsystems/$SUBSYSTEM"
echo 1 >"subsystems/$SUBSYSTEM/attr_allow_any_host"
for n in $(seq "$LANES"); do
    namespace=subsystems/$SUBSYSTEM/namespaces/$n
    mkdir "$namespace"
    echo "/dev/ram$((n - 1))" >"$namespace/device_path"
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
"#;

/// Exports as many namespaces on disks in memory as there are lanes.
pub struct Exported<'a> {
    storage: &'a Machine,
    lanes: u32,
}

impl<'a> Exported<'a> {
    /// Takes away what an earlier run left first.
    pub async fn up(storage: &'a Machine, lanes: u32) -> Result<Self> {
        let exported = Self { storage, lanes };
        let script = [DOWN, UP].map(|script| format!("({script})\n")).concat();
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
        let (lanes, address) = (self.lanes, self.storage.address(Network::Storage));
        let settings =
            format!("SUBSYSTEM={SUBSYSTEM} LANES={lanes} ADDRESS={address} PORT={PORT}\n");
        self.storage.shell(&(settings + script)).await.map(drop)
    }
}
