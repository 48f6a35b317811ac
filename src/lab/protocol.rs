//! What a lab's supervisor is asked and answers: one JSON object a line, over a Unix socket.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::process::Process;
use super::wan::shape::Shape;

/// What the supervisor can do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Request {
    /// Nothing: only tell.
    Status,
    /// Do not restart this member when it ends.
    Hold {
        /// Its name.
        member: String,
    },
    /// Restart this member when it ends, and at once if it is down.
    Release {
        /// Its name.
        member: String,
    },
    /// Stop this member cleanly and hold it; the answer comes when it has ended.
    Stop {
        /// Its name.
        member: String,
    },
    /// Cut or heal the links between the members of a site.
    Links {
        /// Whether they are cut.
        cut: bool,
    },
    /// What the line between the sites does to frames from now on.
    Line {
        /// That.
        shape: Shape,
    },
    /// Do not restart a target when it ends.
    HoldTarget {
        /// Its site; none for the only one.
        site: Option<String>,
    },
    /// End a target; the answer comes when it has ended.
    StopTarget {
        /// Its site; none for the only one.
        site: Option<String>,
    },
    /// Start a target again, on its port; the answer comes when it listens.
    StartTarget {
        /// Its site; none for the only one.
        site: Option<String>,
        /// Whether the reservations are still there.
        keep_reservations: bool,
        /// Whether it has a volatile write cache.
        volatile_cache: bool,
    },
    /// End everything, without any care for an order, and the supervisor itself.
    Shutdown,
}

/// What the supervisor answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// It was done; this is how things are now.
    Done(State),
    /// It was not done.
    Failed(String),
}

/// All that the supervisor runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// The supervisor.
    pub supervisor: Process,
    /// The targets, by the names of their directories: `target`, or `target-a` and so on.
    pub targets: BTreeMap<String, ServiceState>,
    /// The members, by name.
    pub members: BTreeMap<String, ServiceState>,
    /// Whether the links between the members are cut.
    pub links_cut: bool,
    /// What the line between the sites does to frames; none without several sites.
    pub line: Option<Shape>,
}

/// One process that the supervisor keeps running.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceState {
    /// The process, while it runs.
    pub process: Option<Process>,
    /// How often it was started again.
    pub restarts: u32,
    /// Whether it stays down when it ends.
    pub held: bool,
    /// How it last ended.
    pub last_exit: Option<String>,
}

/// A question over a Unix socket had no good answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody listens, or the connection broke.
    #[error("ask {}", socket.display())]
    Io {
        /// The socket.
        socket: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No answer came in time.
    #[error("{} did not answer within {within:?}", socket.display())]
    Timeout {
        /// The socket.
        socket: PathBuf,
        /// How long it was waited.
        within: Duration,
    },
    /// The answer could not be understood.
    #[error("{} answered {text:?}", socket.display())]
    Answer {
        /// The socket.
        socket: PathBuf,
        /// The answer.
        text: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The other side could not do it.
    #[error("{} refused: {reason}", socket.display())]
    Refused {
        /// The socket.
        socket: PathBuf,
        /// Its words.
        reason: String,
    },
}

/// Sends one line of JSON and reads one back.
pub async fn ask<Q: Serialize, A: DeserializeOwned>(
    socket: &Path,
    question: &Q,
    within: Duration,
) -> Result<A, AskError> {
    let io = |source| AskError::Io {
        socket: socket.to_owned(),
        source,
    };
    let exchange = async {
        let mut line = serde_json::to_string(question)?;
        line.push('\n');
        let mut stream = UnixStream::connect(socket).await?;
        stream.write_all(line.as_bytes()).await?;
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer).await?;
        match answer.is_empty() {
            true => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
            false => Ok(answer),
        }
    };
    let answer = timeout(within, exchange).await;
    let answer = answer.map_err(|_| AskError::Timeout {
        socket: socket.to_owned(),
        within,
    })?;
    let text = answer.map_err(io)?;
    serde_json::from_str(&text).map_err(|source| AskError::Answer {
        socket: socket.to_owned(),
        text: text.trim_end().to_owned(),
        source,
    })
}

/// Asks a supervisor.
pub async fn ask_supervisor(
    socket: &Path,
    request: &Request,
    within: Duration,
) -> Result<State, AskError> {
    match ask(socket, request, within).await? {
        Answer::Done(state) => Ok(state),
        Answer::Failed(reason) => Err(AskError::Refused {
            socket: socket.to_owned(),
            reason,
        }),
    }
}
