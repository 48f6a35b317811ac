//! SIGKILL to the bridge amid a load on a mounted file system.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use baton::clock;
use nvme::bridge::{Left, UblkDevice};

use super::bridged::{Ground, Mounted};

/// The load must fail within it.
const FAILS_WITHIN: Duration = Duration::from_secs(20);

/// Who writes at the same time.
const WRITERS: u64 = 3;

/// Errors, no hang; the device is gone, and nothing is left when its mount is gone too.
pub fn killed(ground: &Ground) -> Result<String> {
    let mut bridge = ground.bridge("ublk")?;
    let device = bridge.ublk()?;
    bridge.format()?;
    let mounted = bridge.mount(ground)?;
    let failures = loaded(&mounted)?;
    let began = clock::now();
    bridge.kill()?;
    let mut said = Vec::new();
    for _ in 0..WRITERS {
        let error = failures
            .recv_timeout(FAILS_WITHIN)
            .context("a write hangs")?;
        said.push(error.to_string());
    }
    let took = clock::now().since(began).as_millis();
    bridge
        .removed(ground, Left::Held)
        .context("with the dead mount")?;
    ensure!(!bridge.device.exists(), "the device is still there");
    // A dead mount keeps the number, so that a new bridge gets another.
    let next = ground.bridge("ublk")?;
    ensure!(
        next.ublk()?.id != device.id,
        "the number is given out twice"
    );
    mounted.unmount()?;
    bridge
        .removed(ground, Left::Nothing)
        .context("without it")?;
    next.end()?;
    nothing_left(device, ground.folder.path())?;
    said.dedup();
    Ok(format!(
        "{WRITERS} writers failed {took} ms after it ({}); nothing was left",
        said.join(", ")
    ))
}

/// Writers that have all written; each tells its error.
fn loaded(mounted: &Mounted) -> Result<mpsc::Receiver<std::io::Error>> {
    let (round, rounds) = mpsc::channel();
    let (failed, failures) = mpsc::channel();
    for writer in 0..WRITERS {
        let file = mounted.path(&writer.to_string());
        let (round, failed) = (round.clone(), failed.clone());
        std::thread::spawn(move || failed.send(load(file, &round)));
    }
    for _ in 0..3 * WRITERS {
        let waited = rounds.recv_timeout(FAILS_WITHIN);
        waited.context("the load stands still")?;
    }
    Ok(failures)
}

/// Writes and fsyncs until that fails.
fn load(path: PathBuf, round: &mpsc::Sender<()>) -> std::io::Error {
    let write = |file: &File, at: u64| {
        file.write_all_at(&vec![at as u8; 256 << 10], at % 32 * (256 << 10))?;
        file.sync_data()
    };
    let file = match File::create(path) {
        Ok(file) => file,
        Err(error) => return error,
    };
    for at in 0.. {
        if let Err(error) = write(&file, at) {
            return error;
        }
        // Nobody counts any more.
        let _ = round.send(());
    }
    std::io::Error::other("no end")
}

fn nothing_left(device: UblkDevice, folder: &Path) -> Result<()> {
    let channel = format!("/dev/ublkc{}", device.id);
    ensure!(!Path::new(&channel).exists(), "{channel} is there");
    let recorded = UblkDevice::recorded(&folder.join("bridge"))?;
    ensure!(recorded.is_none(), "a record is left");
    let kept: Vec<_> = std::fs::read_dir("/sys/class/ublk-char")?
        .flatten()
        .collect();
    ensure!(kept.is_empty(), "the kernel has {kept:?}");
    Ok(())
}
