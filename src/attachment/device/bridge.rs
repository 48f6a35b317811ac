//! The block device of a bridge: a process of its own.
//!
//! The bridge is not part of the member: a member stuck in `syncfs` would keep `/dev/fuse` open for
//! ever, and the kernel would wait for the answer of a process that waits for the kernel. The same
//! holds of a ublk device, whose server cannot end while it waits for itself.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use nvme::block::{BlockError, Usage};
use nvme::bridge::{Announcement, Behind, Left, UblkDevice};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::{Notify, watch};

use super::{DeviceError, Outlive};
use crate::attachment::word::{Happening, Tell};
use crate::config::Volume;
use crate::decide::Timings;
use crate::process::{Process, ProcessId};

/// The least deadline of one command of the bridge: a loaded volume may take seconds for a flush.
const COMMAND_DEADLINE: Duration = Duration::from_secs(10);

/// How long the kernel may take to let go of a device whose requests have all failed.
const FREED_WITHIN: Duration = Duration::from_secs(2);

/// How often it is looked whether it has: nothing tells.
const LOOK: Duration = Duration::from_millis(20);

/// A device that is there, until it is destroyed or its bridge dies.
pub(in crate::attachment) struct Device {
    path: PathBuf,
    /// Which medium the path names: another number later means that this device is gone.
    sequence: Option<u64>,
    /// The bridge's FUSE connection or ublk device.
    behind: Behind,
    directory: PathBuf,
    kill: Arc<Notify>,
    /// The bridge ends when this does; `None` if it outlives this process.
    stdin: Option<ChildStdin>,
    process: ProcessId,
    gone: watch::Receiver<bool>,
}

/// What another process needs to go on with a bridge that outlives its starter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::attachment) struct BridgeRecord {
    path: PathBuf,
    sequence: Option<u64>,
    behind: Behind,
    directory: PathBuf,
    process: ProcessId,
}

impl Device {
    /// Starts a bridge; its death is a [`Happening::DeviceGone`] with this `made`.
    ///
    /// Must be called on the thread that lives as long as the process: the bridge dies with the
    /// thread that started it.
    pub async fn make(
        volume: &Volume,
        timings: &Timings,
        outlive: Option<&Outlive>,
        made: u64,
        tell: Tell,
    ) -> Result<Self, DeviceError> {
        let system = |attempted| move |source| DeviceError::System { attempted, source };
        let directory = volume.directory.join(made.to_string());
        std::fs::create_dir_all(&directory).map_err(system("make the bridge's directory"))?;
        let mut child = command(volume, timings, &directory, outlive)
            .spawn()
            .map_err(system("start the bridge"))?;
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
        let process = Process::open(pid.ok_or(DeviceError::Ended)?)
            .map_err(system("hold the bridge's process"))?;
        if let Some(outlive) = outlive {
            outlive.take_in(process.id());
        }
        let Announcement {
            device: path,
            behind,
        } = announced(&mut child).await?;
        let stdin = child.stdin.take();
        let (ended, gone) = watch::channel(false);
        let kill = Arc::new(Notify::new());
        let killed = kill.clone();
        tokio::spawn(async move {
            let ended_by_itself = tokio::select! {
                _status = child.wait() => true,
                () = killed.notified() => false,
            };
            // An error means that it has ended just now.
            let _reaped = ended_by_itself || child.kill().await.is_ok();
            ended.send_replace(true);
            tell.say(Happening::DeviceGone { made });
        });
        Ok(Self {
            sequence: nvme::block::disk_sequence(&path),
            path,
            behind,
            directory,
            kill,
            stdin,
            process: process.id(),
            gone,
        })
    }

    /// What another process needs to go on with it.
    pub fn record(&self) -> BridgeRecord {
        BridgeRecord {
            path: self.path.clone(),
            sequence: self.sequence,
            behind: self.behind,
            directory: self.directory.clone(),
            process: self.process,
        }
    }

    /// The device of a bridge that an earlier process started and that has outlived it; `None` if the
    /// bridge has ended.
    pub fn adopt(record: BridgeRecord, made: u64, tell: Tell) -> std::io::Result<Option<Self>> {
        let Some(process) = Process::find(record.process)? else {
            return Ok(None);
        };
        let (ended, gone) = watch::channel(false);
        let kill = Arc::new(Notify::new());
        let killed = kill.clone();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    over = process.ended() => match over {
                        Ok(()) => break,
                        Err(error) => {
                            tracing::error!(%error, "the bridge's end cannot be seen");
                            tokio::time::sleep(LOOK).await;
                        }
                    },
                    () = killed.notified() => if let Err(error) = process.kill() {
                        tracing::error!(%error, "the bridge cannot be killed");
                    },
                }
            }
            ended.send_replace(true);
            tell.say(Happening::DeviceGone { made });
        });
        Ok(Some(Self {
            path: record.path,
            sequence: record.sequence,
            behind: record.behind,
            directory: record.directory,
            kill,
            stdin: None,
            process: record.process,
            gone,
        }))
    }

    /// The block device.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether its bridge lives.
    pub fn is_alive(&self) -> bool {
        !*self.gone.borrow()
    }

    /// Kills the bridge, without waiting for its end.
    pub fn condemn(&self) {
        self.kill.notify_one();
    }

    /// Destroys the device with everything queued in it: the bridge is killed, its connection to the
    /// target breaks, and no write that waits in it is ever sent. [`Remains::prove_gone`] ends when
    /// that is done.
    pub fn destroy(self) -> Remains {
        self.condemn();
        self.remains()
    }

    /// Ends the bridge at the end of the process. What was not flushed is lost: unmount first.
    ///
    /// # Errors
    /// As [`Remains::prove_gone`].
    pub async fn close(self) -> Result<(), DeviceError> {
        // The bridge ends when its standard input does, or when it is told to.
        if self.stdin.is_none() {
            self.condemn();
        }
        self.remains().prove_gone().await
    }

    fn remains(self) -> Remains {
        drop(self.stdin);
        Remains {
            path: self.path,
            sequence: self.sequence,
            behind: self.behind,
            directory: self.directory,
            gone: self.gone,
        }
    }
}

/// What a bridge that was told to end may leave: a process on its way out, and a block device on
/// which a file system is alive.
pub(in crate::attachment) struct Remains {
    path: PathBuf,
    sequence: Option<u64>,
    behind: Behind,
    directory: PathBuf,
    gone: watch::Receiver<bool>,
}

impl Remains {
    /// Those that bridges of earlier processes recorded in their directories below this one.
    pub fn of_earlier(directory: &Path) -> Vec<Self> {
        let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
        let recorded = entries.filter_map(|entry| {
            let directory = entry.path();
            match UblkDevice::recorded(&directory) {
                Ok(device) => device.map(|device| Self::of_dead(device, directory)),
                Err(error) => {
                    tracing::warn!(directory = %directory.display(), %error, "what an earlier bridge left is not known");
                    None
                }
            }
        });
        recorded.collect()
    }

    /// Of a bridge that is no child of this process: it died with its member.
    fn of_dead(device: UblkDevice, directory: PathBuf) -> Self {
        let (_reaped, gone) = watch::channel(true);
        Self {
            path: device.path(),
            sequence: None,
            behind: Behind::Ublk(device),
            directory,
            gone,
        }
    }

    /// Waits until the bridge is reaped, ends whatever still waits for it, and proves that no
    /// superblock of its device is alive. A loop device that went away with its bridge has none, and
    /// another one may have its name by now. A ublk device goes with its bridge whatever is mounted;
    /// what the kernel keeps of it until the last superblock is gone is deleted here.
    ///
    /// # Errors
    /// [`DeviceError::InUse`]: a mount of it is alive, or that cannot be found out.
    pub async fn prove_gone(&mut self) -> Result<(), DeviceError> {
        // The sender is gone only with the task that reaps, at the process's end.
        let _reaped = self.gone.wait_for(|gone| *gone).await.is_ok();
        if !self.is_gone().await {
            self.abort().await;
            let in_use = || DeviceError::InUse {
                path: self.path.clone(),
            };
            let freed = tokio::time::timeout(FREED_WITHIN, async {
                while !self.is_gone().await {
                    tokio::time::sleep(LOOK).await;
                }
            });
            freed.await.map_err(|_elapsed| in_use())?;
        }
        // What stays is no harm: a successor in the directory finds that the device is gone.
        let _kept = UblkDevice::forget(&self.directory);
        let _kept = std::fs::remove_dir(&self.directory);
        Ok(())
    }

    /// Fails the requests that wait for the dead bridge: a file system on its device may hang in
    /// them, and with it whoever looks at all block devices.
    async fn abort(&self) {
        let Some(sequence) = self.sequence else {
            return;
        };
        // The kernel itself does that where a ublk device's server is dead.
        let Behind::Fuse(connection) = self.behind else {
            return;
        };
        let path = self.path.clone();
        let abort = move || nvme::bridge::abort(&path, sequence, connection);
        match off_the_runtime(abort).await {
            Ok(aborted) => {
                tracing::info!(device = %self.path.display(), connection, aborted, "the bridge is dead and its device was in use");
            }
            Err(error) => {
                tracing::warn!(device = %self.path.display(), connection, %error, "requests that wait for the dead bridge could not be ended");
            }
        }
    }

    async fn is_gone(&self) -> bool {
        let (path, sequence) = (self.path.clone(), self.sequence);
        match self.behind {
            Behind::Fuse(_) => off_the_runtime(move || is_gone(&path, sequence)).await,
            Behind::Ublk(device) => off_the_runtime(move || is_removed(device)).await,
        }
    }
}

fn is_gone(path: &Path, sequence: Option<u64>) -> bool {
    if sequence.is_some() && nvme::block::disk_sequence(path) != sequence {
        return true;
    }
    match nvme::block::usage(path) {
        Ok(Usage::Free) => true,
        Ok(Usage::InUse) => false,
        Err(BlockError::System { source, .. }) => nvme::block::is_gone(&source),
        Err(_) => false,
    }
}

fn is_removed(device: UblkDevice) -> bool {
    match device.remove() {
        Ok(left) => left == Left::Nothing,
        Err(error) => {
            tracing::warn!(device = %device.path().display(), %error, "what is left of the ublk device cannot be removed");
            false
        }
    }
}

/// Opening the device of a dead bridge may wait for what waits for that bridge.
async fn off_the_runtime<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> T {
    let called = tokio::task::spawn_blocking(call).await;
    called.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

fn command(
    volume: &Volume,
    timings: &Timings,
    directory: &Path,
    outlive: Option<&Outlive>,
) -> Command {
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
        .args(["--command-deadline-ms", &command_deadline(timings)])
        // A Ctrl-C is for the member, which hands over; the bridge must serve until then.
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(outlive.is_none());
    if let Some(Outlive { members, .. }) = outlive {
        command.stdin(Stdio::null()).arg("--outlive");
        command.arg("--forget").arg(members);
    }
    command
}

/// A silent path must be noticed by the keep-alive, which lets requests wait for a new path, before
/// a command's own deadline makes them fail.
fn command_deadline(timings: &Timings) -> String {
    let deadline = (2 * timings.keep_alive).max(COMMAND_DEADLINE);
    deadline.as_millis().to_string()
}

async fn announced(child: &mut Child) -> Result<Announcement, DeviceError> {
    let stdout = child.stdout.take().ok_or(DeviceError::Ended)?;
    let line = BufReader::new(stdout).lines().next_line().await;
    match line {
        Ok(Some(said)) => serde_json::from_str(&said).map_err(|_| DeviceError::Unreadable { said }),
        Ok(None) | Err(_) => Err(DeviceError::Ended),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn devices_of_earlier_processes_are_found_by_their_records_and_proven_gone() {
        let directory = tempfile::tempdir().expect("make a directory");
        assert!(Remains::of_earlier(&directory.path().join("none")).is_empty());
        for (name, record) in [
            // No kernel gives out this number.
            ("1", Some(r#"{"id":4294967294,"token":7}"#)),
            ("2", None),
            ("3", Some("no record")),
        ] {
            let bridge = directory.path().join(name);
            std::fs::create_dir(&bridge).expect("make a bridge's directory");
            if let Some(record) = record {
                std::fs::write(bridge.join("ublk"), record).expect("write");
            }
        }
        let mut earlier = Remains::of_earlier(directory.path());
        assert_eq!(earlier.len(), 1);
        earlier[0].prove_gone().await.expect("it is gone");
        assert!(!directory.path().join("1").exists());
    }
}
