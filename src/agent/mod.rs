//! The node agent: the privileged part of the members of one node, over a Unix socket.
//!
//! ```text
//! pod: baton run (no privilege) ──session──► baton agent: one attachment for each member
//!      └─ postgres …                          mounts below /run/baton/members, seen in the pod
//! ```
//!
//! A session is a lock. When it ends without a word, the agent kills every process of the pod, unmounts and
//! announces `clean`, and the standby takes over. When the agent ends, nothing else does: devices and
//! mounts stay, and its successor resumes the sessions from what was written down after each step.
//!
//! A pod names nothing that the agent then trusts: who it is comes from the kernel (the peer of the
//! socket, its control group), what it may have from the API server.

mod attached;
mod cleanup;
mod client;
mod complain;
mod descriptor;
mod found;
mod identity;
mod protocol;
mod records;
mod refusal;
mod resolve;
mod serve;
mod session;
mod tree;
mod waiting;

pub(crate) use client::Opened;
pub use client::{Client, ClientError};
pub(crate) use protocol::Hello;
pub use protocol::{FRAME_MAX_BYTES, PROTOCOL};
pub use resolve::{Node, Platform};
pub use serve::{Agent, AgentError, Options};
