//! `baton postgres-init`: the first process of PostgreSQL's own PID namespace.
//!
//! The kernel kills everything in a PID namespace when its first process ends, and the parent can
//! reap that process only when nothing is left. So this process needs to do three things: die with
//! the member (end of standard input, or its parent thread's death), pass signals on, and end when the
//! postmaster ends. It holds no policy and touches no volume.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl::{set_child_subreaper, set_pdeathsig};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, User};

use crate::postgres::Request;

/// Exit code for "the postmaster could not be started": as a shell reports a missing program.
pub const EXIT_NOT_STARTED: u8 = 127;
/// Added to the signal's number when a signal ended the postmaster: as a shell reports it.
pub const EXIT_SIGNAL_BASE: u8 = 128;

/// Runs the postmaster as the only child of the first process of a PID namespace (internal)
#[derive(clap::Args)]
pub struct Args {
    /// The operating system user that runs PostgreSQL, never root
    #[arg(long)]
    user: String,
    /// Reap every descendant before the end, instead of being the first of a PID namespace
    #[arg(long)]
    reap: bool,
    /// The postmaster and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// Runs the postmaster until it ends; the exit code tells how it ended.
///
/// # Errors
/// When the signals or the standard input cannot be watched. Then everything has been killed.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    // First of all: should the member be gone already, standard input is at its end.
    set_pdeathsig(Signal::SIGKILL).context("asking to die with the member")?;
    if args.reap {
        set_child_subreaper(true).context("becoming the reaper of all descendants")?;
    } else if nix::unistd::getpid() != Pid::from_raw(1) {
        bail!(
            "postgres-init runs only as the first process of a PID namespace; `baton run` starts it"
        );
    }
    // Blocked before the start, so that no signal is lost; the postmaster sets its own mask.
    let signals = watched_signals();
    signals.thread_block().context("blocking signals")?;
    let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
        .context("watching signals")?;
    match start(&args) {
        Ok(postmaster) => {
            let code = attend(postmaster, &signals);
            if args.reap {
                end_all()?;
            }
            Ok(ExitCode::from(code?))
        }
        Err(error) => {
            report(&format!("{error:#}"));
            Ok(ExitCode::from(EXIT_NOT_STARTED))
        }
    }
}

/// SIGTERM, SIGINT, SIGQUIT and SIGHUP are passed on, SIGCHLD says that a child ended.
fn watched_signals() -> SigSet {
    use Signal::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM};
    [SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM]
        .into_iter()
        .collect()
}

/// Standard error is PostgreSQL's log: there is nobody else to tell.
fn report(text: &str) {
    use std::io::Write;
    // Nothing can be done about a log that takes no more lines.
    let _ = writeln!(io::stderr(), "postgres-init: {text}");
}

fn start(args: &Args) -> anyhow::Result<Pid> {
    let user = User::from_name(&args.user)
        .with_context(|| format!("looking up user {}", args.user))?
        .with_context(|| format!("there is no user {}", args.user))?;
    let (program, arguments) = args.command.split_first().context("no command given")?;
    let program = PathBuf::from(program);
    let log = io::stderr()
        .as_fd()
        .try_clone_to_owned()
        .context("duplicating the log")?;
    let child = Command::new(&program)
        .args(arguments)
        // A shell's environment has no business in a server that outlives it.
        .env_clear()
        .env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        )
        .env("LC_ALL", "C.UTF-8")
        .current_dir("/")
        .uid(user.uid.as_raw())
        .gid(user.gid.as_raw())
        .stdin(Stdio::null())
        .stdout(log)
        .spawn()
        .with_context(|| format!("starting {}", program.display()))?;
    let pid = i32::try_from(child.id()).context("the postmaster's process id")?;
    // Not waited for through `child`: this process reaps every orphan of the namespace.
    Ok(Pid::from_raw(pid))
}

/// Waits for the postmaster's end, the member's, or a signal; returns the exit code.
fn attend(postmaster: Pid, signals: &SignalFd) -> anyhow::Result<u8> {
    let input = io::stdin();
    loop {
        if let Some(code) = reap(postmaster)? {
            return Ok(code);
        }
        let mut watched = [
            PollFd::new(input.as_fd(), PollFlags::POLLIN),
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut watched, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno).context("waiting for the member or the postmaster"),
        }
        let [from_member, from_signals] = watched.map(|fd| fd.any().unwrap_or(true));
        if from_member && !obey(postmaster)? {
            report("the member wants it, or is gone: killing PostgreSQL");
            return Ok(EXIT_SIGNAL_BASE + Signal::SIGKILL as u8);
        }
        while from_signals && let Some(info) = signals.read_signal().context("reading a signal")? {
            forward(postmaster, info.ssi_signo);
        }
    }
}

/// Reaps all that ended; the postmaster's end gives the exit code.
fn reap(postmaster: Pid) -> anyhow::Result<Option<u8>> {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) if pid == postmaster => {
                return Ok(Some(u8::try_from(code).unwrap_or(u8::MAX)));
            }
            Ok(WaitStatus::Signaled(pid, signal, _core)) if pid == postmaster => {
                return Ok(Some(EXIT_SIGNAL_BASE + signal as u8));
            }
            Ok(WaitStatus::StillAlive) => return Ok(None),
            Ok(_orphan) => {}
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno).context("waiting for the postmaster"),
        }
    }
}

/// Carries out what the member wrote; false at the end of its words, when the member is gone, and when it
/// wants everything killed.
fn obey(postmaster: Pid) -> anyhow::Result<bool> {
    let mut words = [0_u8; 16];
    let length = match io::stdin().lock().read(&mut words) {
        Ok(length) => length,
        Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(true),
        Err(error) => return Err(error).context("reading from the member"),
    };
    for word in &words[..length] {
        match Request::from_byte(*word) {
            Some(Request::Kill) => return Ok(false),
            Some(request) => send(postmaster, request.signal()),
            None => report(&format!(
                "the member asks for something unknown ({word:#04x})"
            )),
        }
    }
    Ok(length > 0)
}

/// Kills and reaps every descendant: orphans of theirs come to this process, so when it has no child left
/// there is none.
fn end_all() -> anyhow::Result<()> {
    loop {
        for descendant in descendants(nix::unistd::getpid()) {
            // Gone meanwhile, or killed already: the reaping tells.
            let _ = kill(descendant, Signal::SIGKILL);
        }
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Err(Errno::ECHILD) => return Ok(()),
                Ok(WaitStatus::StillAlive) => break,
                Ok(_reaped) => {}
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno).context("reaping PostgreSQL's processes"),
            }
        }
        // The next child's end, or soon: an orphan of one that was killed comes without notice.
        let timeout = PollTimeout::from(10_u8);
        let _ = poll(&mut [], timeout);
    }
}

/// Every process whose line of parents leads to this one.
fn descendants(of: Pid) -> Vec<Pid> {
    let processes: Vec<_> = std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|pid: i32| Some((Pid::from_raw(pid), parent_of(pid)?)))
        .collect();
    let mut found = vec![of];
    let mut next = 0;
    while let Some(parent) = found.get(next).copied() {
        next += 1;
        let children = processes.iter().filter(|(_, of)| *of == parent);
        found.extend(children.map(|(pid, _)| *pid));
    }
    found.split_off(1)
}

/// Field 4 of `/proc/PID/stat`.
fn parent_of(pid: i32) -> Option<Pid> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after_name) = text.rsplit_once(')')?;
    let parent = after_name.split_whitespace().nth(1)?.parse().ok()?;
    Some(Pid::from_raw(parent))
}

fn forward(postmaster: Pid, number: u32) {
    let signal = i32::try_from(number)
        .ok()
        .and_then(|n| Signal::try_from(n).ok());
    match signal {
        Some(Signal::SIGCHLD) | None => {}
        Some(signal) => send(postmaster, signal),
    }
}

fn send(postmaster: Pid, signal: Signal) {
    // It cannot be another process: only this one reaps it, and has not yet.
    if let Err(errno) = kill(postmaster, signal) {
        report(&format!("sending {signal} to the postmaster: {errno}"));
    }
}
