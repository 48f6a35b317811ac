//! A volume that a member must not have, or that its node cannot reach: told at the cluster, and nothing of
//! the volume changes.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use baton::cluster::BatonCluster;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::events::v1::Event;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use nvme::block::LoopDevice;
use serde_json::{Value, json};

use crate::places;
use crate::report::Outcome;
use crate::world::{BLANK, FOREIGN, World};

const SETTLED: Duration = Duration::from_secs(90);

/// How long a member may take to say what is wrong, and the controller to tell it.
const TOLD: Duration = Duration::from_secs(60);

/// Both members of another cluster on both nodes meet a volume with the filesystem of a cluster that has the
/// same name elsewhere.
pub async fn foreign_volume(world: &mut World) -> Result<Outcome> {
    world.settled(SETTLED).await?;
    let before = foreign(world).await?;
    let more = json!({ "namespaceId": FOREIGN });
    make(world, "foreign", &more).await?;
    let told = until(world, "foreign", |told| {
        told.is_some_and(|text| text.contains("not ours"))
    });
    let told = told.await?.context("nothing was told")?;
    ensure!(told.contains("attach the right one"), "it says {told:?}");
    ensure!(
        told.contains("label"),
        "it does not say what it found: {told:?}"
    );
    let events = events(world, "foreign", "Warning").await?;
    ensure!(events.contains(&"OperatorNeeded".to_owned()), "{events:?}");
    world.remove("foreign").await?;
    let after = foreign(world).await?;
    ensure!(
        before == after,
        "the volume was {before:?} and is {after:?}"
    );
    Ok(Outcome {
        notes: vec![told],
        ..Outcome::default()
    })
}

/// The volume's bytes as a digest, and who holds or is registered.
async fn foreign(world: &World) -> Result<(String, Value, Value)> {
    let file = world.storage.volume(FOREIGN);
    let digest = tokio::process::Command::new("sha256sum")
        .arg(&file)
        .output()
        .await?;
    ensure!(digest.status.success(), "sha256sum {}", file.display());
    let namespace = world.storage.namespace(FOREIGN).await?;
    let report = &namespace["reservation"];
    let digest = String::from_utf8_lossy(&digest.stdout).into_owned();
    Ok((
        digest,
        report["reservation"].clone(),
        report["registrants"].clone(),
    ))
}

/// A node whose kernel has no NVMe, as this machine's, with the kernel's initiator.
pub async fn no_modules(world: &mut World) -> Result<Outcome> {
    if Path::new("/sys/class/nvme-subsystem").exists() {
        return Ok(Outcome::skipped("this machine's kernel has NVMe"));
    }
    world.settled(SETTLED).await?;
    let more = json!({ "transport": "kernel", "address": null, "subsystem": null });
    make(world, "bare", &more).await?;
    let told = until(world, "bare", |told| {
        told.is_some_and(|text| text.contains("NVMe modules"))
    });
    let told = told.await?.context("nothing was told")?;
    for says in [
        "modprobe nvme-tcp",
        "volume.transport tcp",
        "member c",
        "member d",
    ] {
        // Members are told of one by one.
        until(world, "bare", |told| {
            told.is_some_and(|text| text.contains(says))
        })
        .await?;
    }
    let events = events(world, "bare", "Warning").await?;
    ensure!(events.contains(&"OperatorNeeded".to_owned()), "{events:?}");
    let leases: Api<Lease> = Api::namespaced(world.api.client.clone(), &world.api.namespace);
    let lease = leases.get_opt("bare-local").await?;
    ensure!(lease.is_none(), "somebody without a volume claimed it");
    world.remove("bare").await?;
    Ok(Outcome {
        notes: vec![told],
        ..Outcome::default()
    })
}

/// The storage driver has attached the volume, one of two of its subsystem: the agent finds where it is. While
/// somebody has the kernel's device for himself the member is refused, and then nobody can have it.
pub async fn attached(world: &mut World) -> Result<Outcome> {
    world.settled(SETTLED).await?;
    let file = world.storage.volume(BLANK);
    let mut devices = Vec::new();
    for place in 0..places::NODES.len() {
        let backing = OpenOptions::new().read(true).write(true).open(&file)?;
        let device = LoopDevice::attach(backing.as_fd(), 4096, "attached")?;
        world.nodes[place].attach("attached-data", device.path(), BLANK)?;
        devices.push(device);
    }
    let taken = devices.iter().map(|device| exclusively(device.path()));
    let taken = taken.collect::<std::io::Result<Vec<File>>>()?;
    make(
        world,
        "attached",
        &json!({ "address": null, "subsystem": null }),
    )
    .await?;
    let told = until(world, "attached", |told| {
        told.is_some_and(|text| text.contains("is in use"))
    });
    let told = told.await?.context("nothing was told")?;
    drop(taken);
    until(world, "attached", |told| told.is_none()).await?;
    let first = serves(world, "attached").await?;
    // The guards go with the agents; their successors take them before they resume a session.
    let processes = processes(world).await?;
    for node in world.nodes.iter_mut().take(places::NODES.len()) {
        node.kill_agent().await?;
        node.start_agent()?;
    }
    for device in &devices {
        guarded(device.path()).await?;
    }
    world.delete_pod(&format!("attached-{first}")).await?;
    let second = until_served_by(world, "attached", |active| active != first).await?;
    let after = self::processes(world).await?;
    ensure!(
        processes[&second] == after[&second],
        "an agent's restart ended member {second}"
    );
    for device in &devices {
        guarded(device.path()).await?;
    }
    let registered =
        world.storage.namespace(BLANK).await?["reservation"]["registrants"].to_string();
    for node in world.nodes.iter().take(places::NODES.len()) {
        let host = node.attached_host().to_string();
        ensure!(
            registered.contains(&host),
            "{host} is not registered: {registered}"
        );
    }
    world.remove("attached").await?;
    for node in world.nodes.iter().take(places::NODES.len()) {
        node.detach()?;
    }
    for device in devices {
        drop(exclusively(device.path()).context("the guard has outlived its member")?);
        device.detach()?;
    }
    Ok(Outcome {
        notes: vec![told],
        ..Outcome::default()
    })
}

/// Waits until an agent has the device for itself.
async fn guarded(device: &Path) -> Result<()> {
    let end = tokio::time::Instant::now() + TOLD;
    loop {
        match exclusively(device) {
            Err(error) if error.raw_os_error() == Some(nix::libc::EBUSY) => return Ok(()),
            Err(error) => return Err(error).context("open the kernel's device"),
            Ok(_) => {}
        }
        let late = tokio::time::Instant::now() > end;
        ensure!(!late, "the kernel's device could be mounted");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The first processes of both members, by the members' names.
async fn processes(world: &World) -> Result<BTreeMap<String, i32>> {
    let mut all = BTreeMap::new();
    for (place, member) in ["c", "d"].into_iter().enumerate() {
        let process = world
            .process_on(place, &format!("attached-{member}"))
            .await?;
        all.insert(member.to_owned(), process);
    }
    Ok(all)
}

fn exclusively(device: &Path) -> std::io::Result<File> {
    let flags = nix::libc::O_EXCL | nix::libc::O_CLOEXEC;
    OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(device)
}

/// A cluster like the one under test, of members c and d, with another claim and other words on its volume.
async fn make(world: &World, name: &str, more: &Value) -> Result<()> {
    let claim = format!("{name}-data");
    world
        .api
        .make_claim(&claim, "ReadWriteMany", "Block")
        .await?;
    let mut cluster = world.cluster(&world.postgres);
    cluster["metadata"]["name"] = json!(name);
    cluster["spec"]["members"][0]["name"] = json!("c");
    cluster["spec"]["members"][1]["name"] = json!("d");
    let volume = cluster["spec"]["volume"]
        .as_object_mut()
        .context("no volume")?;
    volume.insert("claimName".to_owned(), json!(claim));
    volume.extend(more.as_object().context("no object")?.clone());
    volume.retain(|_, value| !value.is_null());
    world.apply(&cluster).await?;
    Ok(())
}

/// Waits until what the cluster says of its members is as wished: the condition's message while one needs an
/// operator, `None` when it is known that none does.
async fn until(
    world: &World,
    cluster: &str,
    wished: impl Fn(Option<&str>) -> bool,
) -> Result<Option<String>> {
    let end = tokio::time::Instant::now() + TOLD;
    let mut last = None;
    while tokio::time::Instant::now() < end {
        let found: BatonCluster = world.clusters().get(cluster).await?;
        let status = found.status.unwrap_or_default();
        if let Some(able) = status.condition("MembersAble") {
            let message = (able.status == "False").then_some(able.message.as_str());
            if able.status != "Unknown" && wished(message) {
                return Ok(message.map(str::to_owned));
            }
            last = Some(able.clone());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    bail!("within {TOLD:?} the cluster says of its members only {last:?}")
}

async fn serves(world: &World, cluster: &str) -> Result<String> {
    until_served_by(world, cluster, |_| true).await
}

/// Waits until such a member serves and another could take over; which.
async fn until_served_by(
    world: &World,
    cluster: &str,
    wished: impl Fn(&str) -> bool,
) -> Result<String> {
    let end = tokio::time::Instant::now() + SETTLED;
    loop {
        let found: BatonCluster = world.clusters().get(cluster).await?;
        let status = found.status.unwrap_or_default();
        let holds = |type_: &str| {
            let found = status.condition(type_);
            found.is_some_and(|found| found.status == "True")
        };
        let active = status.active.clone().filter(|active| wished(active));
        if let Some(active) = active.filter(|_| holds("Ready") && holds("StandbyReady")) {
            return Ok(active);
        }
        let late = tokio::time::Instant::now() > end;
        ensure!(!late, "it does not serve as wished: {status:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The reasons of a cluster's Events of one kind, `Warning` or `Normal`.
pub async fn events(world: &World, cluster: &str, kind: &str) -> Result<Vec<String>> {
    let events: Api<Event> = Api::namespaced(world.api.client.clone(), &world.api.namespace);
    let uid = world.clusters().get(cluster).await?.uid();
    let found = events.list(&ListParams::default()).await?.items.into_iter();
    let about = found.filter(|event| {
        let regarding = event.regarding.as_ref();
        regarding.is_some_and(|regarding| regarding.uid == uid)
            && event.type_.as_deref() == Some(kind)
    });
    Ok(about.filter_map(|event| event.reason).collect())
}
