//! What is asked of a cluster and done to it through the API server.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, ListParams};
use kube::{Api, ResourceExt};
use tokio::process::{Child, Command};

use super::api::ApiServer;
use super::container::program;
use super::{places, proxy};

/// The cluster under test.
pub const CLUSTER: &str = "main";

/// The pods of the cluster by what they say of their role: the active's and the standby's names.
pub async fn roles(api: &ApiServer) -> Result<(Option<String>, Option<String>)> {
    let of = ListParams::default().labels(&format!("baton.dev/cluster={CLUSTER}"));
    let pods = pods(api).list(&of).await?;
    let with = |role: &str| {
        let mut found = pods.iter().filter(|pod| {
            pod.metadata.deletion_timestamp.is_none()
                && pod
                    .labels()
                    .get("baton.dev/role")
                    .is_some_and(|is| is == role)
                && is_ready(pod)
        });
        found.next().map(ResourceExt::name_any)
    };
    Ok((with("active"), with("standby")))
}

/// Waits until one member serves and another could take over: their names.
pub async fn settled(
    api: &ApiServer,
    endpoint: &proxy::Endpoint,
    within: Duration,
) -> Result<(String, String)> {
    let until = tokio::time::Instant::now() + within;
    loop {
        let roles = roles(api).await;
        if let Ok((Some(active), Some(standby))) = &roles
            && endpoint.borrow().is_some()
        {
            return Ok((active.clone(), standby.clone()));
        }
        if tokio::time::Instant::now() > until {
            bail!("not settled within {within:?}: {roles:?}");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The pods of the run's namespace.
pub fn pods(api: &ApiServer) -> Api<Pod> {
    Api::namespaced(api.client.clone(), &api.namespace)
}

/// Deletes a pod as `kubectl delete pod` does.
pub async fn delete_pod(api: &ApiServer, name: &str) -> Result<()> {
    pods(api).delete(name, &DeleteParams::default()).await?;
    Ok(())
}

/// The site's Lease.
pub async fn lease(api: &ApiServer) -> Result<Lease> {
    let leases: Api<Lease> = Api::namespaced(api.client.clone(), &api.namespace);
    Ok(leases.get(&format!("{CLUSTER}-local")).await?)
}

/// The epoch in the Lease.
pub async fn epoch(api: &ApiServer) -> Result<i32> {
    let spec = lease(api).await?.spec;
    spec.and_then(|spec| spec.lease_transitions)
        .context("no epoch in the Lease")
}

/// Starts the controller, with its rights and a log in `logs`; its kubeconfig lies in `directory`.
pub async fn controller(api: &ApiServer, directory: &Path, logs: &Path) -> Result<Child> {
    let config = directory.join("controller.kubeconfig");
    let text = api
        .kubeconfig_of(places::SYSTEM, "baton-controller")
        .await?;
    std::fs::write(&config, text)?;
    let log = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(logs.join("controller.log"))?;
    Command::new(program())
        .args(["controller", "--namespace", places::SYSTEM])
        .args(["--identity", "controller-1"])
        .env("KUBECONFIG", config)
        .stdin(Stdio::null())
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .context("start the controller")
}

/// Whether the kubelet found it ready.
pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_ref());
    let mut conditions = conditions.into_iter().flatten();
    conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True")
}
