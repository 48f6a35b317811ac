//! The control socket of a running member: what it says of itself, and what operators ask of it.
//!
//! ```text
//! baton status ─┐                             ┌─ newest Status, published by the loop
//!               ├─ Unix socket, Server ─ Desk ┤
//! baton pause ──┘   (JSON lines)         │    └─ ControlRequest ─► Requests ─► decide ─► Answer
//! curl ─ HTTP, crate::api ───────────────┘
//! ```
//!
//! Reading the status never waits for the loop: a member whose loop hangs still says so, by the age
//! of its status. The socket is for root alone (mode 0600): who reaches it may hand over the database.

pub mod client;
mod desk;
pub mod protocol;
mod requests;
mod server;
pub mod status;
mod tally;
pub mod zone;

pub use client::{Client, ClientError, ask};
pub use desk::Desk;
pub(crate) use desk::history;
pub use protocol::{Ownerships, Reply, Request};
pub use requests::{ControlRequest, Requests};
pub use server::{Server, ServerError};
pub use status::{MemberStatus, Signs, Status};
pub use tally::{Fenced, StepTally, Tally};
