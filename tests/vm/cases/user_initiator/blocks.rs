//! Identify, and blocks that are written and read back.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use nvme::Namespace;
use nvme::initiator::{Initiator, Options};
use nvme::pdu::Digests;
use tokio::task::JoinSet;

use super::{connect, options};
use crate::nvmet::NAMESPACE_UUID;

/// Connections for I/O.
const QUEUES: u16 = 3;

/// Commands under way at once: more than queues.
const TASKS: u64 = 12;

/// Lengths, in bytes: one block, in the capsule, by one request for data, and by several.
const LENGTHS: [usize; 4] = [512, 4096, 64 << 10, 1 << 20];

/// Between the tasks' first blocks, in bytes.
const APART: u64 = 4 << 20;

/// RESCAP: all six types and IEKEY as of 1.3, no persistence.
const CAPABILITIES: u8 = 0xfe;

pub async fn identify(address: &str) -> Result<String> {
    let identified = connect(address, 1).await?.identify().await?;
    let expected: uuid::Uuid = NAMESPACE_UUID.parse()?;
    ensure!(identified.uuid == expected, "uuid: {identified:?}");
    ensure!(identified.nguid == expected, "nguid: {identified:?}");
    ensure!(identified.block_size == 512, "blocks: {identified:?}");
    let capabilities = identified.reservation_capabilities;
    ensure!(capabilities == CAPABILITIES, "RESCAP: {identified:?}");
    Ok(format!(
        "identify: {}, RESCAP {CAPABILITIES:#x}, volatile cache {}, transfers of {} KiB",
        identified.model,
        identified.volatile_write_cache,
        identified.max_transfer >> 10
    ))
}

/// Without digests, with each, and with both.
pub async fn digests(address: &str) -> Result<Vec<String>> {
    let mut notes = Vec::new();
    for (header, data) in [(false, false), (true, false), (false, true), (true, true)] {
        let options = Options {
            digests: Digests { header, data },
            io_queues: QUEUES,
            ..options(address, 1)?
        };
        let what = format!("digests: header {header}, data {data}");
        let initiator = Arc::new(Initiator::connect(options).await.context(what.clone())?);
        let bytes = together(&initiator).await.context(what.clone())?;
        let kib = bytes >> 10;
        notes.push(format!("{what}: {kib} KiB over {QUEUES} queues read back"));
    }
    Ok(notes)
}

async fn together(initiator: &Arc<Initiator>) -> Result<usize> {
    let mut tasks = JoinSet::new();
    for task in 0..TASKS {
        let initiator = Arc::clone(initiator);
        tasks.spawn(async move { lengths(&initiator, task * APART / 512, task as u8).await });
    }
    let mut bytes = 0;
    while let Some(done) = tasks.join_next().await {
        bytes += done??;
    }
    zeroes(initiator).await.context("zeroes")?;
    Ok(bytes)
}

async fn lengths(initiator: &Initiator, first: u64, task: u8) -> Result<usize> {
    let mut lba = first;
    for (n, length) in LENGTHS.into_iter().enumerate() {
        let data = pattern(length, task.wrapping_mul(31) ^ n as u8);
        let blocks = (length / 512) as u32;
        let force_unit_access = n % 2 == 1;
        initiator
            .write(lba, data.clone(), force_unit_access)
            .await?;
        let read = initiator.read(lba, blocks).await?;
        ensure!(read == data, "{length} bytes at block {lba} differ");
        lba += u64::from(blocks);
    }
    initiator.flush().await?;
    Ok(LENGTHS.iter().sum())
}

async fn zeroes(initiator: &Initiator) -> Result<()> {
    initiator.write_zeroes(0, 8, false).await?;
    let read = initiator.read(0, 8).await?;
    ensure!(read.iter().all(|byte| *byte == 0), "zeroes read otherwise");
    Ok(initiator.deallocate(8, 8).await?)
}

/// Bytes that differ from block to block.
pub fn pattern(length: usize, seed: u8) -> Bytes {
    let byte = |n: usize| (n / 512) as u8 ^ (n as u8).wrapping_mul(7) ^ seed;
    (0..length).map(byte).collect::<Vec<u8>>().into()
}
