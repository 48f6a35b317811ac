//! What kube-proxy does for the Service `-rw`: an address that leads to the endpoint in its EndpointSlice.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context, Result};
use futures_util::StreamExt;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// The address behind the Service now.
pub type Endpoint = watch::Receiver<Option<SocketAddr>>;

/// What serves a Service's address, until it is dropped.
pub struct Proxy {
    pub endpoint: Endpoint,
    tasks: JoinSet<()>,
}

/// Serves the Service's address until the runtime ends.
pub async fn run(
    client: Client,
    namespace: &str,
    service: &str,
    address: (Ipv4Addr, u16),
) -> Result<Endpoint> {
    let mut proxy = serve(client, namespace, service, address).await?;
    proxy.tasks.detach_all();
    Ok(proxy.endpoint)
}

/// Serves the Service's address as long as the proxy is kept.
pub async fn serve(
    client: Client,
    namespace: &str,
    service: &str,
    address: (Ipv4Addr, u16),
) -> Result<Proxy> {
    let slices: Api<EndpointSlice> = Api::namespaced(client, namespace);
    let of_service = format!("kubernetes.io/service-name={service}");
    let config = watcher::Config::default().labels(&of_service);
    let (said, endpoint) = watch::channel(None);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut changes = watcher(slices, config)
            .default_backoff()
            .applied_objects()
            .boxed();
        while let Some(change) = changes.next().await {
            if let Ok(slice) = change {
                said.send_replace(endpoint_of(&slice));
            }
        }
    });
    let listener = TcpListener::bind(address)
        .await
        .context("listen at the Service's address")?;
    let leads_to = Arc::new(endpoint.clone());
    tasks.spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let to = *leads_to.borrow();
            tokio::spawn(async move {
                // Without an endpoint the connection is refused, as kube-proxy's rule does.
                let Some(to) = to else { return };
                if let Ok(mut far) = TcpStream::connect(to).await {
                    let _ = near.set_nodelay(true).and_then(|()| far.set_nodelay(true));
                    let _ended = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                }
            });
        }
    });
    Ok(Proxy { endpoint, tasks })
}

fn endpoint_of(slice: &EndpointSlice) -> Option<SocketAddr> {
    let endpoint = slice.endpoints.first()?;
    let ready = endpoint
        .conditions
        .as_ref()
        .and_then(|conditions| conditions.ready);
    let port = slice.ports.as_ref()?.first()?.port?;
    let ip = endpoint.addresses.first()?.parse().ok()?;
    (ready != Some(false)).then(|| SocketAddr::new(ip, u16::try_from(port).unwrap_or(5432)))
}
