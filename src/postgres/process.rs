//! The postmaster's process tree, in a PID and IPC namespace of its own.
//!
//! ```text
//! member ── thread "postgres-parent" ── baton postgres-init (pid 1) ── postmaster ── backends …
//!              │ unshares, spawns, waits;       │ dies at the end of its standard input
//!              │ lives as long as the child     │ or with that thread (PR_SET_PDEATHSIG)
//! ```
//!
//! The thread must live as long as its child: the kernel sends the parent-death signal when the
//! parent *thread* ends. When pid 1 dies, however it dies, the kernel kills all others in the
//! namespace and lets pid 1 be reaped only after them: an [`End`] proves that the tree is empty.

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use tokio::sync::{oneshot, watch};

use crate::commands::postgres_init::{EXIT_NOT_STARTED, EXIT_SIGNAL_BASE};

/// What the postmaster can be asked to do, as one byte on the standard input of `postgres-init`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Disconnect everybody, write a checkpoint, end ("fast", SIGINT).
    StopFast,
    /// End at once without a checkpoint; the next start replays ("immediate", SIGQUIT).
    StopImmediate,
    /// Read the configuration again (SIGHUP).
    Reload,
    /// Every process of the tree ends at once (SIGKILL).
    Kill,
}

impl Request {
    const ALL: [Self; 4] = [
        Self::StopFast,
        Self::StopImmediate,
        Self::Reload,
        Self::Kill,
    ];

    const fn byte(self) -> u8 {
        match self {
            Self::StopFast => b'F',
            Self::StopImmediate => b'I',
            Self::Reload => b'H',
            Self::Kill => b'K',
        }
    }

    /// The request that this byte stands for.
    pub fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|request| request.byte() == byte)
    }

    /// The signal by which the postmaster is asked.
    pub const fn signal(self) -> Signal {
        match self {
            Self::StopFast => Signal::SIGINT,
            Self::StopImmediate => Signal::SIGQUIT,
            Self::Reload => Signal::SIGHUP,
            Self::Kill => Signal::SIGKILL,
        }
    }
}

/// How the postmaster ended. The whole process tree is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// It exited; 0 after a stop that was asked for.
    Exited {
        /// Its exit code.
        code: u8,
    },
    /// A signal ended the postmaster.
    Signaled {
        /// The signal's number.
        signal: u8,
    },
    /// The whole tree was killed from outside.
    TreeKilled,
    /// It was never started: see its log.
    NotStarted,
    /// The kernel could not tell how it ended; it did.
    Unknown,
}

impl End {
    fn of(status: ExitStatus) -> Self {
        match status.code().map(u8::try_from) {
            None => Self::TreeKilled,
            Some(Err(_)) => Self::Unknown,
            Some(Ok(EXIT_NOT_STARTED)) => Self::NotStarted,
            Some(Ok(code)) if code > EXIT_SIGNAL_BASE => Self::Signaled {
                signal: code - EXIT_SIGNAL_BASE,
            },
            Some(Ok(code)) => Self::Exited { code },
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited { code } => write!(f, "exited with code {code}"),
            Self::Signaled { signal } => write!(f, "was ended by signal {signal}"),
            Self::TreeKilled => f.write_str("was killed with all its processes"),
            Self::NotStarted => f.write_str("could not be started"),
            Self::Unknown => f.write_str("ended, nobody knows how"),
        }
    }
}

/// What keeps PostgreSQL's processes together, so that all of them can be ended and proven gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    /// A PID and IPC namespace of their own. Needs privilege.
    Namespace,
    /// The container that this process is the first of: `postgres-init` is their subreaper, and should it end
    /// in another way than having reaped them all, this process ends, and the kernel ends the container.
    Container,
}

/// What is to be started.
#[derive(Debug)]
pub struct Spawn {
    /// The `baton` program, for `postgres-init`; normally `/proc/self/exe`.
    pub baton: PathBuf,
    /// The user that runs the postmaster.
    pub user: String,
    /// The postmaster's program and arguments.
    pub command: Vec<String>,
    /// Its log.
    pub log: File,
    /// A lock that every process of the tree shall hold open: it stays taken until the last is gone.
    pub node_lock: Option<OwnedFd>,
    /// What keeps the tree together.
    pub isolation: Isolation,
    /// Kept until the tree is empty: its sender sees by its end that all is gone, whoever still waits for it.
    pub witness: Option<watch::Receiver<()>>,
}

/// Why no process was started.
#[derive(Debug, thiserror::Error)]
#[error("{operation}")]
pub struct SpawnError {
    /// What was attempted.
    pub operation: &'static str,
    /// What the system said.
    #[source]
    pub source: io::Error,
}

fn failed(operation: &'static str) -> impl FnOnce(io::Error) -> SpawnError {
    move |source| SpawnError { operation, source }
}

/// A running postmaster, or one that has ended. Dropping it kills the whole tree.
#[derive(Debug)]
pub struct Postmaster {
    /// Its closing tells `postgres-init` to die.
    words: ChildStdin,
    /// The process id of `postgres-init`, taken away in the moment before it is reaped, so that a
    /// signal can never reach a later process of the same number. Held only for single calls.
    alive: Arc<Mutex<Option<Pid>>>,
    isolation: Isolation,
    end: watch::Receiver<Option<End>>,
}

impl Postmaster {
    /// Starts the process tree; returns as soon as `postgres-init` runs.
    pub async fn spawn(spawn: Spawn) -> Result<Self, SpawnError> {
        let (announce, announced) = oneshot::channel();
        let (ended, end) = watch::channel(None);
        let isolation = spawn.isolation;
        std::thread::Builder::new()
            .name("postgres-parent".to_owned())
            .spawn(move || parent(spawn, announce, &ended))
            .map_err(failed("starting the thread of PostgreSQL's parent"))?;
        let (words, alive) = announced
            .await
            .map_err(|_| failed("starting postgres-init")(io::ErrorKind::BrokenPipe.into()))??;
        Ok(Self {
            words,
            alive,
            isolation,
            end,
        })
    }

    /// Asks the postmaster for something; says nothing about whether it complied.
    pub fn ask(&mut self, request: Request) -> io::Result<()> {
        self.words.write_all(&[request.byte()])
    }

    /// Kills the whole tree.
    pub fn kill(&self) -> io::Result<()> {
        let alive = self.alive.lock().unwrap_or_else(PoisonError::into_inner);
        match (*alive, self.isolation) {
            (Some(pid), Isolation::Namespace) => Ok(kill(pid, Signal::SIGKILL)?),
            // It alone can reap them all.
            (Some(_), Isolation::Container) => (&self.words).write_all(&[Request::Kill.byte()]),
            (None, _) => Ok(()),
        }
    }

    /// How it ended, if it has.
    pub fn ended(&self) -> Option<End> {
        *self.end.borrow()
    }

    /// A watch on its end, for others.
    pub fn watch(&self) -> watch::Receiver<Option<End>> {
        self.end.clone()
    }

    /// Waits for its end, without a bound.
    pub async fn wait(&self) -> End {
        let mut end = self.end.clone();
        let ended = end.wait_for(Option::is_some).await;
        // The sender lives until the end is known; without one the thread panicked, after the reaping.
        ended.ok().and_then(|end| *end).unwrap_or(End::Unknown)
    }

    /// Waits for its end at most this long.
    pub async fn wait_within(&self, deadline: Duration) -> Option<End> {
        tokio::time::timeout(deadline, self.wait()).await.ok()
    }

    /// The process id of `postgres-init` as this process sees it, while it lives.
    pub fn pid(&self) -> Option<i32> {
        self.alive
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .map(Pid::as_raw)
    }
}

type Announced = Result<(ChildStdin, Arc<Mutex<Option<Pid>>>), SpawnError>;

/// The parent thread: unshares, spawns, and waits until the tree is empty.
fn parent(
    mut spawn: Spawn,
    announce: oneshot::Sender<Announced>,
    ended: &watch::Sender<Option<End>>,
) {
    let isolation = spawn.isolation;
    let _witness = spawn.witness.take();
    let started = start(spawn).map_err(|(operation, source)| SpawnError { operation, source });
    let (mut child, pid) = match started {
        Ok(started) => started,
        Err(error) => {
            // Whoever asked may have given up.
            let _ = announce.send(Err(error));
            return;
        }
    };
    let alive = Arc::new(Mutex::new(Some(pid)));
    if let Some(words) = child.stdin.take() {
        // If nobody takes it, its drop closes standard input and ends the tree.
        let _ = announce.send(Ok((words, Arc::clone(&alive))));
    }
    // Leaves it unreaped: only now, with the number taken away, may it be reused.
    while waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT)
        == Err(nix::errno::Errno::EINTR)
    {}
    *alive.lock().unwrap_or_else(PoisonError::into_inner) = None;
    let end = child.wait().map_or(End::Unknown, End::of);
    if isolation == Isolation::Container && matches!(end, End::TreeKilled | End::Unknown) {
        tracing::error!(
            "postgres-init was killed: what it started may live; this container ends, and all of it"
        );
        crate::process::end_container();
    }
    ended.send_replace(Some(end));
}

fn start(spawn: Spawn) -> Result<(Child, Pid), (&'static str, io::Error)> {
    let Spawn {
        baton,
        user,
        command,
        log,
        node_lock,
        isolation,
        witness: _,
    } = spawn;
    // This thread alone: its future children get the new namespaces, the rest of the process stays.
    // IPC: System V shared memory of the database goes with the namespace, nobody else's is seen.
    if isolation == Isolation::Namespace {
        unshare(CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWIPC).map_err(|errno| {
            let attempted = "making a PID and IPC namespace (needs CAP_SYS_ADMIN)";
            (attempted, errno.into())
        })?;
    }
    let inherited = node_lock
        .map(inheritable)
        .transpose()
        .map_err(|error| ("handing the node lock on", error))?;
    let child = Command::new(baton)
        .args(["postgres-init", "--user", &user])
        .args((isolation == Isolation::Container).then_some("--reap"))
        .arg("--")
        .args(command)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(log)
        .current_dir("/")
        // A Ctrl-C at the member's terminal is the member's to act on: it hands over first.
        .process_group(0)
        .spawn()
        .map_err(|error| ("starting postgres-init", error))?;
    // The descriptor without close-on-exec exists for this one spawn only.
    drop(inherited);
    let pid =
        i32::try_from(child.id()).map_err(|e| ("reading a process id", io::Error::other(e)))?;
    Ok((child, Pid::from_raw(pid)))
}

/// The same open file without close-on-exec, so that children inherit it.
fn inheritable(lock: OwnedFd) -> io::Result<OwnedFd> {
    fcntl(lock.as_fd(), FcntlArg::F_SETFD(FdFlag::empty()))?;
    Ok(lock)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    #[test]
    fn requests_survive_the_pipe() {
        for request in Request::ALL {
            assert_eq!(Request::from_byte(request.byte()), Some(request));
        }
        assert_eq!(Request::from_byte(b'x'), None);
    }

    #[test]
    fn exit_codes_tell_how_it_ended() {
        let cases = [
            (0 << 8, End::Exited { code: 0 }),
            (1 << 8, End::Exited { code: 1 }),
            (127 << 8, End::NotStarted),
            ((128 + 9) << 8, End::Signaled { signal: 9 }),
            (9, End::TreeKilled),
        ];
        for (raw, end) in cases {
            assert_eq!(End::of(ExitStatus::from_raw(raw)), end);
        }
    }
}
