//! What is in the Lease object: the record and the history as JSON in annotations, and beside them,
//! for people and `kubectl get lease`, who holds it since when. Only the annotations are read back.

use k8s_openapi::api::coordination::v1::{Lease as Object, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use serde::de::DeserializeOwned;

use super::super::cluster;
use super::super::document::{self, Ownership};
use super::super::{LeaseError, Writer};
use crate::clock::Wall;
use crate::decide::{Lease, LeaseRecord, LeaseVersion};
use crate::kubernetes::names;

/// Whose Lease it must be, and who writes.
#[derive(Clone, Debug)]
pub(super) struct Owner {
    pub cluster: String,
    pub site: String,
    pub writer: Writer,
    /// For `leaseDurationSeconds`: how old a record people may rely on.
    pub seconds: i32,
}

/// A Lease object that was understood.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Document {
    object: Object,
    pub record: LeaseRecord,
    pub history: Vec<Ownership>,
}

/// Why what is there cannot be used. Nothing of it is ever written over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    Damaged(String),
    Foreign { cluster: String, site: String },
    Vanished,
}

impl Trouble {
    pub fn error(self, store: String) -> LeaseError {
        match self {
            Self::Damaged(what) => LeaseError::Damaged { store, what },
            Self::Foreign { cluster, site } => LeaseError::Foreign {
                store,
                cluster,
                site,
                setting: "lease.namespace and lease.name",
            },
            Self::Vanished => LeaseError::Vanished { store },
        }
    }
}

/// The version that a compare-and-set names. A Lease that was removed and made anew has another UID.
pub(super) fn version(object: &Object) -> LeaseVersion {
    let meta = &object.metadata;
    let text = |part: &Option<String>| part.clone().unwrap_or_default();
    LeaseVersion(format!(
        "{}:{}",
        text(&meta.uid),
        text(&meta.resource_version)
    ))
}

impl Document {
    /// Understands an object that was read.
    pub fn read(mut object: Object, owner: &Owner) -> Result<Self, Trouble> {
        // Nobody here needs it, and it is half of the object.
        object.metadata.managed_fields = None;
        let cluster = annotation(&object, names::CLUSTER)?;
        let site = annotation(&object, names::SITE)?;
        if (cluster, site) != (&owner.cluster, &owner.site) {
            let (cluster, site) = (cluster.to_owned(), site.to_owned());
            return Err(Trouble::Foreign { cluster, site });
        }
        let record = parse(&object, names::RECORD)?;
        let history = parse(&object, names::HISTORY)?;
        if object.metadata.uid.is_none() || object.metadata.resource_version.is_none() {
            return Err(Trouble::Damaged("it has no uid or version".to_owned()));
        }
        Ok(Self {
            object,
            record,
            history,
        })
    }

    /// The version of what was read.
    pub fn version(&self) -> LeaseVersion {
        version(&self.object)
    }

    /// The record with its version.
    pub fn lease(&self) -> Lease {
        Lease {
            version: self.version(),
            record: self.record.clone(),
        }
    }
}

/// The object that follows `before`, or the first one. It names the UID and the version that it was
/// made from: the server takes it only in their place.
pub(super) fn next(
    before: Option<&Document>,
    name: &str,
    owner: &Owner,
    record: &LeaseRecord,
    now: Wall,
) -> Result<Object, serde_json::Error> {
    let mut object = before.map_or_else(Object::default, |before| before.object.clone());
    let last = before.map(|before| &before.record);
    let mut history = before.map_or_else(Vec::new, |before| before.history.clone());
    let changed = document::follow(&mut history, last, record, &owner.writer, now);
    write_meta(&mut object.metadata, name, owner);
    let annotations = object.metadata.annotations.get_or_insert_default();
    annotations.insert(names::RECORD.to_owned(), serde_json::to_string(record)?);
    annotations.insert(names::HISTORY.to_owned(), serde_json::to_string(&history)?);
    let spec = object.spec.get_or_insert_default();
    write_spec(spec, owner, record, changed, now);
    Ok(object)
}

fn write_meta(meta: &mut ObjectMeta, name: &str, owner: &Owner) {
    meta.name = Some(name.to_owned());
    let labels = meta.labels.get_or_insert_default();
    labels.extend(names::labels(&owner.cluster));
    // The record of all sites is no site's, and what it has in a site's place is no label's value.
    if owner.site != cluster::EVERY_SITE {
        labels.insert(names::SITE.to_owned(), owner.site.clone());
    }
    let annotations = meta.annotations.get_or_insert_default();
    annotations.insert(names::CLUSTER.to_owned(), owner.cluster.clone());
    annotations.insert(names::SITE.to_owned(), owner.site.clone());
}

fn write_spec(spec: &mut LeaseSpec, owner: &Owner, record: &LeaseRecord, changed: bool, now: Wall) {
    let millis = i64::try_from(now.0).unwrap_or(i64::MAX);
    let now = Timestamp::from_millisecond(millis).ok().map(MicroTime);
    if record.holder == Some(owner.writer.member) {
        spec.holder_identity = Some(owner.writer.name.clone());
    } else if changed {
        // Nobody: an operator's word on a site that never had an owner.
        spec.holder_identity = None;
    }
    if changed {
        spec.acquire_time = now.clone();
    }
    spec.renew_time = now;
    spec.lease_duration_seconds = Some(owner.seconds);
    spec.lease_transitions = i32::try_from(record.epoch.number()).ok();
}

fn annotation<'o>(object: &'o Object, key: &str) -> Result<&'o String, Trouble> {
    let annotations = object.metadata.annotations.as_ref();
    annotations
        .and_then(|annotations| annotations.get(key))
        .ok_or_else(|| Trouble::Damaged(format!("it has no annotation {key}")))
}

fn parse<T: DeserializeOwned>(object: &Object, key: &str) -> Result<T, Trouble> {
    serde_json::from_str(annotation(object, key)?)
        .map_err(|error| Trouble::Damaged(format!("its annotation {key} makes no sense: {error}")))
}
