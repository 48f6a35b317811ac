//! The whole system on one machine, below one directory: a target, two members, the links between
//! them, and a supervisor that keeps them running as a kubelet would.

pub mod forwarder;
pub mod ports;
pub mod process;

/// The environment variable by which every process of a lab says where it belongs.
pub const MARK: &str = "BATON_LAB";
