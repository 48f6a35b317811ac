//! What a standby does beforehand, so that a take-over need not.

use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

/// How long loading a module may take: on a slow disk it did take three seconds.
const LOAD_WITHIN: Duration = Duration::from_secs(10);

/// Has the kernel load ext4 now instead of during the first mount. Where that fails, the mount tries
/// again and says why.
pub(super) async fn load_ext4() {
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if known.split_whitespace().any(|word| word == "ext4") {
        return;
    }
    let load = Command::new("modprobe")
        .args(["-q", "ext4"])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .status();
    match timeout(LOAD_WITHIN, load).await {
        Ok(Ok(status)) if status.success() => {}
        outcome => tracing::warn!(
            ?outcome,
            "ext4 is not loaded: the first mount will wait for it"
        ),
    }
}
