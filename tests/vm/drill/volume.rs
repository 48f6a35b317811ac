//! The volume itself: blank before a drill, detached and checked after it.

use std::time::Duration;

use anyhow::{Context, Result};
use baton::drill::check::{self, Checked};
use baton::lab::layout::postgres_bin;

use super::member::DATA_DIRECTORY;
use crate::machine::Machine;
use crate::nvmet::{SUBSYSTEM, Target};

/// The target's disk, on `storage`.
const DISK: &str = "/dev/vda";

/// How long one tool may take, under KVM.
const TOOL_WITHIN: Duration = Duration::from_secs(60);

/// Takes the export away and everything from the disk.
pub async fn blank(storage: &Machine) -> Result<()> {
    stop(storage).await?;
    let script = format!("modprobe virtio_blk; blkdiscard --zeroout {DISK}");
    let within = storage.patience(TOOL_WITHIN);
    let blanked = storage.run_within(&["sh", "-eu"], &script, within).await?;
    let said = blanked.stderr;
    anyhow::ensure!(blanked.code == 0, "{DISK} cannot be blanked: {said}");
    Ok(())
}

/// Takes the export away.
pub async fn stop(storage: &Machine) -> Result<()> {
    Target::on(storage).stop().await
}

/// Lets a node's kernel keep what it cannot send instead of failing it after `fast_io_fail_tmo`: the
/// kernel's default, which a CSI driver may leave.
pub async fn queue_without_path(node: &Machine) -> Result<()> {
    let script =
        "for controller in /sys/class/nvme/nvme*; do echo -1 >$controller/fast_io_fail_tmo; done";
    node.shell(script).await.map(drop)
}

/// Deletes a node's controllers.
pub async fn detach(node: &Machine) -> Result<()> {
    node.ok(&["nvme", "disconnect", "--nqn", SUBSYSTEM])
        .await
        .map(drop)
}

/// `e2fsck` and `pg_checksums` where the disk is, with every member stopped.
pub async fn inspect(storage: &Machine) -> Result<[Checked; 2]> {
    let bin_dir = postgres_bin().context("find PostgreSQL")?;
    let bin_dir = bin_dir.display();
    let e2fsck = tool(storage, "e2fsck", &format!("exec e2fsck -fn {DISK}")).await?;
    let checksums = format!(
        "mkdir -p /mnt/inspect
         mount -t ext4 -o ro,noload {DISK} /mnt/inspect
         trap 'umount /mnt/inspect' EXIT
         {bin_dir}/pg_checksums --check --pgdata /mnt/inspect/{DATA_DIRECTORY}"
    );
    Ok([e2fsck, tool(storage, "pg_checksums", &checksums).await?])
}

async fn tool(storage: &Machine, name: &str, script: &str) -> Result<Checked> {
    let within = storage.patience(TOOL_WITHIN);
    let output = storage.run_within(&["sh", "-eu"], script, within).await?;
    let ended = format!("exit code {}", output.code);
    let said = [output.stdout, output.stderr].concat();
    Ok(check::judged(name, output.code == 0, &ended, &said))
}
