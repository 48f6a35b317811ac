//! What can become of a command that was to be sent to a namespace.

use std::time::Duration;

use crate::{ReservationReport, Status};

/// Why a command gave no successful completion.
///
/// The difference that matters for fencing is [`Error::outcome_unknown`]: a command that certainly
/// had no effect may be tried again; one that may have had its effect must be verified first.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The controller completed the command with this status. The command had no effect, except
    /// where [`Status::may_have_had_effect`].
    #[error("{command} was refused: {status}")]
    Status {
        /// The command, in the specification's words.
        command: &'static str,
        /// What the controller answered.
        status: Status,
    },
    /// No completion arrived in time. The command may have been, or may yet be, carried out.
    #[error("{command} got no answer within {deadline:?}: its outcome is unknown")]
    Deadline {
        /// The command, in the specification's words.
        command: &'static str,
        /// How long was waited.
        deadline: Duration,
    },
    /// The connection broke after the command was sent and before its completion.
    #[error("the connection broke during {command}: its outcome is unknown")]
    ConnectionLost {
        /// The command, in the specification's words.
        command: &'static str,
    },
    /// There is no usable path to the namespace; the command was never sent.
    #[error("{command} was not sent: no path to the namespace ({cause})")]
    NoPath {
        /// The command, in the specification's words.
        command: &'static str,
        /// Why there is no path.
        cause: String,
    },
    /// The peer broke the protocol.
    #[error("{command}: the controller broke the protocol: {detail}")]
    Protocol {
        /// The command, in the specification's words.
        command: &'static str,
        /// What was wrong.
        detail: String,
    },
    /// A local system call failed before the command was sent.
    #[error("{command}: {operation} failed")]
    Io {
        /// The command, in the specification's words.
        command: &'static str,
        /// The system call or step.
        operation: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

impl Error {
    /// Whether the command may nevertheless have been carried out, now or later.
    pub fn outcome_unknown(&self) -> bool {
        match self {
            Self::Deadline { .. } | Self::ConnectionLost { .. } | Self::Protocol { .. } => true,
            Self::Status { status, .. } => status.may_have_had_effect(),
            Self::NoPath { .. } | Self::Io { .. } => false,
        }
    }

    /// Whether a reservation refused the command.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Status { status, .. } if status.is_conflict())
    }

    /// The controller's status, where it gave one.
    pub fn status(&self) -> Option<Status> {
        match self {
            Self::Status { status, .. } => Some(*status),
            _ => None,
        }
    }
}

/// The result of a Reservation Report.
pub type ReportResult = Result<ReservationReport, Error>;
