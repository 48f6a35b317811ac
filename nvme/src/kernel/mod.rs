//! The kernel's own NVMe devices: commands by passthrough, discovery in sysfs, connecting through
//! `/dev/nvme-fabrics`.
//!
//! ```text
//! KernelInitiator ── attach ──► view of sysfs ─► adopt or connect ─► KernelNamespace (passthrough)
//!        └────────── destroy ─► delete the controllers, wait until they and the disk are gone
//! ```
//!
//! Reservations never go through `IOC_PR_*`: those cannot unregister, always ask for persistence
//! through power loss, and hide the controller's status.
//!
//! One kernel merges all its host identities of one subsystem into paths of one disk: per kernel
//! and subsystem there must be one identity, or fences mean nothing. A second one is refused.

mod attach;
mod bounded;
mod destroy;
mod device;
pub mod fabrics;
mod initiator;
mod options;
mod raw;
mod select;
pub mod sysfs;
#[cfg(test)]
mod tests;
mod view;

pub use attach::AttachError;
pub use destroy::DestroyError;
pub use device::{KernelNamespace, OpenError};
pub use initiator::{KernelDisk, KernelInitiator};
pub use options::{Options, TimeOuts};
pub use select::{Identifier, InvalidIdentifier, PathView, Selector, paths};
