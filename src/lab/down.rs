//! Ending a lab, also one whose supervisor was killed, and proving that nothing is left of it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;
use nvme::bridge::{Left, UblkDevice};

use super::fuse::Connection;
use super::layout::Lab;
use super::network::NetworkError;
use super::process::{self, Process, signal_all};
use super::protocol::{AskError, Request, State, ask_supervisor};
use crate::clock;

/// How long the supervisor may take to end everything: all members, then all targets, each
/// up to the supervisor's own bound.
const SHUTDOWN_WITHIN: Duration = Duration::from_secs(120);

/// How long the kernel may take, after the last process has ended, to give back mounts and loop
/// devices.
const GONE_WITHIN: Duration = Duration::from_secs(15);

/// How often it is looked whether something is gone: neither mount namespaces nor loop devices
/// tell of their end.
const LOOK: Duration = Duration::from_millis(50);

/// The lab could not be ended.
#[derive(Debug, thiserror::Error)]
pub enum DownError {
    /// The supervisor runs, but could not be asked.
    #[error("shut the supervisor down")]
    Ask(#[from] AskError),
    /// The sites' networks could not be taken away.
    #[error("take the sites' networks away")]
    Network(#[from] NetworkError),
    /// Something could not be looked at or killed.
    #[error("{what}")]
    Io {
        /// What was attempted.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// Something is still there.
    #[error("the lab in {} has ended, but this is left: {}", dir.display(), left.join(", "))]
    Left {
        /// The lab's directory.
        dir: PathBuf,
        /// What, in words.
        left: Vec<String>,
    },
}

/// Ends the lab: through its supervisor if that lives, else by the process ids it recorded.
pub async fn down(lab: &Lab) -> Result<(), DownError> {
    let recorded = recorded(lab)?;
    let loops = loop_devices(lab);
    let directories = bridge_directories(lab);
    if let Some(supervisor) = recorded
        .as_ref()
        .map(|state| state.supervisor)
        .filter(|s| s.lives())
    {
        let socket = lab.supervisor_socket();
        let asked = ask_supervisor(&socket, &Request::Shutdown, SHUTDOWN_WITHIN);
        match asked.await {
            // it may end before its answer is through
            Ok(_) | Err(AskError::Io { .. }) => gone(supervisor).await,
            Err(AskError::Timeout { .. }) => {}
            Err(error @ (AskError::Answer { .. } | AskError::Refused { .. })) => {
                return Err(error.into());
            }
        }
    }
    kill(&recorded_processes(recorded.as_ref()))?;
    kill(&process::left_of(&lab.dir))?;
    loops
        .iter()
        .filter(|l| l.is_attached())
        .for_each(Loop::abort);
    nothing_left(&lab.dir, &loops, &directories).await?;
    if let Some(wide) = &lab.record.wide
        && !wide.network.is_another_s(&lab.dir)
    {
        wide.network.remove().await?;
    }
    for stale in [lab.processes(), lab.supervisor_socket()] {
        drop(std::fs::remove_file(stale));
    }
    Ok(())
}

/// What the supervisor last recorded; none if the lab is down.
fn recorded(lab: &Lab) -> Result<Option<State>, DownError> {
    let failed = |source| DownError::Io {
        what: "read the lab's record of its processes",
        source,
    };
    match std::fs::read(lab.processes()) {
        Ok(text) => serde_json::from_slice(&text)
            .map(Some)
            .map_err(|error| failed(error.into())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(error)),
    }
}

/// Every recorded process that still lives, with its descendants. The time of its start is
/// recorded too, so none is another's.
fn recorded_processes(state: Option<&State>) -> Vec<Process> {
    let Some(State {
        supervisor,
        targets,
        members,
        links_cut: _,
        line: _,
    }) = state
    else {
        return Vec::new();
    };
    let services = members
        .values()
        .chain(targets.values())
        .filter_map(|service| service.process);
    let roots = services
        .chain([*supervisor])
        .filter(|process| process.lives());
    roots.flat_map(Process::tree).collect()
}

fn kill(processes: &[Process]) -> Result<(), DownError> {
    let killed = signal_all(processes, Signal::SIGKILL);
    killed.map(drop).map_err(|errno| DownError::Io {
        what: "kill what is left",
        source: errno.into(),
    })
}

async fn gone(process: Process) {
    let until = clock::now() + GONE_WITHIN;
    while process.lives() && clock::now() < until {
        tokio::time::sleep(LOOK).await;
    }
}

/// A loop device that a bridge of the lab has open.
struct Loop {
    device: PathBuf,
    sequence: Option<u64>,
    connection: Option<u32>,
}

/// The loop devices that the lab's bridges have open. Their backing file says nothing: it lies in a
/// mount that nobody can see any more.
fn loop_devices(lab: &Lab) -> Vec<Loop> {
    let open = |process: Process| {
        let connection = Connection::of(process).ok().and_then(|c| c.number());
        let descriptors = std::fs::read_dir(format!("/proc/{}/fd", process.pid));
        let descriptors = descriptors.into_iter().flatten().flatten();
        let files = descriptors.filter_map(|entry| std::fs::read_link(entry.path()).ok());
        let devices = files.filter(|file| file.to_string_lossy().starts_with("/dev/loop"));
        devices.map(move |device| Loop {
            sequence: nvme::block::disk_sequence(&device),
            connection,
            device,
        })
    };
    process::left_of(&lab.dir)
        .into_iter()
        .flat_map(open)
        .collect()
}

impl Loop {
    /// Only a loop device that is attached has this directory.
    fn is_attached(&self) -> bool {
        let name = self.device.file_name().unwrap_or_default();
        Path::new("/sys/block").join(name).join("loop").exists()
            && nvme::block::disk_sequence(&self.device) == self.sequence
    }

    /// Fails what waits in it for a bridge that is dead, so that its users let go.
    fn abort(&self) {
        let (Some(sequence), Some(connection)) = (self.sequence, self.connection) else {
            return;
        };
        if let Err(error) = nvme::bridge::abort(&self.device, sequence, connection) {
            let device = self.device.display();
            tracing::warn!(%device, %error, "requests that wait for a dead bridge could not be ended");
        }
    }
}

/// The directories that bridges of the lab have had and not taken away.
fn bridge_directories(lab: &Lab) -> Vec<PathBuf> {
    let names = lab.record.members.keys();
    let bridges = names.map(|name| lab.member(name).bridge());
    // one that never ran has none
    let entries = bridges.filter_map(|bridge| std::fs::read_dir(bridge).ok());
    entries
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect()
}

/// Takes away the ublk device that is recorded in a bridge's directory, and says what is left of it.
fn ublk_left(directory: &Path) -> Option<String> {
    let removed = UblkDevice::recorded(directory).and_then(|device| {
        let Some(device) = device else {
            return Ok(None);
        };
        match device.remove()? {
            Left::Nothing => UblkDevice::forget(directory).map(|()| None),
            Left::Served | Left::Held => Ok(Some(device)),
        }
    });
    match removed {
        Ok(left) => left.map(|device| format!("ublk device {}", device.path().display())),
        Err(error) => Some(format!(
            "the ublk device recorded in {} ({error})",
            directory.display()
        )),
    }
}

/// Waits until no process or mount of the lab is left, and its block devices are free.
async fn nothing_left(
    dir: &Path,
    loops: &[Loop],
    directories: &[PathBuf],
) -> Result<(), DownError> {
    let until = clock::now() + GONE_WITHIN;
    loop {
        let mut left = left(dir, loops)?;
        left.extend(directories.iter().filter_map(|d| ublk_left(d)));
        if left.is_empty() {
            return Ok(());
        }
        if clock::now() >= until {
            return Err(DownError::Left {
                dir: dir.to_owned(),
                left,
            });
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn left(dir: &Path, loops: &[Loop]) -> Result<Vec<String>, DownError> {
    let mut left = Vec::new();
    for process in process::left_of(dir) {
        left.push(format!(
            "process {} ({})",
            process.pid,
            process::program(process)
        ));
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo");
    let mounts = mounts.map_err(|source| DownError::Io {
        what: "read the mounts",
        source,
    })?;
    // field 5 is the mount point (proc_pid_mountinfo(5))
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    left.extend(
        points
            .filter(|p| Path::new(p).starts_with(dir))
            .map(|p| format!("mount {p}")),
    );
    let attached = loops.iter().filter(|l| l.is_attached());
    left.extend(attached.map(|l| format!("loop device {}", l.device.display())));
    Ok(left)
}
