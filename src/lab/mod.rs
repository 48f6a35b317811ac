//! The whole system on one machine, below one directory: a target, two members, the links between
//! them, and a supervisor that keeps them running as a kubelet would. Or two sites of that kind, each
//! in a network of its own, and the line between them.

pub mod bare;
pub mod bridge_queue;
pub mod configure;
pub mod down;
pub mod forwarder;
pub mod fuse;
pub mod layout;
mod links;
pub mod network;
pub mod ports;
pub mod process;
pub mod protocol;
pub mod record;
mod service;
pub mod site;
pub mod supervisor;
pub mod up;
pub mod wan;

/// The environment variable by which every process of a lab says where it belongs.
pub const MARK: &str = "BATON_LAB";
