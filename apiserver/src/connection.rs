//! The listening socket and the life of one connection: TLS, HTTP/1.1, and the faults that act on
//! connections. A stalled connection is one that is not polled: nothing is read from it and
//! nothing written, which is what a network that swallows packets looks like from both sides.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::faults::{Fate, Switches};
use crate::http::{Body, Handler};

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 1024;

/// What is known about a connection.
#[derive(Debug, Default)]
pub(crate) struct Line {
    who: Mutex<Option<(String, String)>>,
    broken: Mutex<bool>,
    changed: Notify,
}

impl Line {
    /// A request told whose connection this is.
    pub(crate) fn learn(&self, user: &str, client: &str) {
        let mut who = self.who.lock().unwrap_or_else(PoisonError::into_inner);
        *who = Some((user.to_owned(), client.to_owned()));
        self.changed.notify_one();
    }

    /// Closes the connection before anything more is written to it.
    pub(crate) fn cut(&self) {
        *self.broken.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_one();
    }

    fn fate(&self, switches: &Switches) -> Fate {
        if *self.broken.lock().unwrap_or_else(PoisonError::into_inner) {
            return Fate::Cut;
        }
        let who = self.who.lock().unwrap_or_else(PoisonError::into_inner);
        switches.fate(who.as_ref())
    }

    /// Waits until the faults let this connection be served.
    pub(crate) async fn served(&self, switches: &mut watch::Receiver<Switches>) {
        // The sender lives as long as the server: an error means that all is over.
        if switches
            .wait_for(|now| self.fate(now) == Fate::Serve)
            .await
            .is_err()
        {
            std::future::pending::<()>().await;
        }
    }
}

/// A port of the loopback that stays ours while nothing listens on it.
#[derive(Debug)]
pub(crate) struct Port {
    /// Bound, never listening: keeps the port from others during an outage.
    _reserved: TcpSocket,
    /// Where the server listens.
    pub address: SocketAddr,
}

impl Port {
    pub(crate) fn reserve(address: SocketAddr) -> io::Result<Self> {
        let reserved = socket(address)?;
        let address = reserved.local_addr()?;
        Ok(Self {
            _reserved: reserved,
            address,
        })
    }

    pub(crate) fn listen(&self) -> io::Result<TcpListener> {
        socket(self.address)?.listen(BACKLOG)
    }
}

fn socket(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

/// Accepts connections until dropped; closes the listening socket while there is an outage.
pub(crate) async fn accept(port: Port, first: TcpListener, tls: TlsAcceptor, handler: Handler) {
    let mut switches = handler.faults().subscribe();
    let mut connections = JoinSet::new();
    let mut listener = Some(first);
    loop {
        let outage = switches.borrow_and_update().outage;
        if outage {
            listener = None;
        } else if listener.is_none() {
            match port.listen() {
                Ok(again) => listener = Some(again),
                Err(error) => {
                    tracing::error!(%error, address = %port.address, "cannot listen again");
                    return;
                }
            }
        }
        tokio::select! {
            changed = switches.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            stream = next(listener.as_ref()) => {
                connections.spawn(carry(stream, tls.clone(), handler.clone()));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn next(listener: Option<&TcpListener>) -> TcpStream {
    let Some(listener) = listener else {
        return std::future::pending().await;
    };
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            // Out of descriptors, or the peer went away: the next one may do better.
            Err(error) => {
                tracing::debug!(%error, "accept failed");
                tokio::task::yield_now().await;
            }
        }
    }
}

/// One connection, from handshake to end.
async fn carry(stream: TcpStream, tls: TlsAcceptor, handler: Handler) {
    let line = Arc::new(Line::default());
    let mut switches = handler.faults().subscribe();
    let mut conversation = pin!(converse(stream, tls, handler, Arc::clone(&line)));
    loop {
        let fate = line.fate(&switches.borrow_and_update());
        match fate {
            Fate::Cut => return,
            Fate::Stall => tokio::select! {
                changed = switches.changed() => if changed.is_err() { return },
                () = line.changed.notified() => {}
            },
            Fate::Serve => tokio::select! {
                biased;
                changed = switches.changed() => if changed.is_err() { return },
                () = line.changed.notified() => {}
                () = conversation.as_mut() => return,
            },
        }
    }
}

async fn converse(stream: TcpStream, tls: TlsAcceptor, handler: Handler, line: Arc<Line>) {
    // Answers are small and awaited: do not wait for more to send.
    let _ = stream.set_nodelay(true);
    let Ok(stream) = tls.accept(stream).await else {
        return;
    };
    let service = service_fn(move |request: Request<Incoming>| {
        let handler = handler.clone();
        let line = Arc::clone(&line);
        async move { Ok::<Response<Body>, Infallible>(handler.answer(&line, request).await) }
    });
    let served = http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "connection ended");
    }
}
