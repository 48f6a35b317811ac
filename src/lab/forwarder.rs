//! A link between two members: a TCP forwarder that a drill can cut and heal.
//!
//! A cut link is a black hole, as a network that drops packets: connections stay open and silent,
//! new ones are accepted and get no answer. Healing ends what was caught in it.

use std::io;
use std::net::SocketAddr;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

/// A running forwarder; dropping it closes the link.
#[derive(Debug)]
pub struct Forwarder {
    address: SocketAddr,
    cut: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Forwarder {
    /// Listens on a port of loopback and forwards to `target`, which need not listen yet.
    pub async fn start(port: u16, target: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", port)).await?;
        let address = listener.local_addr()?;
        let (cut, is_cut) = watch::channel(false);
        let task = tokio::spawn(accept(listener, target, is_cut));
        Ok(Self { address, cut, task })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Cuts or heals the link.
    pub fn set_cut(&self, cut: bool) {
        self.cut.send_replace(cut);
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, target: SocketAddr, cut: watch::Receiver<bool>) {
    let mut links = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((from, _)) => {
                    links.spawn(forward(from, target, cut.clone()));
                }
                // out of descriptors or the like: the peer sees it as a lost connection
                Err(error) => tracing::warn!(%error, "accept on a link"),
            },
            Some(_) = links.join_next(), if !links.is_empty() => {}
        }
    }
}

/// Moves bytes until an end closes, or the link is cut; then holds on in silence until it heals.
async fn forward(mut from: TcpStream, target: SocketAddr, mut cut: watch::Receiver<bool>) {
    let mut healed = cut.clone();
    let moved = async {
        drop(cut.wait_for(|cut| *cut).await);
    };
    tokio::select! {
        biased;
        () = moved => {
            drop(healed.wait_for(|cut| !*cut).await);
        }
        // either end may close or fail at any time: the other end's socket closes with it
        _ = async {
            let mut to = TcpStream::connect(target).await?;
            from.set_nodelay(true)?;
            to.set_nodelay(true)?;
            copy_bidirectional(&mut from, &mut to).await
        } => {}
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::timeout;

    use super::*;

    const SILENCE: Duration = Duration::from_millis(100);
    const SOON: Duration = Duration::from_secs(5);

    #[tokio::test]
    async fn a_cut_link_is_silent_and_a_healed_one_carries_again() {
        let echo = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = echo.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = echo.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = stream.split();
                    tokio::io::copy(&mut read, &mut write).await
                });
            }
        });
        let link = Forwarder::start(0, target).await.unwrap();
        let mut before = TcpStream::connect(link.address()).await.unwrap();
        assert_eq!(echoed(&mut before, 1).await, Some(1));

        link.set_cut(true);
        let mut during = TcpStream::connect(link.address()).await.unwrap();
        assert_eq!(echoed(&mut before, 2).await, None);
        assert_eq!(echoed(&mut during, 3).await, None);

        link.set_cut(false);
        let mut end = [0];
        let ended = timeout(SOON, before.read(&mut end)).await.unwrap();
        assert!(
            matches!(ended, Ok(0) | Err(_)),
            "what was caught in the cut ends: {ended:?}"
        );
        let mut after = TcpStream::connect(link.address()).await.unwrap();
        assert_eq!(echoed(&mut after, 4).await, Some(4));
    }

    /// The byte that came back; none if none did for a while.
    async fn echoed(stream: &mut TcpStream, byte: u8) -> Option<u8> {
        stream.write_all(&[byte]).await.unwrap();
        timeout(SILENCE, stream.read_u8())
            .await
            .ok()
            .map(Result::unwrap)
    }
}
