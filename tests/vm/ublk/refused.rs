//! A reservation conflict is an I/O error, for the block device and for the file system.

use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};
use nvme::initiator::Initiator;
use nvme::reservation::{Acquire, ChangePersistence, Register, Release};
use nvme::{Namespace, ReservationType};

use super::bridged::{Ground, OTHER, write};

const KEY: u64 = 0xb2;
const KIND: ReservationType = ReservationType::WriteExclusive;

/// Another host takes the volume amid the writes.
pub fn conflict(ground: &Ground) -> Result<String> {
    let bridge = ground.bridge("ublk")?;
    bridge.format()?;
    let mounted = bridge.mount(ground)?;
    let file = File::create(mounted.path("file"))?;
    file.write_all_at(&[1; 8192], 0)?;
    file.sync_all()?;
    let other = take(ground)?;
    let refused = write(&bridge.direct(0)?, 1000, 9);
    let errno = refused.err().and_then(|error| error.raw_os_error());
    ensure!(errno == Some(libc::EBADE), "a refused write says {errno:?}");
    file.write_all_at(&[2; 8192], 0)?;
    let synced = file
        .sync_all()
        .err()
        .context("an fsync succeeds without the volume")?;
    let errno = synced.raw_os_error();
    ensure!(
        matches!(errno, Some(libc::EIO | libc::EBADE | libc::EROFS)),
        "a refused fsync says {errno:?}"
    );
    nvme::block::shut_down(&mounted.path(""))?;
    drop(file);
    mounted.unmount()?;
    give_back(ground, &other)?;
    write(&bridge.direct(0)?, 1000, 9).context("a write after the release")?;
    bridge.end()?;
    Ok(format!(
        "EBADE from the device, {synced} from the file system"
    ))
}

/// Another host reserves the volume.
fn take(ground: &Ground) -> Result<Initiator> {
    let other = ground.options(OTHER)?;
    ground.runtime.block_on(async {
        let other = Initiator::connect(other).await?;
        let unchanged = ChangePersistence::Unchanged;
        other
            .register(Register::Register { key: KEY }, unchanged)
            .await?;
        other.acquire(Acquire::Acquire, KEY, KIND).await?;
        Ok(other)
    })
}

fn give_back(ground: &Ground, other: &Initiator) -> Result<()> {
    ground.runtime.block_on(async {
        other.release(Release::Release(KIND), KEY).await?;
        let unchanged = ChangePersistence::Unchanged;
        let unregister = Register::Unregister { key: KEY };
        Ok(other.register(unregister, unchanged).await?)
    })
}
