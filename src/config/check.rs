//! What settings say against each other, or against what Baton promises.

use std::path::{Path, PathBuf};

use nvme::identity::DISCOVERY_NQN;
use nvme::kernel::Identifier;

use super::fences;
use super::platform::{self, Lease};
use super::read::Draft;
use super::replication;
use super::{Attached, Fencing, Peer, Postgres, Problem, Transport, Volume};
use crate::decide::Timings;

/// The longest path of a Unix socket, in bytes, without its terminating zero (unix(7)).
const SOCKET_PATH_MAX: usize = 107;

/// PostgreSQL settings that Baton writes itself, and where to set them instead.
const OURS: [(&str, &str); 9] = [
    ("data_directory", "set postgres.data_directory"),
    ("port", "set postgres.port"),
    ("listen_addresses", "set postgres.listen_addresses"),
    ("unix_socket_directories", "set postgres.socket_directory"),
    ("hba_file", "set postgres.hba"),
    ("config_file", "Baton writes the file itself"),
    ("ident_file", "Baton writes the file itself"),
    (
        "external_pid_file",
        "the data directory holds the one that counts",
    ),
    ("restart_after_crash", "Baton restarts PostgreSQL itself"),
];

/// PostgreSQL settings without which acknowledged writes do not survive.
const NEVER_OFF: [&str; 2] = ["fsync", "full_page_writes"];

/// Notes every contradiction in what could be read.
pub(super) fn contradictions(draft: &Draft, problems: &mut Vec<Problem>) {
    let mut note = |setting: &str, text: String| {
        problems.push(Problem {
            setting: setting.to_owned(),
            text,
        });
    };
    match &draft.attached {
        Some(Attached::Volume(known)) => {
            volume(known, &mut note);
            let taken = [
                ("volume.mount_point", &known.mount_point),
                ("volume.directory", &known.directory),
            ];
            paths(draft, &taken, &mut note);
            if let Some(timings) = &draft.timings {
                transport(known, timings, &mut note);
            }
        }
        Some(Attached::Agent(known)) => {
            paths(
                draft,
                &[("agent.mount_point", &known.mount_point)],
                &mut note,
            );
            agent(draft, &mut note);
        }
        None => {}
    }
    sockets(draft, &mut note);
    if let (Some(fencing), Some(timings)) = (&draft.fencing, &draft.timings) {
        fences::contradictions(fencing, timings, &mut note);
    }
    if let Some(peer) = &draft.peer {
        members(draft, peer, &mut note);
    }
    if let Some(Some(known)) = &draft.api {
        super::api::contradictions(known, draft, &mut note);
    }
    platform::contradictions(draft, &mut note);
    if let Some(Some(known)) = &draft.replication {
        replication::contradictions(known, draft, &mut note);
    }
    if let Some(known) = &draft.postgres {
        postgres(known, draft.peer.as_ref(), &mut note);
    }
}

fn volume(volume: &Volume, note: &mut impl FnMut(&str, String)) {
    for (setting, nqn) in [
        ("volume.subsystem", &volume.subsystem),
        ("volume.host_nqn", &volume.host_nqn),
    ] {
        if nqn.as_str() == DISCOVERY_NQN {
            note(
                setting,
                "is the discovery service; name the subsystem or host itself".to_owned(),
            );
        }
    }
    if volume.subsystem == volume.host_nqn {
        note(
            "volume.host_nqn",
            "is the subsystem's NQN; set the one in /etc/nvme/hostnqn".to_owned(),
        );
    }
    if volume.address.port() == 0 {
        note(
            "volume.address",
            "port 0 is no port to connect to; NVMe/TCP's is 4420".to_owned(),
        );
    }
    if volume.mount_point.parent().is_none() {
        note("volume.mount_point", "must not be /".to_owned());
    }
    if nested(&volume.mount_point, &volume.directory) {
        note(
            "volume.directory",
            "must be apart from volume.mount_point, not within or around it".to_owned(),
        );
    }
}

/// What one initiator cannot do and the other can.
fn transport(volume: &Volume, timings: &Timings, note: &mut impl FnMut(&str, String)) {
    match volume.transport {
        Transport::Tcp => {
            if let Some(Identifier::Eui64(id)) = volume.identifier {
                let text = format!(
                    "{id:016x} is an EUI-64, which only transport \"kernel\" can check: give the UUID or NGUID"
                );
                note("volume.identifier", text);
            }
        }
        Transport::Kernel => {
            let keep_alive = timings.keep_alive;
            if keep_alive.subsec_nanos() != 0 {
                let text =
                    format!("is {keep_alive:?}; the kernel's initiator takes whole seconds only");
                note("timings.keep_alive", text);
            }
        }
    }
}

/// What only a member that attaches by itself can have.
fn agent(draft: &Draft, note: &mut impl FnMut(&str, String)) {
    let none = Fencing::default();
    if draft
        .fencing
        .as_ref()
        .is_some_and(|fencing| *fencing != none)
    {
        let text = "not beside [agent]: a pod names no program and no device of its node";
        note("fencing", text.to_owned());
    }
}

/// Whether one path is the other or lies within it.
fn nested(one: &Path, other: &Path) -> bool {
    one.starts_with(other) || other.starts_with(one)
}

/// What must be there while the volume is not must not lie on it.
fn paths(draft: &Draft, places: &[(&str, &PathBuf)], note: &mut impl FnMut(&str, String)) {
    let journal = draft.journal.as_ref().map(|journal| &journal.path);
    let lease = draft.lease.as_ref().and_then(|lease| match lease {
        Lease::File { path } => Some(path),
        Lease::Kubernetes { .. } => None,
    });
    let pooler = draft.pooler.as_ref().and_then(Option::as_ref);
    let postgres = draft.postgres.as_ref();
    let api = draft.api.as_ref().and_then(Option::as_ref);
    let apart = [
        (
            "api.certificate_file",
            api.and_then(|api| api.certificate_file.as_ref()),
        ),
        ("api.key_file", api.and_then(|api| api.key_file.as_ref())),
        (
            "api.token_file",
            api.and_then(|api| api.token_file.as_ref()),
        ),
        ("runtime_dir", draft.runtime_dir.as_ref()),
        ("lease.path", lease),
        (
            "peer.secret_file",
            draft.peer.as_ref().map(|peer| &peer.secret_file),
        ),
        ("journal.path", journal),
        (
            "pooler.password_file",
            pooler.and_then(|pooler| pooler.password_file.as_ref()),
        ),
        (
            "control.socket",
            draft.control.as_ref().map(|control| &control.socket),
        ),
        (
            "postgres.socket_directory",
            postgres.map(|postgres| &postgres.socket_directory),
        ),
    ];
    for (setting, path) in apart {
        let Some(path) = path else { continue };
        for (place, taken) in places {
            if path.starts_with(taken) && taken.parent().is_some() {
                note(
                    setting,
                    format!("{} lies within {place}; move it elsewhere", path.display()),
                );
            }
        }
    }
    if journal.is_some() && journal == lease {
        note(
            "journal.path",
            "is the lease's file; give it its own".to_owned(),
        );
    }
}

fn sockets(draft: &Draft, note: &mut impl FnMut(&str, String)) {
    let control = draft.control.as_ref().map(|control| control.socket.clone());
    let postgres = draft.postgres.as_ref();
    let postgres = postgres.map(|postgres| postgres.socket_directory.join(".s.PGSQL.65535.lock"));
    for (setting, path) in [
        ("control.socket", control),
        ("postgres.socket_directory", postgres),
    ] {
        let length = path.map_or(0, |path| path.as_os_str().len());
        if length > SOCKET_PATH_MAX {
            let text = format!(
                "makes a socket path of {length} bytes; the system allows {SOCKET_PATH_MAX}: shorten it"
            );
            note(setting, text);
        }
    }
}

fn members(draft: &Draft, peer: &Peer, note: &mut impl FnMut(&str, String)) {
    if peer.listen.port() == 0 {
        let text = "port 0 would be another one at each start; choose a port";
        note("peer.listen", text.to_owned());
    }
    for (index, member) in peer.members.iter().enumerate() {
        let mut wrong = |field: &str, holds: bool, text: &str| {
            if holds {
                note(&format!("peer.members[{index}].{field}"), text.to_owned());
            }
        };
        let itself = draft.member.as_ref() == Some(&member.name);
        wrong(
            "name",
            itself,
            "is this member itself; list only the others",
        );
        wrong(
            "number",
            draft.number == Some(member.number),
            "is this member's own number; each has its own",
        );
        wrong(
            "address",
            member.address.port() == 0,
            "port 0 is no port to connect to",
        );
        wrong(
            "address",
            member.address == peer.listen,
            "is where this member itself listens (peer.listen)",
        );
        let before = &peer.members[..index];
        let shared = "is used by an earlier entry as well; each member has its own";
        wrong(
            "name",
            before.iter().any(|other| other.name == member.name),
            shared,
        );
        wrong(
            "number",
            before.iter().any(|other| other.number == member.number),
            shared,
        );
        wrong(
            "address",
            before.iter().any(|other| other.address == member.address),
            shared,
        );
    }
}

fn postgres(postgres: &Postgres, peer: Option<&Peer>, note: &mut impl FnMut(&str, String)) {
    if postgres.os_user == "root" {
        note(
            "postgres.os_user",
            "PostgreSQL refuses to run as root; name another user".to_owned(),
        );
    }
    if peer.is_some_and(|peer| peer.listen.port() == postgres.port) {
        note(
            "postgres.port",
            "is the port of peer.listen as well; choose another".to_owned(),
        );
    }
    for (name, value) in &postgres.parameters {
        let setting = format!("postgres.parameters.{name}");
        let lower = name.to_ascii_lowercase();
        if let Some((_, instead)) = OURS.iter().find(|(ours, _)| *ours == lower) {
            note(&setting, format!("is not set here: {instead}"));
        }
        if NEVER_OFF.contains(&lower.as_str()) && means_off(value) {
            note(
                &setting,
                "must stay on: without it acknowledged writes are lost in a crash".to_owned(),
            );
        }
    }
}

/// Whether PostgreSQL may read this as false: it takes any prefix of `off`, `false` and `no`, and 0.
fn means_off(value: &str) -> bool {
    let value = value.trim().to_ascii_lowercase();
    !matches!(
        value.as_str(),
        "on" | "true" | "tru" | "tr" | "t" | "yes" | "ye" | "y" | "1"
    )
}
