//! The process tree of a container: killed as one, and proven to be empty.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::attachment::whole;

/// Between two looks at a control group where the kernel's notice did not come.
const LOOK: Duration = Duration::from_millis(100);

/// Kills every process of a control group and those below it (`cgroup.kill`, Linux 5.14), those that it
/// forks meanwhile as well.
///
/// # Errors
/// The system refuses. A group that is gone is no error: it had no process.
pub(super) fn kill(group: &Path) -> io::Result<()> {
    absent_is_fine(std::fs::write(group.join("cgroup.kill"), "1"))
}

/// Whether not one process is left in a control group and those below it: `populated 0` in
/// `cgroup.events`, or the group itself is gone, which the kernel allows of an empty one only.
///
/// # Errors
/// The file cannot be read or understood: unknown.
pub(super) fn is_empty(group: &Path) -> io::Result<bool> {
    let events = match std::fs::read_to_string(group.join("cgroup.events")) {
        Ok(events) => events,
        Err(error) if is_absent(&error) => return Ok(true),
        Err(error) => return Err(error),
    };
    let populated = events
        .lines()
        .find_map(|line| line.strip_prefix("populated "));
    match populated.map(str::trim) {
        Some("0") => Ok(true),
        Some("1") => Ok(false),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "no line `populated` in cgroup.events",
        )),
    }
}

/// Waits until the group is empty. What hangs in the kernel may take for ever: bound it.
pub(super) async fn emptied(group: &Path) {
    let mut said = false;
    // Opened before the first look, so that no change in between is missed.
    let changes = File::open(group.join("cgroup.events")).and_then(watch);
    loop {
        match is_empty(group) {
            Ok(true) => return,
            Ok(false) => {}
            Err(error) if !said => {
                said = true;
                let group = group.display();
                tracing::error!(error = %whole(error), %group, "cannot see whether processes are left");
            }
            Err(_) => {}
        }
        // A missed notice costs one look.
        let _elapsed = tokio::time::timeout(LOOK, changed(changes.as_ref().ok())).await;
    }
}

async fn changed(events: Option<&AsyncFd<File>>) {
    let Some(events) = events else {
        return std::future::pending().await;
    };
    match events.ready(Interest::PRIORITY).await {
        Ok(mut ready) => ready.clear_ready(),
        Err(_) => std::future::pending().await,
    }
    // Only a read makes the kernel say the next change.
    let mut text = [0; 256];
    let _unused = events.get_ref().read_at(&mut text, 0);
}

#[allow(
    deprecated,
    reason = "unsound only for types that change their descriptor, which File never does; the \
              successor is an unsafe function, and this crate forbids those"
)]
fn watch(events: File) -> io::Result<AsyncFd<File>> {
    AsyncFd::with_interest(events, Interest::PRIORITY)
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if is_absent(&error) => Ok(()),
        result => result,
    }
}

fn is_absent(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}
