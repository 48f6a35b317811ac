//! The commands outstanding on one queue, and the rules for what a controller may send for them.
//!
//! No I/O: the queue's reader and writer drive it.

use std::collections::HashMap;

use bytes::{Bytes, BytesMut};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::Error;
use crate::command::{Command, Completion};
use crate::pdu::{Data, FatalStatus, Pdu, ReadyToTransfer, Violation};

/// Command identifiers that are never given: 0xffff means "no command" in the error log.
const RESERVED_ID: u16 = 0xffff;

/// A command that the controller completed, with whatever status.
#[derive(Debug)]
pub(super) struct Completed {
    pub(super) completion: Completion,
    /// What the controller sent; perhaps less than was asked for.
    pub(super) data: Bytes,
}

pub(super) type Reply = oneshot::Sender<Result<Completed, Error>>;

/// One outstanding command.
pub(super) struct Slot {
    /// In the specification's words.
    pub(super) name: &'static str,
    pub(super) command: Command,
    /// Data for the controller.
    pub(super) out: Bytes,
    /// Whether `out` travels in the capsule.
    pub(super) in_capsule: bool,
    /// Most bytes that the controller may send.
    pub(super) expected: usize,
    pub(super) reply: Reply,
    /// Held until the controller has answered, whoever still waits.
    pub(super) permit: OwnedSemaphorePermit,
    progress: Progress,
}

#[derive(Default)]
struct Progress {
    /// Whether any byte of the command may have left.
    sent: bool,
    received: Received,
    /// How much of `out` the controller has asked for.
    requested: usize,
    /// A data digest was wrong: the data must not be used.
    corrupt: bool,
}

#[derive(Default)]
enum Received {
    #[default]
    Nothing,
    /// One unit: kept without copying.
    One(Bytes),
    Many(BytesMut),
}

impl Received {
    fn len(&self) -> usize {
        match self {
            Self::Nothing => 0,
            Self::One(data) => data.len(),
            Self::Many(data) => data.len(),
        }
    }

    fn push(&mut self, data: Bytes, expected: usize) {
        *self = match std::mem::take(self) {
            Self::Nothing => Self::One(data),
            Self::One(first) => {
                let mut all = BytesMut::with_capacity(expected);
                all.extend_from_slice(&first);
                all.extend_from_slice(&data);
                Self::Many(all)
            }
            Self::Many(mut all) => {
                all.extend_from_slice(&data);
                Self::Many(all)
            }
        };
    }

    fn into_bytes(self) -> Bytes {
        match self {
            Self::Nothing => Bytes::new(),
            Self::One(data) => data,
            Self::Many(data) => data.freeze(),
        }
    }
}

impl Slot {
    pub(super) fn new(
        name: &'static str,
        command: Command,
        out: Bytes,
        in_capsule: bool,
        expected: usize,
        reply: Reply,
        permit: OwnedSemaphorePermit,
    ) -> Self {
        Self {
            name,
            command,
            out,
            in_capsule,
            expected,
            reply,
            permit,
            progress: Progress::default(),
        }
    }

    fn finish(self, completion: Completion) {
        let Self {
            name,
            reply,
            permit,
            progress,
            ..
        } = self;
        // The place in the queue is free before the caller runs, who may send the next command.
        drop(permit);
        let outcome = if progress.corrupt {
            Err(Error::Protocol {
                command: name,
                detail: "wrong data digest".to_owned(),
            })
        } else {
            Ok(Completed {
                completion,
                data: progress.received.into_bytes(),
            })
        };
        // Nobody listens to a command that was given up.
        let _ = reply.send(outcome);
    }
}

/// All outstanding commands of one queue.
#[derive(Default)]
pub(super) struct Slots {
    outstanding: HashMap<u16, Slot>,
    last_id: u16,
    /// Why the connection ended; nothing more is accepted then.
    ended: Option<String>,
}

impl Slots {
    /// Takes a command in and gives it an identifier. Identifiers are used in turn, so that a late
    /// answer to a finished command meets no new one. An ended queue gives its cause.
    pub(super) fn insert(&mut self, mut slot: Slot) -> Result<u16, String> {
        if let Some(cause) = &self.ended {
            return Err(cause.clone());
        }
        let mut id = self.last_id;
        loop {
            id = id.wrapping_add(1);
            if id != RESERVED_ID && !self.outstanding.contains_key(&id) {
                break;
            }
        }
        self.last_id = id;
        slot.command.id = id;
        self.outstanding.insert(id, slot);
        Ok(id)
    }

    /// The capsule to send now. `None` if its caller has given it up meanwhile: then it is never
    /// sent.
    pub(super) fn capsule(&mut self, id: u16) -> Option<Pdu> {
        let slot = self.outstanding.get_mut(&id)?;
        if slot.reply.is_closed() {
            self.outstanding.remove(&id);
            return None;
        }
        slot.progress.sent = true;
        let data = if slot.in_capsule {
            slot.out.clone()
        } else {
            Bytes::new()
        };
        Some(Pdu::Command(slot.command, data))
    }

    /// Takes a command back whose caller waits no longer. `true` if nothing of it was sent.
    pub(super) fn withdraw(&mut self, id: u16) -> bool {
        match self.outstanding.get(&id) {
            Some(slot) if !slot.progress.sent => {
                self.outstanding.remove(&id);
                true
            }
            _ => false,
        }
    }

    /// A response capsule.
    pub(super) fn complete(&mut self, completion: Completion) -> Result<(), Violation> {
        let slot = self.take_sent(completion.id)?;
        slot.finish(completion);
        Ok(())
    }

    /// Data from the controller. `intact`: its digest was right, where there is one.
    pub(super) fn receive(&mut self, unit: Data, intact: bool) -> Result<(), Violation> {
        let slot = self.sent(unit.command)?;
        let offset = slot.progress.received.len();
        // Linux and SPDK send in order; a gap could not be told from data that never came.
        if unit.offset as usize != offset || unit.data.len() > slot.expected - offset {
            return Err(out_of_range("data outside the command's range"));
        }
        slot.progress.corrupt |= !intact;
        let expected = slot.expected;
        slot.progress.received.push(unit.data, expected);
        if !unit.success {
            return Ok(());
        }
        self.complete(Completion {
            result: 0,
            sq_head: 0,
            sq_id: 0,
            id: unit.command,
            status: crate::Status::SUCCESS,
        })
    }

    /// The data units that answer an R2T, each of at most `most` bytes.
    pub(super) fn answer(
        &mut self,
        wish: ReadyToTransfer,
        most: usize,
    ) -> Result<Vec<Data>, Violation> {
        let slot = self.sent(wish.command)?;
        let (offset, length) = (wish.offset as usize, wish.length as usize);
        let in_range = offset == slot.progress.requested && length <= slot.out.len() - offset;
        if slot.in_capsule || length == 0 || !in_range {
            return Err(out_of_range("an R2T outside the command's range"));
        }
        slot.progress.requested += length;
        let end = offset + length;
        Ok((offset..end)
            .step_by(most)
            .map(|from| {
                let to = end.min(from + most);
                Data {
                    command: wish.command,
                    tag: wish.tag,
                    offset: from as u32,
                    data: slot.out.slice(from..to),
                    last: to == end,
                    success: false,
                }
            })
            .collect())
    }

    /// The connection is over: every command fails, with an outcome that is unknown if any of it
    /// may have left.
    pub(super) fn end(&mut self, cause: &str) {
        if self.ended.is_none() {
            self.ended = Some(cause.to_owned());
        }
        for (_, slot) in self.outstanding.drain() {
            let error = if slot.progress.sent {
                Error::ConnectionLost { command: slot.name }
            } else {
                Error::NoPath {
                    command: slot.name,
                    cause: cause.to_owned(),
                }
            };
            let _ = slot.reply.send(Err(error));
        }
    }

    fn sent(&mut self, id: u16) -> Result<&mut Slot, Violation> {
        match self.outstanding.get_mut(&id) {
            Some(slot) if slot.progress.sent => Ok(slot),
            _ => Err(unknown_command()),
        }
    }

    fn take_sent(&mut self, id: u16) -> Result<Slot, Violation> {
        self.sent(id)?;
        self.outstanding.remove(&id).ok_or_else(unknown_command)
    }
}

fn unknown_command() -> Violation {
    let what = "an answer to a command that is not outstanding";
    Violation::new(FatalStatus::InvalidHeaderField, 8, what)
}

fn out_of_range(what: &'static str) -> Violation {
    Violation::new(FatalStatus::DataOutOfRange, 0, what)
}
