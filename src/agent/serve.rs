//! The agent's socket: who comes in, and what becomes of a session when it ends.

use std::collections::HashSet;
use std::fs::{File, Permissions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, mpsc};
use tracing::{error, info, warn};

use super::cleanup::clean_up;
use super::descriptor;
use super::identity::{self, Peer};
use super::protocol::{Greeting, Hello, PROTOCOL, Said, Welcome, receive, send};
use super::records::{Records, Saved};
use super::refusal::{Refusal, later, refuse};
use super::resolve::{Node, Platform};
use super::session::{self, Ended, Out, Session};
use super::waiting::Waiting;
use crate::attachment::{Attachment, Found, Outlive, Record, Tell, whole};
use crate::clock;
use crate::node_lock::NodeLock;

/// How long a peer may take for its first words.
const HELLO: Duration = Duration::from_secs(5);

/// How long an earlier member of the same lock may take to be gone.
const FORMER_GONE: Duration = Duration::from_secs(10);

/// How the agent serves.
#[derive(Clone, Debug)]
pub struct Options {
    /// Its socket.
    pub socket: PathBuf,
    /// How long the members of an earlier agent have to come back; then they are killed.
    pub resume_within: Duration,
}

/// Why the agent does not serve.
#[derive(Debug, thiserror::Error)]
#[error("{attempted} {}", path.display())]
pub struct AgentError {
    /// What was attempted.
    pub attempted: &'static str,
    /// On what.
    pub path: PathBuf,
    /// What the system said.
    #[source]
    pub source: io::Error,
}

/// The agent of one node.
pub struct Agent {
    options: Options,
    platform: Platform,
    records: Records,
    outlive: Outlive,
    /// Sessions that are open or being cleaned up, by `<namespace>/<pod>`.
    busy: Mutex<HashSet<String>>,
    waiting: Waiting,
    /// A session has ended, or was resumed.
    changed: Notify,
}

impl Agent {
    /// Checks the node and reads what an earlier agent left.
    ///
    /// # Errors
    /// Directories cannot be made, or the kernel has no control groups that can be killed.
    pub fn new(options: Options, platform: Platform) -> Result<Arc<Self>, AgentError> {
        let node: &Node = platform.node();
        let groups = node.control_groups.join("cgroup.controllers");
        // The root itself has no cgroup.kill; where there is a unified hierarchy, groups have (Linux 5.14).
        std::fs::metadata(&groups)
            .map_err(failed("find the unified control groups at", &groups))?;
        let directory = node.state.join("sessions");
        let records = Records::at(&directory).map_err(failed("make", &directory))?;
        let waiting = records.all().map_err(failed("read", &directory))?;
        let outlive = Outlive {
            members: node.members.clone(),
            control_group: Some(node.bridges.clone()),
        };
        Ok(Arc::new(Self {
            options,
            platform,
            records,
            outlive,
            busy: Mutex::new(HashSet::new()),
            waiting: Waiting::new(waiting),
            changed: Notify::new(),
        }))
    }

    /// Serves until the future is dropped. Nothing ends with it: a successor resumes the sessions.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub async fn serve(self: Arc<Self>) -> Result<(), AgentError> {
        let listener = listen(&self.options.socket)?;
        tokio::spawn(self.clone().mind_the_waiting());
        info!(socket = %self.options.socket.display(), "the agent listens");
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    tokio::spawn(self.clone().attend(stream));
                }
                Err(error) => {
                    warn!(%error, "a connection was not accepted");
                    // Out of descriptors, say: it passes, and must not be asked for without a pause.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    /// One connection, from its first words to what is left when it has ended.
    async fn attend(self: Arc<Self>, mut stream: UnixStream) {
        let opened = match self.admit(&mut stream).await {
            Ok(opened) => opened,
            Err(Refusal {
                why,
                again,
                repeated,
            }) => {
                if !repeated {
                    warn!(why, again, "no session");
                }
                let refused = async {
                    descriptor::send(&stream, None).await?;
                    send(&mut stream, &Greeting::Refused { why, again }).await
                };
                // A peer that does not listen needs no answer.
                let _unheard = tokio::time::timeout(HELLO, refused).await;
                return;
            }
        };
        self.keep(stream, opened).await;
    }

    async fn admit(&self, stream: &mut UnixStream) -> Result<Opened<'_>, Refusal> {
        let first_words = async {
            let lock = descriptor::receive(stream).await?;
            let hello = receive::<Hello>(stream).await?;
            hello
                .map(|hello| (lock, hello))
                .ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
        };
        let (lock, hello) = tokio::time::timeout(HELLO, first_words)
            .await
            .map_err(|_elapsed| refuse("the first words did not come"))?
            .map_err(|error: io::Error| refuse(whole(error)))?;
        if hello.protocol != PROTOCOL {
            let theirs = hello.protocol;
            return Err(refuse(format!(
                "protocol {theirs} instead of {PROTOCOL}: pod and agent must be of one release"
            )));
        }
        let groups = &self.platform.node().control_groups;
        let peer = identity::peer(stream, groups).map_err(|error| refuse(whole(error)))?;
        let pod = peer.pod;
        let admitted = match self.waiting.of_pod(peer.pod) {
            Some(saved) => self.resume(peer, saved, lock).await,
            None if hello.resume => Err(refuse(
                "the volume of this pod was given up while the agent was away",
            )),
            None => self.open(peer, hello).await,
        };
        let why = admitted.as_ref().err().map(|refusal| refusal.why.as_str());
        let new = self.platform.tell(pod, why).await;
        admitted.map_err(|refusal| Refusal {
            repeated: !new,
            ..refusal
        })
    }

    /// A new session.
    async fn open(&self, peer: Peer, hello: Hello) -> Result<Opened<'_>, Refusal> {
        let resolved = self.platform.resolve(peer.pod, &hello).await?;
        let claim = self.claim(&resolved.key).await?;
        let earlier = self
            .waiting
            .in_the_way(&resolved.key, &resolved.runtime_dir);
        if let Some(earlier) = earlier {
            return Err(later(format!(
                "the session of {earlier} with an earlier agent is not cleaned up after yet"
            )));
        }
        let saved = Saved {
            key: resolved.key,
            pod: peer.pod,
            container: peer.container.clone(),
            owner: peer.owner,
            hello,
            volume: resolved.volume,
            runtime_dir: resolved.runtime_dir,
            record: Record::default(),
        };
        let owner = saved.clone();
        let lock = tokio::task::spawn_blocking(move || lock(&owner)).await;
        let lock = lock.map_err(|error| later(whole(error)))?.map_err(later)?;
        let (out, said) = Out::new();
        let settings = saved.settings(&self.outlive);
        let attachment = Attachment::open(settings, tell(&out)).await;
        let attachment = attachment.map_err(|error| later(whole(error)))?;
        self.records
            .save(&saved)
            .map_err(|error| later(whole(error)))?;
        Ok(Opened {
            claim,
            attachment: Arc::new(attachment),
            saved,
            lock,
            guard: resolved.guard,
            found: Found::default(),
            out,
            said,
        })
    }

    /// A session of an earlier agent: the same pod, with the lock that it was given. It waits on where this
    /// fails: the member may ask again, and is cleaned up after when it has ended.
    async fn resume(
        &self,
        peer: Peer,
        saved: Saved,
        lock: Option<OwnedFd>,
    ) -> Result<Opened<'_>, Refusal> {
        let claim = self.claim(&saved.key).await?;
        if !self.waiting.has(&saved.key) {
            return Err(later(
                "this pod's earlier session was just cleaned up after",
            ));
        }
        let proven =
            lock.filter(|lock| is_lock_of(lock, &saved) && peer.container == saved.container);
        let Some(lock) = proven else {
            // The member is still expected, or its container is about to be cleaned up after.
            let another = peer.container != saved.container;
            return Err(if another {
                later("an earlier container of this pod is not cleaned up after yet")
            } else {
                refuse("this is not the process that had the session")
            });
        };
        let guard = self.platform.guard_again(saved.pod, &saved.volume)?;
        let (out, said) = Out::new();
        let settings = saved.settings(&self.outlive);
        let resumed = Attachment::resume(settings, saved.record.clone(), tell(&out)).await;
        let (attachment, found) = resumed.map_err(|error| later(whole(error)))?;
        self.waiting.done(&saved.key);
        Ok(Opened {
            claim,
            attachment: Arc::new(attachment),
            saved,
            lock,
            guard,
            found,
            out,
            said,
        })
    }

    /// Keeps an open session, and cleans up after one that was lost.
    async fn keep(&self, mut stream: UnixStream, opened: Opened<'_>) {
        let Opened {
            claim,
            attachment,
            saved,
            lock,
            guard,
            found,
            out,
            said,
        } = opened;
        let (key, container) = (saved.key.clone(), saved.container.clone());
        let timings = saved.hello.timings.clone();
        let welcome = Welcome {
            host: attachment.host(),
            former_writer: attachment.former_writer(),
            found,
        };
        let greeted = async {
            descriptor::send(&stream, Some(lock.as_fd())).await?;
            send(&mut stream, &Greeting::Welcome(welcome)).await
        };
        let greeted = tokio::time::timeout(HELLO, greeted).await;
        info!(session = key, pod = %saved.pod, resumed = saved.hello.resume, "session");
        let (read, write) = tokio::io::split(stream);
        let writer = tokio::spawn(session::write(write, said));
        let mut session = Session {
            attachment: attachment.clone(),
            records: self.records.clone(),
            saved,
            out,
        };
        let ended = match greeted {
            Ok(Ok(())) => session.run(read).await,
            Ok(Err(_)) | Err(_) => Ended::Lost,
        };
        info!(session = key, ?ended, "the session ended");
        match ended {
            // Closed before the member was told so.
            Ended::Bye => {}
            Ended::Lost => clean_up(&attachment, &container, &timings).await,
        }
        writer.abort();
        self.records.forget(&key);
        drop((guard, lock, claim));
        self.changed.notify_waiters();
    }

    /// Members of an earlier agent that have died, or do not come back, are cleaned up after. As long as
    /// the agent serves: one that could not be resumed may end at any time.
    async fn mind_the_waiting(self: Arc<Self>) {
        let until = clock::now() + self.options.resume_within;
        loop {
            let changed = self.changed.notified();
            for saved in self.waiting.over(clock::now() >= until) {
                if !self.busy().contains(&saved.key) {
                    tokio::spawn(self.clone().clean_up_after(saved));
                }
            }
            if self.waiting.is_empty() {
                changed.await;
            } else {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }

    async fn clean_up_after(self: Arc<Self>, saved: Saved) {
        let Some(_claim) = self.try_claim(&saved.key) else {
            return;
        };
        if !self.waiting.has(&saved.key) {
            return;
        }
        let settings = saved.settings(&self.outlive);
        let timings = settings.timings.clone();
        let silent = Tell::to(|_happening| {});
        match Attachment::resume(settings, saved.record.clone(), silent).await {
            Ok((attachment, _found)) => {
                clean_up(&Arc::new(attachment), &saved.container, &timings).await;
                self.records.forget(&saved.key);
                self.waiting.done(&saved.key);
            }
            Err(error) => {
                error!(session = saved.key, error = %whole(error), "not cleaned up: tried again");
                tokio::time::sleep(timings.retry).await;
            }
        }
    }

    /// This pod's place among the sessions; waits for the end of an earlier one of the same name.
    async fn claim(&self, key: &str) -> Result<Claim<'_>, Refusal> {
        let until = clock::now() + FORMER_GONE;
        loop {
            let changed = self.changed.notified();
            if let Some(claim) = self.try_claim(key) {
                return Ok(claim);
            }
            let left = clock::now().until(until);
            if tokio::time::timeout(left, changed).await.is_err() {
                return Err(later(format!(
                    "{key} has a session already, or is being cleaned up"
                )));
            }
        }
    }

    fn try_claim(&self, key: &str) -> Option<Claim<'_>> {
        let free = self.busy().insert(key.to_owned());
        free.then(|| Claim {
            agent: self,
            key: key.to_owned(),
        })
    }

    fn busy(&self) -> std::sync::MutexGuard<'_, HashSet<String>> {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A session that is about to begin.
struct Opened<'a> {
    claim: Claim<'a>,
    attachment: Arc<Attachment>,
    saved: Saved,
    lock: OwnedFd,
    /// See [`Resolved`](super::resolve::Resolved).
    guard: Option<File>,
    found: Found,
    out: Out,
    said: mpsc::Receiver<Said>,
}

/// One pod's place among the sessions, until it is dropped.
struct Claim<'a> {
    agent: &'a Agent,
    key: String,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.agent.busy().remove(&self.key);
        self.agent.changed.notify_waiters();
    }
}

fn listen(socket: &Path) -> Result<UnixListener, AgentError> {
    if let Some(directory) = socket.parent() {
        std::fs::create_dir_all(directory).map_err(failed("make", directory))?;
    }
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed("remove the earlier socket", socket)(error));
        }
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(socket).map_err(failed("listen at", socket))?;
    // Pods run as other users. Who may have what is decided of each that comes.
    std::fs::set_permissions(socket, Permissions::from_mode(0o666))
        .map_err(failed("open to pods", socket))?;
    Ok(listener)
}

fn lock(saved: &Saved) -> Result<OwnedFd, String> {
    let lock = NodeLock::take(saved.owner_of_lock()).map_err(whole)?;
    lock.as_fd().try_clone_to_owned().map_err(whole)
}

/// Whether this descriptor is the lock's, and the lock is taken through it.
fn is_lock_of(lock: &OwnedFd, saved: &Saved) -> bool {
    NodeLock::is_held_through(saved.owner_of_lock(), lock.as_fd())
}

fn tell(out: &Out) -> Tell {
    let out = out.clone();
    Tell::to(move |happening| out.say(Said::Happened(happening)))
}

fn failed(attempted: &'static str, path: &Path) -> impl FnOnce(io::Error) -> AgentError {
    let path = path.to_owned();
    move |source| AgentError {
        attempted,
        path,
        source,
    }
}

#[cfg(test)]
mod tests;
