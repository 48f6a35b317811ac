//! The command line's end of the control socket. Blocking: a command has nothing else to do.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fencing::Mono;

use super::protocol::{Reply, Request};
use crate::clock;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("no member answers at {}; is it running? (baton run --config …)", path.display())]
    Absent {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The connection broke, so the outcome is not known.
    #[error("the member at {} went away before it had answered; look at baton status", path.display())]
    Gone {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No answer in time, so the outcome is not known.
    #[error("no answer within {patience:?}; it may still be under way: look at baton status")]
    Overdue {
        /// How long was waited.
        patience: Duration,
    },
    /// It answered something else than was asked, or nothing that can be read.
    #[error("the member's answer makes no sense; is it of another version? ({what})")]
    Strange {
        /// What.
        what: String,
    },
    /// It refused.
    #[error("refused: {why}")]
    Refused {
        /// Why.
        why: String,
        /// For programs: a `Reason`, or null.
        reason: serde_json::Value,
    },
}

/// A connection to a member.
pub struct Client {
    path: PathBuf,
    stream: BufReader<UnixStream>,
    deadline: Mono,
    patience: Duration,
}

/// Asks one thing, and waits for its last reply: a switchover tells its progress before.
///
/// # Errors
/// As [`Client::connect`], [`Client::send`] and [`Client::receive`].
pub fn ask(socket: &Path, request: &Request, patience: Duration) -> Result<Reply, ClientError> {
    let progresses = matches!(
        request,
        Request::Switchover { .. } | Request::SwitchoverSite { .. } | Request::Failover { .. }
    );
    let mut client = Client::connect(socket, patience)?;
    client.send(request)?;
    loop {
        match client.receive()? {
            Reply::Status(_) if progresses => {}
            reply => return Ok(reply),
        }
    }
}

impl Client {
    /// Connects. All answers must come within `patience` from now.
    ///
    /// # Errors
    /// Nobody listens.
    pub fn connect(path: &Path, patience: Duration) -> Result<Self, ClientError> {
        let stream = UnixStream::connect(path).map_err(|source| ClientError::Absent {
            path: path.to_owned(),
            source,
        })?;
        let deadline = clock::now() + patience;
        Ok(Self {
            path: path.to_owned(),
            stream: BufReader::new(stream),
            deadline,
            patience,
        })
    }

    /// Sends a request.
    ///
    /// # Errors
    /// The member is gone.
    pub fn send(&mut self, request: &Request) -> Result<(), ClientError> {
        let mut line = serde_json::to_vec(request).map_err(|error| strange(&error))?;
        line.push(b'\n');
        self.stream
            .get_mut()
            .write_all(&line)
            .map_err(|source| self.gone(source))
    }

    /// Waits for the next reply.
    ///
    /// # Errors
    /// The member is gone, is late, or refuses.
    pub fn receive(&mut self) -> Result<Reply, ClientError> {
        let left = clock::now().until(self.deadline);
        if left.is_zero() {
            return Err(ClientError::Overdue {
                patience: self.patience,
            });
        }
        let bounded = self.stream.get_mut().set_read_timeout(Some(left));
        bounded.map_err(|source| self.gone(source))?;
        let mut line = String::new();
        match self.stream.read_line(&mut line) {
            Ok(0) => return Err(self.gone(io::ErrorKind::UnexpectedEof.into())),
            Ok(_) => {}
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                ) =>
            {
                return Err(ClientError::Overdue {
                    patience: self.patience,
                });
            }
            Err(error) => return Err(self.gone(error)),
        }
        match serde_json::from_str(&line).map_err(|error| strange(&error))? {
            Reply::Refused { why, reason } => Err(ClientError::Refused { why, reason }),
            reply @ (Reply::Status(_) | Reply::History(_) | Reply::Done) => Ok(reply),
        }
    }

    fn gone(&self, source: io::Error) -> ClientError {
        ClientError::Gone {
            path: self.path.clone(),
            source,
        }
    }
}

fn strange(what: &dyn std::fmt::Display) -> ClientError {
    ClientError::Strange {
        what: what.to_string(),
    }
}
