//! What the machine itself must have: drivers, filesystem, programs, clocks, watchdog.

use std::time::Duration;

use super::Subject;
use super::{Check, Tree};
use crate::clock;
use crate::config::{FenceWatchdog, Transport};
use crate::postgres::Programs;
use crate::volume::{Bounded, within};

/// How far the clock is watched.
const TICK: Duration = Duration::from_millis(20);

/// How long `postgres --version` may take.
const VERSION_WITHIN: Duration = Duration::from_secs(5);

/// The newest major version of PostgreSQL that its developers had released when this was written.
const NEWEST_KNOWN_MAJOR: u32 = 18;

/// The programs of e2fsprogs that make a new volume.
const E2FSPROGS: [&str; 2] = ["mkfs.ext4", "tune2fs"];

/// Where programs are.
const PROGRAM_DIRECTORIES: [&str; 4] = ["usr/sbin", "usr/bin", "sbin", "bin"];

/// Everything that files tell.
pub(super) fn checks(tree: &Tree, subject: Option<&Subject>) -> Vec<Check> {
    let mut checks = Vec::new();
    match subject.map(|subject| subject.volume.transport) {
        Some(Transport::Kernel) => checks.push(kernel_initiator(tree)),
        Some(Transport::Tcp) => checks.push(bridge(tree)),
        None => checks.push(any_transport(tree)),
    }
    checks.push(ext4(tree));
    checks.push(e2fsprogs(tree));
    checks.extend(subject.map(settings));
    checks.push(watchdog(tree, subject));
    checks.push(wall_clock(nvme::block::clock_is_synchronized().ok()));
    checks
}

/// How the kernel has a module.
enum Module {
    /// In it, or loaded.
    There,
    /// Can be loaded.
    Loadable,
    Missing,
}

fn module(tree: &Tree, name: &str, sign: &str) -> Module {
    if tree.has(sign) || tree.has(&format!("sys/module/{}", name.replace('-', "_"))) {
        return Module::There;
    }
    let release = tree.read("proc/sys/kernel/osrelease").unwrap_or_default();
    let list = |file: &str| {
        ["lib/modules", "usr/lib/modules"]
            .iter()
            .find_map(|folder| tree.read(&format!("{folder}/{release}/{file}")))
            .unwrap_or_default()
    };
    let file = format!("/{name}.ko");
    if list("modules.builtin").contains(&file) {
        Module::There
    } else if list("modules.dep").contains(&file) {
        Module::Loadable
    } else {
        Module::Missing
    }
}

fn kernel_initiator(tree: &Tree) -> Check {
    let name = "kernel's initiator";
    if tree.has("dev/nvme-fabrics") {
        return Check::ok(name, "/dev/nvme-fabrics is there");
    }
    match module(tree, "nvme-tcp", "dev/nvme-fabrics") {
        Module::There => Check::problem(
            name,
            "the module nvme-tcp is there, and /dev/nvme-fabrics is not",
            "load nvme-fabrics (modprobe nvme-fabrics); in a container, show it the device",
        ),
        Module::Loadable => Check::problem(
            name,
            "the module nvme-tcp is not loaded",
            "modprobe nvme-tcp, and write nvme-tcp to /etc/modules-load.d/baton.conf",
        ),
        Module::Missing => Check::problem(
            name,
            "this kernel has no module nvme-tcp",
            "install a kernel that has it (a package such as linux-modules-extra), or set volume.transport = \"tcp\"",
        ),
    }
}

fn bridge(tree: &Tree) -> Check {
    let name = "block bridge";
    let missing: Vec<_> = [("dev/fuse", "fuse"), ("dev/loop-control", "loop")]
        .into_iter()
        .filter(|(device, _)| !tree.has(device))
        .collect();
    if missing.is_empty() {
        return Check::ok(name, "/dev/fuse and /dev/loop-control are there");
    }
    let devices: Vec<_> = missing
        .iter()
        .map(|(device, _)| format!("/{device}"))
        .collect();
    let modules: Vec<_> = missing.iter().map(|(_, module)| *module).collect();
    Check::problem(
        name,
        format!("missing: {}", devices.join(", ")),
        format!(
            "modprobe -a {}; in a container, show it the devices",
            modules.join(" ")
        ),
    )
}

/// Without a configuration either way will do.
fn any_transport(tree: &Tree) -> Check {
    use super::Verdict::Ok;
    let name = "way to the volume";
    let (kernel, own) = (kernel_initiator(tree), bridge(tree));
    match (kernel.verdict, own.verdict) {
        (Ok, Ok) => Check::ok(name, "both transports, \"kernel\" and \"tcp\", can be used"),
        (Ok, _) => Check::ok(
            name,
            format!(
                "transport \"kernel\" can be used; \"tcp\" not: {}",
                own.says
            ),
        ),
        (_, Ok) => Check::ok(
            name,
            format!(
                "transport \"tcp\" can be used; \"kernel\" not: {}",
                kernel.says
            ),
        ),
        _ => Check::problem(
            name,
            format!("no transport can be used: {}; {}", kernel.says, own.says),
            [kernel.advice, own.advice]
                .into_iter()
                .flatten()
                .collect::<Vec<_>>()
                .join("; or "),
        ),
    }
}

fn ext4(tree: &Tree) -> Check {
    let name = "ext4";
    let known = tree.read("proc/filesystems").unwrap_or_default();
    if known.split_whitespace().any(|word| word == "ext4") {
        return Check::ok(name, "the kernel has it");
    }
    match module(tree, "ext4", "sys/fs/ext4") {
        Module::There => Check::ok(name, "the kernel has it"),
        Module::Loadable => Check::warning(
            name,
            "the module is not loaded: the first take-over waits for that",
            "write ext4 to /etc/modules-load.d/baton.conf",
        ),
        Module::Missing => {
            Check::problem(name, "this kernel has no ext4", "use a kernel that has it")
        }
    }
}

fn e2fsprogs(tree: &Tree) -> Check {
    let name = "e2fsprogs";
    let missing: Vec<_> = E2FSPROGS
        .into_iter()
        .filter(|program| {
            let at = |directory| tree.has(&format!("{directory}/{program}"));
            !PROGRAM_DIRECTORIES.into_iter().any(at)
        })
        .collect();
    if missing.is_empty() {
        return Check::ok(name, "mkfs.ext4 and tune2fs are there");
    }
    Check::warning(
        name,
        format!(
            "missing: {}; a new volume cannot be prepared here",
            missing.join(", ")
        ),
        "install e2fsprogs",
    )
}

/// What `baton run` would refuse on this machine. The way to the volume has a check of its own.
fn settings(subject: &Subject) -> Check {
    let name = "settings";
    let problems: Vec<_> = subject
        .config
        .missing_here()
        .into_iter()
        .filter(|problem| problem.setting != "volume.transport")
        .map(|problem| problem.to_string())
        .collect();
    if problems.is_empty() {
        return Check::ok(name, "fit this machine");
    }
    Check::problem(name, problems.join("; "), "correct each of them")
}

/// A watchdog is not opened: that would arm it.
fn watchdog(tree: &Tree, subject: Option<&Subject>) -> Check {
    let name = "watchdog";
    let configured = subject.and_then(|subject| subject.config.fencing.watchdog.as_ref());
    let Some(FenceWatchdog { device, .. }) = configured else {
        let there = tree.names("sys/class/watchdog").join(", ");
        return match there.as_str() {
            "" => Check::not_checked(name, "none is configured, and this machine has none"),
            there => Check::not_checked(name, format!("none is configured; there is {there}")),
        };
    };
    let shown = device.display();
    if !tree.has(device.to_string_lossy().trim_start_matches('/')) {
        return Check::problem(
            name,
            format!("{shown} is missing"),
            "load the hardware's driver, or softdog",
        );
    }
    let node = device.file_name().unwrap_or_default().to_string_lossy();
    let node = if node == "watchdog" {
        "watchdog0".into()
    } else {
        node
    };
    let attribute = |file: &str| tree.read(&format!("sys/class/watchdog/{node}/{file}"));
    if attribute("state").as_deref() == Some("active") {
        return Check::warning(
            name,
            format!("{shown} is in use already, by a running member or by another program"),
            "if no member runs here, free it (systemd: RuntimeWatchdogSec=0)",
        );
    }
    let identity = attribute("identity").unwrap_or_else(|| "unknown hardware".to_owned());
    Check::ok(name, format!("{shown} is there: {identity}"))
}

/// Only people read the wall clock.
fn wall_clock(synchronized: Option<bool>) -> Check {
    let name = "wall clock";
    match synchronized {
        Some(true) => Check::ok(name, "synchronized"),
        Some(false) => Check::warning(
            name,
            "not synchronized: logs of two nodes are hard to compare; no decision rests on it",
            "run chrony or systemd-timesyncd",
        ),
        None => Check::not_checked(name, "the kernel does not tell"),
    }
}

/// The clock on which every decision rests.
pub(super) async fn boot_clock() -> Check {
    let name = "boot clock";
    let before = clock::now();
    tokio::time::sleep(TICK).await;
    let passed = clock::now().since(before);
    if passed >= TICK / 2 {
        return Check::ok(name, "CLOCK_BOOTTIME runs");
    }
    Check::problem(
        name,
        format!("CLOCK_BOOTTIME went on by {passed:?} in {TICK:?}"),
        "use another clock source (/sys/devices/system/clocksource/clocksource0)",
    )
}

/// The version that would run.
pub(super) async fn postgres(subject: Option<&Subject>) -> Check {
    let name = "PostgreSQL";
    let bin_dir = subject.map(|subject| subject.config.postgres.bin_dir.clone());
    let ask = move || match bin_dir {
        Some(bin_dir) => Programs::in_directory(&bin_dir),
        None => Programs::detect(None),
    };
    match within(VERSION_WITHIN, "postgres-version", ask).await {
        Ok(Bounded::Done(Ok(programs))) if programs.major > NEWEST_KNOWN_MAJOR => Check::warning(
            name,
            format!(
                "{} is newer than this version of Baton knows",
                programs.version
            ),
            "ask for a newer Baton",
        ),
        Ok(Bounded::Done(Ok(programs))) => Check::ok(name, programs.version),
        Ok(Bounded::Done(Err(error))) => Check::problem(
            name,
            format!("{:#}", anyhow::Error::from(error)),
            "install PostgreSQL 14 or newer, or correct postgres.bin_dir",
        ),
        Ok(Bounded::Stuck(_)) => Check::problem(
            name,
            format!("postgres --version did not answer within {VERSION_WITHIN:?}"),
            "see what hangs (a dead network filesystem?)",
        ),
        Err(error) => Check::not_checked(name, error.to_string()),
    }
}
