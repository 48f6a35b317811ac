//! Starting PostgreSQL, and knowing when it is up, by events instead of polling.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fencing::Licence;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use serde::{Deserialize, Serialize};
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use super::configuration::{self, ConfigurationError};
use super::instance::Instance;
use super::process::{End, Isolation, Postmaster, Spawn, SpawnError};
use super::replication::{self, ConfigureError, Serving};

const PID_FILE: &str = "postmaster.pid";

/// The line of `postmaster.pid` that holds the postmaster's status, counted from 0
/// (`LOCK_FILE_LINE_PM_STATUS` in PostgreSQL's `pidfile.h`).
const STATUS_LINE: usize = 7;

/// How much of the log's end is shown when a start fails, in bytes.
const LOG_TAIL: u64 = 2048;

/// A longer log, in bytes, is put aside at a start, in place of the one before.
const LOG_MAX: u64 = 64 << 20;

/// What the postmaster says of itself in `postmaster.pid`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PostmasterStatus {
    /// Starting, or replaying the write-ahead log.
    Starting,
    /// Accepts connections, as a primary or a hot standby.
    Ready,
    /// Replays as a replica and accepts no connections.
    Standby,
    /// Stopping.
    Stopping,
}

impl PostmasterStatus {
    /// The status line of a `postmaster.pid`; `None` as long as there is none.
    fn parse(pid_file: &str) -> Option<Self> {
        match pid_file.lines().nth(STATUS_LINE)?.trim_end() {
            "starting" => Some(Self::Starting),
            "ready" => Some(Self::Ready),
            "standby" => Some(Self::Standby),
            "stopping" => Some(Self::Stopping),
            _ => None,
        }
    }
}

/// Why PostgreSQL does not run.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Its configuration could not be written.
    #[error("configuring PostgreSQL")]
    Configuration(#[from] ConfigurationError),
    /// The data directory could not be made ready for its role among the sites.
    #[error("preparing the database for its role")]
    Role(#[from] ConfigureError),
    /// A step on the filesystem failed.
    #[error("{operation} {}", path.display())]
    Step {
        /// What was attempted.
        operation: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Another server answers on the Unix socket.
    #[error("another PostgreSQL serves on {}; stop it, or set postgres.port or postgres.socket_directory", path.display())]
    SocketInUse {
        /// The socket.
        path: PathBuf,
    },
    /// Its processes could not be started.
    #[error("starting PostgreSQL")]
    Spawn(#[from] SpawnError),
}

/// Why PostgreSQL that was started is not ready.
#[derive(Debug, thiserror::Error)]
pub enum NotReady {
    /// It ended.
    #[error("PostgreSQL {end} while starting: {log}")]
    Ended {
        /// How.
        end: End,
        /// The end of its log.
        log: String,
    },
    /// It is still starting (perhaps replaying) at the deadline. It goes on.
    #[error("PostgreSQL is not ready after {waited:?}: {}", describe(*status))]
    Deadline {
        /// What it said last.
        status: Option<PostmasterStatus>,
        /// How long was waited.
        waited: Duration,
    },
    /// The data directory could not be watched.
    #[error("watching {}", path.display())]
    Watch {
        /// The data directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

fn describe(status: Option<PostmasterStatus>) -> &'static str {
    match status {
        None => "it has not said anything yet",
        Some(PostmasterStatus::Starting) => "it is still starting or replaying",
        Some(PostmasterStatus::Ready) => "it is ready",
        Some(PostmasterStatus::Standby) => "it replays and is not consistent yet",
        Some(PostmasterStatus::Stopping) => "it is stopping",
    }
}

/// A postmaster that was launched, and what tells when it is ready.
#[derive(Debug)]
pub struct Launched {
    /// Its process tree.
    pub postmaster: Postmaster,
    /// Its way to readiness.
    pub starting: Starting,
}

/// Tells when a launched postmaster is ready. Apart from the [`Postmaster`], so that another task
/// can stop that one meanwhile.
#[derive(Debug)]
pub struct Starting {
    end: watch::Receiver<Option<End>>,
    /// Made before the start, so that no change is missed.
    changes: Result<AsyncFd<OwnedFd>, io::Error>,
    pid_file: PathBuf,
    data_directory: PathBuf,
    log_file: PathBuf,
    log_from: u64,
}

/// What PostgreSQL gets from whoever starts it.
#[derive(Debug)]
pub struct StartedBy<'a> {
    /// The program `baton`, for PostgreSQL's first process.
    pub baton: &'a Path,
    /// The lock that every process of it shall hold.
    pub node_lock: Option<OwnedFd>,
    /// What keeps its processes together.
    pub isolation: Isolation,
    /// See [`Spawn::witness`].
    pub witness: Option<watch::Receiver<()>>,
}

impl StartedBy<'_> {
    /// The same, for one more process.
    pub fn again(&self) -> io::Result<StartedBy<'_>> {
        let lock = self.node_lock.as_ref().map(OwnedFd::try_clone);
        Ok(StartedBy {
            baton: self.baton,
            node_lock: lock.transpose()?,
            isolation: self.isolation,
            witness: self.witness.clone(),
        })
    }
}

impl StartError {
    /// The node's lock could not be handed on.
    pub(super) fn lock(source: io::Error) -> Self {
        Self::Spawn(SpawnError {
            operation: "handing the node lock on",
            source,
        })
    }
}

/// Starts PostgreSQL on the mounted volume. Returns when its first process runs, long before it is
/// ready: see [`Starting::ready`].
///
/// SAFETY.md: only under a permit, whose licence this is. A `postmaster.pid` that is still there is removed, because the
/// permit proves that no other host writes and the node lock that no other process here does.
pub async fn launch(
    licence: &Licence,
    instance: &Instance,
    by: StartedBy<'_>,
) -> Result<Launched, StartError> {
    launch_as(licence, instance, &Serving::Alone, by).await
}

/// As [`launch`], in a cluster of several sites: as the primary, or as a replica. A replica's data directory is
/// made one, a primary's must be one already.
pub async fn launch_as(
    _licence: &Licence,
    instance: &Instance,
    serving: &Serving,
    by: StartedBy<'_>,
) -> Result<Launched, StartError> {
    let command = configuration::write(instance, serving)?;
    let pid_file = instance.data_directory.join(PID_FILE);
    refuse_served_socket(instance)?;
    remove_stale(&pid_file)?;
    replication::prepare(instance, serving)?;
    let log_file = instance.log_file();
    let log = open_log(&log_file)?;
    let log_from = log.metadata().map_or(0, |metadata| metadata.len());
    let changes = watch_directory(&instance.data_directory);
    let postmaster = Postmaster::spawn(Spawn {
        baton: by.baton.to_owned(),
        user: instance.user.name.clone(),
        command,
        log,
        node_lock: by.node_lock,
        isolation: by.isolation,
        witness: by.witness,
    })
    .await?;
    let starting = Starting {
        end: postmaster.watch(),
        changes,
        pid_file,
        data_directory: instance.data_directory.clone(),
        log_file,
        log_from,
    };
    Ok(Launched {
        postmaster,
        starting,
    })
}

/// PostgreSQL asks the process id in the socket's lock file whether the socket is still in use. From
/// within its own PID namespace it would take any other server for dead, and its socket away.
fn refuse_served_socket(instance: &Instance) -> Result<(), StartError> {
    let name = format!(".s.PGSQL.{}", instance.port);
    let path = instance.socket_directory.join(name);
    match UnixStream::connect(&path) {
        Ok(_) => Err(StartError::SocketInUse { path }),
        // Nobody listens, or there is no socket; anything else PostgreSQL itself will report.
        Err(_) => Ok(()),
    }
}

fn remove_stale(pid_file: &Path) -> Result<(), StartError> {
    match fs::remove_file(pid_file) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(StartError::Step {
            operation: "removing",
            path: pid_file.to_owned(),
            source,
        }),
    }
}

fn open_log(path: &Path) -> Result<File, StartError> {
    let failed = |operation| {
        move |source| StartError::Step {
            operation,
            path: path.to_owned(),
            source,
        }
    };
    if fs::metadata(path).is_ok_and(|log| log.len() > LOG_MAX) {
        fs::rename(path, path.with_extension("log.1")).map_err(failed("renaming"))?;
    }
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o640)
        .open(path)
        .map_err(failed("opening"))
}

#[allow(
    deprecated,
    reason = "unsound only for types that change their descriptor, which OwnedFd never does; the \
              successor is an unsafe function, and this crate forbids those"
)]
fn watch_directory(directory: &Path) -> io::Result<AsyncFd<OwnedFd>> {
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
    inotify.add_watch(
        directory,
        AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MODIFY,
    )?;
    AsyncFd::new(inotify.into())
}

impl Starting {
    /// Waits until the postmaster says that it accepts connections (or, as a replica that is not
    /// consistent yet, that it replays).
    pub async fn ready(&self, deadline: Duration) -> Result<PostmasterStatus, NotReady> {
        let ended = async {
            let mut end = self.end.clone();
            // The sender is gone only when everything has been reaped.
            let end = match end.wait_for(Option::is_some).await {
                Ok(end) => end.unwrap_or(End::Unknown),
                Err(_) => End::Unknown,
            };
            Err(NotReady::Ended {
                end,
                log: self.log_tail(),
            })
        };
        let ready = async {
            tokio::select! {
                biased;
                ended = ended => ended,
                said = self.said_ready() => said,
            }
        };
        match tokio::time::timeout(deadline, ready).await {
            Ok(outcome) => outcome,
            Err(_elapsed) => Err(NotReady::Deadline {
                status: self.status(),
                waited: deadline,
            }),
        }
    }

    async fn said_ready(&self) -> Result<PostmasterStatus, NotReady> {
        loop {
            match self.status() {
                Some(status @ (PostmasterStatus::Ready | PostmasterStatus::Standby)) => {
                    return Ok(status);
                }
                Some(PostmasterStatus::Starting | PostmasterStatus::Stopping) | None => {}
            }
            self.changed().await?;
        }
    }

    /// Waits for a change in the data directory. A change before the call counts.
    async fn changed(&self) -> Result<(), NotReady> {
        let failed = |source| NotReady::Watch {
            path: self.data_directory.clone(),
            source,
        };
        let watch = self
            .changes
            .as_ref()
            .map_err(|error| failed(error.kind().into()))?;
        let mut ready = watch.readable().await.map_err(failed)?;
        let mut events = [0_u8; 4096];
        // What changed does not matter: the status is read anew. Empty the queue, then wait again.
        loop {
            match nix::unistd::read(watch.get_ref(), &mut events) {
                Ok(_) => {}
                Err(nix::errno::Errno::EINTR) => {}
                Err(nix::errno::Errno::EAGAIN) => break,
                Err(errno) => return Err(failed(errno.into())),
            }
        }
        ready.clear_ready();
        Ok(())
    }

    /// What the postmaster says of itself now.
    pub fn status(&self) -> Option<PostmasterStatus> {
        let text = fs::read_to_string(&self.pid_file).ok()?;
        PostmasterStatus::parse(&text)
    }

    /// The end of what this start wrote to the log, without the time stamps' bulk.
    pub fn log_tail(&self) -> String {
        read_tail(&self.log_file, self.log_from).unwrap_or_default()
    }
}

fn read_tail(path: &Path, from: u64) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(from.max(length.saturating_sub(LOG_TAIL))))?;
    let mut bytes = Vec::new();
    file.take(LOG_TAIL).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_is_the_eighth_line() {
        let file = |status: &str| format!("2\n/d\n1700000000\n5432\n/s\n*\n 1 2\n{status}");
        let cases = [
            ("starting\n", Some(PostmasterStatus::Starting)),
            ("ready   \n", Some(PostmasterStatus::Ready)),
            ("standby \n", Some(PostmasterStatus::Standby)),
            ("stopping\n", Some(PostmasterStatus::Stopping)),
            ("read", None),
            ("", None),
        ];
        for (status, expected) in cases {
            assert_eq!(
                PostmasterStatus::parse(&file(status)),
                expected,
                "{status:?}"
            );
        }
        assert_eq!(PostmasterStatus::parse("2\n/d\n"), None);
    }
}
