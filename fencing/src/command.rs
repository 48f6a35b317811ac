//! What a sequence asks its driver to do, and what the driver tells it: sequences do no input or
//! output themselves, so the executor and the simulation drive the same code.
//!
//! ```text
//!            ┌── Send(command) ──► driver ──► namespace
//! next(now, ─┤── WaitUntil(t)  ──► driver     │
//!   outcome) ├── Proven(proof)                │
//!      ▲     └── Unproven(why)                │
//!      └───────────── outcome ◄───────────────┘
//! ```

use nvme::reservation::ChangePersistence;
use nvme::{Error, ReservationReport, Status};
use serde::{Deserialize, Serialize};

use crate::{FenceUnverified, Mono, ReservationKey, WritePermit};

/// A reservation command to be sent. Acquire and preempt always name type 1, Write Exclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Reservation Report with the extended data structure.
    Report,
    /// Reservation Acquire, RACQA 2. Its completion proves that the victim's commands are over.
    PreemptAndAbort {
        /// Our current key (CRKEY).
        key: ReservationKey,
        /// The victim's (PRKEY).
        victim: ReservationKey,
    },
    /// Reservation Acquire, RACQA 0.
    Acquire {
        /// Our current key (CRKEY).
        key: ReservationKey,
    },
    /// Reservation Register, RREGA 0.
    Register {
        /// The new key.
        key: ReservationKey,
        /// CPTPL.
        persistence: ChangePersistence,
    },
    /// Reservation Register, RREGA 2; names the current key, never IEKEY, so a lost race is seen.
    Replace {
        /// Our current key (CRKEY).
        current: ReservationKey,
        /// The new one.
        new: ReservationKey,
        /// CPTPL.
        persistence: ChangePersistence,
    },
}

/// What became of the command that was sent last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// The report that was asked for.
    Report(ReservationReport),
    /// Successful completion of any other command.
    Done,
    /// The controller completed it with this status.
    Refused(Status),
    /// It certainly never reached the controller.
    NotSent,
    /// No completion: it may have been carried out, or may yet be.
    Unknown,
}

impl Outcome {
    /// What an error of the carrier means.
    pub fn of_error(error: &Error) -> Self {
        match error {
            Error::Status { status, .. } => Self::Refused(*status),
            Error::NoPath { .. } | Error::Io { .. } => Self::NotSent,
            Error::Deadline { .. } | Error::ConnectionLost { .. } | Error::Protocol { .. } => {
                Self::Unknown
            }
        }
    }
}

/// What is to be done next.
#[derive(Debug)]
#[must_use]
pub enum Step<P = WritePermit, U = FenceUnverified> {
    /// Send this command and come back with its outcome.
    Send(Command),
    /// Come back at this time, without an outcome.
    WaitUntil(Mono),
    /// The end: it is proven.
    Proven(P),
    /// The end: it is not proven, and why.
    Unproven(U),
}

/// A series of reservation commands that ends in a proof or in a precise refusal.
pub trait Sequence {
    /// What it proves.
    type Proof;
    /// Why it could not.
    type Unproven;

    /// The next step. `outcome` is that of the last [`Step::Send`]; `None` at the start and after a
    /// [`Step::WaitUntil`]. A missing or misplaced outcome counts as [`Outcome::Unknown`].
    fn next(&mut self, now: Mono, outcome: Option<Outcome>) -> Step<Self::Proof, Self::Unproven>;

    /// When the sequence gives up: no command's outcome is worth waiting for longer.
    fn deadline(&self) -> Mono;
}
