//! The manifests of `deploy/base` as far as the test needs them: definition, accounts, rights.

use std::path::Path;

use anyhow::{Context, Result};
use kube::api::{DynamicObject, Patch, PatchParams};
use kube::core::GroupVersionKind;
use kube::discovery::ApiResource;
use kube::{Api, Client};
use serde_json::Value;

/// Files of `deploy/base`: nothing that would run.
const FILES: [&str; 4] = [
    "agent-rbac.yaml",
    "controller-rbac.yaml",
    "controller-grants.yaml",
    "user-rbac.yaml",
];

/// Applies them, as `kubectl apply --server-side` does.
pub async fn apply(client: &Client) -> Result<()> {
    let definition = baton::cluster::definition()?;
    one(client, serde_saphyr::from_str(&definition)?)
        .await
        .context("apply the definition of BatonCluster")?;
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/base");
    for file in FILES {
        let path = base.join(file);
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        for document in text.split("\n---") {
            let object: Value = serde_saphyr::from_str(document)
                .with_context(|| format!("understand {}", path.display()))?;
            if object.is_object() {
                one(client, object)
                    .await
                    .with_context(|| format!("apply {file}"))?;
            }
        }
    }
    Ok(())
}

async fn one(client: &Client, object: Value) -> Result<()> {
    let text = |pointer: &str| {
        object
            .pointer(pointer)
            .and_then(Value::as_str)
            .map(str::to_owned)
    };
    let (version, kind) = (
        text("/apiVersion").context("no apiVersion")?,
        text("/kind").context("no kind")?,
    );
    let (group, version) = version.rsplit_once('/').unwrap_or(("", &version));
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, &kind));
    let api: Api<DynamicObject> = match text("/metadata/namespace") {
        Some(namespace) => Api::namespaced_with(client.clone(), &namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    };
    let name = text("/metadata/name").context("no name")?;
    let apply = PatchParams::apply("baton-test").force();
    api.patch(&name, &apply, &Patch::Apply(&object)).await?;
    Ok(())
}
