//! The first root of every machine: busybox, a script, and the modules that it takes to reach the
//! real one.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::cpio::Archive;
use crate::kernel::{Kernel, module_name};

/// Needed before the machine's own root with its `modprobe` is there.
const FIRST_MODULES: [&str; 4] = ["virtio_net", "9pnet_virtio", "9p", "overlay"];

/// Mounts the root and starts the agent.
const INIT: &str = include_str!("init.sh");

/// Linked statically, so that it needs nothing beside itself.
const BUSYBOX: &str = "/bin/busybox";

/// What [`probe`]'s machine says.
pub const PROBE_SAYS: &str = "userland is there";

/// The initramfs that leads to the agent.
pub fn real(kernel: &Kernel) -> Result<Vec<u8>> {
    let mut archive = with_busybox()?;
    for directory in ["modules", "root", "lower", "memory"] {
        archive.directory(directory);
    }
    let mut order = String::new();
    for file in kernel.in_order(&FIRST_MODULES) {
        let name = format!("modules/{}.ko", module_name(file));
        archive.file(&name, &plain(&kernel.modules.join(file))?);
        order.push_str(&name);
        order.push('\n');
    }
    archive.file("modules/order", order.as_bytes());
    archive.file("init", INIT.as_bytes());
    Ok(archive.finish())
}

/// One that says that it is there and ends: the shortest boot that proves anything.
pub fn probe() -> Result<Vec<u8>> {
    let mut archive = with_busybox()?;
    let script = format!("#!{BUSYBOX} sh\necho {PROBE_SAYS}\n{BUSYBOX} poweroff -f\n");
    archive.file("init", script.as_bytes());
    Ok(archive.finish())
}

fn with_busybox() -> Result<Archive> {
    let mut archive = Archive::default();
    for directory in ["bin", "proc", "sys", "dev"] {
        archive.directory(directory);
    }
    let busybox = std::fs::read(BUSYBOX).with_context(|| format!("read {BUSYBOX}"))?;
    archive.file("bin/busybox", &busybox);
    Ok(archive)
}

/// A module's file, decompressed.
fn plain(file: &Path) -> Result<Vec<u8>> {
    if file.extension().is_some_and(|extension| extension == "ko") {
        return std::fs::read(file).with_context(|| format!("read {}", file.display()));
    }
    let output = Command::new("xz")
        .args(["-dc", "--"])
        .arg(file)
        .output()
        .context("run xz")?;
    ensure!(output.status.success(), "xz cannot read {}", file.display());
    Ok(output.stdout)
}
