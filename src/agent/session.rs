//! One open session: a member's questions, its attachment's answers.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{ReadHalf, WriteHalf};
use tokio::net::UnixStream;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Notify, mpsc};
use tokio::task::{AbortHandle, JoinSet};
use tracing::warn;

use super::protocol::{Answer, Ask, Said, What, receive, send};
use super::records::{Records, Saved};
use crate::attachment::{Attachment, Done, whole};
use crate::clock;
use crate::decide::Work;

/// How long a member that has said goodbye may take to go away when it has its answer.
const HEARD: Duration = Duration::from_secs(1);

/// How many questions may be without an answer: a member's loop has a handful. More is no member's.
const ASKED_AT_ONCE: usize = 256;

/// How much may be said that a member has not read: more than it is told in a minute.
const UNREAD: usize = 1024;

/// How a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// The member said so: nothing of it is left.
    Bye,
    /// Without a word.
    Lost,
}

/// What a session works with.
pub(super) struct Session {
    pub attachment: Arc<Attachment>,
    pub records: Records,
    pub saved: Saved,
    /// To the writer.
    pub out: Out,
}

/// The way to a session's writer, of bounded length. What does not fit ends the session.
#[derive(Clone)]
pub(super) struct Out {
    to: mpsc::Sender<Said>,
    full: Arc<Notify>,
}

impl Out {
    /// The way, and where the writer finds what was said.
    pub fn new() -> (Self, mpsc::Receiver<Said>) {
        let (to, said) = mpsc::channel(UNREAD);
        let full = Arc::new(Notify::new());
        (Self { to, full }, said)
    }

    /// Says it, without waiting for anybody. The writer may have ended with its connection.
    pub fn say(&self, said: Said) {
        if let Err(TrySendError::Full(_)) = self.to.try_send(said) {
            self.full.notify_one();
        }
    }

    /// Something that was said did not fit.
    async fn full(&self) {
        self.full.notified().await;
    }
}

/// A task that answers one question.
struct Running {
    task: AbortHandle,
    is_fence: bool,
}

impl Session {
    /// Answers until the member says goodbye or its connection ends. A step that is under way then goes on
    /// for as long as the kernel needs.
    pub async fn run(&mut self, read: ReadHalf<UnixStream>) -> Ended {
        let mut tasks = JoinSet::new();
        let mut running: HashMap<u64, Running> = HashMap::new();
        let (asked, mut asks) = mpsc::channel(16);
        let reader = tokio::spawn(hear(read, asked, self.saved.key.clone()));
        let ended = loop {
            tokio::select! {
                ask = asks.recv() => match ask {
                    None => break Ended::Lost,
                    Some(Ask { id, what: What::Bye }) => {
                        tasks.abort_all();
                        // Whoever comes when the member has ended, as the volume's driver does, finds the
                        // node as it was before.
                        self.attachment.close().await;
                        self.answer(id, Answer::Heard);
                        // The member hears it before its connection ends.
                        let _gone = tokio::time::timeout(HEARD, asks.recv()).await;
                        break Ended::Bye;
                    }
                    Some(Ask { id: _, what: What::GiveUp { id } }) => self.give_up(running.remove(&id)),
                    Some(_) if tasks.len() >= ASKED_AT_ONCE => {
                        let reason = "too many questions without an answer";
                        warn!(session = self.saved.key, reason, "the session is closed");
                        break Ended::Lost;
                    }
                    Some(ask) => {
                        let (id, started) = self.begin(ask, &mut tasks);
                        running.insert(id, started);
                    }
                },
                () = self.out.full() => {
                    let reason = "the member does not read what it is told";
                    warn!(session = self.saved.key, reason, "the session is closed");
                    break Ended::Lost;
                }
                Some(done) = tasks.join_next() => {
                    if let Ok((id, changed)) = done {
                        running.remove(&id);
                        if changed {
                            self.save().await;
                        }
                    }
                }
            }
        };
        reader.abort();
        // What the kernel is doing goes on: the attachment's own locks wait for it.
        tasks.abort_all();
        ended
    }

    /// Begins to answer one question. The task says whether something may have changed that a successor
    /// must know.
    fn begin(&self, ask: Ask, tasks: &mut JoinSet<(u64, bool)>) -> (u64, Running) {
        let Ask { id, what } = ask;
        let is_fence = matches!(
            what,
            What::Perform {
                work: Work::Fence { .. },
                ..
            }
        );
        let changes = matches!(
            what,
            What::Perform { .. }
                | What::BeginFormat { .. }
                | What::EndFormat { .. }
                | What::DropPermit
        );
        let (attachment, out) = (self.attachment.clone(), self.out.clone());
        let task = tasks.spawn(async move {
            let answer = answer(&attachment, what).await;
            out.say(Said::Answer { id, answer });
            (id, changes)
        });
        (id, Running { task, is_fence })
    }

    fn give_up(&self, running: Option<Running>) {
        if let Some(Running { task, is_fence }) = running {
            task.abort();
            if is_fence {
                self.attachment.drop_permit();
            }
        }
    }

    fn answer(&self, id: u64, answer: Answer) {
        self.out.say(Said::Answer { id, answer });
    }

    /// Writes down what a successor must know.
    pub async fn save(&mut self) {
        // A step that works on device or mount just now is saved at its end.
        let Some(record) = self.attachment.record_if_free() else {
            return;
        };
        if record != self.saved.record {
            self.saved.record = record;
            if let Err(error) = self.records.save(&self.saved) {
                warn!(session = self.saved.key, %error, "a restart of the agent would not find this session");
            }
        }
    }
}

/// Reads what the member asks. In a task of its own: half of a frame must not be lost to a `select`.
async fn hear(mut read: ReadHalf<UnixStream>, asked: mpsc::Sender<Ask>, session: String) {
    loop {
        match receive::<Ask>(&mut read).await {
            Ok(Some(ask)) => {
                if asked.send(ask).await.is_err() {
                    return;
                }
            }
            Ok(None) => return,
            Err(error) => {
                warn!(session, error = %whole(error), "not understood: the session ends");
                return;
            }
        }
    }
}

async fn answer(attachment: &Arc<Attachment>, what: What) -> Answer {
    match what {
        What::Perform { work, deadline } => Answer::Done(attachment.perform(&work, deadline).await),
        What::Licence { epoch } => Answer::Licence(attachment.licence(epoch)),
        What::BeginFormat { epoch, deadline } => {
            Answer::Licence(attachment.begin_format(epoch, deadline).await)
        }
        What::EndFormat {
            epoch,
            system,
            deadline,
        } => Answer::Done(attachment.end_format(epoch, system, deadline).await),
        What::Sync { deadline } => Answer::Done(bounded_sync(attachment, deadline).await),
        What::MountIfDead => Answer::Changes(attachment.mount_if_dead().await),
        What::CondemnDevice => {
            attachment.condemn_device().await;
            Answer::Heard
        }
        What::Beat { epoch, flags } => Answer::Mailbox(attachment.beat(epoch, flags).await),
        What::Mailbox => Answer::Mailbox(attachment.mailbox().await),
        What::DropPermit => {
            attachment.drop_permit();
            Answer::Heard
        }
        // Handled where they are read.
        What::GiveUp { .. } | What::Bye => Answer::Heard,
    }
}

/// The member waits no longer than the deadline; nor does its session hold a task for ever.
async fn bounded_sync(attachment: &Attachment, deadline: fencing::Mono) -> Done {
    let left = clock::now().until(deadline);
    let synced = tokio::time::timeout(left, attachment.sync_filesystem(deadline)).await;
    synced.unwrap_or_else(|_elapsed| {
        (
            crate::decide::Outcome::Overdue,
            crate::attachment::Changes::default(),
        )
    })
}

/// Carries what is said to the member, in order, until its connection ends.
pub(super) async fn write(mut to: WriteHalf<UnixStream>, mut said: mpsc::Receiver<Said>) {
    while let Some(message) = said.recv().await {
        if send(&mut to, &message).await.is_err() {
            return;
        }
    }
}
