//! `member.toml` of each member, from the cluster's specification.

use std::collections::BTreeMap;
use std::path::PathBuf;

use fencing::MemberId;
use serde::Serialize;

use super::ObjectError;
use super::bounds::shortened;
use super::pod::paths;
use crate::cluster::{
    BatonCluster, MemberSpec, SeedSpec, Site, SiteFailover, SynchronousMode, names,
};
use crate::config::{Config, ConfigError};

/// Bytes of one journal file. Two are kept, in memory that counts as the pod's.
const JOURNAL_BYTES: u64 = 8 << 20;

/// The file, in its own words: `config::Config` is what reads it.
#[derive(Serialize)]
struct File<'a> {
    cluster: &'a str,
    site: &'a str,
    member: &'a str,
    number: MemberId,
    runtime_dir: &'a str,
    agent: Agent<'a>,
    lease: Lease<'a>,
    kubernetes: Kubernetes<'a>,
    peer: Peer,
    postgres: Postgres<'a>,
    journal: Journal,
    api: Api,
    #[serde(skip_serializing_if = "Option::is_none")]
    pooler: Option<Pooler<'a>>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    timings: BTreeMap<&'a str, toml::Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    replication: Option<Replication>,
}

#[derive(Serialize)]
struct Agent<'a> {
    socket: &'a str,
    mount_point: &'a str,
}

#[derive(Serialize)]
struct Lease<'a> {
    store: &'a str,
    namespace: &'a str,
    name: String,
}

#[derive(Serialize)]
struct Kubernetes<'a> {
    namespace: &'a str,
    pod: String,
    service: String,
}

#[derive(Serialize)]
struct Peer {
    listen: String,
    secret_file: String,
    members: Vec<PeerMember>,
}

#[derive(Serialize)]
struct PeerMember {
    name: String,
    number: MemberId,
    address: String,
}

#[derive(Serialize)]
struct Postgres<'a> {
    bin_dir: &'a str,
    port: u16,
    data_directory: &'a str,
    socket_directory: &'a str,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    hba: &'a [String],
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    parameters: &'a BTreeMap<String, String>,
}

#[derive(Serialize)]
struct Journal {
    path: String,
    max_bytes: u64,
}

#[derive(Serialize)]
struct Api {
    listen: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate_file: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_file: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_file: Option<String>,
}

#[derive(Serialize)]
struct Pooler<'a> {
    address: &'a str,
    user: &'a str,
    password_file: String,
}

#[derive(Serialize)]
struct Replication {
    record: String,
    synchronous: SynchronousMode,
    quorum: u8,
    first_primary: String,
    password_file: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    slot_wal_max: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_lag: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<SeedSpec>,
    sites: Vec<ReplicationSite>,
}

#[derive(Serialize)]
struct ReplicationSite {
    name: String,
    lease: String,
    hosts: Vec<String>,
    failover: SiteFailover,
}

/// The settings of one member.
///
/// # Errors
/// They cannot be written as TOML.
pub fn member_toml(
    site: &Site<'_>,
    number: MemberId,
    member: &MemberSpec,
) -> Result<String, ObjectError> {
    let cluster = site.cluster;
    let spec = &cluster.spec;
    let name = cluster.cluster();
    let file = File {
        cluster: name,
        site: site.name,
        member: &member.name,
        number,
        runtime_dir: paths::RUNTIME,
        agent: Agent {
            socket: paths::AGENT_SOCKET,
            mount_point: paths::MOUNT_POINT,
        },
        lease: Lease {
            store: "kubernetes",
            namespace: cluster.namespace(),
            name: site.lease(),
        },
        kubernetes: Kubernetes {
            namespace: cluster.namespace(),
            pod: names::pod(name, &member.name),
            service: names::read_write_service(name),
        },
        peer: peer(site, number),
        postgres: Postgres {
            bin_dir: &spec.postgres.bin_dir,
            port: spec.postgres.port,
            data_directory: &spec.postgres.data_directory,
            socket_directory: paths::RUNTIME,
            hba: &spec.postgres.hba,
            parameters: &spec.postgres.parameters,
        },
        journal: Journal {
            path: format!("{}/journal.jsonl", paths::RUNTIME),
            max_bytes: JOURNAL_BYTES,
        },
        api: api(cluster),
        pooler: spec.pooler.as_ref().map(|pooler| Pooler {
            address: &pooler.address,
            user: &pooler.user,
            password_file: paths::pooler_password(),
        }),
        timings: fitted(cluster),
        replication: replication(cluster),
    };
    toml::to_string(&file).map_err(|source| ObjectError::Settings {
        member: member.name.clone(),
        source,
    })
}

fn peer(site: &Site<'_>, own: MemberId) -> Peer {
    let (name, namespace) = (site.cluster.cluster(), site.cluster.namespace());
    let others = site.numbered().into_iter();
    let others = others.filter(|(number, _)| *number != own);
    Peer {
        listen: format!("0.0.0.0:{}", names::PEER_PORT),
        secret_file: paths::peer_secret(),
        members: others
            .map(|(number, member)| {
                let host = names::pod_host(name, namespace, &member.name);
                PeerMember {
                    name: member.name.clone(),
                    number,
                    address: format!("{host}:{}", names::PEER_PORT),
                }
            })
            .collect(),
    }
}

/// What members know of all sites; none with one.
fn replication(cluster: &BatonCluster) -> Option<Replication> {
    if !cluster.has_several_sites() {
        return None;
    }
    let (name, namespace) = (cluster.cluster(), cluster.namespace());
    let port = cluster.spec.postgres.port;
    let wanted = cluster.replication();
    let sites = cluster.sites().into_iter();
    let sites = sites.map(|site| {
        let members = site.members.iter();
        let host = |member: &MemberSpec| {
            let host = names::pod_host(name, namespace, &member.name);
            format!("{host}:{port}")
        };
        ReplicationSite {
            name: site.name.to_owned(),
            lease: site.lease(),
            hosts: members.map(host).collect(),
            failover: site
                .own
                .map_or_else(SiteFailover::default, |own| own.failover),
        }
    });
    Some(Replication {
        record: names::record_lease(name),
        synchronous: wanted.synchronous,
        quorum: wanted.quorum,
        first_primary: cluster.first_primary().unwrap_or_default(),
        password_file: paths::replication_password(),
        slot_wal_max: wanted.slot_wal_max,
        max_lag: wanted.max_lag,
        seed: wanted.seed,
        sites: sites.collect(),
    })
}

fn api(cluster: &BatonCluster) -> Api {
    let wanted = cluster.spec.api.clone().unwrap_or_default();
    let tls = wanted.tls_secret.is_some();
    Api {
        listen: format!("0.0.0.0:{}", names::API_PORT),
        certificate_file: tls.then(paths::certificate),
        key_file: tls.then(paths::key),
        token_file: wanted.token_secret.is_some().then(paths::token),
    }
}

/// The user's timings, and those that are shorter than their defaults for the grace period's sake.
fn fitted(cluster: &BatonCluster) -> BTreeMap<&str, toml::Value> {
    let mut all = timings(cluster);
    // What cannot fit is not accepted.
    for (name, bound) in shortened(cluster).unwrap_or_default() {
        let text = format!("{}ms", bound.as_millis());
        all.insert(name, toml::Value::String(text));
    }
    all
}

/// Kubernetes has text only here; `member.toml` has numbers and booleans too.
pub(super) fn timings(cluster: &BatonCluster) -> BTreeMap<&str, toml::Value> {
    let timings = cluster.spec.timings.iter();
    timings
        .map(|(name, text)| {
            let value = match (text.parse::<bool>(), text.parse::<i64>()) {
                (Ok(on), _) => toml::Value::Boolean(on),
                (Err(_), Ok(number)) => toml::Value::Integer(number),
                (Err(_), Err(_)) => toml::Value::String(text.clone()),
            };
            (name.as_str(), value)
        })
        .collect()
}

/// What the members would say against their settings, one a line; none where they take them. What all
/// members say is said once.
pub fn check(cluster: &BatonCluster) -> Vec<String> {
    let mut said = Vec::new();
    for site in cluster.sites() {
        for (number, member) in site.numbered() {
            for problem in objections(&site, number, member) {
                if !said.contains(&problem) {
                    said.push(problem);
                }
            }
        }
    }
    said
}

/// What one member would say.
fn objections(site: &Site<'_>, number: MemberId, member: &MemberSpec) -> Vec<String> {
    let path = PathBuf::from(format!("{}.toml", member.name));
    let text = match member_toml(site, number, member) {
        Ok(text) => text,
        Err(error) => return vec![error.to_string()],
    };
    match Config::parse(&path, &text) {
        Ok(_) => Vec::new(),
        Err(ConfigError::Problems { path: _, problems }) => {
            problems.iter().map(ToString::to_string).collect()
        }
        Err(error) => vec![error.to_string()],
    }
}
