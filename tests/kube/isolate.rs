//! Namespaces of the test's own: network, mounts and processes.
//!
//! Whatever ends this program, even SIGKILL, the kernel ends every process in the namespaces, and with the
//! last of them mounts and network devices are gone. What is not in a namespace, the control groups, is
//! removed by the process outside.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::signal::Signal;

use crate::door;
use crate::options::Options;

/// Room for the volume and logs; taken only as it is used.
const SCRATCH_SIZE: &str = "size=6g,mode=755";

/// Where the unified control group hierarchy is: alone, or beside those of the first version.
const CONTROL_GROUPS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

/// How long the last processes may take to be gone.
const GONE: Duration = Duration::from_secs(10);

/// The control group of this run, in the unified hierarchy.
pub fn control_group() -> Result<PathBuf> {
    let root = CONTROL_GROUPS
        .into_iter()
        .find(|root| Path::new(root).join("cgroup.controllers").exists())
        .context("this machine has no unified control groups (cgroup2)")?;
    let run = std::env::var("BATON_KUBE_RUN").context("this mode is for `run` alone")?;
    Ok(Path::new(root).join(format!("baton-kube-{run}")))
}

/// Starts this program again as the first process of new namespaces, and waits for it.
pub fn enter(options: &Options) -> Result<ExitCode> {
    ensure!(
        options.scratch.is_dir(),
        "no folder {}",
        options.scratch.display()
    );
    // Before any thread: a variable of the environment that the process inside reads.
    let run = std::process::id().to_string();
    let program = std::env::current_exe().context("find this program")?;
    let door = options
        .kubeconfig
        .as_deref()
        .map(door::outside)
        .transpose()?;
    let mut command = Command::new(program);
    command
        .arg("inside")
        .args(std::env::args_os().skip(2))
        .env("BATON_KUBE_RUN", &run)
        .env_remove("KUBECONFIG");
    if let Some(door) = &door {
        command.env("BATON_KUBE_DOOR", door.socket());
    }
    let child = std::thread::spawn(move || -> Result<_> {
        let flags = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID;
        // This thread alone: the door's threads stay outside.
        unshare(flags).context("make namespaces (as root?)")?;
        command.status().context("start inside the namespaces")
    });
    let status = child
        .join()
        .map_err(|_| anyhow::anyhow!("the thread panicked"))??;
    for root in CONTROL_GROUPS {
        remove_group(&Path::new(root).join(format!("baton-kube-{run}")));
    }
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}

/// Removes a control group and those below it, once their processes are gone.
fn remove_group(group: &Path) {
    let children = std::fs::read_dir(group).into_iter().flatten().flatten();
    for child in children.filter(|child| child.path().is_dir()) {
        remove_group(&child.path());
    }
    let until = Instant::now() + GONE;
    while group.exists() && std::fs::remove_dir(group).is_err() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(20));
    }
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
    mount(none, &options.scratch, kind, MsFlags::empty(), size).context("mount scratch files")?;
    std::fs::create_dir_all(control_group()?).context("make the run's control group")
}
