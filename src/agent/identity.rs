//! Who is at the other end of a session's socket: what the kernel says, never what the peer says.

use std::io;
use std::os::fd::AsRawFd;
use std::path::{Component, Path, PathBuf};

use nix::sys::socket::{getsockopt, sockopt};
use tokio::net::UnixStream;
use uuid::Uuid;

use crate::process::Process;

/// A process of a pod.
#[derive(Debug)]
pub(super) struct Peer {
    /// Its user and group.
    pub owner: (u32, u32),
    /// Its pod.
    pub pod: Uuid,
    /// The control group of its container, as a directory: every process of the member is in it.
    pub container: PathBuf,
}

/// Why a peer cannot have a session.
#[derive(Debug, thiserror::Error)]
pub(super) enum IdentityError {
    #[error("ask the kernel who connected")]
    System(#[from] io::Error),
    #[error("the process that connected is not the first one of a container")]
    NotFirst,
    #[error(
        "control group {group:?} of the process that connected is not that of a container of a pod"
    )]
    NoPod { group: String },
}

/// Asks the kernel who connected. `root`: where the unified control group hierarchy is mounted.
pub(super) fn peer(stream: &UnixStream, root: &Path) -> Result<Peer, IdentityError> {
    let credentials = stream.peer_cred()?;
    let process = process(stream, credentials.pid())?;
    let pid = process.id().pid;
    if !is_first(&std::fs::read_to_string(format!("/proc/{pid}/status"))?) {
        return Err(IdentityError::NotFirst);
    }
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let (pod, container) = container(&groups).ok_or_else(|| IdentityError::NoPod {
        group: groups.trim().to_owned(),
    })?;
    // Everything above was read of this very process, if it is still there.
    if Process::find(process.id())?.is_none() {
        return Err(io::Error::from(io::ErrorKind::NotConnected).into());
    }
    Ok(Peer {
        owner: (credentials.uid(), credentials.gid()),
        pod,
        container: root.join(container),
    })
}

/// The process, by a descriptor that names no later one (`SO_PEERPIDFD`, Linux 6.5); before that by the
/// number it had when it connected.
fn process(stream: &UnixStream, connected: Option<i32>) -> io::Result<Process> {
    let pid = match getsockopt(stream, sockopt::PeerPidfd) {
        Ok(descriptor) => {
            let number = descriptor.as_raw_fd();
            pid_of(&std::fs::read_to_string(format!(
                "/proc/self/fdinfo/{number}"
            ))?)
        }
        Err(_older_kernel) => connected,
    };
    Process::open(pid.ok_or(io::ErrorKind::NotConnected)?)
}

/// The line `Pid:` of a pidfd's `fdinfo`; −1 is a process that has been reaped.
fn pid_of(text: &str) -> Option<i32> {
    let line = text.lines().find_map(|line| line.strip_prefix("Pid:"))?;
    line.trim().parse().ok().filter(|pid| *pid > 0)
}

/// Whether the last number of the line `NSpid:` is 1: the first process of its PID namespace, whose end
/// ends all others there.
fn is_first(status: &str) -> bool {
    let mut lines = status.lines();
    let numbers = lines.find_map(|line| line.strip_prefix("NSpid:"));
    let mut numbers = numbers.unwrap_or_default().split_whitespace();
    let (outer, inner) = (numbers.next(), numbers.next_back());
    outer.is_some() && inner == Some("1")
}

/// Pod and control group of a container, from `/proc/PID/cgroup`. The kubelet names the pod's group
/// `pod<uid>` (driver `cgroupfs`) or `…-pod<uid with _ for ->.slice` (driver `systemd`); the container's
/// lies right below it.
fn container(groups: &str) -> Option<(Uuid, PathBuf)> {
    let path = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let mut found = PathBuf::new();
    let mut pod = None;
    for component in Path::new(path).components() {
        let Component::Normal(name) = component else {
            return None;
        };
        found.push(name);
        if let Some(pod) = pod {
            return Some((pod, found));
        }
        pod = name.to_str().and_then(pod_uid);
    }
    None
}

fn pod_uid(name: &str) -> Option<Uuid> {
    let name = name.strip_suffix(".slice").unwrap_or(name);
    let (before, uid) = name.rsplit_once("pod")?;
    let is_boundary = before.is_empty() || before.ends_with('-');
    let uid = uid.replace('_', "-");
    // Only the form with four hyphens: what else a UUID may look like the kubelet does not write.
    (is_boundary && uid.len() == 36)
        .then(|| Uuid::try_parse(&uid).ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_known_by_their_control_groups() {
        let uid = "6b1ef6a4-9d2c-4a3e-8a4f-0123456789ab";
        let flat = uid.replace('-', "_");
        let cases = [
            (format!("0::/kubepods/burstable/pod{uid}/abc\n"), true),
            (
                format!(
                    "12:cpu:/x\n0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{flat}.slice/cri-containerd-abc.scope\n"
                ),
                true,
            ),
            (format!("0::/kubepods/pod{uid}/abc/nested\n"), true),
            // The pod itself, no container of it.
            (format!("0::/kubepods/burstable/pod{uid}\n"), false),
            (format!("0::/kubepods/xpod{uid}/abc\n"), false),
            (format!("0::/../../pod{uid}/abc\n"), false),
            ("0::/user.slice/session-1.scope\n".to_owned(), false),
            ("0::/kubepods/pod1234/abc\n".to_owned(), false),
            (format!("1:name=systemd:/pod{uid}/abc\n"), false),
            (String::new(), false),
        ];
        for (text, known) in cases {
            let found = container(&text);
            assert_eq!(found.is_some(), known, "{text}");
            if let Some((pod, group)) = found {
                assert_eq!(pod.to_string(), uid);
                assert!(!group.ends_with("nested"), "{}", group.display());
            }
        }
    }

    #[test]
    fn only_the_first_process_of_a_container_has_a_session() {
        for (status, first) in [
            ("Name:\tbaton\nNSpid:\t812\t1\n", true),
            ("NSpid:\t812\t40\t1\n", true),
            ("NSpid:\t812\t7\n", false),
            ("NSpid:\t1\n", false),
            ("NSpid:\t812\n", false),
            ("", false),
        ] {
            assert_eq!(is_first(status), first, "{status}");
        }
    }
}
