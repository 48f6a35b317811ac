//! The kernel's own NVMe devices: commands by passthrough, discovery in sysfs, connecting through
//! `/dev/nvme-fabrics`.
//!
//! Reservations never go through `IOC_PR_*`: those cannot unregister, always ask for persistence
//! through power loss, and hide the controller's status.
//!
//! One kernel merges all its host identities of one subsystem into paths of one disk: per kernel
//! and subsystem there must be one identity, or fences mean nothing
//! ([`sysfs::Subsystem::host_identities`]).

mod device;
pub mod fabrics;
mod raw;
pub mod sysfs;

pub use device::{KernelNamespace, OpenError};
