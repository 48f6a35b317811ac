//! The kernel's target on `storage`, through configfs.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};

use crate::machine::Machine;
use crate::network::Network;

/// The subsystem's name.
pub const SUBSYSTEM: &str = "nqn.2026-11.dev.baton:vm";

/// The port of its address on the storage network.
pub const PORT: u16 = 4420;

/// Of the one namespace; by it initiators find the device.
pub const NAMESPACE_UUID: &str = "5f0c6a52-6f7e-4d0c-9f6a-2d6f3c1e7a10";

/// Where the disk is.
const DISK: &str = "/dev/vda";

/// Attributes are set before the namespace is enabled: later writes are refused.
const UP: &str = r#"
modprobe -a nvmet nvmet-tcp virtio_blk
mountpoint -q /sys/kernel/config || mount -t configfs configfs /sys/kernel/config
cd /sys/kernel/config/nvmet
mkdir "subsystems/$SUBSYSTEM"
echo 1 >"subsystems/$SUBSYSTEM/attr_allow_any_host"
echo BATONVM >"subsystems/$SUBSYSTEM/attr_serial"
cd "subsystems/$SUBSYSTEM"
mkdir namespaces/1
cd namespaces/1
echo "$DISK" >device_path
echo "$UUID" >device_uuid
echo "$UUID" >device_nguid
echo 1 >resv_enable
echo 1 >enable
cd /sys/kernel/config/nvmet
mkdir ports/1
cd ports/1
echo tcp >addr_trtype
echo ipv4 >addr_adrfam
echo "$ADDRESS" >addr_traddr
echo "$PORT" >addr_trsvcid
ln -s "/sys/kernel/config/nvmet/subsystems/$SUBSYSTEM" subsystems/
"#;

/// Also when it is half there, or not at all.
const DOWN: &str = r#"
cd /sys/kernel/config/nvmet 2>/dev/null || exit 0
rm -f "ports/1/subsystems/$SUBSYSTEM"
[ ! -d ports/1 ] || rmdir ports/1
[ ! -d "subsystems/$SUBSYSTEM/namespaces/1" ] || rmdir "subsystems/$SUBSYSTEM/namespaces/1"
[ ! -d "subsystems/$SUBSYSTEM" ] || rmdir "subsystems/$SUBSYSTEM"
"#;

/// The target on a machine.
pub struct Target<'a> {
    storage: &'a Machine,
}

impl<'a> Target<'a> {
    /// Exports the disk. What was exported before is taken away first: reservations are lost, the
    /// blocks stay.
    pub async fn up(storage: &'a Machine) -> Result<Self> {
        let target = Self::on(storage);
        target.start().await?;
        Ok(target)
    }

    /// The target of a machine, whether it is up or not.
    pub fn on(storage: &'a Machine) -> Self {
        Self { storage }
    }

    /// Its address on the storage network.
    pub fn address(&self) -> Ipv4Addr {
        self.storage.address(Network::Storage)
    }

    /// Exports the disk, again if it is exported.
    pub async fn start(&self) -> Result<()> {
        let script = [DOWN, UP].map(|script| format!("({script})\n")).concat();
        self.script(&script).await.context("export the disk")
    }

    /// Takes the export away: connections break, reservations are lost.
    pub async fn stop(&self) -> Result<()> {
        self.script(DOWN).await.context("take the export away")
    }

    /// Takes the subsystem away from its port: connections break and cannot be made, reservations
    /// stay.
    pub async fn leave_port(&self) -> Result<()> {
        let script = "rm \"/sys/kernel/config/nvmet/ports/1/subsystems/$SUBSYSTEM\"";
        self.script(script).await.context("take the port away")
    }

    /// The end of [`Self::leave_port`].
    pub async fn return_to_port(&self) -> Result<()> {
        let script = "cd /sys/kernel/config/nvmet
            ln -s \"$PWD/subsystems/$SUBSYSTEM\" ports/1/subsystems/";
        self.script(script).await.context("add the port again")
    }

    async fn script(&self, script: &str) -> Result<()> {
        let address = self.address();
        let settings = format!(
            "SUBSYSTEM={SUBSYSTEM} UUID={NAMESPACE_UUID} DISK={DISK} ADDRESS={address} PORT={PORT}\n"
        );
        self.storage.shell(&(settings + script)).await.map(drop)
    }
}
