//! The block device through which this member mounts: a bridge process of its own.
//!
//! The bridge is not part of the member: a member stuck in `syncfs` would keep `/dev/fuse` open for
//! ever, and the kernel would wait for the answer of a process that waits for the kernel.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use nix::mount::{MntFlags, umount2};
use nvme::block::{BlockError, Usage};
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::{mpsc, watch};

use super::event::Event;
use crate::config::Volume;
use crate::decide::Timings;

/// A device that is there, until it is destroyed or its bridge dies.
pub(super) struct Device {
    path: PathBuf,
    directory: PathBuf,
    pid: nix::unistd::Pid,
    /// The bridge ends when this does.
    stdin: ChildStdin,
    gone: watch::Receiver<bool>,
}

/// Why there is no device.
#[derive(Debug, thiserror::Error)]
pub(super) enum DeviceError {
    /// A directory, a process or a pipe could not be made.
    #[error("{attempted}")]
    System {
        attempted: &'static str,
        #[source]
        source: std::io::Error,
    },
    /// The bridge ended before it had a device; its log says why.
    #[error("the bridge ended before it had a device; see the lines it logged")]
    Ended,
    /// What the bridge said is not understood.
    #[error("the bridge said {said:?} instead of naming its device")]
    Unreadable { said: String },
    /// Somebody still has the old device open exclusively: a superblock of it is alive.
    #[error("{} is still in use: a mount of the old device is alive somewhere", path.display())]
    InUse { path: PathBuf },
}

/// The line with which a bridge says that its device is usable.
#[derive(Deserialize)]
struct Announcement {
    device: PathBuf,
}

impl Device {
    /// Starts a bridge; its death is an [`Event::DeviceGone`] with this `made`.
    ///
    /// Must be called on the thread that lives as long as the process: the bridge dies with the
    /// thread that started it.
    pub async fn make(
        volume: &Volume,
        timings: &Timings,
        made: u64,
        events: mpsc::UnboundedSender<Event>,
    ) -> Result<Self, DeviceError> {
        let system = |attempted| move |source| DeviceError::System { attempted, source };
        let directory = volume.directory.join(made.to_string());
        std::fs::create_dir_all(&directory).map_err(system("make the bridge's directory"))?;
        let mut child = command(volume, timings, &directory)
            .spawn()
            .map_err(system("start the bridge"))?;
        let path = announced(&mut child).await?;
        let pid = child
            .id()
            .and_then(|id| i32::try_from(id).ok())
            .ok_or(DeviceError::Ended)?;
        let stdin = child.stdin.take().ok_or(DeviceError::Ended)?;
        let (ended, gone) = watch::channel(false);
        tokio::spawn(async move {
            let _status = child.wait().await;
            ended.send_replace(true);
            // The loop may have ended already.
            let _closed = events.send(Event::DeviceGone { made });
        });
        Ok(Self {
            path,
            directory,
            pid: nix::unistd::Pid::from_raw(pid),
            stdin,
            gone,
        })
    }

    /// The block device.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Destroys the device with everything queued in it: the bridge is killed, its connection to the
    /// target breaks, and no write that waits in it is ever sent. Ends when that is proven.
    ///
    /// # Errors
    /// [`DeviceError::InUse`]: a mount of it is alive.
    pub async fn destroy(mut self) -> Result<(), (Self, DeviceError)> {
        // It may be gone already; then there is nothing to kill.
        let _gone = nix::sys::signal::kill(self.pid, nix::sys::signal::Signal::SIGKILL);
        if self.ended().await && self.is_free() {
            let _none = umount2(&self.directory, MntFlags::MNT_DETACH);
            let _kept = std::fs::remove_dir(&self.directory);
            Ok(())
        } else {
            let error = DeviceError::InUse {
                path: self.path.clone(),
            };
            Err((self, error))
        }
    }

    /// Ends the bridge in good order: everything it was given has been sent.
    pub async fn close(self) {
        let Self {
            mut gone,
            stdin,
            directory,
            ..
        } = self;
        drop(stdin);
        let _ended = gone.wait_for(|gone| *gone).await.is_ok();
        let _none = umount2(&directory, MntFlags::MNT_DETACH);
        let _kept = std::fs::remove_dir(&directory);
    }

    async fn ended(&mut self) -> bool {
        self.gone.wait_for(|gone| *gone).await.is_ok()
    }

    /// Whether no superblock of the device is alive. One that went away with its bridge has none.
    fn is_free(&self) -> bool {
        match nvme::block::usage(&self.path) {
            Ok(Usage::Free) => true,
            Ok(Usage::InUse) => false,
            Err(BlockError::System { source, .. }) => {
                matches!(
                    source.raw_os_error(),
                    Some(libc::ENXIO | libc::ENOENT | libc::ENODEV)
                )
            }
            Err(_) => false,
        }
    }
}

fn command(volume: &Volume, timings: &Timings, directory: &Path) -> Command {
    // The very program that is running, even if its file was replaced by an upgrade.
    let mut command = Command::new("/proc/self/exe");
    command
        .arg("bridge")
        .args(["--address", &volume.address.to_string()])
        .args(["--subsystem", volume.subsystem.as_str()])
        .args(["--namespace-id", &volume.namespace_id.to_string()])
        .args(["--host-nqn", volume.host_nqn.as_str()])
        .args(["--host-id", &volume.host_id.to_string()])
        .arg("--directory")
        .arg(directory)
        .args([
            "--keep-alive-ms",
            &timings.keep_alive.as_millis().to_string(),
        ])
        .args([
            "--path-loss-ms",
            &timings.path_loss_timeout.as_millis().to_string(),
        ])
        // A Ctrl-C is for the member, which hands over; the bridge must serve until then.
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true);
    command
}

async fn announced(child: &mut Child) -> Result<PathBuf, DeviceError> {
    let stdout = child.stdout.take().ok_or(DeviceError::Ended)?;
    let line = BufReader::new(stdout).lines().next_line().await;
    match line {
        Ok(Some(said)) => serde_json::from_str(&said)
            .map(|announcement: Announcement| announcement.device)
            .map_err(|_| DeviceError::Unreadable { said }),
        Ok(None) | Err(_) => Err(DeviceError::Ended),
    }
}
