//! The kernel's initiator on Baton's target: a filesystem under load, keep alive, a restart of the
//! target, digests on and off, nvme-cli, and a doctor who finds nothing.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::machine::Machine;
use crate::machines::{BATON, Machines};
use crate::network::Network;
use crate::report::Outcome;

const SUBSYSTEM: &str = "nqn.2026-11.dev.baton:lab";
/// Beside nvmet's.
const PORT: u16 = 4421;
const VOLUME: &str = "/tmp/volume";
const STATE: &str = "/tmp/state.json";
const LOG: &str = "/tmp/target.log";
/// Longer than the keep-alive time-out of 5 s, with nothing to do.
const IDLE: Duration = Duration::from_secs(8);

pub async fn initiator(machines: &mut Machines) -> Result<Outcome> {
    let (storage, node) = (&machines.storage, &machines.node_a);
    storage.shell(&format!("rm -f {VOLUME} {STATE}")).await?;
    for digests in ["", "--hdr-digest --data-digest"] {
        let target = start(storage).await?;
        let device = connect(node, storage, digests).await?;
        filesystem(node, &device).await?;
        keeps_alive(node).await?;
        let target = restart(storage, node, target).await?;
        verify(node).await?;
        node.shell("umount /mnt").await?;
        if digests.is_empty() {
            speaks_with_nvme_cli(node, &device).await?;
            doctor(node, storage).await?;
        }
        node.ok(&["nvme", "disconnect", "--nqn", SUBSYSTEM]).await?;
        stop(storage, target).await?;
    }
    Ok(Outcome {
        notes: vec!["digests off and on".to_owned()],
        ..Outcome::default()
    })
}

/// Starts the target, on the file that is there or a new one.
async fn start(storage: &Machine) -> Result<u32> {
    let listen = format!("{}:{PORT}", storage.address(Network::Storage));
    let namespace = format!("{VOLUME},size=256M");
    storage.shell(&format!("rm -f {LOG}")).await?;
    let argv = [
        BATON,
        "target",
        "--listen",
        &listen,
        "--namespace",
        &namespace,
        "--state",
        STATE,
        "--volatile-cache",
    ];
    let pid = storage.start(&argv, LOG).await?;
    let ready = format!(
        "for i in $(seq 100); do grep -q listen {LOG} && exit; sleep 0.1; done; cat {LOG}; exit 1"
    );
    storage
        .shell(&ready)
        .await
        .context("start Baton's target")?;
    Ok(pid)
}

async fn stop(storage: &Machine, target: u32) -> Result<()> {
    storage.ok(&["kill", "-TERM", &target.to_string()]).await?;
    let within = storage.patience(Duration::from_secs(10));
    let code = storage.wait(target, within).await?;
    ensure!(code == 0, "the target ended with {code}");
    Ok(())
}

/// Attaches the volume and gives its block device.
async fn connect(node: &Machine, storage: &Machine, digests: &str) -> Result<String> {
    let address = storage.address(Network::Storage);
    let script = format!(
        "modprobe nvme-tcp
         nvme connect --transport=tcp --traddr={address} --trsvcid={PORT} --nqn={SUBSYSTEM} \\
             --keep-alive-tmo=5 --reconnect-delay=1 --ctrl-loss-tmo=60 {digests} >&2
         for i in $(seq 100); do
             device=$(ls /dev | grep -E '^nvme[0-9]+n[0-9]+$') && break
             sleep 0.1
         done
         for controller in /sys/class/nvme/nvme*; do echo 20 >$controller/fast_io_fail_tmo; done
         echo /dev/$device"
    );
    node.shell(&script).await
}

/// A new filesystem with many small files, each synced, verified past the cache.
async fn filesystem(node: &Machine, device: &str) -> Result<()> {
    let script = format!(
        "mkfs.ext4 -q -F {device}
         mount {device} /mnt
         cd /mnt
         for i in $(seq 60); do
             dd if=/dev/urandom of=$i bs=16k count=5 conv=fsync 2>/dev/null
         done
         sha256sum -- * 2>/dev/null | grep -v lost+found >/tmp/sums
         [ $(wc -l </tmp/sums) = 60 ]
         cd /
         umount /mnt
         e2fsck -fn {device} >&2
         mount {device} /mnt"
    );
    node.shell(&script).await?;
    verify(node).await
}

/// What was written is there, read from the volume.
async fn verify(node: &Machine) -> Result<()> {
    let script = "echo 3 >/proc/sys/vm/drop_caches; cd /mnt && sha256sum --quiet -c /tmp/sums";
    node.shell(script)
        .await
        .map(drop)
        .context("verify the files")
}

/// Nothing but keep-alives go over the connection, which must not break.
async fn keeps_alive(node: &Machine) -> Result<()> {
    let reconnects = "dmesg | grep -c 'Reconnecting in' || true";
    let before = node.shell(reconnects).await?;
    tokio::time::sleep(node.patience(IDLE).min(2 * IDLE)).await;
    let after = node.shell(reconnects).await?;
    let state = node.shell("cat /sys/class/nvme/nvme*/state").await?;
    ensure!(
        state == "live" && before == after,
        "after {IDLE:?} of silence: {state}, reconnected {before} and {after} times"
    );
    Ok(())
}

/// The target goes while the filesystem is written to, and comes back: the write waits and succeeds.
async fn restart(storage: &Machine, node: &Machine, target: u32) -> Result<u32> {
    stop(storage, target).await?;
    let write = "dd if=/dev/urandom of=/mnt/during bs=16k count=5 conv=fsync; \
                 sha256sum /mnt/during >>/tmp/sums";
    let writer = node.start(&["sh", "-euc", write], "/tmp/write.log").await?;
    let target = start(storage).await?;
    let within = node.patience(Duration::from_secs(20));
    let code = node.wait(writer, within).await?;
    let log = node.shell("cat /tmp/write.log").await?;
    ensure!(
        code == 0,
        "the write across the restart ended with {code}: {log}"
    );
    Ok(target)
}

/// What nvme-cli says of the target.
async fn speaks_with_nvme_cli(node: &Machine, device: &str) -> Result<()> {
    let json = async |command: &str| {
        let output = node
            .shell(&format!("nvme {command} --output-format=json"))
            .await?;
        let value: Value = serde_json::from_str(&output).with_context(|| output.clone())?;
        anyhow::Ok(value)
    };
    let list = json("list").await?;
    ensure!(list.to_string().contains(device), "nvme list: {list}");
    let controller = json(&format!("id-ctrl {device}")).await?;
    // ONCS bit 5: reservations
    let oncs = controller["oncs"].as_u64().unwrap_or(0);
    ensure!(
        controller["subnqn"] == SUBSYSTEM && oncs & 1 << 5 != 0,
        "nvme id-ctrl: {controller}"
    );
    let namespace = json(&format!("id-ns {device}")).await?;
    let bytes = namespace["nsze"].as_u64().unwrap_or(0) * 512;
    ensure!(
        bytes % (256 << 20) == 0 && bytes > 0 && namespace["rescap"] == 0xff,
        "nvme id-ns: {namespace}"
    );
    node.shell(&format!(
        "nvme resv-register {device} --nrkey=0xa1 --rrega=0"
    ))
    .await?;
    node.shell(&format!(
        "nvme resv-acquire {device} --crkey=0xa1 --rtype=1 --racqa=0"
    ))
    .await?;
    let report = json(&format!("resv-report {device} --eds")).await?;
    let entry = &report["regctlext"][0];
    ensure!(
        report["rtype"] == 1 && entry["rkey"] == 0xa1 && entry["rcsts"] == 1,
        "nvme resv-report: {report}"
    );
    node.shell(&format!(
        "nvme resv-release {device} --crkey=0xa1 --rtype=1 --rrela=0"
    ))
    .await?;
    node.shell(&format!(
        "nvme resv-register {device} --crkey=0xa1 --rrega=1"
    ))
    .await?;
    let report = json(&format!("resv-report {device} --eds")).await?;
    ensure!(
        report["rtype"] == 0 && report["regctl"] == 0,
        "nvme resv-report: {report}"
    );
    Ok(())
}

/// A member could run here: no problem is found.
async fn doctor(node: &Machine, storage: &Machine) -> Result<()> {
    let address = storage.address(Network::Storage);
    let peer = node.address(Network::Peer);
    let (nqn, id) = (node.host_nqn(), node.host_id());
    let member = format!(
        r#"
cluster = "vm"
member = "a"
number = 1
runtime_dir = "/run/baton"
[volume]
transport = "kernel"
address = "{address}:{PORT}"
subsystem = "{SUBSYSTEM}"
host_nqn = "{nqn}"
host_id = "{id}"
mount_point = "/srv/baton/volume"
[lease]
path = "/srv/baton/lease"
[peer]
listen = "{peer}:7400"
secret_file = "/run/secret"
[postgres]
bin_dir = "/usr/lib/postgresql/15/bin"
[journal]
path = "/run/journal.jsonl"
"#
    );
    node.write("/run/member.toml", &member).await?;
    node.shell("head -c 32 /dev/urandom | base64 >/run/secret; chmod 600 /run/secret")
        .await?;
    let argv = [
        BATON,
        "doctor",
        "--config",
        "/run/member.toml",
        "--output",
        "json",
    ];
    let output = node.run(&argv).await?;
    let said = format!("{}{}", output.stdout, output.stderr);
    ensure!(output.code == 0, "the doctor finds problems: {said}");
    let report: Value = serde_json::from_str(&output.stdout).with_context(|| said.clone())?;
    let checks = report["checks"].as_array().with_context(|| said.clone())?;
    for name in [
        "kernel's initiator",
        "ext4",
        "host identity",
        "paths",
        "persistence",
        "registrants",
    ] {
        let good = |check: &&Value| check["name"] == name && check["verdict"] == "ok";
        ensure!(checks.iter().any(|check| good(&check)), "{name} in {said}");
    }
    Ok(())
}
