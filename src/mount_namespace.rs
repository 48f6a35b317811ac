//! A mount namespace of a process's own.
//!
//! For a member: whatever it mounts vanishes with its last process, however it ended, and no mount of
//! it is seen by, or kept alive in, another namespace of the machine.
//!
//! For a bridge: the last process of a namespace unmounts what is mounted there while it dies. A
//! bridge that died last in its member's namespace would wait for the file system on its own device
//! to write back, before `/dev/fuse` is closed: for ever.

use std::path::Path;
use std::process::Command;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

/// The step that the system refused.
#[derive(Debug, thiserror::Error)]
#[error("{attempted} (it needs root, or CAP_SYS_ADMIN)")]
pub struct MountNamespaceError {
    attempted: &'static str,
    #[source]
    source: nix::Error,
}

/// A shell script to run in a private mount namespace of its own, which vanishes with it: what it mounts
/// nobody else sees, and nothing is left. Its arguments, added by the caller, begin with `$1`.
pub fn script(script: &str) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private"]);
    command.args(["sh", "-c", script, "sh"]);
    command
}

/// Moves the process into a mount namespace of its own. Must be called before any thread is made:
/// a mount namespace belongs to a thread.
///
/// # Errors
/// The system refused a step; nothing outside this process has changed.
pub fn enter_own() -> Result<(), MountNamespaceError> {
    let refused = |attempted| move |source| MountNamespaceError { attempted, source };
    let none = None::<&str>;
    unshare(CloneFlags::CLONE_NEWNS).map_err(refused("make a mount namespace"))?;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .map_err(refused("make the mount namespace private"))
}

/// Takes every mount below `directory` out of this process's own namespace, so that the filesystem there
/// ends when its owner unmounts it. Call it in a namespace of one's own only.
///
/// # Errors
/// The mount table cannot be read, or the system refused.
pub fn forget_below(directory: &Path) -> Result<(), MountNamespaceError> {
    let attempted = "take others' mounts out of the mount namespace";
    let refused = |source| MountNamespaceError { attempted, source };
    let table = std::fs::read_to_string("/proc/self/mounts")
        .map_err(|error| refused(nix::Error::from_raw(error.raw_os_error().unwrap_or(0))))?;
    let points = table.lines().filter_map(|line| line.split(' ').nth(1));
    let below: Vec<_> = points
        .map(Path::new)
        .filter(|point| point.starts_with(directory) && *point != directory)
        .collect();
    // The newest first: one may lie on another.
    for point in below.into_iter().rev() {
        umount2(point, MntFlags::MNT_DETACH).map_err(refused)?;
    }
    Ok(())
}
