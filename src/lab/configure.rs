//! The members' configuration files. Only what a lab must say is said: timings and PostgreSQL's
//! settings are the defaults, so that a drill measures what a user gets; but for [`TIMINGS`].

use std::path::PathBuf;

use serde::Serialize;

use super::layout::{Lab, LayoutError, MEMBERS, Member, postgres_bin};

/// The subsystem that the lab's target serves.
pub const SUBSYSTEM: &str = "nqn.2026-11.dev.baton:lab";

/// The data directory, relative to the mount point.
pub const DATA_DIRECTORY: &str = "pgdata";

/// How soon a crashed owner may be ready again: 3 × keep-alive time-out + quiesce time, 11 s instead of
/// 25 s. The lab's target reports a quiesce time of 1 s. No take-over that is measured waits for it.
const TIMINGS: TimingsToml = TimingsToml {
    keep_alive: "3s",
    quiesce: "2s",
};

#[derive(Serialize)]
struct TimingsToml {
    keep_alive: &'static str,
    quiesce: &'static str,
}

#[derive(Serialize)]
struct MemberToml {
    cluster: &'static str,
    member: String,
    number: u8,
    runtime_dir: PathBuf,
    volume: VolumeToml,
    lease: LeaseToml,
    peer: PeerToml,
    postgres: PostgresToml,
    timings: TimingsToml,
    journal: PathToml,
    control: SocketToml,
    api: ListenToml,
}

#[derive(Serialize)]
struct VolumeToml {
    address: String,
    subsystem: &'static str,
    host_nqn: String,
    host_id: String,
    mount_point: PathBuf,
    directory: PathBuf,
}

#[derive(Serialize)]
struct LeaseToml {
    path: PathBuf,
}

#[derive(Serialize)]
struct PeerToml {
    listen: String,
    secret_file: PathBuf,
    members: Vec<OtherToml>,
}

#[derive(Serialize)]
struct OtherToml {
    name: String,
    number: u8,
    address: String,
}

#[derive(Serialize)]
struct PostgresToml {
    bin_dir: PathBuf,
    port: u16,
    listen_addresses: &'static str,
    data_directory: &'static str,
    socket_directory: PathBuf,
    hba: [&'static str; 1],
}

#[derive(Serialize)]
struct PathToml {
    path: PathBuf,
}

#[derive(Serialize)]
struct SocketToml {
    socket: PathBuf,
}

#[derive(Serialize)]
struct ListenToml {
    listen: String,
}

/// Writes both members' `member.toml`.
pub fn write(lab: &Lab) -> Result<(), LayoutError> {
    let bin_dir = postgres_bin()?;
    for name in MEMBERS {
        let member = lab.member(name);
        let path = member.config();
        let failed = |source| LayoutError::Io {
            what: "write",
            path: path.clone(),
            source,
        };
        let text = toml::to_string(&toml_of(lab, &member, bin_dir.clone()));
        let text = text.map_err(|error| failed(std::io::Error::other(error)))?;
        std::fs::write(&path, text).map_err(failed)?;
    }
    Ok(())
}

fn toml_of(lab: &Lab, member: &Member<'_>, bin_dir: PathBuf) -> MemberToml {
    let others = MEMBERS.into_iter().filter(|name| *name != member.name);
    let other = |name: &str| OtherToml {
        name: name.to_owned(),
        number: lab.member(name).record().number,
        address: format!("127.0.0.1:{}", lab.member(name).record().link_port),
    };
    MemberToml {
        cluster: "lab",
        member: member.name.clone(),
        number: member.record().number,
        runtime_dir: member.runtime(),
        volume: VolumeToml {
            address: format!("127.0.0.1:{}", lab.record.target_port),
            subsystem: SUBSYSTEM,
            host_nqn: member.host_nqn(),
            host_id: member.record().host_id.to_string(),
            mount_point: member.mount_point(),
            directory: member.bridge(),
        },
        lease: LeaseToml {
            path: member.lease(),
        },
        peer: PeerToml {
            listen: format!("127.0.0.1:{}", member.record().peer_port),
            secret_file: lab.dir.join("secret"),
            members: others.map(other).collect(),
        },
        postgres: PostgresToml {
            bin_dir,
            port: member.record().postgres_port,
            listen_addresses: "127.0.0.1",
            data_directory: DATA_DIRECTORY,
            socket_directory: member.postgres_sockets(),
            hba: ["host all all 127.0.0.1/32 trust"],
        },
        timings: TIMINGS,
        journal: PathToml {
            path: member.journal(),
        },
        control: SocketToml {
            socket: member.socket(),
        },
        api: ListenToml {
            listen: member.api().to_string(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn a_lab_s_members_have_configurations_that_load_and_its_ports_and_hosts_last() {
        let dir = tempfile::Builder::new().prefix("baton-").tempdir().unwrap();
        let dir = dir.path().join("lab");
        let lab = Lab::create(&dir, 1 << 20, false).unwrap();
        write(&lab).unwrap();
        for name in MEMBERS {
            let config = Config::load(&lab.member(name).config()).unwrap();
            assert_eq!(config.member, name);
        }
        assert_eq!(Lab::open(&dir).unwrap().record, lab.record);
        assert_eq!(
            Lab::create(&dir, 1 << 20, false).unwrap().record,
            lab.record
        );
    }

    #[test]
    fn only_a_lab_s_directory_is_used_as_one() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(
            Lab::open(dir.path()),
            Err(LayoutError::None { .. })
        ));
        std::fs::write(dir.path().join("thesis.txt"), "").unwrap();
        let refused = Lab::create(dir.path(), 1 << 20, false);
        assert!(matches!(refused, Err(LayoutError::Foreign { .. })));
        let long = dir.path().join("long".repeat(30));
        assert!(matches!(
            Lab::create(&long, 1 << 20, false),
            Err(LayoutError::TooLong { .. })
        ));
    }

    #[test]
    fn the_lease_is_reached_through_a_link_of_each_member() {
        let dir = tempfile::Builder::new().prefix("baton-").tempdir().unwrap();
        let lab = Lab::create(&dir.path().join("lab"), 1 << 20, false).unwrap();
        std::fs::write(lab.lease_directory().join("lease.json"), "x").unwrap();
        let (a, b) = (lab.member("a"), lab.member("b"));
        assert!(a.lease().exists() && b.lease().exists());
        a.reach_lease(false).unwrap();
        assert!(!a.lease().exists() && b.lease().exists());
        a.reach_lease(true).unwrap();
        assert!(a.lease().exists());
    }
}
