//! The member's end of a session: a door to the agent that looks like an attachment.
//!
//! While the agent is away every look fails and every step is unknown; the session is asked for again
//! until it is there, and what was found then is told. Only a refusal ends the member: its agent has given
//! its volume up.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fencing::{Epoch, KeyFlags, Licence, Mailbox, Mono};
use nvme::HostId;
use tokio::io::{ReadHalf, WriteHalf};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tracing::{error, info, warn};

use super::descriptor;
use super::protocol::{Answer, Ask, Greeting, Hello, Said, Welcome, What, receive, send};
use crate::attachment::{Changes, Done, Happening, Look, Tell, failed, whole};
use crate::clock;
use crate::decide::{Outcome, Work};
use crate::kubernetes::{Call, Need};

/// How long one greeting may take: the agent connects to the volume meanwhile.
const GREETING: Duration = Duration::from_secs(30);

/// Between two tries to reach the agent.
const RETRY: Duration = Duration::from_millis(250);

/// How long the API server may take to be told of a refusal, before this process ends.
const TOLD_WITHIN: Duration = Duration::from_secs(5);

/// How long a question that is not a step may take.
const ANSWER: Duration = Duration::from_secs(10);

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The agent does not want this member.
    #[error("the agent of this node refused the session: {why}")]
    Refused {
        /// What it said.
        why: String,
    },
    /// The agent is not there, or broke off.
    #[error("reach the agent of this node at {}", socket.display())]
    Away {
        /// Its socket.
        socket: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

type Pending = HashMap<u64, oneshot::Sender<Answer>>;

/// The member's end of its session.
pub struct Client {
    host: HostId,
    former_writer: bool,
    asks: mpsc::UnboundedSender<Ask>,
    ids: AtomicU64,
    /// Questions without an answer.
    pending: Arc<Mutex<Pending>>,
    timings: crate::decide::Timings,
}

/// What a session begins with.
pub(crate) struct Opened {
    /// The member's end.
    pub client: Client,
    /// This node's lock on the host identity, for PostgreSQL to hold.
    pub lock: OwnedFd,
}

impl Client {
    /// Opens a session; waits for an agent that is not there yet. What happens in it is told to `tell`.
    ///
    /// # Errors
    /// The agent refused for good.
    pub(crate) async fn open(
        socket: &Path,
        hello: Hello,
        tell: Tell,
        call: &Call,
    ) -> Result<Opened, ClientError> {
        let timings = hello.timings.clone();
        let (session, welcome) = reach(socket, &hello, None, call).await?;
        let lock = session
            .lock
            .try_clone()
            .map_err(|source| ClientError::Away {
                socket: socket.to_owned(),
                source,
            })?;
        let (asks, queue) = mpsc::unbounded_channel();
        let pending = Arc::new(Mutex::new(Pending::new()));
        let keep = Keep {
            socket: socket.to_owned(),
            hello: Hello {
                resume: true,
                ..hello
            },
            asks: queue,
            pending: pending.clone(),
            tell,
            call: call.clone(),
        };
        tokio::spawn(keep.run(session));
        Ok(Opened {
            client: Self {
                host: welcome.host,
                former_writer: welcome.former_writer,
                asks,
                ids: AtomicU64::new(0),
                pending,
                timings,
            },
            lock,
        })
    }

    /// See [`Attachment::perform`](crate::attachment::Attachment::perform). If the agent goes away
    /// meanwhile the outcome is unknown.
    pub async fn perform(&self, work: &Work, deadline: Mono) -> Done {
        let (id, answer) = self.put(What::Perform {
            work: work.clone(),
            deadline,
        });
        let mut given_up = GiveUp {
            client: self,
            id: Some(id),
        };
        let answer = answer.await;
        given_up.id = None;
        done(answer.ok())
    }

    /// See [`Attachment::licence`](crate::attachment::Attachment::licence).
    ///
    /// # Errors
    /// The agent gives none, or is away.
    pub async fn licence(&self, epoch: Epoch) -> Result<Licence, Done> {
        match self.ask(What::Licence { epoch }, ANSWER).await {
            Some(Answer::Licence(licence)) => licence,
            _ => Err(unknown()),
        }
    }

    /// See [`Attachment::begin_format`](crate::attachment::Attachment::begin_format).
    ///
    /// # Errors
    /// As there, or the agent is away.
    pub async fn begin_format(&self, epoch: Epoch, deadline: Mono) -> Result<Licence, Done> {
        let (_, answer) = self.put(What::BeginFormat { epoch, deadline });
        match answer.await {
            Ok(Answer::Licence(licence)) => licence,
            _ => Err(unknown()),
        }
    }

    /// See [`Attachment::end_format`](crate::attachment::Attachment::end_format).
    pub async fn end_format(&self, epoch: Epoch, system: Option<u64>, deadline: Mono) -> Done {
        let (_, answer) = self.put(What::EndFormat {
            epoch,
            system,
            deadline,
        });
        done(answer.await.ok())
    }

    /// See [`Attachment::sync_filesystem`](crate::attachment::Attachment::sync_filesystem).
    pub async fn sync_filesystem(&self, deadline: Mono) -> Done {
        let (_, answer) = self.put(What::Sync { deadline });
        done(answer.await.ok())
    }

    /// See [`Attachment::mount_if_dead`](crate::attachment::Attachment::mount_if_dead).
    pub async fn mount_if_dead(&self) -> Changes {
        match self.ask(What::MountIfDead, ANSWER).await {
            Some(Answer::Changes(changes)) => changes,
            _ => Changes::default(),
        }
    }

    /// See [`Attachment::condemn_device`](crate::attachment::Attachment::condemn_device).
    pub async fn condemn_device(&self) {
        let heard = self.ask(What::CondemnDevice, ANSWER).await;
        if heard.is_none() {
            warn!("the agent did not hear that the device must go");
        }
    }

    /// See [`Attachment::beat`](crate::attachment::Attachment::beat).
    pub async fn beat(&self, epoch: Epoch, flags: KeyFlags) -> Look<Mailbox> {
        // The key's change and the report that follows it.
        let bound = self.timings.command * 2;
        self.look(What::Beat { epoch, flags }, bound).await
    }

    /// See [`Attachment::mailbox`](crate::attachment::Attachment::mailbox).
    pub async fn mailbox(&self) -> Look<Mailbox> {
        self.look(What::Mailbox, self.timings.command).await
    }

    /// See [`Attachment::drop_permit`](crate::attachment::Attachment::drop_permit).
    pub fn drop_permit(&self) {
        drop(self.put(What::DropPermit));
    }

    /// This node's host identifier at the volume.
    pub fn host(&self) -> HostId {
        self.host
    }

    /// See [`Attachment::former_writer`](crate::attachment::Attachment::former_writer).
    pub fn former_writer(&self) -> bool {
        self.former_writer
    }

    /// Ends the session: nothing of the member is left.
    pub async fn close(&self) {
        let bound = self.timings.kill;
        if self.ask(What::Bye, bound).await.is_none() {
            warn!("the agent did not hear the member's end: it will see it");
        }
    }

    async fn look(&self, what: What, bound: Duration) -> Look<Mailbox> {
        let began = clock::now();
        match self.ask(what, bound).await {
            Some(Answer::Mailbox(look)) => look,
            _ => Look {
                result: Err("the agent of this node is away".to_owned()),
                began,
            },
        }
    }

    /// The answer; none if it does not come within `bound`, or the agent goes away.
    async fn ask(&self, what: What, bound: Duration) -> Option<Answer> {
        let (_, answer) = self.put(what);
        tokio::time::timeout(bound, answer).await.ok()?.ok()
    }

    fn put(&self, what: What) -> (u64, oneshot::Receiver<Answer>) {
        let id = self.ids.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        lock(&self.pending).insert(id, sender);
        // Without a keeper nobody would answer: the sender goes with it.
        if self.asks.send(Ask { id, what }).is_err() {
            lock(&self.pending).remove(&id);
        }
        (id, answer)
    }
}

fn lock(pending: &Mutex<Pending>) -> std::sync::MutexGuard<'_, Pending> {
    pending.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Says that a step is not waited for any more, unless it has ended.
struct GiveUp<'a> {
    client: &'a Client,
    id: Option<u64>,
}

impl Drop for GiveUp<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            drop(self.client.put(What::GiveUp { id }));
        }
    }
}

fn done(answer: Option<Answer>) -> Done {
    match answer {
        Some(Answer::Done(done)) => done,
        Some(_) => failed("the agent gave an answer to another question"),
        None => unknown(),
    }
}

/// The agent went away: it may or may not have done it.
fn unknown() -> Done {
    (Outcome::Overdue, Changes::default())
}

/// One connection in an open session.
struct Session {
    read: ReadHalf<UnixStream>,
    write: WriteHalf<UnixStream>,
    lock: OwnedFd,
}

/// Asks until there is a session, or a refusal. Both are told where people look.
async fn reach(
    socket: &Path,
    hello: &Hello,
    lock: Option<&OwnedFd>,
    call: &Call,
) -> Result<(Session, Welcome), ClientError> {
    let mut said = String::new();
    loop {
        let tried = tokio::time::timeout(GREETING, greet(socket, hello, lock)).await;
        let (why, source) = match tried {
            Ok(Ok(Ok(opened))) => {
                call.session(Need::None);
                return Ok(opened);
            }
            Ok(Ok(Err((why, false)))) => {
                let error = ClientError::Refused { why };
                call.session(Need::Certain(error.to_string()));
                call.written(TOLD_WITHIN).await;
                return Err(error);
            }
            Ok(Ok(Err((why, true)))) => (Some(why.clone()), io::Error::other(why)),
            Ok(Err(error)) => (None, error),
            Err(_elapsed) => (None, io::ErrorKind::TimedOut.into()),
        };
        let error = whole(ClientError::Away {
            socket: socket.to_owned(),
            source,
        });
        call.session(Need::Perhaps(why.unwrap_or_else(|| error.clone())));
        if error != said {
            warn!(error, "no session yet");
            said = error;
        }
        tokio::time::sleep(RETRY).await;
    }
}

type Greeted = Result<(Session, Welcome), (String, bool)>;

async fn greet(socket: &Path, hello: &Hello, lock: Option<&OwnedFd>) -> io::Result<Greeted> {
    let mut stream = UnixStream::connect(socket).await?;
    descriptor::send(&stream, lock.map(OwnedFd::as_fd)).await?;
    send(&mut stream, hello).await?;
    let lock = descriptor::receive(&stream).await?;
    let greeting = receive(&mut stream).await?;
    match (greeting, lock) {
        (Some(Greeting::Welcome(welcome)), Some(lock)) => {
            let (read, write) = tokio::io::split(stream);
            Ok(Ok((Session { read, write, lock }, welcome)))
        }
        (Some(Greeting::Refused { why, again }), _) => Ok(Err((why, again))),
        (Some(Greeting::Welcome(_)), None) | (None, _) => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Keeps the session: carries questions and answers, and asks for it again when the agent is gone.
struct Keep {
    socket: PathBuf,
    hello: Hello,
    asks: mpsc::UnboundedReceiver<Ask>,
    pending: Arc<Mutex<Pending>>,
    tell: Tell,
    call: Call,
}

impl Keep {
    async fn run(mut self, mut session: Session) {
        loop {
            let Session { read, write, lock } = session;
            let ended = self.carry(read, write).await;
            let since = clock::now();
            warn!(error = %ended, "the agent is away");
            self.tell.say(Happening::AgentAway { since });
            // Nobody knows what became of them.
            self::lock(&self.pending).clear();
            session = match self.again(&lock).await {
                Ok(session) => session,
                Err(error) => {
                    error!(error = %whole(error), "this member's volume is given up: it ends");
                    crate::process::end_container();
                }
            };
        }
    }

    /// Until the connection breaks.
    async fn carry(
        &mut self,
        mut read: ReadHalf<UnixStream>,
        mut write: WriteHalf<UnixStream>,
    ) -> io::Error {
        let (pending, tell) = (&self.pending, &self.tell);
        let hear = async {
            loop {
                match receive(&mut read).await {
                    Ok(Some(Said::Happened(happening))) => tell.say(happening),
                    Ok(Some(Said::Answer { id, answer })) => {
                        if let Some(asked) = lock(pending).remove(&id) {
                            // Whoever asked may have given up.
                            let _ = asked.send(answer);
                        }
                    }
                    Ok(None) => return io::ErrorKind::UnexpectedEof.into(),
                    Err(error) => return error,
                }
            }
        };
        let asks = &mut self.asks;
        let say = async {
            while let Some(ask) = asks.recv().await {
                if let Err(error) = send(&mut write, &ask).await {
                    return error;
                }
            }
            // The client is gone, and with it the member's loop.
            std::future::pending().await
        };
        tokio::select! {
            error = hear => error,
            error = say => error,
        }
    }

    /// The session anew. What is asked meanwhile has no answer.
    async fn again(&mut self, lock: &OwnedFd) -> Result<Session, ClientError> {
        let reached = reach(&self.socket, &self.hello, Some(lock), &self.call);
        tokio::pin!(reached);
        let (session, welcome) = loop {
            tokio::select! {
                reached = &mut reached => break reached?,
                Some(ask) = self.asks.recv() => {
                    self::lock(&self.pending).remove(&ask.id);
                }
            }
        };
        info!("the agent is back");
        self.tell.say(Happening::Changed(welcome.found.changes));
        Ok(session)
    }
}
