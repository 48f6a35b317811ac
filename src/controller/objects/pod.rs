//! The pod of a member: unprivileged, with the volume's mount propagated into it by the node agent.

use std::collections::BTreeMap;

use fencing::MemberId;
use k8s_openapi::api::core::v1::{
    Affinity, Capabilities, ConfigMapProjection, Container, ContainerPort, EmptyDirVolumeSource,
    EnvVar, EnvVarSource, HTTPGetAction, HostPathVolumeSource, KeyToPath, ObjectFieldSelector,
    PersistentVolumeClaimVolumeSource, Pod, PodAffinityTerm, PodSecurityContext, PodSpec, Probe,
    ProjectedVolumeSource, SeccompProfile, SecretProjection, SecurityContext, Volume, VolumeDevice,
    VolumeMount, VolumeProjection,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use sha2::{Digest, Sha256};

use super::{ObjectError, member_toml, owned, site_selector};
use crate::cluster::{BatonCluster, MemberSpec, Site, names};
use crate::hex::hex;

/// Where things are within a pod.
pub(super) mod paths {
    /// Sockets, journal and locks: gone with the pod, as they must be.
    pub const RUNTIME: &str = "/run/baton/member";
    /// The directory of the node agent's socket, the same as on the node.
    pub const AGENT: &str = "/run/baton/agent";
    /// The node agent's socket.
    pub const AGENT_SOCKET: &str = "/run/baton/agent/agent.sock";
    /// What the node agent mounts below arrives here.
    pub const VOLUME: &str = "/var/lib/baton/volume";
    /// Where the node agent mounts the volume, as the pod sees it.
    pub const MOUNT_POINT: &str = "/var/lib/baton/volume/data";
    /// The volume's block device. Nobody opens it here: it makes Kubernetes attach the volume.
    pub const DEVICE: &str = "/dev/baton-volume";
    /// Settings and secrets.
    pub const SETTINGS: &str = "/etc/baton";

    pub fn peer_secret() -> String {
        format!("{SETTINGS}/peers/secret")
    }
    pub fn replication_password() -> String {
        format!("{SETTINGS}/replication/password")
    }
    pub fn pooler_password() -> String {
        format!("{SETTINGS}/pooler/password")
    }
    pub fn token() -> String {
        format!("{SETTINGS}/api/token")
    }
    pub fn certificate() -> String {
        format!("{SETTINGS}/api/tls.crt")
    }
    pub fn key() -> String {
        format!("{SETTINGS}/api/tls.key")
    }
}

/// User and group of PostgreSQL in the image, as in the images that most people know.
const USER: i64 = 999;

/// What sockets and journal may take: two journal files and what else is small.
const RUNTIME_BYTES: &str = "64Mi";

/// Seconds that a member may wait at its start for what it needs: a day.
const PATIENCE: i32 = 86_400;

/// The node's directory below which the agent mounts, one directory a pod.
const MEMBERS_ON_NODE: &str = "/run/baton/members";

/// The pod of a member as it should be.
///
/// # Errors
/// It could not be written down.
pub fn pod(site: &Site<'_>, number: MemberId, member: &MemberSpec) -> Result<Pod, ObjectError> {
    let cluster = site.cluster;
    let name = names::pod(cluster.cluster(), &member.name);
    let mut metadata = owned(cluster, name);
    let labels = metadata.labels.get_or_insert_default();
    for (label, value) in [
        (names::SITE, site.name.to_owned()),
        (names::MEMBER, member.name.clone()),
        (names::MEMBER_NUMBER, number.to_string()),
    ] {
        labels.insert(label.to_owned(), value);
    }
    let template = template(site, number, member)?;
    metadata.annotations = Some(BTreeMap::from([
        (names::TEMPLATE.to_owned(), template),
        // As Prometheus' scrape configurations read it.
        (
            "prometheus.io/scheme".to_owned(),
            scheme(cluster).to_lowercase(),
        ),
    ]));
    Ok(Pod {
        metadata,
        spec: Some(spec(site, member)),
        status: None,
    })
}

/// What a member's pod is made from, as a short digest: another one means that the pod must be made
/// anew. The settings count: they are read at the start only.
///
/// # Errors
/// The pod could not be written down.
pub fn template(
    site: &Site<'_>,
    number: MemberId,
    member: &MemberSpec,
) -> Result<String, ObjectError> {
    let mut digest = Sha256::new();
    digest.update(serde_json::to_vec(&spec(site, member))?);
    digest.update(member_toml(site, number, member)?);
    Ok(hex(&digest.finalize()[..8]))
}

fn spec(site: &Site<'_>, member: &MemberSpec) -> PodSpec {
    let cluster = site.cluster;
    let wanted = &cluster.spec;
    let name = cluster.cluster();
    let mut node_selector = wanted.node_selector.clone();
    let own = site.own.map(|own| own.node_selector.clone());
    node_selector.extend(own.unwrap_or_default());
    if let Some(node) = &member.node {
        node_selector.insert("kubernetes.io/hostname".to_owned(), node.clone());
    }
    PodSpec {
        hostname: Some(names::pod(name, &member.name)),
        subdomain: Some(names::members_service(name)),
        service_account_name: Some(names::access(name)),
        // Environment variables of every Service of the namespace are of no use here.
        enable_service_links: Some(false),
        restart_policy: Some("Always".to_owned()),
        termination_grace_period_seconds: Some(wanted.termination_grace_period_seconds),
        priority_class_name: wanted.priority_class_name.clone(),
        node_selector: (!node_selector.is_empty()).then_some(node_selector),
        tolerations: (!wanted.tolerations.is_empty()).then(|| wanted.tolerations.clone()),
        affinity: Some(affinity(site)),
        security_context: Some(PodSecurityContext {
            run_as_user: Some(USER),
            run_as_group: Some(USER),
            // Makes the mounted Secrets readable, and nobody else's.
            fs_group: Some(USER),
            run_as_non_root: Some(true),
            seccomp_profile: Some(SeccompProfile {
                type_: "RuntimeDefault".to_owned(),
                localhost_profile: None,
            }),
            ..PodSecurityContext::default()
        }),
        containers: vec![container(cluster, member)],
        volumes: Some(volumes(site, member)),
        ..PodSpec::default()
    }
}

/// What the user wants, and never two members of a site in one place.
fn affinity(site: &Site<'_>) -> Affinity {
    let cluster = site.cluster;
    let mut affinity = cluster.spec.affinity.clone().unwrap_or_default();
    let apart = affinity.pod_anti_affinity.get_or_insert_default();
    apart
        .required_during_scheduling_ignored_during_execution
        .get_or_insert_default()
        .push(PodAffinityTerm {
            label_selector: Some(LabelSelector {
                match_labels: Some(site_selector(site)),
                ..LabelSelector::default()
            }),
            topology_key: cluster.spec.topology_key.clone(),
            ..PodAffinityTerm::default()
        });
    affinity
}

fn container(cluster: &BatonCluster, member: &MemberSpec) -> Container {
    let wanted = &cluster.spec;
    let config = format!("{}/{}.toml", paths::SETTINGS, member.name);
    let command = ["baton", "run", "--config", &config];
    Container {
        name: "baton".to_owned(),
        image: Some(wanted.image.clone()),
        image_pull_policy: wanted
            .image_pull_policy
            .map(|policy| policy.as_str().to_owned()),
        command: Some(command.map(str::to_owned).into()),
        env: Some(environment()),
        ports: Some(vec![
            port(names::PORT, wanted.postgres.port),
            port("peers", names::PEER_PORT),
            port("api", names::API_PORT),
        ]),
        // Started: it has its session with the agent, which may wait for the API server or the storage
        // for as long as these are away. Nobody else is served by a restart meanwhile.
        startup_probe: Some(probe(cluster, "/liveness", 2, PATIENCE / 2)),
        // Alive: the loop decides; 30 s without a decision are said at the first look after that.
        liveness_probe: Some(probe(cluster, "/liveness", 10, 3)),
        // Ready: it serves or could take over. Followed closely: a drain asks for it.
        readiness_probe: Some(probe(cluster, "/readiness", 2, 2)),
        resources: wanted.resources.clone(),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            capabilities: Some(Capabilities {
                drop: Some(vec!["ALL".to_owned()]),
                add: None,
            }),
            read_only_root_filesystem: Some(true),
            ..SecurityContext::default()
        }),
        volume_mounts: Some(mounts()),
        volume_devices: Some(vec![VolumeDevice {
            name: "volume".to_owned(),
            device_path: paths::DEVICE.to_owned(),
        }]),
        ..Container::default()
    }
}

fn port(name: &str, port: u16) -> ContainerPort {
    ContainerPort {
        name: Some(name.to_owned()),
        container_port: port.into(),
        protocol: Some("TCP".to_owned()),
        ..ContainerPort::default()
    }
}

fn environment() -> Vec<EnvVar> {
    let fields = [
        ("POD_NAME", "metadata.name"),
        ("POD_NAMESPACE", "metadata.namespace"),
        ("POD_UID", "metadata.uid"),
        ("POD_IP", "status.podIP"),
        ("NODE_NAME", "spec.nodeName"),
    ];
    let variable = |(name, field): (&str, &str)| EnvVar {
        name: name.to_owned(),
        value: None,
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                api_version: Some("v1".to_owned()),
                field_path: field.to_owned(),
            }),
            ..EnvVarSource::default()
        }),
    };
    let mut all: Vec<_> = fields.into_iter().map(variable).collect();
    all.push(EnvVar {
        name: "BATON_LOG_FORMAT".to_owned(),
        value: Some("json".to_owned()),
        value_from: None,
    });
    all
}

/// How the members' HTTP API is spoken to.
fn scheme(cluster: &BatonCluster) -> &'static str {
    let api = cluster.spec.api.as_ref();
    match api.is_some_and(|api| api.tls_secret.is_some()) {
        true => "HTTPS",
        false => "HTTP",
    }
}

fn probe(cluster: &BatonCluster, path: &str, period: i32, failures: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::String("api".to_owned()),
            scheme: Some(scheme(cluster).to_owned()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period),
        timeout_seconds: Some(period.min(5)),
        failure_threshold: Some(failures),
        ..Probe::default()
    }
}

fn mounts() -> Vec<VolumeMount> {
    let mount = |name: &str, path: &str| VolumeMount {
        name: name.to_owned(),
        mount_path: path.to_owned(),
        ..VolumeMount::default()
    };
    vec![
        VolumeMount {
            read_only: Some(true),
            ..mount("settings", paths::SETTINGS)
        },
        mount("runtime", paths::RUNTIME),
        mount("shared-memory", "/dev/shm"),
        mount("temporary", "/tmp"),
        VolumeMount {
            read_only: Some(true),
            ..mount("agent", paths::AGENT)
        },
        VolumeMount {
            mount_propagation: Some("HostToContainer".to_owned()),
            ..mount("data", paths::VOLUME)
        },
    ]
}

fn volumes(site: &Site<'_>, member: &MemberSpec) -> Vec<Volume> {
    let cluster = site.cluster;
    let pod = names::pod(cluster.cluster(), &member.name);
    let on_node = format!("{MEMBERS_ON_NODE}/{}/{pod}", cluster.namespace());
    vec![
        Volume {
            name: "volume".to_owned(),
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: site.claim(),
                read_only: None,
            }),
            ..Volume::default()
        },
        Volume {
            name: "settings".to_owned(),
            projected: Some(settings(cluster, member)),
            ..Volume::default()
        },
        memory("runtime", Some(RUNTIME_BYTES)),
        // PostgreSQL's parallel queries need more than the 64 MiB that containers get.
        memory("shared-memory", None),
        memory("temporary", Some(RUNTIME_BYTES)),
        host_path("agent", paths::AGENT.to_owned(), "Directory"),
        host_path("data", on_node, "DirectoryOrCreate"),
    ]
}

fn memory(name: &str, limit: Option<&str>) -> Volume {
    Volume {
        name: name.to_owned(),
        empty_dir: Some(EmptyDirVolumeSource {
            medium: Some("Memory".to_owned()),
            size_limit: limit.map(|limit| Quantity(limit.to_owned())),
        }),
        ..Volume::default()
    }
}

fn host_path(name: &str, path: String, type_: &str) -> Volume {
    Volume {
        name: name.to_owned(),
        host_path: Some(HostPathVolumeSource {
            path,
            type_: Some(type_.to_owned()),
        }),
        ..Volume::default()
    }
}

/// One directory with the member's settings and all secrets, readable to the member's group only.
fn settings(cluster: &BatonCluster, member: &MemberSpec) -> ProjectedVolumeSource {
    let name = cluster.cluster();
    let file = format!("{}.toml", member.name);
    let mut sources = vec![
        VolumeProjection {
            config_map: Some(ConfigMapProjection {
                name: names::config_map(name),
                items: Some(vec![item(&file, &file)]),
                optional: None,
            }),
            ..VolumeProjection::default()
        },
        secret(
            names::peer_secret(name),
            vec![item(names::PEER_SECRET_KEY, "peers/secret")],
        ),
    ];
    if cluster.has_several_sites() {
        let from = cluster.replication_password();
        let items = vec![item(&from.key, "replication/password")];
        sources.push(secret(from.name, items));
    }
    if let Some(pooler) = &cluster.spec.pooler {
        let from = &pooler.password_secret;
        let items = vec![item(&from.key, "pooler/password")];
        sources.push(secret(from.name.clone(), items));
    }
    let api = cluster.spec.api.clone().unwrap_or_default();
    if let Some(from) = api.token_secret {
        sources.push(secret(from.name, vec![item(&from.key, "api/token")]));
    }
    if let Some(from) = api.tls_secret {
        let items = vec![
            item("tls.crt", "api/tls.crt"),
            item("tls.key", "api/tls.key"),
        ];
        sources.push(secret(from, items));
    }
    ProjectedVolumeSource {
        default_mode: Some(0o440),
        sources: Some(sources),
    }
}

fn secret(name: String, items: Vec<KeyToPath>) -> VolumeProjection {
    VolumeProjection {
        secret: Some(SecretProjection {
            name,
            items: Some(items),
            optional: None,
        }),
        ..VolumeProjection::default()
    }
}

fn item(key: &str, path: &str) -> KeyToPath {
    KeyToPath {
        key: key.to_owned(),
        path: path.to_owned(),
        mode: None,
    }
}
