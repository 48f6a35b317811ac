//! The connection to one peer: dialed, and dialed again after each failure with a bounded back-off.

use std::sync::Arc;

use nix::sys::socket::{setsockopt, sockopt::TcpUserTimeout};
use rand::RngExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use super::seen::{self, Link};
use super::wire::{self, LinkError, Sealer};
use super::{Identity, Message, Patience, Published};
use crate::clock;
use crate::config::PeerMember;

/// Keeps one peer informed.
pub(super) struct Dialer {
    pub identity: Arc<Identity>,
    pub peer: PeerMember,
    pub patience: Patience,
    pub published: watch::Receiver<Option<Published>>,
    pub queue: mpsc::Receiver<Message>,
    pub seen: Arc<watch::Sender<seen::All>>,
}

impl Dialer {
    pub async fn run(mut self) {
        let mut wait = self.patience.retry_least;
        loop {
            let error = match self.connect().await {
                Ok((stream, sealer)) => {
                    self.note(Link::Up {
                        since: clock::now(),
                    });
                    wait = self.patience.retry_least;
                    self.talk(stream, sealer).await
                }
                Err(error) => error,
            };
            self.note(Link::Down {
                since: clock::now(),
                cause: error.to_string(),
            });
            // Members that failed together must not dial together for ever.
            let jitter = rand::rng().random_range(0.75..1.25);
            tokio::time::sleep(wait.mul_f64(jitter)).await;
            wait = (wait * 2).min(self.patience.retry_most);
        }
    }

    fn note(&self, link: Link) {
        let PeerMember {
            name,
            number,
            address,
        } = &self.peer;
        self.seen.send_if_modified(|all| {
            let Some(view) = all.peers.get_mut(number) else {
                return false;
            };
            let changed = seen::note(&mut view.outgoing, link.clone());
            if changed {
                match &link {
                    Link::Up { .. } => tracing::info!(peer = name, %address, "reach peer"),
                    Link::Down { cause, .. } => {
                        tracing::warn!(peer = name, %address, cause, "do not reach peer");
                    }
                }
            }
            changed
        });
    }

    async fn connect(&self) -> Result<(TcpStream, Sealer), LinkError> {
        let address = &self.peer.address;
        let step = self.patience.step;
        let dialing = async {
            let mut stream = TcpStream::connect((address.host(), address.port())).await?;
            stream.set_nodelay(true)?;
            let sealer = wire::dial(&mut stream, &self.identity, self.peer.number).await?;
            // A peer whose machine vanished must not keep the connection for the quarter of an hour
            // that the system would go on sending again.
            let limit = u32::try_from(2 * step.as_millis()).unwrap_or(u32::MAX);
            setsockopt(&stream, TcpUserTimeout, &limit).map_err(std::io::Error::from)?;
            Ok((stream, sealer))
        };
        timeout(step, dialing)
            .await
            .map_err(|_| LinkError::Overdue(step))?
    }

    /// Sends until it fails; says why.
    async fn talk(&mut self, mut stream: TcpStream, mut sealer: Sealer) -> LinkError {
        // A loop that hangs is silent also to a peer that has just come.
        let fresh = |at| !clock::Mono::elapsed(at, self.patience.fresh, clock::now());
        let newest = self.published.borrow_and_update().clone();
        let mut next = newest.filter(|published| fresh(published.at));
        let step = self.patience.step;
        let mut nothing = [0; 1];
        loop {
            if let Some(Published { heartbeat, at: _ }) = next.take() {
                let sent = send(
                    &mut stream,
                    &mut sealer,
                    &Message::Heartbeat(heartbeat),
                    step,
                )
                .await;
                if let Err(error) = sent {
                    return error;
                }
            }
            tokio::select! {
                changed = self.published.changed() => {
                    if changed.is_err() {
                        return LinkError::Closed;
                    }
                    next = self.published.borrow_and_update().clone();
                }
                Some(message) = self.queue.recv() => {
                    if let Err(error) = send(&mut stream, &mut sealer, &message, step).await {
                        return error;
                    }
                }
                // The acceptor says nothing: what comes is the end.
                read = stream.read(&mut nothing) => {
                    return match read {
                        Ok(0) => LinkError::Closed,
                        Ok(_) => LinkError::Malformed("the acceptor must not speak".to_owned()),
                        Err(error) => error.into(),
                    };
                }
            }
        }
    }
}

async fn send(
    stream: &mut TcpStream,
    sealer: &mut Sealer,
    message: &Message,
    step: std::time::Duration,
) -> Result<(), LinkError> {
    let frame = sealer.seal(message)?;
    match timeout(step, stream.write_all(&frame)).await {
        Ok(written) => written.map_err(LinkError::from),
        Err(_) => Err(LinkError::Overdue(step)),
    }
}
