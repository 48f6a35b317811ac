//! What a member and its node's agent say to each other: frames of JSON, each behind its length.
//!
//! ```text
//! member                                agent
//!   Hello (+ the lock's descriptor) ──►
//!                                   ◄── Welcome (+ the lock's descriptor) | Refused
//!   Ask{id, …}                      ──►
//!                                   ◄── Answer{id, …}, Happened(…) in the order in which they came about
//! ```
//!
//! Both run on one kernel: times are of the same clock.

use std::io;
use std::path::PathBuf;

use fencing::{Epoch, KeyFlags, Licence, Mailbox, MemberId, Mono};
use nvme::HostId;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::attachment::{Changes, Done, Found, Happening, Look};
use crate::decide::{Timings, Work};

/// The version of this protocol. Another one is refused.
pub const PROTOCOL: u32 = 1;

/// A longer frame is none of ours.
pub const FRAME_MAX_BYTES: u32 = 1 << 20;

/// The member's first words.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Hello {
    pub protocol: u32,
    pub cluster: String,
    pub site: String,
    pub member: String,
    pub number: MemberId,
    /// The version of its PostgreSQL.
    pub major: u32,
    /// The data directory, below the volume's root.
    pub data_directory: PathBuf,
    pub timings: Timings,
    /// It had a session before, with an agent that is gone: its lock comes along.
    pub resume: bool,
}

/// The agent's first words.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum Greeting {
    /// The session is open.
    Welcome(Welcome),
    /// It is not.
    Refused {
        /// Why, and what to do.
        why: String,
        /// Asking again later may help.
        again: bool,
    },
}

/// An open session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Welcome {
    pub host: HostId,
    pub former_writer: bool,
    /// What a resumed session still has; of a fresh one nothing.
    pub found: Found,
}

/// What a member asks, in an open session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Ask {
    /// Of this session, growing.
    pub id: u64,
    pub what: What,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum What {
    /// One step of the attachment.
    Perform {
        work: Work,
        deadline: Mono,
    },
    /// The answer to that step is not waited for any more; a fence leaves no permit.
    GiveUp {
        id: u64,
    },
    Licence {
        epoch: Epoch,
    },
    BeginFormat {
        epoch: Epoch,
        deadline: Mono,
    },
    EndFormat {
        epoch: Epoch,
        system: Option<u64>,
        deadline: Mono,
    },
    Sync {
        deadline: Mono,
    },
    MountIfDead,
    CondemnDevice,
    Beat {
        epoch: Epoch,
        flags: KeyFlags,
    },
    Mailbox,
    DropPermit,
    /// The member ends in good order: nothing of it is left.
    Bye,
}

/// What the agent says, in an open session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum Said {
    /// To the question with this number.
    Answer { id: u64, answer: Answer },
    /// Without a question.
    Happened(Happening),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum Answer {
    Done(Done),
    Licence(Result<Licence, Done>),
    Changes(Changes),
    Mailbox(Look<Mailbox>),
    Heard,
}

/// Writes one frame.
pub(super) async fn send(
    to: &mut (impl AsyncWrite + Unpin),
    message: &impl Serialize,
) -> io::Result<()> {
    let body = serde_json::to_vec(message)?;
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    if length > FRAME_MAX_BYTES {
        return Err(io::Error::other("a message that is too long to send"));
    }
    let mut frame = Vec::with_capacity(body.len() + 4);
    frame.extend_from_slice(&length.to_le_bytes());
    frame.extend_from_slice(&body);
    to.write_all(&frame).await
}

/// Reads one frame; `None` at the end between two frames. Not cancel-safe.
pub(super) async fn receive<T: DeserializeOwned>(
    from: &mut (impl AsyncRead + Unpin),
) -> io::Result<Option<T>> {
    let mut length = [0; 4];
    match from.read_exact(&mut length).await {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let length = u32::from_le_bytes(length);
    if length > FRAME_MAX_BYTES {
        let text = format!("a frame of {length} bytes; the most is {FRAME_MAX_BYTES}");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    let mut body = vec![0; length as usize];
    from.read_exact(&mut body).await?;
    let message = serde_json::from_slice(&body)?;
    Ok(Some(message))
}
