//! What the members of a cluster may do: read and write their own objects, by name wherever the API
//! can name them. `deploy/base/controller-grants.yaml` holds the same rules: the controller may hand on
//! only what it holds itself.

use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::api::rbac::v1::{PolicyRule, Role, RoleBinding, RoleRef, Subject};

use super::owned;
use crate::cluster::{BatonCluster, Site, names};

pub fn service_account(cluster: &BatonCluster) -> ServiceAccount {
    ServiceAccount {
        metadata: owned(cluster, names::access(cluster.cluster())),
        ..ServiceAccount::default()
    }
}

pub fn role(cluster: &BatonCluster) -> Role {
    let name = cluster.cluster();
    let sites = cluster.sites();
    let mut leases: Vec<_> = sites.iter().map(Site::lease).collect();
    if cluster.has_several_sites() {
        leases.push(names::record_lease(name));
    }
    let slice = vec![names::endpoint_slice(name)];
    let service = vec![names::read_write_service(name)];
    let members = sites.iter().flat_map(|site| site.members);
    let pods = members
        .map(|member| names::pod(name, &member.name))
        .collect();
    Role {
        metadata: owned(cluster, names::access(name)),
        rules: Some(vec![
            // A list or watch is limited to the name by its field selector.
            rule(
                "coordination.k8s.io",
                "leases",
                &["get", "list", "watch", "update"],
                Some(leases),
            ),
            // What is created has no name yet that could be checked.
            rule("coordination.k8s.io", "leases", &["create"], None),
            rule(
                "discovery.k8s.io",
                "endpointslices",
                &["get", "update"],
                Some(slice),
            ),
            rule("discovery.k8s.io", "endpointslices", &["create"], None),
            rule("", "services", &["get"], Some(service)),
            rule("", "pods", &["patch"], Some(pods)),
            rule("", "pods", &["list"], None),
        ]),
    }
}

fn rule(group: &str, resource: &str, verbs: &[&str], names: Option<Vec<String>>) -> PolicyRule {
    PolicyRule {
        api_groups: Some(vec![group.to_owned()]),
        resources: Some(vec![resource.to_owned()]),
        verbs: verbs.iter().map(|&verb| verb.to_owned()).collect(),
        resource_names: names,
        non_resource_urls: None,
    }
}

pub fn role_binding(cluster: &BatonCluster) -> RoleBinding {
    let name = names::access(cluster.cluster());
    RoleBinding {
        metadata: owned(cluster, name.clone()),
        role_ref: RoleRef {
            api_group: "rbac.authorization.k8s.io".to_owned(),
            kind: "Role".to_owned(),
            name: name.clone(),
        },
        subjects: Some(vec![Subject {
            kind: "ServiceAccount".to_owned(),
            name,
            namespace: Some(cluster.namespace().to_owned()),
            api_group: None,
        }]),
    }
}
