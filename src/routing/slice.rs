//! The EndpointSlice of the Service for writers: what it must say, and whether this member may say it.
//! Pure.
//!
//! The epoch in its annotation orders what owners write, as the reservation orders their writes to the
//! volume: an owner that was overtaken without knowing it never replaces its successor's endpoint.

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

/// What follows from the slice that was found.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Verdict {
    /// It says what it shall.
    Right,
    /// Replace it by this one; make it where there is none.
    Write(Box<EndpointSlice>),
    /// A later owner has written it.
    Superseded(Epoch),
    /// A person must look.
    Unusable(String),
}

/// The slice shall lead to this member, the owner of `epoch`.
pub(super) fn publish(found: Option<&EndpointSlice>, target: &Target, epoch: Epoch) -> Verdict {
    let mut slice = match found {
        None => new(target),
        Some(found) => match epoch_of(found) {
            Err(text) => return Verdict::Unusable(text),
            Ok(Some(by)) if by > epoch => return Verdict::Superseded(by),
            Ok(_) if found.address_type != address_type(target.facts.ip) => {
                return Verdict::Unusable(format!(
                    "it is for {} addresses and the pod has {}: delete the EndpointSlice",
                    found.address_type, target.facts.ip
                ));
            }
            Ok(_) => found.clone(),
        },
    };
    write_meta(&mut slice.metadata, target, epoch);
    slice.endpoints = vec![endpoint(target)];
    slice.ports = Some(vec![port(target.port)]);
    if found == Some(&slice) {
        Verdict::Right
    } else {
        Verdict::Write(Box::new(slice))
    }
}

/// The slice shall not lead to this member, whose newest epoch is `epoch`.
pub(super) fn withdraw(found: Option<&EndpointSlice>, target: &Target, epoch: Epoch) -> Verdict {
    let Some(found) = found else {
        return Verdict::Right;
    };
    match epoch_of(found) {
        Err(text) => return Verdict::Unusable(text),
        Ok(Some(by)) if by > epoch => return Verdict::Right,
        Ok(_) => {}
    }
    if !found.endpoints.iter().any(|entry| is_ours(entry, target)) {
        return Verdict::Right;
    }
    let mut slice = found.clone();
    slice.endpoints = Vec::new();
    Verdict::Write(Box::new(slice))
}

/// The epoch of the owner that wrote it; none where none did yet.
fn epoch_of(slice: &EndpointSlice) -> Result<Option<Epoch>, String> {
    let annotations = slice.metadata.annotations.as_ref();
    let Some(text) = annotations.and_then(|annotations| annotations.get(names::EPOCH)) else {
        return Ok(None);
    };
    let number = text.parse().ok().and_then(Epoch::new);
    number.map(Some).ok_or_else(|| {
        format!(
            "its annotation {} is {text:?}, which is no epoch: delete the EndpointSlice",
            names::EPOCH
        )
    })
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

fn write_meta(meta: &mut ObjectMeta, target: &Target, epoch: Epoch) {
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
    annotations.insert(names::EPOCH.to_owned(), epoch.number().to_string());
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
