//! nvmet as the target of Baton's initiator and bridge: a peer that no one here wrote.

mod blocks;
mod bridge;
mod fence;
mod path;
mod slow;

use anyhow::{Context, Result};
use nvme::initiator::{Initiator, Options};
use nvme::{HostId, HostIdentity};

use crate::exported::{Disks, Exported};
use crate::machines::Machines;
use crate::nvmet::{PORT, SUBSYSTEM, Target};
use crate::report::Outcome;

/// Everything, in order. What was measured becomes a note.
pub async fn all(machines: &mut Machines) -> Result<Outcome> {
    let storage = &machines.storage;
    let target = Target::up(storage).await?;
    let address = format!("{}:{PORT}", target.address());
    let mut notes = Vec::new();
    notes.push(path::discovery(&address).await.context("discovery")?);
    notes.push(blocks::identify(&address).await.context("identify")?);
    notes.extend(blocks::digests(&address).await.context("read and write")?);
    notes.push(path::keep_alive(&address).await.context("keep alive")?);
    let reconnected = path::reconnect(&target, &address).await;
    notes.push(reconnected.context("reconnect")?);
    let (fence, refused) = fence::sequence(&address).await.context("fence")?;
    let bridged = bridge::filesystem(machines, &target, &address).await;
    notes.extend(bridged.context("bridge")?);
    target.stop().await?;
    let exported = Exported::up(storage, Disks::Slow(slow::EACH)).await?;
    notes.extend(slow::preempts(&exported).await.context("a slow disk")?);
    exported.down().await?;
    Ok(Outcome {
        fence: Some(fence),
        refused_writes: Some(refused),
        notes,
        ..Outcome::default()
    })
}

/// The identity of host `number`, not that of a machine.
fn identity(number: u8) -> Result<HostIdentity> {
    Ok(HostIdentity {
        nqn: format!("nqn.2026-11.dev.baton:user:{number}").parse()?,
        id: HostId::from_bytes([number; 16]),
    })
}

/// The volume as host `number`.
fn options(address: &str, number: u8) -> Result<Options> {
    let (address, subsystem) = (address.to_owned(), SUBSYSTEM.parse()?);
    Ok(Options::new(address, subsystem, 1, identity(number)?))
}

async fn connect(address: &str, number: u8) -> Result<Initiator> {
    let connected = Initiator::connect(options(address, number)?).await;
    connected.with_context(|| format!("connect as host {number}"))
}
