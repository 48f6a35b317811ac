//! KVM where it runs a stock kernel, else emulation.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::initramfs;
use crate::kernel::Kernel;
use crate::qemu::{Hardware, Qemu};

/// How the machines' code is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    Kvm,
    /// QEMU's emulation, about ten times slower.
    Tcg,
}

/// A kernel under KVM is in userland after a second or two.
const PROBE_WITHIN: Duration = Duration::from_secs(15);

/// Between two looks at the probe's console.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

impl fmt::Display for Accelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "KVM",
            Self::Tcg => "emulation (TCG)",
        })
    }
}

impl Accelerator {
    pub fn arguments(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Kvm => &[("-accel", "kvm"), ("-cpu", "host"), ("-smp", "2")],
            // Five-level page tables cost emulation a fifth level at every miss.
            Self::Tcg => &[
                ("-accel", "tcg,thread=multi"),
                ("-cpu", "max,la57=off"),
                ("-smp", "1"),
            ],
        }
    }

    /// `times` the time under emulation; under KVM as it is.
    pub fn patience(self, duration: Duration, times: u32) -> Duration {
        match self {
            Self::Kvm => duration,
            Self::Tcg => duration * times,
        }
    }

    /// KVM if a boot shows that it works: a `/dev/kvm` may be there that runs no stock kernel.
    pub async fn probe(kernel: &Kernel, scratch: &Path) -> Result<Self> {
        if !Path::new("/dev/kvm").exists() {
            return Ok(Self::Tcg);
        }
        let initramfs = scratch.join("probe.cpio");
        std::fs::write(&initramfs, initramfs::probe()?).context("write the probe's initramfs")?;
        let hardware = Hardware {
            name: "probe",
            accelerator: Self::Kvm,
            memory_mib: 512,
            image: &kernel.image,
            initramfs: &initramfs,
            parameters: Vec::new(),
            scratch,
            number: None,
            disk: None,
        };
        let boots = tokio::time::timeout(PROBE_WITHIN, boots(&hardware)).await;
        Ok(match boots {
            Ok(true) => Self::Kvm,
            Ok(false) | Err(_) => Self::Tcg,
        })
    }
}

async fn boots(hardware: &Hardware<'_>) -> bool {
    let Ok(qemu) = Qemu::start(hardware).await else {
        return false;
    };
    loop {
        let ended = qemu.ended().await.is_some();
        if qemu.console.text().contains(initramfs::PROBE_SAYS) {
            return true;
        }
        let status = qemu.status().await;
        if ended || status.is_ok_and(|status| status == "internal-error") {
            return false;
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}
