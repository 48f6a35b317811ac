//! Namespaces of the test's own: network, mounts and processes.
//!
//! No packet can leave, whatever the machines do; and whatever ends this program, even SIGKILL, the
//! kernel ends every process in the namespaces, and with the last of them the network devices and
//! the mounts, scratch files included, are gone.

use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::signal::Signal;

use crate::options::Options;

/// Room for disks and consoles; taken only as it is used.
const SCRATCH_SIZE: &str = "size=6g,mode=700";

/// Starts this program again as the first process of new namespaces, and waits for it.
pub fn enter(options: &Options) -> Result<ExitCode> {
    ensure!(
        options.scratch.is_dir(),
        "no folder {}",
        options.scratch.display()
    );
    let flags = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID;
    unshare(flags).context("make namespaces (as root?)")?;
    let program = std::env::current_exe().context("find this program")?;
    let status = Command::new(program)
        .arg("inside")
        .args(std::env::args_os().skip(2))
        .status()
        .context("start inside the namespaces")?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}

/// Makes the new namespaces usable. To be called before any other thread is started.
pub fn settle(options: &Options) -> Result<()> {
    ensure!(std::process::id() == 1, "this mode is for `run` alone");
    prctl::set_pdeathsig(Signal::SIGKILL).context("follow the parent")?;
    let none: Option<&str> = None;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(none, "/", none, private, none).context("make mounts private")?;
    mount(none, "/proc", Some("proc"), MsFlags::empty(), none).context("mount /proc")?;
    let (kind, size) = (Some("tmpfs"), Some(SCRATCH_SIZE));
    mount(none, &options.scratch, kind, MsFlags::empty(), size).context("mount scratch files")
}
