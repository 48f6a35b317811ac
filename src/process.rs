//! A process that is no child of this one: which it is, whether it has ended, how to end it.
//!
//! Process ids are used again. A process is named here by its id and the moment it started
//! (`/proc/PID/stat`, field 22), and reached through a pidfd (pidfd_open(2), Linux 5.3), which never
//! reaches another.

use std::io;
use std::os::fd::OwnedFd;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use tokio::io::unix::AsyncFd;

/// Ends this process, which is the first of its container: the kernel ends all others there with it.
#[allow(
    clippy::disallowed_methods,
    reason = "nothing is mounted in a container's own namespace, and nothing is left to be dropped"
)]
pub fn end_container() -> ! {
    std::process::exit(1)
}

/// Which process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Its number in this process's PID namespace.
    pub pid: i32,
    /// When it started, in clock ticks since the boot.
    pub started: u64,
}

/// A hold on one process.
#[derive(Debug)]
pub struct Process {
    id: ProcessId,
    descriptor: AsyncFd<OwnedFd>,
}

impl Process {
    /// The process that has this number now.
    ///
    /// # Errors
    /// There is none (`ESRCH`), or the system refuses. Needs a tokio runtime.
    pub fn open(pid: i32) -> io::Result<Self> {
        let number = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
        let descriptor = pidfd_open(number, PidfdFlags::empty())?;
        // Read after the descriptor was opened: of the same process, unless that has ended.
        let id = ProcessId {
            pid,
            started: started(pid)?,
        };
        Ok(Self {
            id,
            descriptor: watch(descriptor)?,
        })
    }

    /// This very process; `None` if it has ended.
    ///
    /// # Errors
    /// The system refuses.
    pub fn find(id: ProcessId) -> io::Result<Option<Self>> {
        match Self::open(id.pid) {
            Ok(process) if process.id == id => Ok(Some(process)),
            Ok(_another) => Ok(None),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Which it is.
    pub fn id(&self) -> ProcessId {
        self.id
    }

    /// Ends when the process has ended. Cancel-safe.
    ///
    /// # Errors
    /// The descriptor cannot be waited for.
    pub async fn ended(&self) -> io::Result<()> {
        self.descriptor.readable().await.map(drop)
    }

    /// Sends SIGKILL. One that has ended already is no error.
    ///
    /// # Errors
    /// The system refuses.
    pub fn kill(&self) -> io::Result<()> {
        match pidfd_send_signal(self.descriptor.get_ref(), Signal::KILL) {
            Err(rustix::io::Errno::SRCH) | Ok(()) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

#[allow(
    deprecated,
    reason = "unsound only for types that change their descriptor, which OwnedFd never does; the \
              successor is an unsafe function, and this crate forbids those"
)]
fn watch(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::new(descriptor)
}

fn is_absent(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

/// Field 22 of `/proc/PID/stat`; the name in field 2 may hold anything, so it is skipped from behind.
fn started(pid: i32) -> io::Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after_name = text.rsplit_once(')').map_or("", |(_, rest)| rest);
    let field = after_name.split_whitespace().nth(19);
    field
        .and_then(|field| field.parse().ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no start time in its stat"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_process_is_found_killed_and_seen_to_end() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .expect("start sleep");
        let pid = i32::try_from(child.id()).expect("a process id");
        let process = Process::open(pid).expect("open it");
        let id = process.id();
        assert!(Process::find(id).expect("look").is_some());
        let earlier = ProcessId {
            started: id.started - 1,
            ..id
        };
        assert!(Process::find(earlier).expect("look").is_none());
        process.kill().expect("kill it");
        process.ended().await.expect("wait for it");
        child.wait().expect("reap it");
        process.kill().expect("a second kill is no error");
        assert!(Process::find(id).expect("look").is_none());
    }
}
