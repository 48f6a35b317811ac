//! Why a drill could not be carried out.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::Signal;

use crate::control::ClientError;
use crate::lab::layout::LayoutError;
use crate::lab::protocol::AskError;

/// A drill could not be carried out: says nothing about the system that was to be drilled.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// The supervisor or the target.
    #[error("ask the lab")]
    Ask(#[from] AskError),
    /// A member's control socket.
    #[error("ask member {member}")]
    Member {
        /// Which.
        member: String,
        /// Why not.
        #[source]
        source: ClientError,
    },
    /// A signal could not be sent.
    #[error("send {signal} to the processes of member {member}")]
    Signal {
        /// Which signal.
        signal: Signal,
        /// Whose processes.
        member: String,
        /// Why not.
        #[source]
        source: Errno,
    },
    /// Something that must have happened by now has not.
    #[error("{what} did not happen within {within:?}: {state}")]
    Overdue {
        /// What.
        what: String,
        /// How long was waited.
        within: Duration,
        /// How it is instead.
        state: String,
    },
    /// A file of the lab.
    #[error("change the lab's files")]
    Layout(#[from] LayoutError),
    /// A file.
    #[error("{what} {}", path.display())]
    Io {
        /// What was attempted.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The ground cannot do this.
    #[error("{fault} cannot be done on {ground}")]
    Unsupported {
        /// What was to be done.
        fault: &'static str,
        /// Where.
        ground: &'static str,
    },
    /// Something on a machine under drill, told in words.
    #[error("{what}: {why}")]
    Machine {
        /// What was attempted.
        what: String,
        /// What happened instead.
        why: String,
    },
    /// The member does not run.
    #[error("member {member} has no {what}")]
    Missing {
        /// Which.
        member: String,
        /// What is missing.
        what: &'static str,
    },
}

impl StageError {
    pub(in crate::drill) fn missing(member: &str, what: &'static str) -> Self {
        Self::Missing {
            member: member.to_owned(),
            what,
        }
    }

    /// The error with its causes, in words.
    pub fn words(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        text
    }
}
