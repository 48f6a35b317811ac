//! Connections: accepted, counted, bounded in number, size and time.
//!
//! One request a connection. Probes and scrapers come seconds apart, so that keeping connections open
//! would save nothing, and every connection ends by a deadline that is known when it begins.

use std::collections::BTreeMap;
use std::net::{IpAddr, TcpListener as StdListener};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use axum::Router;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::tls::{self, TlsError};
use crate::clock::{self, Mono};

/// Connections at once. One more is closed at once: waiting in a queue it would look like a member
/// that hangs, and take longer to say so.
const CONNECTIONS_MAX: usize = 256;

/// Of these, from one address: one client that misbehaves leaves room for the probes of others.
const PER_ADDRESS_MAX: usize = 32;

/// From the connection to the end of the answer, unless a verb takes longer.
const CONNECTION: Duration = Duration::from_secs(10);

/// Within which the request's head must be there, and the TLS handshake before it.
const HEAD: Duration = Duration::from_secs(5);

/// Bytes of a request's head.
const HEAD_BYTES_MAX: usize = 16 << 10;

/// How often renewed certificates are looked for.
const LOOK: Duration = Duration::from_secs(60);

/// TLS, with certificates that may be renewed while the member runs: its restart would be a failover.
pub(super) struct Encryption {
    certificate: PathBuf,
    key: PathBuf,
    changed: [Option<SystemTime>; 2],
    looked: Mono,
    acceptor: TlsAcceptor,
}

impl Encryption {
    /// Reads certificate and key.
    pub fn load((certificate, key): (&Path, &Path)) -> Result<Self, TlsError> {
        let changed = [tls::changed(certificate), tls::changed(key)];
        Ok(Self {
            acceptor: tls::load(certificate, key)?.into(),
            certificate: certificate.to_owned(),
            key: key.to_owned(),
            changed,
            looked: clock::now(),
        })
    }

    /// The newest pair that could be read.
    fn acceptor(&mut self) -> TlsAcceptor {
        let now = clock::now();
        if now.since(self.looked) >= LOOK {
            self.looked = now;
            let changed = [tls::changed(&self.certificate), tls::changed(&self.key)];
            if changed != self.changed {
                match tls::load(&self.certificate, &self.key) {
                    Ok(config) => {
                        self.acceptor = config.into();
                        self.changed = changed;
                        tracing::info!("the API's certificate was renewed");
                    }
                    Err(error) => tracing::warn!(%error, "the API keeps its old certificate"),
                }
            }
        }
        self.acceptor.clone()
    }
}

/// By when the connection must be over. A verb that is waited for moves it.
#[derive(Clone)]
pub(super) struct Deadline(watch::Sender<Mono>);

impl Deadline {
    /// From now on, so much.
    pub fn extend(&self, by: Duration) {
        self.0.send_replace(clock::now() + by);
    }
}

/// Serves until it is dropped.
pub(super) async fn run(listener: StdListener, mut encryption: Option<Encryption>, router: Router) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "the HTTP API ends"),
    };
    let places = Places::default();
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, from)) => {
                let Some(place) = places.take(from.ip()) else {
                    tracing::debug!(%from, "too many connections to the API");
                    continue;
                };
                let acceptor = encryption.as_mut().map(Encryption::acceptor);
                let router = router.clone();
                connections.spawn(async move {
                    match acceptor {
                        None => answer(stream, router).await,
                        Some(acceptor) => {
                            let shaken = tokio::time::timeout(HEAD, acceptor.accept(stream));
                            if let Ok(Ok(stream)) = shaken.await {
                                answer(stream, router).await;
                            }
                        }
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accept a connection to the API");
                // Out of descriptors: there is no event to wait for.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Answers one request, or gives up at the deadline.
async fn answer(stream: impl AsyncRead + AsyncWrite + Unpin, router: Router) {
    let (deadline, moved) = watch::channel(clock::now() + CONNECTION);
    let deadline = Deadline(deadline);
    let service = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(deadline.clone());
        service.call(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(HEAD_BYTES_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        ended = connection => if let Err(error) = ended {
            tracing::debug!(%error, "a connection to the API broke");
        },
        () = over(moved) => {}
    }
}

async fn over(mut deadline: watch::Receiver<Mono>) {
    loop {
        let left = clock::now().until(*deadline.borrow_and_update());
        if left.is_zero() {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(left) => {}
            // Closed: nobody can move it any more.
            Ok(()) = deadline.changed() => {}
        }
    }
}

/// Counts the connections of each address.
#[derive(Clone, Default)]
struct Places(Arc<Mutex<BTreeMap<IpAddr, usize>>>);

/// One connection's place; free again when dropped.
struct Place {
    places: Places,
    address: IpAddr,
}

impl Places {
    fn take(&self, address: IpAddr) -> Option<Place> {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.values().sum::<usize>() >= CONNECTIONS_MAX {
            return None;
        }
        let own = taken.entry(address).or_default();
        if *own >= PER_ADDRESS_MAX {
            return None;
        }
        *own += 1;
        Some(Place {
            places: self.clone(),
            address,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let places = &self.places.0;
        let mut taken = places.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = taken.get_mut(&self.address) {
            *own -= 1;
            if *own == 0 {
                taken.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_leaves_room_for_others_and_places_come_back() {
        let places = Places::default();
        let address = |n: u8| IpAddr::from([10, 0, 0, n]);
        let mut taken: Vec<_> = std::iter::from_fn(|| places.take(address(1))).collect();
        assert_eq!(taken.len(), PER_ADDRESS_MAX);
        for n in 2..=255 {
            taken.extend(std::iter::from_fn(|| places.take(address(n))));
        }
        assert_eq!(taken.len(), CONNECTIONS_MAX);
        drop(taken);
        assert!(places.0.lock().unwrap().is_empty());
    }
}
