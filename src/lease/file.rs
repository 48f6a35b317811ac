//! The lease in a locked file: for one machine, or a directory that all members share.
//!
//! One thread does all file operations, in order. A hung file system hangs that thread and nothing
//! else: callers get [`LeaseError::Overdue`] at their deadline, and what waited behind the hung
//! operation is dropped, not done late.

use std::path::Path;
use std::sync::{Arc, mpsc};

use fencing::Mono;
use tokio::sync::oneshot;

use super::cluster::EVERY_SITE;
use super::directory::{Place, ReplaceError};
use super::document::{Document, Mark};
use super::{LeaseError, LeaseWatch, Ownership, Reading, Writer, Written};
use crate::clock;
use crate::decide::{LeaseRecord, LeaseVersion};

/// How many requests may wait behind a hung one; further callers fail at once.
const QUEUE: usize = 8;

type Answer<T> = oneshot::Sender<Result<T, LeaseError>>;

enum Request {
    Read(Answer<Option<Document>>),
    Write {
        expected: Option<LeaseVersion>,
        record: LeaseRecord,
        deadline: Mono,
        answer: Answer<Written>,
    },
}

/// The store in a file. Clones share one worker thread, which ends with the last of them.
#[derive(Clone, Debug)]
pub struct FileStore {
    requests: mpsc::SyncSender<Request>,
    place: Arc<Place>,
    shown: String,
}

impl FileStore {
    /// The store at `path`. Touches no file yet.
    ///
    /// # Errors
    /// The operating system gives no thread.
    pub fn open(path: &Path, cluster: &str, site: &str, writer: Writer) -> std::io::Result<Self> {
        let (requests, queue) = mpsc::sync_channel(QUEUE);
        let place = Arc::new(Place::of(path));
        let worker = Worker {
            place: Arc::clone(&place),
            shown: path.display().to_string(),
            cluster: cluster.to_owned(),
            site: site.to_owned(),
            writer,
            seen: false,
        };
        std::thread::Builder::new()
            .name("lease".to_owned())
            .spawn(move || worker.run(&queue))?;
        Ok(Self {
            requests,
            place,
            shown: path.display().to_string(),
        })
    }

    /// See [`super::LeaseStore::read`].
    ///
    /// # Errors
    /// Every one means "unknown".
    pub async fn read(&self, deadline: Mono) -> Result<Reading, LeaseError> {
        let at = clock::now();
        let document = self.ask(Request::Read, deadline, "a read").await?;
        let lease = document.map(|document| document.lease());
        Ok(Reading { lease, at })
    }

    /// See [`super::LeaseStore::history`].
    ///
    /// # Errors
    /// Every one means "unknown".
    pub async fn history(&self, deadline: Mono) -> Result<Vec<Ownership>, LeaseError> {
        let document = self.ask(Request::Read, deadline, "a read").await?;
        Ok(document.map_or_else(Vec::new, |document| document.history))
    }

    /// See [`super::LeaseStore::write`].
    ///
    /// # Errors
    /// Nothing was changed, unless [`LeaseError::may_have_written`].
    pub async fn write(
        &self,
        expected: Option<LeaseVersion>,
        record: LeaseRecord,
        deadline: Mono,
    ) -> Result<Written, LeaseError> {
        let request = |answer| Request::Write {
            expected,
            record,
            deadline,
            answer,
        };
        self.ask(request, deadline, "a write").await
    }

    pub(super) fn shown(&self) -> String {
        self.shown.clone()
    }

    /// See [`super::LeaseStore::watch`].
    pub fn watch(&self) -> LeaseWatch {
        LeaseWatch::start(&self.place.directory, &self.place.name)
    }

    async fn ask<T>(
        &self,
        request: impl FnOnce(Answer<T>) -> Request,
        deadline: Mono,
        attempt: &'static str,
    ) -> Result<T, LeaseError> {
        let overdue = || LeaseError::Overdue {
            store: self.shown.clone(),
            attempt,
        };
        let (answer, answered) = oneshot::channel();
        if self.requests.try_send(request(answer)).is_err() {
            return Err(LeaseError::Unreachable {
                store: self.shown.clone(),
                source: std::io::Error::other("earlier requests still hang"),
            });
        }
        let patience = clock::now().until(deadline);
        match tokio::time::timeout(patience, answered).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) | Err(_) => Err(overdue()),
        }
    }
}

/// Does the file operations.
struct Worker {
    place: Arc<Place>,
    shown: String,
    cluster: String,
    site: String,
    writer: Writer,
    /// A site's record was read or written by this process: from then on its absence is an error.
    seen: bool,
}

impl Worker {
    fn run(mut self, queue: &mpsc::Receiver<Request>) {
        while let Ok(request) = queue.recv() {
            // Nobody waits for the answer any more: doing it now would be doing it late.
            match request {
                Request::Read(answer) if answer.is_closed() => {}
                Request::Write { answer, .. } if answer.is_closed() => {}
                Request::Read(answer) => {
                    let _ = answer.send(self.read());
                }
                Request::Write {
                    expected,
                    record,
                    deadline,
                    answer,
                } => {
                    let result = self.write(expected.as_ref(), record, deadline);
                    let _ = answer.send(result);
                }
            }
        }
    }

    fn unreachable(&self, source: std::io::Error) -> LeaseError {
        LeaseError::Unreachable {
            store: self.shown.clone(),
            source,
        }
    }

    fn failed(&self, attempt: &'static str, source: std::io::Error) -> LeaseError {
        LeaseError::Failed {
            store: self.shown.clone(),
            attempt,
            source,
        }
    }

    /// The cluster's record tells by itself how old it is: that it is gone is for those to judge who know it.
    fn saw(&mut self) {
        self.seen = self.site != EVERY_SITE;
    }

    fn read(&mut self) -> Result<Option<Document>, LeaseError> {
        let place = Arc::clone(&self.place);
        let directory = place.open().map_err(|source| self.unreachable(source))?;
        let bytes = directory
            .read()
            .map_err(|source| self.failed("a read", source))?;
        self.interpret(bytes)
    }

    fn interpret(&mut self, bytes: Option<Vec<u8>>) -> Result<Option<Document>, LeaseError> {
        let store = || self.shown.clone();
        let Some(bytes) = bytes else {
            return if self.seen {
                Err(LeaseError::Vanished { store: store() })
            } else {
                Ok(None)
            };
        };
        let document = Document::decode(&bytes).map_err(|what| LeaseError::Damaged {
            store: store(),
            what,
        })?;
        if document.cluster != self.cluster || document.site != self.site {
            let (cluster, site) = (document.cluster, document.site);
            return Err(LeaseError::Foreign {
                store: store(),
                cluster,
                site,
                setting: "lease.path",
            });
        }
        self.saw();
        Ok(Some(document))
    }

    fn write(
        &mut self,
        expected: Option<&LeaseVersion>,
        record: LeaseRecord,
        deadline: Mono,
    ) -> Result<Written, LeaseError> {
        let place = Arc::clone(&self.place);
        let directory = place.open().map_err(|source| self.unreachable(source))?;
        let _lock = directory
            .lock()
            .map_err(|source| self.failed("a lock", source))?;
        let bytes = directory
            .read()
            .map_err(|source| self.failed("a read", source))?;
        let before = self.interpret(bytes)?;
        if before.as_ref().map(Document::version).as_ref() != expected {
            return Ok(Written::Conflict(before.map(|document| document.lease())));
        }
        // The lock may have been long in coming. Who asked has given up: do not surprise him.
        if clock::now() >= deadline {
            return Err(LeaseError::Overdue {
                store: self.shown.clone(),
                attempt: "a write",
            });
        }
        let first = before.is_none();
        let mark = Mark {
            by: self.writer.clone(),
            at: clock::wall(),
        };
        let next = Document::next(before, &self.cluster, &self.site, record, mark);
        let bytes = next
            .encode()
            .map_err(|error| self.failed("a write", error.into()))?;
        match directory.replace(&bytes, first) {
            Ok(()) => {
                self.saw();
                Ok(Written::Done(next.version()))
            }
            Err(ReplaceError::NotDone(source)) => Err(self.failed("a write", source)),
            Err(ReplaceError::NotDurable) => Err(LeaseError::Overdue {
                store: self.shown.clone(),
                attempt: "a write",
            }),
        }
    }
}
