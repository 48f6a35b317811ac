//! `[lease]`, `[kubernetes]` and `[pooler]`: where the lease is kept, and what leads clients here.

use std::path::{Path, PathBuf};

use serde::Serialize;
use toml::Value;

use super::Endpoint;
use super::api::private;
use super::read::{Absolute, Draft};
use super::reader::{Parsed, Section, Setting};
use crate::kubernetes::PodFacts;

/// PgBouncer's own database: the admin console.
const CONSOLE: &str = "pgbouncer";

/// `[lease]`: the lease store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "store", rename_all = "lowercase")]
pub enum Lease {
    /// A locked file in a directory that all members share.
    File {
        /// The file; its directory exists.
        path: PathBuf,
    },
    /// One `coordination.k8s.io/v1` Lease of the Kubernetes API.
    Kubernetes {
        /// The namespace of the Lease; it exists.
        namespace: String,
        /// The name of the Lease; the first owner makes it.
        name: String,
    },
}

/// Which lease store, as it is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Store {
    #[default]
    File,
    Kubernetes,
}

/// `[kubernetes]`: this member is a pod, and tells its cluster who serves. How the API server is
/// reached is not said here: by `KUBECONFIG`, else by the pod's own ServiceAccount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Kubernetes {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// The Service for writers, without a selector: the active writes its endpoints.
    pub service: String,
}

/// `[pooler]`: a PgBouncer that is paused while the active changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pooler {
    /// Where it listens.
    pub address: Endpoint,
    /// A user of its `admin_users`.
    pub user: String,
    /// The file with that user's password; none where PgBouncer asks for none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    /// The name of the admin console.
    pub database: String,
}

/// The store beside its settings: that much is known even where a setting is wrong.
pub(super) fn lease(section: &mut Section<'_>) -> Option<(Store, Option<Lease>)> {
    let Some(store) = section.optional("store", Store::File) else {
        // Whose settings these are is not known: say no more of them.
        for setting in ["path", "namespace", "name"] {
            section.take(setting);
        }
        return None;
    };
    let lease = match store {
        Store::File => {
            let path = section.required::<Absolute>("path", "\"/srv/baton/main.lease\"");
            path.map(|Absolute(path)| Lease::File { path })
        }
        Store::Kubernetes => {
            let namespace = section.required::<Label>("namespace", "\"db\"");
            let name = section.required::<ObjectName>("name", "\"main-local\"");
            namespace
                .zip(name)
                .map(|(namespace, name)| Lease::Kubernetes {
                    namespace: namespace.0,
                    name: name.0,
                })
        }
    };
    Some((store, lease))
}

pub(super) fn kubernetes(section: &mut Section<'_>) -> Option<Kubernetes> {
    let namespace = section.required::<Label>("namespace", "\"db\"");
    let pod = section.required::<ObjectName>("pod", "\"main-a\"");
    let service = section.required::<Label>("service", "\"main-rw\"");
    Some(Kubernetes {
        namespace: namespace?.0,
        pod: pod?.0,
        service: service?.0,
    })
}

pub(super) fn pooler(section: &mut Section<'_>) -> Option<Pooler> {
    let address = section.required::<Parsed<_>>("address", "\"10.0.0.9:6432\"");
    let user = section.required::<String>("user", "\"baton\"");
    let password_file = section.optional("password_file", None::<Absolute>);
    let database = section.optional("database", CONSOLE.to_owned());
    Some(Pooler {
        address: address?.0,
        user: user?,
        password_file: password_file?.map(|Absolute(path)| path),
        database: database?,
    })
}

/// What these sections say against others.
pub(super) fn contradictions(draft: &Draft, note: &mut impl FnMut(&str, String)) {
    let lease = draft.lease.as_ref();
    if let Some(Lease::Kubernetes { namespace, .. }) = lease {
        let beats = draft
            .timings
            .as_ref()
            .is_none_or(|timings| timings.storage_beats);
        if !beats {
            let text = "must be on with lease.store = \"kubernetes\": that lease is read too rarely to \
                        show an owner's silence";
            note("timings.storage_beats", text.to_owned());
        }
        if let Some(Some(own)) = &draft.kubernetes
            && own.namespace != *namespace
        {
            let text = format!(
                "is {}, but lease.namespace is {namespace}: a cluster lives in one namespace",
                own.namespace
            );
            note("kubernetes.namespace", text);
        }
    }
    if let Some(Some(pooler)) = &draft.pooler
        && pooler.address.port() == 0
    {
        let text = "port 0 is no port to connect to; PgBouncer's is 6432";
        note("pooler.address", text.to_owned());
    }
}

/// What these sections need of this machine.
pub(super) fn here(
    kubernetes: Option<&Kubernetes>,
    pooler: Option<&Pooler>,
    note: &mut impl FnMut(&str, String),
) {
    if kubernetes.is_some()
        && let Err(error) = PodFacts::from_env()
    {
        note("kubernetes.pod", error.to_string());
    }
    if let Some(file) = pooler.and_then(|pooler| pooler.password_file.as_deref())
        && let Err(text) = password(file)
    {
        note("pooler.password_file", text);
    }
}

fn password(path: &Path) -> Result<(), String> {
    private(path)?;
    let shown = path.display();
    let text = std::fs::read(path).map_err(|error| format!("cannot read {shown} ({error})"))?;
    if text.trim_ascii().is_empty() {
        return Err(format!("{shown} is empty; write the password into it"));
    }
    Ok(())
}

impl Setting for Store {
    fn read(value: Value) -> Result<Self, String> {
        match String::read(value)?.as_str() {
            "file" => Ok(Self::File),
            "kubernetes" => Ok(Self::Kubernetes),
            other => Err(format!(
                "{other:?} is unknown: write \"file\" or \"kubernetes\""
            )),
        }
    }
}

/// A namespace or a Service: a DNS label that begins with a letter.
struct Label(String);

impl Setting for Label {
    fn read(value: Value) -> Result<Self, String> {
        let text = String::read(value)?;
        let letter = text.starts_with(|c: char| c.is_ascii_lowercase());
        if letter && text.len() <= 63 && is_name(&text) {
            Ok(Self(text))
        } else {
            Err(format!(
                "{text:?} is no name in Kubernetes: write 1 to 63 of a-z, 0-9 and inner -, a letter first"
            ))
        }
    }
}

/// A pod or a Lease.
struct ObjectName(String);

impl Setting for ObjectName {
    fn read(value: Value) -> Result<Self, String> {
        let text = String::read(value)?;
        if text.len() <= 253 && text.split('.').all(is_name) {
            Ok(Self(text))
        } else {
            Err(format!(
                "{text:?} is no name in Kubernetes: write 1 to 253 of a-z, 0-9 and inner - and ."
            ))
        }
    }
}

fn is_name(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    !text.is_empty() && !text.starts_with('-') && !text.ends_with('-') && text.chars().all(allowed)
}
