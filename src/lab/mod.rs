//! The whole system on one machine, below one directory: a target, two members, the links between
//! them, and a supervisor that keeps them running as a kubelet would.

pub mod bridge_queue;
pub mod configure;
pub mod down;
pub mod forwarder;
pub mod fuse;
pub mod layout;
pub mod network;
pub mod ports;
pub mod process;
pub mod protocol;
mod service;
pub mod supervisor;
pub mod up;
pub mod wan;

/// The environment variable by which every process of a lab says where it belongs.
pub const MARK: &str = "BATON_LAB";
