//! The member's end of the control socket.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;

use super::desk::{Desk, Newest, aged};
use super::protocol::{LINE_MAX_BYTES, Reply, Request};
use super::requests::ControlRequest;
use super::status::Status;
use crate::clock;
use crate::config::Config;
use crate::decide::zone::SiteNumber;
use crate::decide::{Answer, Ask};
use crate::lease::LeaseStore;

/// Operators at once.
const CLIENTS_MAX: usize = 64;

/// A client that neither asks nor takes its answer for so long is cut off.
const CLIENT_PATIENCE: Duration = Duration::from_secs(30);

/// Why the socket cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Somebody answers there.
    #[error("a member already answers at {}; stop it, or set another control.socket", path.display())]
    Taken {
        /// The socket.
        path: PathBuf,
    },
    /// The system refuses.
    #[error("listen at the control socket {}: it must be a path that can be made (control.socket)", path.display())]
    Listen {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Serves the control socket. Dropping it closes and removes the socket.
pub struct Server {
    path: PathBuf,
    status: watch::Sender<Newest>,
    requests: mpsc::Receiver<ControlRequest>,
    desk: Arc<Desk>,
    _task: JoinSet<()>,
}

impl Server {
    /// Listens at the configured path. Takes the place of a socket at which nobody answers.
    ///
    /// # Errors
    /// Another member answers there, or the system refuses.
    pub async fn start(config: &Config, lease: LeaseStore) -> Result<Self, ServerError> {
        let path = config.control.socket.clone();
        if UnixStream::connect(&path).await.is_ok() {
            return Err(ServerError::Taken { path });
        }
        let listener = listen(&path).map_err(|source| ServerError::Listen {
            path: path.clone(),
            source,
        })?;
        let (status, newest) = watch::channel(None);
        let (ask, requests) = mpsc::channel(CLIENTS_MAX);
        let desk = Arc::new(Desk {
            config: config.clone(),
            lease,
            newest,
            ask,
        });
        let mut task = JoinSet::new();
        task.spawn(run(listener, Arc::clone(&desk)));
        Ok(Self {
            path,
            status,
            requests,
            desk,
            _task: task,
        })
    }

    /// What another door to the member needs.
    pub fn desk(&self) -> Arc<Desk> {
        Arc::clone(&self.desk)
    }

    /// Says how the member is: after every decision.
    pub fn publish(&self, status: Status) {
        self.status
            .send_replace(Some((Arc::new(status), clock::now())));
    }

    /// Waits for the next request. Cancel-safe.
    pub async fn next(&mut self) -> ControlRequest {
        match self.requests.recv().await {
            Some(request) => request,
            // We have a sender ourselves.
            None => std::future::pending().await,
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Its absence is no harm, its presence is only untidy: the next start replaces it.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Binds beside the path and moves it there when it is protected: it is never open to others.
fn listen(path: &Path) -> io::Result<UnixListener> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    let mut beside = path.as_os_str().to_owned();
    beside.push("~");
    match std::fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(&beside)?;
    std::fs::set_permissions(&beside, Permissions::from_mode(0o600))?;
    std::fs::rename(&beside, path)?;
    Ok(listener)
}

async fn run(listener: UnixListener, desk: Arc<Desk>) {
    let places = Arc::new(Semaphore::new(CLIENTS_MAX));
    let mut clients = JoinSet::new();
    loop {
        while clients.try_join_next().is_some() {}
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let clerk = Clerk(Arc::clone(&desk));
                clients.spawn(async move {
                    if let Err(error) = clerk.serve(stream).await {
                        tracing::debug!(%error, "a control client went away");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accept a control client");
                // Out of descriptors: there is no event to wait for.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Answers the clients of the socket.
struct Clerk(Arc<Desk>);

type Lines = BufReader<tokio::io::Take<OwnedReadHalf>>;

impl Clerk {
    async fn serve(&self, stream: UnixStream) -> io::Result<()> {
        let (read, mut write) = stream.into_split();
        let mut lines = BufReader::new(read.take(LINE_MAX_BYTES as u64));
        loop {
            let mut line = String::new();
            lines.get_mut().set_limit(LINE_MAX_BYTES as u64);
            let read = tokio::time::timeout(CLIENT_PATIENCE, lines.read_line(&mut line)).await??;
            if read == 0 {
                return Ok(());
            }
            if !line.ends_with('\n') {
                return Err(io::Error::other("a request without an end"));
            }
            match serde_json::from_str(&line) {
                Ok(request) => self.fulfil(request, &mut lines, &mut write).await?,
                Err(error) => {
                    send(&mut write, &refused(format!("no such request: {error}"))).await?
                }
            }
        }
    }

    async fn fulfil(
        &self,
        request: Request,
        lines: &mut Lines,
        write: &mut OwnedWriteHalf,
    ) -> io::Result<()> {
        let ask = match request {
            Request::Status => return send(write, &first(&mut self.0.newest.clone()).await).await,
            Request::Watch => return self.stream(lines, write).await,
            Request::History => return send(write, &self.history().await).await,
            Request::Restart => Ask::Restart,
            Request::Reload => Ask::Reload,
            Request::SwitchoverSite { site } => match self.site(&site) {
                Ok(site) => Ask::SwitchoverSite { site },
                Err(refused) => return send(write, &refused).await,
            },
            Request::Failover { allow_data_loss } => Ask::Failover { allow_data_loss },
            Request::Reinit => Ask::Reinit,
            Request::Pause => Ask::Pause,
            Request::Resume => Ask::Resume,
            Request::OwnersStopped => Ask::OwnersStopped,
            Request::Switchover { to: None } => Ask::Switchover { to: None },
            Request::Switchover { to: Some(name) } => match self.0.config.number_of(&name) {
                Some(number) => Ask::Switchover { to: Some(number) },
                None => return send(write, &self.no_such_member(&name)).await,
            },
        };
        self.ask(ask, lines, write).await
    }

    fn site(&self, name: &str) -> Result<SiteNumber, Reply> {
        let Some(zone) = self.0.config.zone() else {
            return Err(refused("this cluster has one site".to_owned()));
        };
        zone.number_of(name).ok_or_else(|| {
            let names: Vec<_> = zone.sites.keys().map(ToString::to_string).collect();
            refused(format!(
                "there is no site {name:?}; there are {}",
                names.join(", ")
            ))
        })
    }

    fn no_such_member(&self, name: &str) -> Reply {
        refused(format!(
            "there is no member {name:?}; there are {}",
            self.0.names()
        ))
    }

    async fn stream(&self, lines: &mut Lines, write: &mut OwnedWriteHalf) -> io::Result<()> {
        let mut newest = self.0.newest.clone();
        send(write, &first(&mut newest).await).await?;
        loop {
            tokio::select! {
                gone = client_gone(lines) => return gone,
                changed = newest.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    let reply = shown(&newest.borrow_and_update());
                    send(write, &reply).await?;
                }
            }
        }
    }

    /// Passes a request to the loop, and shows the client what happens until it is answered.
    async fn ask(&self, ask: Ask, lines: &mut Lines, write: &mut OwnedWriteHalf) -> io::Result<()> {
        let mut newest = self.0.newest.clone();
        let before = newest.borrow_and_update().clone();
        // What it was before the request: the client tells from it what is progress.
        if before.is_some() {
            send(write, &shown(&before)).await?;
        }
        let Some(mut answered) = self.0.ask(ask).await else {
            return send(write, &refused("the member is stopping".to_owned())).await;
        };
        loop {
            tokio::select! {
                biased;
                answer = &mut answered => {
                    let reply = match answer {
                        Ok(Answer::Done) => Reply::Done,
                        Ok(Answer::Refused(reason)) => Reply::Refused {
                            why: reason.to_string(),
                            reason: serde_json::to_value(reason)?,
                        },
                        Err(_) => refused("the member stopped before it had an answer".to_owned()),
                    };
                    return send(write, &reply).await;
                }
                gone = client_gone(lines) => return gone,
                changed = newest.changed() => {
                    // Closed: the answer, or its absence, is next.
                    if changed.is_ok() && newest.borrow().is_some() {
                        let reply = shown(&newest.borrow_and_update());
                        send(write, &reply).await?;
                    } else if changed.is_err() {
                        std::future::pending::<()>().await;
                    }
                }
            }
        }
    }

    async fn history(&self) -> Reply {
        Reply::History(self.0.history().await)
    }
}

/// The newest status, with its age; waits for the first one.
async fn first(newest: &mut watch::Receiver<Newest>) -> Reply {
    match newest.wait_for(Option::is_some).await {
        Ok(found) => shown(&found),
        Err(_) => refused("the member is stopping".to_owned()),
    }
}

fn shown(newest: &Newest) -> Reply {
    match aged(newest) {
        Some(status) => Reply::Status(Box::new(status)),
        None => refused("the member has not decided anything yet".to_owned()),
    }
}

fn refused(why: String) -> Reply {
    Reply::Refused {
        why,
        reason: serde_json::Value::Null,
    }
}

/// Waits until the client closes its end. What it says meanwhile is not expected: an error.
async fn client_gone(lines: &mut Lines) -> io::Result<()> {
    match lines.fill_buf().await?.len() {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Err(io::Error::other(
            "a request before the answer to the last one",
        )),
    }
}

async fn send(write: &mut OwnedWriteHalf, reply: &Reply) -> io::Result<()> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    tokio::time::timeout(CLIENT_PATIENCE, write.write_all(&line)).await?
}
