//! What settings say against each other, or against what Baton promises.

use std::path::Path;

use nvme::identity::DISCOVERY_NQN;

use super::{Config, Problem, Transport};

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

/// Notes every contradiction.
pub(super) fn contradictions(config: &Config, problems: &mut Vec<Problem>) {
    let mut note = |setting: &str, text: String| {
        problems.push(Problem {
            setting: setting.to_owned(),
            text,
        });
    };
    volume(config, &mut note);
    paths(config, &mut note);
    members(config, &mut note);
    postgres(config, &mut note);
}

fn volume(config: &Config, note: &mut impl FnMut(&str, String)) {
    let volume = &config.volume;
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
    if volume.transport == Transport::Tcp && volume.address.port() == 0 {
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

/// Whether one path is the other or lies within it.
fn nested(one: &Path, other: &Path) -> bool {
    one.starts_with(other) || other.starts_with(one)
}

/// What must be there while the volume is not must not lie on it.
fn paths(config: &Config, note: &mut impl FnMut(&str, String)) {
    let apart = [
        ("runtime_dir", &config.runtime_dir),
        ("lease.path", &config.lease.path),
        ("peer.secret_file", &config.peer.secret_file),
        ("journal.path", &config.journal.path),
        ("control.socket", &config.control.socket),
        (
            "postgres.socket_directory",
            &config.postgres.socket_directory,
        ),
    ];
    for (setting, path) in apart {
        for (place, taken) in [
            ("volume.mount_point", &config.volume.mount_point),
            ("volume.directory", &config.volume.directory),
        ] {
            if path.starts_with(taken) && taken.parent().is_some() {
                note(
                    setting,
                    format!("{} lies within {place}; move it elsewhere", path.display()),
                );
            }
        }
    }
    if config.journal.path == config.lease.path {
        note(
            "journal.path",
            "is the lease's file; give it its own".to_owned(),
        );
    }
    let sockets = [
        ("control.socket", config.control.socket.clone()),
        (
            "postgres.socket_directory",
            config.postgres.socket_directory.join(".s.PGSQL.65535.lock"),
        ),
    ];
    for (setting, path) in sockets {
        let length = path.as_os_str().len();
        if length > SOCKET_PATH_MAX {
            note(
                setting,
                format!(
                    "makes a socket path of {length} bytes; the system allows {SOCKET_PATH_MAX}: shorten it"
                ),
            );
        }
    }
}

fn members(config: &Config, note: &mut impl FnMut(&str, String)) {
    let own = (&config.member, config.number);
    if config.peer.listen.port() == 0 {
        note(
            "peer.listen",
            "port 0 would be another one at each start; choose a port".to_owned(),
        );
    }
    for (index, member) in config.peer.members.iter().enumerate() {
        let setting = |field: &str| format!("peer.members[{index}].{field}");
        let before = &config.peer.members[..index];
        if member.name == *own.0 {
            note(
                &setting("name"),
                format!(
                    "{:?} is this member itself; list only the others",
                    member.name
                ),
            );
        }
        if member.number == own.1 {
            note(
                &setting("number"),
                format!(
                    "{} is this member's own number; each has its own",
                    member.number
                ),
            );
        }
        if member.address.port() == 0 {
            note(
                &setting("address"),
                "port 0 is no port to connect to".to_owned(),
            );
        }
        if member.address == config.peer.listen {
            note(
                &setting("address"),
                "is where this member itself listens (peer.listen)".to_owned(),
            );
        }
        for (field, shared) in [
            ("name", before.iter().any(|other| other.name == member.name)),
            (
                "number",
                before.iter().any(|other| other.number == member.number),
            ),
            (
                "address",
                before.iter().any(|other| other.address == member.address),
            ),
        ] {
            if shared {
                note(
                    &setting(field),
                    "is used by an earlier entry as well; each member has its own".to_owned(),
                );
            }
        }
    }
}

fn postgres(config: &Config, note: &mut impl FnMut(&str, String)) {
    let postgres = &config.postgres;
    if postgres.os_user == "root" {
        note(
            "postgres.os_user",
            "PostgreSQL refuses to run as root; name another user".to_owned(),
        );
    }
    if config.peer.listen.port() == postgres.port {
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
