//! The bridge's block device with ext4 on it, over nvmet.

use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use baton::clock;
use nvme::Namespace;
use nvme::ReservationType;
use nvme::reservation::{Acquire, ChangePersistence, Register, Release};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::{connect, identity};
use crate::machines::{BATON, Machines};
use crate::nvmet::{SUBSYSTEM, Target};

/// From the bridge's start to its device, under emulation.
const ATTACH_WITHIN: Duration = Duration::from_secs(20);

/// For each script.
const SCRIPT_WITHIN: Duration = Duration::from_secs(90);

/// How long the port is away in the middle of the load.
const AWAY: Duration = Duration::from_secs(2);

/// The host of the bridge, and another that takes the volume from it.
const BRIDGED: u8 = 3;
const OTHER: u8 = 4;

/// The load: files of different sizes, each durable before the next. `$1` device, `$2` folder.
const LOAD: &str = r#"
mkfs.ext4 -q -F "$1"
mkdir "$2/mount"
mount -t ext4 "$1" "$2/mount"
for n in $(seq 150); do
    dd if=/dev/urandom of="$2/mount/$n" bs=8k count=$((n % 24 + 1)) conv=fsync status=none
    [ "$n" != 40 ] || : >"$2/amid"
done
(cd "$2/mount" && sha256sum [0-9]*) >"$2/sums"
umount "$2/mount"
"#;

const VERIFY: &str = r#"
e2fsck -fn "$1"
mount -t ext4 -o ro "$1" "$2/mount"
cd "$2/mount"
sha256sum --quiet -c "$2/sums"
cd /
umount "$2/mount"
wc -l <"$2/sums"
"#;

const WRITE: &str = r#"dd if=/dev/zero of="$1" bs=4096 count=1 oflag=direct status=none"#;

/// A bridge that ends with its input.
struct Bridge {
    _process: Child,
    device: String,
}

impl Bridge {
    async fn start(folder: &str, address: &str) -> Result<Self> {
        let host = identity(BRIDGED)?;
        let mut process = Command::new(BATON)
            .args(["bridge", "--address", address, "--subsystem", SUBSYSTEM])
            .args(["--host-nqn", host.nqn.as_str()])
            .args(["--host-id", &host.id.to_string()])
            .args(["--directory", &format!("{folder}/bridge")])
            .args(["--io-queues", "2", "--header-digest", "--data-digest"])
            .args(["--path-loss-ms", "60000"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("start the bridge")?;
        let output = process.stdout.take().context("it has no output")?;
        let mut lines = BufReader::new(output).lines();
        let line = timeout(ATTACH_WITHIN, lines.next_line()).await;
        let line = line.context("the bridge names no device in time")??;
        let line = line.context("the bridge ends at once")?;
        let said: serde_json::Value = serde_json::from_str(&line)?;
        let device = said["device"].as_str().context("it names no device")?;
        Ok(Self {
            device: device.to_owned(),
            _process: process,
        })
    }

    /// Runs a script in a mount namespace of its own.
    async fn run(&self, script: &str, folder: &str) -> Result<Output> {
        let run = Command::new("unshare")
            .args(["--mount", "--", "sh", "-euc", script, "sh"])
            .args([&self.device, folder])
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let ran = timeout(SCRIPT_WITHIN, run).await;
        ran.context("a script on the bridge's device hangs")?
            .context("run a script")
    }

    async fn ok(&self, script: &str, folder: &str) -> Result<String> {
        let ran = self.run(script, folder).await?;
        let said = String::from_utf8_lossy(&ran.stderr);
        ensure!(ran.status.success(), "{}: {said}\n{script}", ran.status);
        Ok(String::from_utf8_lossy(&ran.stdout).trim().to_owned())
    }
}

pub async fn filesystem(
    machines: &Machines,
    target: &Target<'_>,
    address: &str,
) -> Result<Vec<String>> {
    let folder = tempfile::tempdir_in(&machines.common.scratch)?;
    let path = folder.path().display().to_string();
    let bridge = Bridge::start(&path, address).await?;
    let amid = folder.path().join("amid");
    let cut = async {
        timeout(SCRIPT_WITHIN, until_there(&amid)).await?;
        target.leave_port().await?;
        let cut = clock::now();
        tokio::time::sleep(AWAY).await;
        target.return_to_port().await.map(|()| cut)
    };
    let load = async {
        let loaded = bridge.ok(LOAD, &path).await;
        loaded.map(|_| clock::now())
    };
    let (loaded, cut) = tokio::join!(load, cut);
    let (loaded, cut) = (loaded.context("write")?, cut?);
    let after = loaded.since(cut);
    ensure!(
        after >= AWAY,
        "the load ended {after:?} after the port went away"
    );
    let files = bridge.ok(VERIFY, &path).await.context("verify")?;
    let files = files.lines().last().unwrap_or_default().to_owned();
    refused(&bridge, &path, address)
        .await
        .context("fence the bridge")?;
    drop(bridge);
    Ok(vec![format!(
        "bridge: {files} files of ext4, each durable, the port away for {AWAY:?} in the middle, \
         the last {after:?} after it left; read back after a remount; fenced, its write fails"
    )])
}

/// The load says that it has written a part.
async fn until_there(path: &Path) {
    while !path.exists() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Another host takes the volume: the device's writes fail until it lets go.
async fn refused(bridge: &Bridge, path: &str, address: &str) -> Result<()> {
    let (other, key) = (connect(address, OTHER).await?, 0x0444);
    let register = Register::Register { key };
    other
        .register(register, ChangePersistence::Unchanged)
        .await?;
    let kind = ReservationType::WriteExclusive;
    other.acquire(Acquire::Acquire, key, kind).await?;
    let write = bridge.run(WRITE, path).await?;
    ensure!(!write.status.success(), "the device's write succeeded");
    other.release(Release::Clear, key).await?;
    bridge.ok(WRITE, path).await.map(drop)
}
