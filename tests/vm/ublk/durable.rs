//! What was written is there; what was flushed survives the target's power loss; what was discarded
//! reads as zeros.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;

use anyhow::{Result, ensure};
use nvme::bridge::Left;
use serde_json::json;

use super::bridged::{Bridged, Ground, PAGE, Page, tool, write};

/// Files of the load, of different sizes.
const FILES: u64 = 60;

fn content(number: u64) -> Vec<u8> {
    let length = 3000 + number * 1777;
    (0..length)
        .map(|at| ((at + number).wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect()
}

/// Format, mount, fsync, mount again, compare.
pub fn file_system(ground: &Ground) -> Result<String> {
    let bridge = ground.bridge("ublk")?;
    let shown = bridge.device.display().to_string();
    bridge.ublk()?;
    bridge.format()?;
    let mounted = bridge.mount(ground)?;
    for number in 0..FILES {
        let mut file = File::create(mounted.path(&number.to_string()))?;
        file.write_all(&content(number))?;
        file.sync_all()?;
    }
    mounted.unmount()?;
    bridge.check()?;
    let mounted = bridge.mount(ground)?;
    for number in 0..FILES {
        let read = std::fs::read(mounted.path(&number.to_string()))?;
        ensure!(read == content(number), "file {number} is another");
    }
    mounted.unmount()?;
    bridge.end()?;
    Ok(format!(
        "{FILES} files on {shown}, written, checked and read again"
    ))
}

/// An fsync holds over a loss of the target's cache, with the bridge alive and after its death.
pub fn power_loss(ground: &Ground) -> Result<String> {
    let mut bridge = ground.bridge("auto")?;
    bridge.ublk()?;
    bridge.format()?;
    let mounted = bridge.mount(ground)?;
    let mut losses = 0;
    for number in 0..12 {
        let mut file = File::create(mounted.path(&number.to_string()))?;
        file.write_all(&content(number))?;
        file.sync_all()?;
        if number % 4 == 1 {
            ground.control(json!({"do": "power_loss"}))?;
            losses += 1;
        }
    }
    // The bridge repeats nothing any more.
    bridge.kill()?;
    ground.control(json!({"do": "power_loss"}))?;
    // Its file system is shut down by now, or fails.
    mounted.unmount()?;
    bridge.removed(ground, Left::Nothing)?;
    let bridge = ground.bridge("ublk")?;
    let mounted = bridge.mount(ground)?;
    for number in 0..12 {
        let read = std::fs::read(mounted.path(&number.to_string()))?;
        ensure!(
            read == content(number),
            "file {number} was fsynced and is another"
        );
    }
    mounted.unmount()?;
    bridge.check()?;
    bridge.end()?;
    Ok(format!(
        "12 fsynced files survived {losses} losses and one with the bridge's death"
    ))
}

/// A write with FUA survives without any flush, and a flushed one; one with neither is lost, so that
/// the others prove something.
pub fn forced(ground: &Ground) -> Result<String> {
    let mut bridge = ground.bridge("ublk")?;
    cached(&bridge)?;
    bridge.format()?;
    let mounted = bridge.mount(ground)?;
    let path = mounted.path("file");
    let mut file = File::create(&path)?;
    file.write_all(&[1; 3 * PAGE])?;
    file.sync_all()?;
    // ext4 overwrites what is already there with FUA alone, and needs no flush.
    let direct = |flags| {
        File::options()
            .write(true)
            .custom_flags(libc::O_DIRECT | flags)
            .open(&path)
    };
    let (plain, forced) = (direct(0)?, direct(libc::O_DSYNC)?);
    write(&plain, 0, 2)?;
    let (before, _) = ground.counted()?;
    plain.sync_data()?;
    ensure!(ground.counted()?.0 > before, "an fsync made no flush");
    ensure!(
        (0..50).any(|_| unflushed(ground, &plain, &forced).is_ok()),
        "each write with FUA made a flush"
    );
    bridge.kill()?;
    ground.control(json!({"do": "power_loss"}))?;
    drop((file, plain, forced));
    mounted.unmount()?;
    bridge.removed(ground, Left::Nothing)?;
    let bridge = ground.bridge("ublk")?;
    let mounted = bridge.mount(ground)?;
    let read = std::fs::read(mounted.path("file"))?;
    let pages = [0, 1, 2].map(|page| read[page * PAGE]);
    ensure!(
        pages == [2, 1, 3],
        "flushed, neither, FUA: {pages:?} and not 2, 1, 3"
    );
    mounted.unmount()?;
    bridge.end()?;
    Ok(
        "FUA without a flush held, a flush held, what had neither was lost with the cache"
            .to_owned(),
    )
}

/// The kernel must know of the cache, and that it can be told to write through.
fn cached(bridge: &Bridged) -> Result<()> {
    let (cache, fua) = (bridge.setting("write_cache")?, bridge.setting("fua")?);
    ensure!(cache == "write back", "the queue's cache is {cache}");
    ensure!(fua == "1", "the queue has no FUA");
    Ok(())
}

/// A write with FUA to the third page, and a plain one to the second; fails if the target saw a flush
/// meanwhile, such as the journal's own.
fn unflushed(ground: &Ground, plain: &File, forced: &File) -> Result<()> {
    let (flushes, writes) = ground.counted()?;
    write(forced, 2, 3)?;
    write(plain, 1, 2)?;
    let (flushed, written) = ground.counted()?;
    ensure!(flushed == flushes && written >= writes + 2);
    Ok(())
}

/// Discarded pages read as zeros, their neighbours as before.
pub fn discard(ground: &Ground) -> Result<String> {
    let bridge = ground.bridge("ublk")?;
    let device = bridge.direct(0)?;
    for page in 0..40 {
        write(&device, page, 7)?;
    }
    let path = bridge.device.display().to_string();
    tool(
        "blkdiscard",
        &["--offset", "8192", "--length", "65536", &path],
    )?;
    tool(
        "blkdiscard",
        &["--zeroout", "--offset", "131072", "--length", "8192", &path],
    )?;
    for page in 0..40 {
        let expected = match page {
            2..18 | 32..34 => 0,
            _ => 7,
        };
        let read = Page::read(&device, page)?;
        ensure!(read == expected, "page {page} is of {read}");
    }
    // One that is longer than any NVMe command.
    tool("blkdiscard", &[&path])?;
    ensure!(Page::read(&device, 39)? == 0);
    drop(device);
    bridge.end()?;
    Ok("discarded and zeroed pages read as zeros, their neighbours do not".to_owned())
}
