//! The kernel's connections to the volume: paths, time-outs, write cache.

use nvme::kernel::sysfs::{self, Controller, Disk, Subsystem};
use nvme::kernel::{PathView, Selector, paths};

use super::Subject;
use super::{Check, Tree};
use crate::config::{Transport, Volume};

/// What the kernel's time-outs should be at most, in seconds; a member sets them, but for the
/// keep-alive time-out, which is of the connection's making.
const FAST_IO_FAIL_MAX: u32 = 10;
const RECONNECT_DELAY_MAX: u32 = 2;
const IO_TIMEOUT_MAX_MS: u64 = 10_000;

const BY_ITSELF: &str = "a member sets them when it makes its device anew: start it; or connect with \
    --keep-alive-tmo=5 --reconnect-delay=1, write 5 to the controller's fast_io_fail_tmo in \
    /sys/class/nvme, and boot with nvme_core.io_timeout=10 nvme_core.admin_timeout=10";

/// With the kernel's transport only.
pub(super) fn checks(tree: &Tree, subject: Option<&Subject>) -> Vec<Check> {
    let Some(subject) = subject.filter(|subject| subject.volume.transport == Transport::Kernel)
    else {
        return Vec::new();
    };
    let found = match sysfs::subsystems(&tree.path("sys")) {
        Ok(found) => found,
        Err(error) => {
            let why = format!("{:#}", anyhow::Error::from(error));
            return vec![Check::not_checked("paths", why)];
        }
    };
    let volume = &subject.volume;
    let named = |subsystem: &&Subsystem| subsystem.nqn == volume.subsystem.as_str();
    let Some(subsystem) = found.iter().find(named) else {
        let why = "the kernel is not connected to the volume: a member connects when it starts";
        return vec![
            Check::not_checked("paths", why),
            Check::not_checked("time-outs", why),
            Check::not_checked("write cache", why),
        ];
    };
    let meant: Vec<_> = subsystem
        .disks
        .iter()
        .filter(|disk| selector(volume).fits(disk))
        .collect();
    let mut checks = vec![ways(subsystem, &meant), time_outs(tree, subsystem, subject)];
    checks.extend(meant.first().map(|disk| write_cache(tree, disk)));
    if !meant.is_empty() {
        checks.extend(shared(subsystem, volume));
    }
    checks
}

fn selector(volume: &Volume) -> Selector {
    Selector {
        nsid: Some(volume.namespace_id),
        identifier: volume.identifier,
    }
}

fn ways(subsystem: &Subsystem, meant: &[&Disk]) -> Check {
    let name = "paths";
    let views: Vec<_> = meant
        .iter()
        .flat_map(|disk| paths(subsystem, disk))
        .collect();
    let shown: Vec<_> = views.iter().map(PathView::to_string).collect();
    let shown = shown.join("; ");
    let usable = views.iter().filter(|view| view.is_usable()).count();
    if meant.is_empty() {
        return Check::problem(
            name,
            "the kernel is connected, and has no such namespace",
            "correct volume.namespace_id or volume.identifier, or let the target show the namespace to this host",
        );
    }
    if usable == 0 {
        return Check::problem(
            name,
            format!("none is usable: {shown}"),
            "see to the network and the target; the kernel's log says more",
        );
    }
    if meant.len() > 1 {
        return Check::warning(
            name,
            format!(
                "{} block devices of one volume: multipath is off: {shown}",
                meant.len()
            ),
            "set nvme_core.multipath=Y, or keep one connection",
        );
    }
    if usable < views.len() {
        return Check::warning(
            name,
            format!("{usable} of {} usable: {shown}", views.len()),
            "see to the others before they are needed",
        );
    }
    Check::ok(name, shown)
}

fn time_outs(tree: &Tree, subsystem: &Subsystem, subject: &Subject) -> Check {
    let name = "time-outs";
    let keep_alive = subject.config.timings.keep_alive.as_secs();
    let mut slow = Vec::new();
    for controller in subsystem
        .controllers
        .iter()
        .filter(|c| !c.state.is_ending())
    {
        let of = &controller.name;
        if controller
            .keep_alive
            .is_some_and(|kato| kato == 0 || u64::from(kato) > keep_alive)
        {
            slow.push(format!(
                "{of}: keep-alive {} s, timings.keep_alive is {keep_alive} s",
                controller.keep_alive.unwrap_or(0)
            ));
        }
        match controller.fast_io_fail {
            None => slow.push(format!(
                "{of}: fast_io_fail_tmo is off: writes wait, and are sent late"
            )),
            Some(s) if s > FAST_IO_FAIL_MAX => slow.push(format!("{of}: fast_io_fail_tmo {s} s")),
            Some(_) => {}
        }
        if let Some(s) = controller
            .reconnect_delay
            .filter(|s| *s > RECONNECT_DELAY_MAX)
        {
            slow.push(format!("{of}: reconnect_delay {s} s"));
        }
        slow.extend(slow_queues(tree, controller));
    }
    if slow.is_empty() {
        return Check::ok(name, "fit a quick fail-over");
    }
    Check::warning(name, slow.join("; "), BY_ITSELF)
}

/// I/O and admin time-outs that hold up the end of a device on a silent path.
fn slow_queues(tree: &Tree, controller: &Controller) -> Vec<String> {
    let at = format!("sys/class/nvme/{}", controller.name);
    let entries = tree.names(&at).into_iter();
    let queues = entries.map(|entry| format!("{at}/{entry}/queue/io_timeout"));
    let admin = [
        "admin_timeout",
        "sys/module/nvme_core/parameters/admin_timeout",
    ];
    let own = tree
        .read(&format!("{at}/{}", admin[0]))
        .and_then(|ms| ms.parse().ok());
    let of_all = tree.read(admin[1]).and_then(|s| s.parse().ok());
    let admin = own.or(of_all.map(|s: u64| s.saturating_mul(1000)));
    queues
        .filter_map(|path| tree.read(&path)?.parse().ok())
        .map(|ms| ("I/O", ms))
        .chain(admin.map(|ms| ("admin", ms)))
        .filter(|(_, ms)| *ms > IO_TIMEOUT_MAX_MS)
        .map(|(what, ms)| format!("{}: {what} time-out {} s", controller.name, ms / 1000))
        .collect()
}

/// Whether the kernel knows that there is something to flush.
fn write_cache(tree: &Tree, disk: &Disk) -> Check {
    let name = "write cache";
    let mode = tree.read(&format!("sys/class/block/{}/queue/write_cache", disk.name));
    match mode.as_deref() {
        Some("write back") => Check::ok(name, "volatile; the kernel flushes it at every commit"),
        Some("write through") => Check::ok(
            name,
            "none that could lose a write, by the kernel's account",
        ),
        Some(other) => Check::warning(
            name,
            format!("unknown mode {other:?}"),
            "see that flushes reach the volume",
        ),
        None => Check::not_checked(name, "the kernel does not tell"),
    }
}

/// Other namespaces on the same controllers, which are deleted when the device is made anew.
fn shared(subsystem: &Subsystem, volume: &Volume) -> Option<Check> {
    let others: Vec<_> = subsystem
        .disks
        .iter()
        .filter(|disk| !selector(volume).fits(disk))
        .map(|disk| disk.name.clone())
        .collect();
    (!others.is_empty()).then(|| {
        Check::warning(
            "own controllers",
            format!(
                "{} hang on the same controllers: a member that makes its device anew takes them away for a moment, and refuses while one is in use",
                others.join(", ")
            ),
            "give the cluster a subsystem of its own",
        )
    })
}
