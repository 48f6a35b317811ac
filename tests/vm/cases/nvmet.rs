//! Kernel against kernel, with nvme-cli alone: what the other cases stand on.

use anyhow::{Context, Result, ensure};

use crate::machine::Machine;
use crate::machines::Machines;
use crate::nvmet::{PORT, SUBSYSTEM, Target};
use crate::report::Outcome;

/// Keys of the two nodes.
const KEY_A: &str = "0xa1";
const KEY_B: &str = "0xb2";

/// `node-a` reserves; `node-b`'s write is refused, until it preempts; then `node-a`'s is.
pub async fn reservations(machines: &mut Machines) -> Result<Outcome> {
    let target = Target::up(&machines.storage).await?;
    let (a, b) = (&machines.node_a, &machines.node_b);
    let (device_a, device_b) = tokio::try_join!(connect(a, &target), connect(b, &target))?;
    a.shell(&register(&device_a, KEY_A)).await?;
    b.shell(&register(&device_b, KEY_B)).await?;
    // type 1: write exclusive; action 0: acquire, 2: preempt and abort
    let acquire = format!("nvme resv-acquire {device_a} --crkey={KEY_A} --rtype=1 --racqa=0");
    a.shell(&acquire).await?;
    let held = report(a, &device_a).await?;
    ensure!(
        held.rtype == 1 && held.holder.as_deref() == Some(KEY_A),
        "the report shows no hold of {KEY_A}: {held:?}"
    );
    ensure!(write(a, &device_a).await?, "the holder's write was refused");
    ensure!(
        !write(b, &device_b).await?,
        "another's write was not refused"
    );
    let preempt =
        format!("nvme resv-acquire {device_b} --crkey={KEY_B} --prkey={KEY_A} --rtype=1 --racqa=2");
    b.shell(&preempt).await?;
    let held = report(b, &device_b).await?;
    ensure!(
        held.holder.as_deref() == Some(KEY_B) && held.keys == [KEY_B],
        "after the preempt the report shows {held:?}"
    );
    ensure!(
        write(b, &device_b).await?,
        "the new holder's write was refused"
    );
    ensure!(
        !write(a, &device_a).await?,
        "the victim's write was not refused"
    );
    for node in [a, b] {
        node.ok(&["nvme", "disconnect", "--nqn", SUBSYSTEM]).await?;
    }
    target.stop().await?;
    Ok(Outcome {
        fence: Some("preempt and abort".to_owned()),
        refused_writes: Some(2),
        ..Outcome::default()
    })
}

/// Attaches the volume and gives its block device.
async fn connect(node: &Machine, target: &Target<'_>) -> Result<String> {
    let (address, port) = (target.address(), PORT);
    let script = format!(
        "modprobe nvme-tcp
         nvme connect --transport=tcp --traddr={address} --trsvcid={port} --nqn={SUBSYSTEM}
         for try in $(seq 100); do
             [ -z \"$(ls /dev | grep -E '^nvme[0-9]+n[0-9]+$')\" ] || break
             sleep 0.1
         done
         echo /dev/$(ls /dev | grep -E '^nvme[0-9]+n[0-9]+$')"
    );
    node.shell(&script).await
}

fn register(device: &str, key: &str) -> String {
    format!("nvme resv-register {device} --nrkey={key} --rrega=0")
}

/// Whether a write of one block reached the volume.
async fn write(node: &Machine, device: &str) -> Result<bool> {
    let of = format!("of={device}");
    let argv = [
        "dd",
        "if=/dev/urandom",
        &of,
        "bs=4096",
        "count=1",
        "oflag=direct",
    ];
    Ok(node.run(&argv).await?.code == 0)
}

/// What a reservation report says.
#[derive(Debug)]
struct Report {
    rtype: u64,
    holder: Option<String>,
    keys: Vec<String>,
}

async fn report(node: &Machine, device: &str) -> Result<Report> {
    let script = format!("nvme resv-report {device} --eds --output-format=json");
    let text = node.shell(&script).await?;
    let parse = || format!("read the report {text}");
    let report: serde_json::Value = serde_json::from_str(&text).with_context(parse)?;
    let registrants = report["regctlext"].as_array().with_context(parse)?;
    let key = |entry: &serde_json::Value| entry["rkey"].as_u64().map(|key| format!("{key:#x}"));
    let holds = |entry: &&serde_json::Value| entry["rcsts"].as_u64() == Some(1);
    Ok(Report {
        rtype: report["rtype"].as_u64().with_context(parse)?,
        holder: registrants.iter().find(holds).and_then(key),
        keys: registrants.iter().filter_map(key).collect(),
    })
}
