//! The links between the members of one site, in the site's own network if it has one.

use std::io;
use std::net::SocketAddr;

use tokio::sync::oneshot;

use super::forwarder::Forwarder;
use super::network::enter;
use super::site::Site;

/// One forwarder for each member: where the other believes that it is.
#[derive(Debug)]
pub(super) struct Links {
    forwarders: Vec<Forwarder>,
    /// Ends the thread that serves them in another network, if there is one.
    _serving: Option<oneshot::Sender<()>>,
}

impl Links {
    /// Starts those between `ports`: where a link begins, and where it leads.
    pub(super) async fn start(site: &Site<'_>, ports: Vec<(u16, u16)>) -> io::Result<Self> {
        let Some(network) = site.network() else {
            return Ok(Self {
                forwarders: forwarders(ports).await?,
                _serving: None,
            });
        };
        let (serving, served) = oneshot::channel();
        let (started, starting) = oneshot::channel();
        let serve = move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            match runtime {
                Err(error) => drop(started.send(Err(error))),
                Ok(runtime) => runtime.block_on(async {
                    drop(started.send(forwarders(ports).await));
                    // the sender is only ever dropped
                    drop(served.await);
                }),
            }
        };
        std::thread::Builder::new()
            .name("links".to_owned())
            .spawn(move || {
                if let Err(error) = enter(&network.namespace, serve) {
                    tracing::error!(%error, "links in a site's network");
                }
            })?;
        let forwarders = starting.await.map_err(io::Error::other)??;
        Ok(Self {
            forwarders,
            _serving: Some(serving),
        })
    }

    /// Cuts or heals them all.
    pub(super) fn set_cut(&self, cut: bool) {
        self.forwarders.iter().for_each(|link| link.set_cut(cut));
    }
}

async fn forwarders(ports: Vec<(u16, u16)>) -> io::Result<Vec<Forwarder>> {
    let mut forwarders = Vec::new();
    for (link, peer) in ports {
        let to = SocketAddr::from(([127, 0, 0, 1], peer));
        forwarders.push(Forwarder::start(link, to).await?);
    }
    Ok(forwarders)
}
