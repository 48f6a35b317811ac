//! A Kubernetes API server in memory, for tests.
//!
//! It speaks the real protocol over TLS, so any client connects to it by kubeconfig: versions and
//! conflicts, watches with bookmarks and 410 Expired, server-side apply with owners, status and
//! other subresources, finalizers and garbage collection, roles by token. It does not run pods:
//! who wants a kubelet or a scheduler writes one through the API, so that the same test runs
//! against a real server.
//!
//! What a real one does not offer: every request is logged ([`Server::requests`]), and faults can
//! be switched on ([`Server::faults`]).
//!
//! Known differences are listed in the crate's README.

#![forbid(unsafe_code)]

mod anybody;
mod api;
mod apply;
mod auth;
mod clock;
mod connection;
pub mod control;
mod custom;
mod discovery;
mod events;
mod faults;
mod http;
mod kinds;
mod meta;
mod refusal;
mod requests;
mod schema;
mod server;
mod store;
mod strategic;
mod verbs;
mod watch;

pub use anybody::anybody;
pub use auth::{Identity, MASTERS};
pub use faults::{Faults, Partition};
pub use requests::RequestLog;
pub use server::{ADMIN, Options, Server, StartError};
