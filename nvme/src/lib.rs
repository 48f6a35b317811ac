//! NVMe as Baton needs it: reservations, NVMe/TCP in user space (target and initiator), the
//! kernel's own NVMe devices, and a bridge that shows an initiator's namespace as a block device.
//!
//! Everything here speaks the NVMe specifications' words. Nothing here decides: who may own a
//! volume is the business of `fencing` and of the decision core.
//!
//! The only unsafe code of the workspace lives in the raw modules of this crate.

pub mod block;
pub mod bridge;
pub mod command;
pub mod error;
pub mod fabrics;
pub mod identify;
pub mod identity;
pub mod initiator;
pub mod kernel;
pub mod log_page;
#[cfg(test)]
mod memory;
pub mod namespace;
pub mod pdu;
pub mod reservation;
pub mod reservation_codec;
pub mod status;
pub mod target;

pub use error::Error;
pub use identity::{HostId, HostIdentity, Nqn};
pub use namespace::{Identified, Namespace};
pub use reservation::{ReservationReport, ReservationType};
pub use status::Status;
