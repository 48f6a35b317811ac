//! What this machine must have before a member can run here. Looks only; changes nothing.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::unistd::{AccessFlags, User, access};

use super::{Attached, Config, FenceCommand, FenceWatchdog, Fencing, Problem, Transport, Volume};
use super::{api, platform};

/// The shortest secret, in bytes: 128 bits, so that it cannot be guessed from recorded traffic.
pub(crate) const SECRET_MIN_BYTES: usize = 16;

/// Where the kernel shows its devices.
const SYSFS: &str = "/sys";

/// Where the kernel's initiator is told to connect.
const FABRICS: &str = "/dev/nvme-fabrics";

/// The programs of PostgreSQL that a member runs.
const PROGRAMS: [&str; 2] = ["postgres", "initdb"];

/// Notes everything that is missing.
pub(super) fn check(config: &Config, problems: &mut Vec<Problem>) {
    let mut note = |setting: &str, text: String| {
        problems.push(Problem {
            setting: setting.to_owned(),
            text,
        });
    };
    for program in PROGRAMS {
        let path = config.postgres.bin_dir.join(program);
        if let Err(error) = access(&path, AccessFlags::X_OK) {
            let text = format!(
                "cannot run {} ({}); install PostgreSQL 14 or newer, or correct the directory",
                path.display(),
                error.desc()
            );
            note("postgres.bin_dir", text);
        }
    }
    match User::from_name(&config.postgres.os_user) {
        Ok(Some(user)) if user.uid.is_root() => {
            note(
                "postgres.os_user",
                format!(
                    "{} has uid 0, PostgreSQL refuses it; name another user",
                    user.name
                ),
            );
        }
        Ok(Some(_)) => {}
        Ok(None) => {
            let text = format!(
                "there is no user {}; create it with adduser --system",
                config.postgres.os_user
            );
            note("postgres.os_user", text);
        }
        Err(error) => note(
            "postgres.os_user",
            format!("cannot look up users: {}", error.desc()),
        ),
    }
    fences(&config.fencing, &mut note);
    let seed = config.replication.as_ref();
    if let Some(command) = seed.and_then(|replication| replication.seed.as_ref()) {
        runnable(&command.program, "replication.seed.program", &mut note);
    }
    if let Some(volume) = config.volume()
        && let Err(text) = transport(volume)
    {
        note("volume.transport", text);
    }
    // A Secret in a pod belongs to root and is read through the pod's group.
    let closed = match &config.attached {
        Attached::Volume(_) => 0o077,
        Attached::Agent(_) => 0o007,
    };
    if let Err(text) = secret(&config.peer.secret_file, closed) {
        note("peer.secret_file", text);
    }
    if let Some(settings) = &config.api {
        api::here(settings, &config.control.socket, &mut note);
    }
    platform::here(
        config.kubernetes.as_ref(),
        config.pooler.as_ref(),
        &mut note,
    );
    privileges(config, &mut note);
}

/// A member that attaches by itself is root; one with an agent need not be, and its first process ends
/// all others.
fn privileges(config: &Config, note: &mut impl FnMut(&str, String)) {
    let root = nix::unistd::geteuid().is_root();
    let first = nix::unistd::getpid() == nix::unistd::Pid::from_raw(1);
    match &config.attached {
        Attached::Volume(_) if !root => {
            let text = "must run as root: mounting and reservations need it";
            note("", text.to_owned());
        }
        Attached::Agent(_) if root => {
            let text = "with [agent] it must not run as root: run it as postgres.os_user";
            note("", text.to_owned());
        }
        Attached::Agent(_) if !first => {
            let text = "with [agent] it must be the first process of its container: what it starts \
                        ends with it";
            note("", text.to_owned());
        }
        Attached::Volume(_) | Attached::Agent(_) => {}
    }
}

fn runnable(program: &Path, setting: &str, note: &mut impl FnMut(&str, String)) {
    if let Err(error) = access(program, AccessFlags::X_OK) {
        let text = format!("cannot run {} ({})", program.display(), error.desc());
        note(setting, text);
    }
}

/// Whether the further fences have what they need here.
fn fences(fencing: &Fencing, note: &mut impl FnMut(&str, String)) {
    if let Some(FenceCommand { program, .. }) = &fencing.command {
        runnable(program, "fencing.command.program", note);
    }
    if let Some(FenceWatchdog { device, .. }) = &fencing.watchdog
        && let Err(error) = access(device, AccessFlags::W_OK)
    {
        let text = format!(
            "cannot write to {} ({}); load the hardware's driver, or softdog",
            device.display(),
            error.desc()
        );
        note("fencing.watchdog.device", text);
    }
}

/// Whether a member can use the volume this way. Never falls back to the other way: the kernel's
/// devices have a host identity of their own.
fn transport(volume: &Volume) -> Result<(), String> {
    match volume.transport {
        Transport::Tcp => Ok(()),
        Transport::Kernel if !Path::new(FABRICS).exists() => Err(format!(
            "{FABRICS} is missing: load the kernel's initiator (modprobe nvme-tcp), or write \"tcp\""
        )),
        Transport::Kernel => one_host(volume),
    }
}

/// Whether this kernel is connected to the subsystem as this host only.
fn one_host(volume: &Volume) -> Result<(), String> {
    let host = volume.host();
    let found = nvme::kernel::sysfs::subsystems(Path::new(SYSFS)).unwrap_or_default();
    let mut controllers = found
        .iter()
        .filter(|found| found.nqn == volume.subsystem.as_str())
        .flat_map(|found| &found.controllers)
        .filter(|controller| !controller.state.is_ending());
    match controllers.find(|controller| !controller.is_of(&host)) {
        None => Ok(()),
        Some(other) => Err(format!(
            "{} is connected to {} as another host ({}): one kernel must have one host identity; set \
             volume.host_nqn and volume.host_id to it, or disconnect it",
            other.name,
            volume.subsystem,
            other.host_nqn.as_deref().unwrap_or("unknown"),
        )),
    }
}

/// Whether the file holds a secret that is one, with none of the permissions in `closed`.
fn secret(path: &Path, closed: u32) -> Result<(), String> {
    let shown = path.display();
    let make = format!("(umask 077; head -c 32 /dev/urandom | base64 > {shown})");
    let found = std::fs::metadata(path).map_err(|error| {
        format!("cannot read {shown} ({error}); make it with {make} and copy it to every member")
    })?;
    if found.permissions().mode() & closed != 0 {
        return Err(format!(
            "{shown} is open to other users; run chmod 600 {shown}"
        ));
    }
    let text = std::fs::read(path).map_err(|error| format!("cannot read {shown}: {error}"))?;
    if text.trim_ascii().len() < SECRET_MIN_BYTES {
        return Err(format!(
            "{shown} holds less than {SECRET_MIN_BYTES} bytes; make it with {make} and copy it to every member"
        ));
    }
    Ok(())
}
