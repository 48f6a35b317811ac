//! The control socket of a running member: what it says of itself, and what operators ask of it.
//!
//! ```text
//! baton status ─┐                       ┌─ newest Status, published by the loop
//!               ├─ Unix socket, Server ─┤
//! baton pause ──┘   (JSON lines)        └─ ControlRequest ─► Requests ─► decide ─► Answer
//! ```
//!
//! Reading the status never waits for the loop: a member whose loop hangs still says so, by the age
//! of its status. The socket is for root alone (mode 0600): who reaches it may hand over the database.

pub mod client;
pub mod protocol;
mod requests;
mod server;
pub mod status;

pub use client::{Client, ClientError, ask};
pub use protocol::{Ownerships, Reply, Request};
pub use requests::{ControlRequest, Requests};
pub(crate) use server::history;
pub use server::{Server, ServerError};
pub use status::{MemberStatus, Status};
