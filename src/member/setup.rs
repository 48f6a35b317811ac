//! What a member must arrange before its runtime has a second thread: a mount namespace of its own.
//!
//! Whatever a member mounts vanishes with its last process, however it ended, and no mount of it is
//! seen by, or kept alive in, another namespace of the machine.

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// The set-up step that the system refused.
#[derive(Debug, thiserror::Error)]
#[error("{attempted} (a member must run as root, or with CAP_SYS_ADMIN)")]
pub struct SetupError {
    attempted: &'static str,
    #[source]
    source: nix::Error,
}

/// Moves the process into a mount namespace of its own. Must be called before any thread is made:
/// a namespace belongs to a thread.
///
/// # Errors
/// The system refused a step; nothing outside this process has changed.
pub fn enter_own_mount_namespace() -> Result<(), SetupError> {
    let refused = |attempted| move |source| SetupError { attempted, source };
    let none = None::<&str>;
    unshare(CloneFlags::CLONE_NEWNS).map_err(refused("make a mount namespace"))?;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .map_err(refused("make the mount namespace private"))
}
