//! The members' configuration files. Only what a lab must say is said: timings and PostgreSQL's
//! settings are the defaults, so that a drill measures what a user gets; but for [`TIMINGS`].

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use serde::Serialize;

use super::layout::{Lab, LayoutError, SITES, postgres_bin};
use super::record::Wide;
use super::site::Member;

/// The subsystem that the lab's target serves.
pub const SUBSYSTEM: &str = "nqn.2026-11.dev.baton:lab";

/// The data directory, relative to the mount point.
pub const DATA_DIRECTORY: &str = "pgdata";

/// PostgreSQL's role for replicas.
const REPLICATION_USER: &str = "baton_replication";

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
    #[serde(skip_serializing_if = "Option::is_none")]
    site: Option<&'static str>,
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
    #[serde(skip_serializing_if = "Option::is_none")]
    replication: Option<ReplicationToml>,
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
    listen_addresses: String,
    data_directory: &'static str,
    socket_directory: PathBuf,
    hba: [String; 1],
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

#[derive(Serialize)]
struct ReplicationToml {
    record: PathBuf,
    synchronous: &'static str,
    first_primary: &'static str,
    user: &'static str,
    password_file: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    slot_wal_max: Option<String>,
    sites: Vec<SiteToml>,
}

#[derive(Serialize)]
struct SiteToml {
    name: &'static str,
    lease: PathBuf,
    hosts: Vec<String>,
}

/// Writes all members' `member.toml`.
pub fn write(lab: &Lab) -> Result<(), LayoutError> {
    let bin_dir = postgres_bin()?;
    for name in lab.record.members.keys() {
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
    let site = member.site();
    let others = site.members().into_iter();
    let others = others.filter(|name| *name != member.name);
    let other = |name: &str| OtherToml {
        name: name.to_owned(),
        number: lab.member(name).record().number,
        address: format!("127.0.0.1:{}", lab.member(name).record().link_port),
    };
    MemberToml {
        cluster: "lab",
        site: site.name,
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
            secret_file: lab.secret(),
            members: others.map(other).collect(),
        },
        postgres: PostgresToml {
            bin_dir,
            port: member.record().postgres_port,
            listen_addresses: listen_addresses(member),
            data_directory: DATA_DIRECTORY,
            socket_directory: member.postgres_sockets(),
            hba: [hba(member)],
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
        replication: lab
            .record
            .wide
            .as_ref()
            .map(|wide| replication(lab, member, wide)),
    }
}

/// With several sites, also the line between them.
fn listen_addresses(member: &Member<'_>) -> String {
    let site = member.site();
    let address = site.address();
    match site.network() {
        None => address.to_string(),
        Some(network) => format!("{address},{}", network.line),
    }
}

/// Clients come from this machine, without a password. What lets replicas in is Baton's to know.
fn hba(member: &Member<'_>) -> String {
    let clients = member.site().network().map(|network| network.clients);
    let clients = clients.unwrap_or(Ipv4Addr::LOCALHOST);
    format!("host all all {clients}/32 trust")
}

fn replication(lab: &Lab, member: &Member<'_>, wide: &Wide) -> ReplicationToml {
    let site = |name: &'static str| {
        let line = wide.network.site(name).line;
        let hosts = lab.record.members.values();
        let hosts = hosts.filter(|other| other.site.as_deref() == Some(name));
        SiteToml {
            name,
            lease: member.lease_store().join(format!("{name}.json")),
            hosts: hosts
                .map(|host| SocketAddr::from((line, host.postgres_port)).to_string())
                .collect(),
        }
    };
    ReplicationToml {
        record: member.lease_store().join("cluster.json"),
        synchronous: "preferred",
        first_primary: SITES[0],
        user: REPLICATION_USER,
        password_file: lab.replication_password(),
        slot_wal_max: wide.slot_wal_max.clone(),
        sites: SITES.map(site).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::lab::layout::Wanted;

    #[test]
    fn a_lab_s_members_have_configurations_that_load_and_its_ports_and_hosts_last() {
        for sites in [1, 2] {
            let dir = tempfile::Builder::new().prefix("baton-").tempdir().unwrap();
            let dir = dir.path().join("lab");
            let wanted = wanted(Some(sites));
            let lab = Lab::create(&dir, &wanted).unwrap();
            write(&lab).unwrap();
            assert_eq!(lab.record.members.len(), 2 * usize::from(sites));
            for name in lab.record.members.keys() {
                let config = Config::load(&lab.member(name).config()).unwrap();
                assert_eq!(config.member, *name);
            }
            assert_eq!(Lab::open(&dir).unwrap().record, lab.record);
            assert_eq!(Lab::create(&dir, &wanted).unwrap().record, lab.record);
            let other = Lab::create(&dir, &self::wanted(Some(3 - sites)));
            assert!(matches!(other, Err(LayoutError::Sites { has, .. }) if has == sites));
        }
    }

    #[test]
    fn sites_share_the_lease_store_and_nothing_else() {
        let dir = tempfile::Builder::new().prefix("baton-").tempdir().unwrap();
        let lab = Lab::create(&dir.path().join("lab"), &wanted(Some(2))).unwrap();
        let member = |name: &str| toml_of(&lab, &lab.member(name), "/bin".into());
        let (a1, a2, b1) = (member("a1"), member("a2"), member("b1"));
        assert_eq!((a1.site, b1.site), (Some("a"), Some("b")));
        assert_eq!((a1.number, a2.number, b1.number), (1, 2, 1));
        assert!(
            a1.lease.path.ends_with("a1/lease/a.json"),
            "{:?}",
            a1.lease.path
        );
        assert!(
            b1.lease.path.ends_with("b1/lease/b.json"),
            "{:?}",
            b1.lease.path
        );
        assert_eq!(a1.peer.members[0].name, "a2");
        assert_ne!(a1.postgres.listen_addresses, b1.postgres.listen_addresses);
        let (ours, theirs) = (a1.replication.unwrap(), b1.replication.unwrap());
        for (ours, theirs) in ours.sites.iter().zip(&theirs.sites) {
            assert_eq!((ours.name, &ours.hosts), (theirs.name, &theirs.hosts));
            assert_eq!(ours.hosts.len(), 2);
        }
        let [a, b] = lab.sites().try_into().unwrap();
        assert_ne!(a.namespace(), b.namespace());
    }

    fn wanted(sites: Option<u8>) -> Wanted {
        Wanted {
            size: 1 << 20,
            sites,
            ..Wanted::default()
        }
    }

    #[test]
    fn only_a_lab_s_directory_is_used_as_one() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(
            Lab::open(dir.path()),
            Err(LayoutError::None { .. })
        ));
        std::fs::write(dir.path().join("thesis.txt"), "").unwrap();
        let refused = Lab::create(dir.path(), &wanted(None));
        assert!(matches!(refused, Err(LayoutError::Foreign { .. })));
        let long = dir.path().join("long".repeat(30));
        assert!(matches!(
            Lab::create(&long, &wanted(None)),
            Err(LayoutError::TooLong { .. })
        ));
    }

    #[test]
    fn the_lease_is_reached_through_a_link_of_each_member() {
        let dir = tempfile::Builder::new().prefix("baton-").tempdir().unwrap();
        let lab = Lab::create(&dir.path().join("lab"), &wanted(None)).unwrap();
        std::fs::write(lab.lease_directory().join("lease.json"), "x").unwrap();
        let (a, b) = (lab.member("a"), lab.member("b"));
        assert!(a.lease().exists() && b.lease().exists());
        a.reach_lease(false).unwrap();
        assert!(!a.lease().exists() && b.lease().exists());
        a.reach_lease(true).unwrap();
        assert!(a.lease().exists());
    }
}
