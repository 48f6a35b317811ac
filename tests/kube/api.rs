//! The API server: the stand-in, or a real one.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use kube::config::Kubeconfig;

use crate::door;
use crate::places;
use crate::platform::api::ApiServer;

/// The stand-in, or the one of the kubeconfig through the door.
pub async fn start(kubeconfig: Option<&Path>) -> Result<ApiServer> {
    let namespace = format!("baton-test-{}", std::env::var("BATON_KUBE_RUN")?);
    let Some(path) = kubeconfig else {
        return ApiServer::stand_in_for(namespace).await;
    };
    let socket = std::env::var_os("BATON_KUBE_DOOR").context("no door")?;
    door::inside(places::api(), PathBuf::from(socket)).await?;
    ApiServer::real(through_the_door(path)?, namespace).await
}

/// The same server under the address at which it is reached from here; its certificate names the other.
fn through_the_door(path: &Path) -> Result<Kubeconfig> {
    let mut config = Kubeconfig::read_from(path)?;
    for cluster in config
        .clusters
        .iter_mut()
        .filter_map(|named| named.cluster.as_mut())
    {
        let server = cluster.server.take().context("no server")?;
        let host = server.split("//").nth(1).unwrap_or_default();
        let host = host.rsplit_once(':').map_or(host, |(host, _)| host);
        cluster
            .tls_server_name
            .get_or_insert_with(|| host.to_owned());
        cluster.server = Some(format!("https://{}", places::api()));
    }
    Ok(config)
}
