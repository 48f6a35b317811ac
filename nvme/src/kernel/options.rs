//! What the kernel's initiator is told, and its limits.

use std::path::PathBuf;
use std::time::Duration;

use super::Selector;
use crate::{HostIdentity, Nqn};

/// Where to connect, as whom, to which namespace, and with which limits.
#[derive(Clone, Debug)]
pub struct Options {
    /// `host:port` of the subsystem's NVMe/TCP port; a name is resolved anew on each attempt.
    pub address: String,
    /// The subsystem.
    pub subsystem: Nqn,
    /// The namespace within it.
    pub namespace: Selector,
    /// Who this host is. Reservations belong to its identifier.
    pub host: HostIdentity,
    /// The kernel's time-outs.
    pub time_outs: TimeOuts,
    /// How long one command may take. After that the kernel resets the controller.
    pub command_deadline: Duration,
    /// How long attaching may take: connecting, scanning, identifying.
    pub attach_deadline: Duration,
    /// Where the kernel shows its devices, normally `/sys`.
    pub sysfs: PathBuf,
    /// Where device nodes are, normally `/dev`.
    pub dev: PathBuf,
}

/// The kernel's time-outs of one controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeOuts {
    /// KATO; whole seconds.
    pub keep_alive: Duration,
    /// Pause between two attempts to reconnect; whole seconds.
    pub reconnect_delay: Duration,
    /// After so long without a path, I/O fails at once; whole seconds. The kernel's default is
    /// *never*, which would hold a cut-off host's writes back for the whole of `controller_loss`.
    pub fast_io_fail: Duration,
    /// After so long without a path the controller is removed; whole seconds.
    pub controller_loss: Duration,
    /// After so long without an answer the kernel takes the path for dead. It bounds how long a
    /// block device on a silent path takes to be destroyed.
    pub io: Duration,
}

impl Default for TimeOuts {
    /// The starting values of the failover design: KATO 5 s, reconnect every second, I/O errors after
    /// 5 s, controller removed after 60 s, I/O time-out 10 s.
    fn default() -> Self {
        Self {
            keep_alive: Duration::from_secs(5),
            reconnect_delay: Duration::from_secs(1),
            fast_io_fail: Duration::from_secs(5),
            controller_loss: Duration::from_secs(60),
            io: Duration::from_secs(10),
        }
    }
}

impl Options {
    /// Options with the usual limits: [`TimeOuts::default`], 10 s for a command and for attaching.
    pub fn new(address: String, subsystem: Nqn, namespace: Selector, host: HostIdentity) -> Self {
        Self {
            address,
            subsystem,
            namespace,
            host,
            time_outs: TimeOuts::default(),
            command_deadline: Duration::from_secs(10),
            attach_deadline: Duration::from_secs(10),
            sysfs: PathBuf::from("/sys"),
            dev: PathBuf::from("/dev"),
        }
    }
}
