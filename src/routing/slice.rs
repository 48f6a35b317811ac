//! The EndpointSlice of the Service for writers: what it must say, and whether this member may say it.
//! Pure.
//!
//! The epoch in its annotation orders what owners write, as the reservation orders their writes to the
//! volume: an owner that was overtaken without knowing it never replaces its successor's endpoint. Of
//! several sites each counts epochs of its own; there the term of the primary goes before the epoch.

use std::net::IpAddr;

use fencing::Epoch;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use crate::kubernetes::{PodFacts, names};

/// Where clients are led: this member's pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub cluster: String,
    pub namespace: String,
    pub pod: String,
    pub service: String,
    pub facts: PodFacts,
    pub port: u16,
}

/// What orders owners, of all sites.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    /// The term in which its site has the primary; 0 with one site.
    pub term: u64,
    /// Its epoch.
    pub epoch: Epoch,
}

/// What follows from the slice that was found.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Verdict {
    /// It says what it shall.
    Right,
    /// Replace it by this one; make it where there is none.
    Write(Box<EndpointSlice>),
    /// A later owner has written it.
    Superseded(Rank),
    /// A person must look.
    Unusable(String),
}

/// The slice shall lead to this member, the owner of this rank.
pub(super) fn publish(found: Option<&EndpointSlice>, target: &Target, rank: Rank) -> Verdict {
    let mut slice = match found {
        None => new(target),
        Some(found) => match rank_of(found) {
            Err(text) => return Verdict::Unusable(text),
            Ok(Some(by)) if by > rank => return Verdict::Superseded(by),
            Ok(_) if found.address_type != address_type(target.facts.ip) => {
                return Verdict::Unusable(format!(
                    "it is for {} addresses and the pod has {}: delete the EndpointSlice",
                    found.address_type, target.facts.ip
                ));
            }
            Ok(_) => found.clone(),
        },
    };
    write_meta(&mut slice.metadata, target, rank);
    slice.endpoints = vec![endpoint(target)];
    slice.ports = Some(vec![port(target.port)]);
    if found == Some(&slice) {
        Verdict::Right
    } else {
        Verdict::Write(Box::new(slice))
    }
}

/// The slice shall not lead to this member. What leads elsewhere is another's: it stays, whatever its rank.
pub(super) fn withdraw(found: Option<&EndpointSlice>, target: &Target) -> Verdict {
    let Some(found) = found else {
        return Verdict::Right;
    };
    if let Err(text) = rank_of(found) {
        return Verdict::Unusable(text);
    }
    if !found.endpoints.iter().any(|entry| is_ours(entry, target)) {
        return Verdict::Right;
    }
    let mut slice = found.clone();
    slice.endpoints = Vec::new();
    Verdict::Write(Box::new(slice))
}

/// The rank of the owner that wrote it; none where none did yet.
fn rank_of(slice: &EndpointSlice) -> Result<Option<Rank>, String> {
    let annotations = slice.metadata.annotations.as_ref();
    let text = |name: &str| annotations.and_then(|annotations| annotations.get(name));
    let senseless = |name: &str, text: &str, what: &str| {
        format!("its annotation {name} is {text:?}, which is no {what}: delete the EndpointSlice")
    };
    let Some(number) = text(names::EPOCH) else {
        return Ok(None);
    };
    let epoch = number.parse().ok().and_then(Epoch::new);
    let epoch = epoch.ok_or_else(|| senseless(names::EPOCH, number, "epoch"))?;
    let term = match text(names::TERM) {
        None => 0,
        Some(number) => number
            .parse()
            .map_err(|_| senseless(names::TERM, number, "term"))?,
    };
    Ok(Some(Rank { term, epoch }))
}

fn is_ours(endpoint: &Endpoint, target: &Target) -> bool {
    match endpoint
        .target_ref
        .as_ref()
        .and_then(|pod| pod.uid.as_ref())
    {
        Some(uid) => *uid == target.facts.uid,
        None => endpoint
            .addresses
            .iter()
            .any(|address| address.parse() == Ok(target.facts.ip)),
    }
}

fn address_type(ip: IpAddr) -> &'static str {
    match ip {
        IpAddr::V4(_) => "IPv4",
        IpAddr::V6(_) => "IPv6",
    }
}

fn new(target: &Target) -> EndpointSlice {
    EndpointSlice {
        address_type: address_type(target.facts.ip).to_owned(),
        endpoints: Vec::new(),
        metadata: ObjectMeta::default(),
        ports: None,
    }
}

fn write_meta(meta: &mut ObjectMeta, target: &Target, rank: Rank) {
    meta.name = Some(names::endpoint_slice(&target.service));
    let labels = meta.labels.get_or_insert_default();
    labels.extend(names::labels(&target.cluster));
    for (label, value) in [
        (names::SERVICE_NAME, target.service.as_str()),
        (names::SLICE_MANAGED_BY, names::SLICE_MANAGER),
    ] {
        labels.insert(label.to_owned(), value.to_owned());
    }
    let annotations = meta.annotations.get_or_insert_default();
    annotations.insert(names::EPOCH.to_owned(), rank.epoch.number().to_string());
    if rank.term > 0 {
        annotations.insert(names::TERM.to_owned(), rank.term.to_string());
    }
}

/// The Service takes its slice with it when it is deleted.
pub(super) fn owned_by(slice: &mut EndpointSlice, service: &str, uid: String) {
    slice.metadata.owner_references = Some(vec![OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Service".to_owned(),
        name: service.to_owned(),
        uid,
        ..OwnerReference::default()
    }]);
}

fn endpoint(target: &Target) -> Endpoint {
    Endpoint {
        addresses: vec![target.facts.ip.to_string()],
        conditions: Some(EndpointConditions {
            ready: Some(true),
            serving: Some(true),
            terminating: Some(false),
        }),
        node_name: Some(target.facts.node.clone()),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".to_owned()),
            name: Some(target.pod.clone()),
            namespace: Some(target.namespace.clone()),
            uid: Some(target.facts.uid.clone()),
            ..ObjectReference::default()
        }),
        ..Endpoint::default()
    }
}

fn port(number: u16) -> EndpointPort {
    EndpointPort {
        name: Some(names::PORT.to_owned()),
        port: Some(i32::from(number)),
        protocol: Some("TCP".to_owned()),
        ..EndpointPort::default()
    }
}
