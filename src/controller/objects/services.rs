//! The Services: by which members find each other, and clients the database.

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{owned, selector};
use crate::cluster::{BatonCluster, names};

pub fn all(cluster: &BatonCluster) -> [Service; 4] {
    [
        members(cluster),
        read_write(cluster),
        replicas(cluster),
        readers(cluster),
    ]
}

/// Peers find each other also while they are not ready: that is when it matters.
fn members(cluster: &BatonCluster) -> Service {
    let name = cluster.cluster();
    let ports = [
        port("peers", names::PEER_PORT),
        port("api", names::API_PORT),
    ];
    Service {
        metadata: owned(cluster, names::members_service(name)),
        spec: Some(ServiceSpec {
            cluster_ip: Some("None".to_owned()),
            publish_not_ready_addresses: Some(true),
            selector: Some(selector(name)),
            ports: Some(ports.into()),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

/// Without a selector: Kubernetes would follow labels and readiness, which may come late; the active
/// member writes its endpoint itself, when it has committed a write.
fn read_write(cluster: &BatonCluster) -> Service {
    let name = names::read_write_service(cluster.cluster());
    database(cluster, name, None)
}

/// `role=replica` is what streaming replicas of another site carry.
fn replicas(cluster: &BatonCluster) -> Service {
    let name = names::replica_service(cluster.cluster());
    database(cluster, name, Some(("role", "replica")))
}

/// The primary, and with several sites the replicas too. A replica that is too far behind is not ready.
fn readers(cluster: &BatonCluster) -> Service {
    let name = names::read_service(cluster.cluster());
    database(cluster, name, Some((names::READABLE, "true")))
}

fn database(cluster: &BatonCluster, name: String, label: Option<(&str, &str)>) -> Service {
    let selector = label.map(|(label, value)| {
        let mut labels = selector(cluster.cluster());
        labels.insert(label.to_owned(), value.to_owned());
        labels
    });
    Service {
        metadata: owned(cluster, name),
        spec: Some(ServiceSpec {
            type_: Some("ClusterIP".to_owned()),
            selector,
            ports: Some(vec![port(names::PORT, cluster.spec.postgres.port)]),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

fn port(name: &str, port: u16) -> ServicePort {
    ServicePort {
        name: Some(name.to_owned()),
        port: port.into(),
        target_port: Some(IntOrString::Int(port.into())),
        protocol: Some("TCP".to_owned()),
        ..ServicePort::default()
    }
}
