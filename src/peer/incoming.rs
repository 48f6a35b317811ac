//! The connections of the other members to this one.

use std::collections::BTreeSet;
use std::sync::Arc;

use fencing::MemberId;
use tokio::io::BufReader;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::seen::{self, Connection, Duplicate, Link, PeerView};
use super::wire::{self, Hello, LinkError, Opener};
use super::{Identity, Message, Patience, PeerEvent};
use crate::clock;

/// Connections at once. Members need one each, for a moment two; strangers get the rest until
/// their handshake's time is over.
const CONNECTIONS_MAX: usize = 600;

/// Takes connections.
pub(super) struct Acceptor {
    pub identity: Arc<Identity>,
    pub members: BTreeSet<MemberId>,
    pub patience: Patience,
    pub seen: Arc<watch::Sender<seen::All>>,
    pub events: mpsc::Sender<PeerEvent>,
}

impl Acceptor {
    pub async fn run(self, listener: TcpListener) {
        let acceptor = Arc::new(self);
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let mut connections = JoinSet::new();
        loop {
            while connections.try_join_next().is_some() {}
            let Ok(place) = Arc::clone(&places).acquire_owned().await else {
                return;
            };
            match listener.accept().await {
                Ok((stream, address)) => {
                    let acceptor = Arc::clone(&acceptor);
                    connections.spawn(async move {
                        let error = acceptor.serve(stream).await;
                        tracing::debug!(%address, %error, "a peer's connection ended");
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "accept a peer's connection");
                    // Out of descriptors: there is no event to wait for.
                    tokio::time::sleep(acceptor.patience.retry_least).await;
                }
            }
        }
    }

    async fn serve(&self, mut stream: TcpStream) -> LinkError {
        let step = self.patience.step;
        let shaken = async {
            stream.set_nodelay(true)?;
            wire::accept(&mut stream, &self.identity).await
        };
        let (hello, opener) = match timeout(step, shaken).await {
            Ok(Ok(shaken)) => shaken,
            Ok(Err(error)) => {
                tracing::warn!(%error, "refuse a peer's connection");
                return error;
            }
            Err(_) => return LinkError::Overdue(step),
        };
        if hello.from == self.identity.member {
            self.impostor(&hello);
            return LinkError::WrongMember { found: hello.from };
        }
        if !self.members.contains(&hello.from) {
            tracing::warn!(member = %hello.from, name = hello.name, "refuse a member that peer.members does not list");
            return LinkError::WrongMember { found: hello.from };
        }
        let connection = self.arrived(hello.from);
        let error = self.listen(stream, &hello, opener, connection).await;
        self.change(hello.from, |view| {
            view.leave(
                connection,
                Link::Down {
                    since: clock::now(),
                    cause: error.to_string(),
                },
            )
        });
        error
    }

    fn arrived(&self, member: MemberId) -> Connection {
        let mut connection = Connection {
            serial: 0,
            made: clock::now(),
        };
        self.seen.send_modify(|all| {
            all.connections += 1;
            connection.serial = all.connections;
            if let Some(view) = all.peers.get_mut(&member) {
                view.arrive(connection);
            }
        });
        connection
    }

    fn impostor(&self, hello: &Hello) {
        let (one, other) = (self.identity.incarnation, hello.incarnation);
        if one != other {
            tracing::error!(
                name = hello.name,
                "another process uses this member's number; give each its own"
            );
            let duplicate = Duplicate {
                one,
                other,
                at: clock::now(),
            };
            self.seen.send_modify(|all| all.impostor = Some(duplicate));
        }
    }

    fn change(&self, member: MemberId, change: impl FnOnce(&mut PeerView) -> bool) {
        self.seen
            .send_if_modified(|all| all.peers.get_mut(&member).is_some_and(change));
    }

    async fn listen(
        &self,
        stream: TcpStream,
        hello: &Hello,
        mut opener: Opener,
        connection: Connection,
    ) -> LinkError {
        let mut stream = BufReader::new(stream);
        loop {
            let message = match timeout(self.patience.idle, opener.receive(&mut stream)).await {
                Ok(Ok(message)) => message,
                Ok(Err(error)) => return error,
                Err(_) => return LinkError::Overdue(self.patience.idle),
            };
            if let Err(error) = self.take(message, hello, connection) {
                return error;
            }
        }
    }

    fn take(
        &self,
        message: Message,
        hello: &Hello,
        connection: Connection,
    ) -> Result<(), LinkError> {
        let at = clock::now();
        let (from, incarnation) = (hello.from, hello.incarnation);
        match message {
            Message::Heartbeat(heartbeat) => {
                if heartbeat.member != from || heartbeat.incarnation != incarnation {
                    return Err(LinkError::Malformed(
                        "a heartbeat of another member".to_owned(),
                    ));
                }
                self.change(from, |view| view.hear(heartbeat, connection, at));
            }
            message @ (Message::Ask { .. } | Message::Answer { .. }) => {
                // Full: the loop hangs. Who asked is told by his deadline.
                let _ = self.events.try_send(PeerEvent::Message {
                    from,
                    incarnation,
                    message,
                    at,
                });
            }
        }
        Ok(())
    }
}
