//! What a fence must prove, and the fences that prove it.
//!
//! To fence means: make another host's writes fail at the volume, *and verify it*. This crate holds
//! the words for that (epoch, member, reservation key), the mailbox that the keys form, and the
//! sequences of commands that end in a [`WritePermit`]: the only value with which a volume may be
//! mounted. The sequences do no input or output and read no clock, so the simulation drives the
//! very code that production runs.
//!
//! Nothing here decides *whether* to take over; that is the decision core's business.

// The one exception, `watchdog/raw.rs`, says why; everywhere else the workspace denies it.
#![deny(unsafe_code)]

pub mod command;
pub mod command_fence;
pub mod drive;
pub mod fence;
pub mod key;
pub mod mailbox;
pub mod model;
pub mod mono;
pub mod permit;
pub mod reservation;
pub mod watchdog;

pub use command::{Command, Outcome, Sequence, Step};
pub use drive::drive;
pub use fence::{Fence, FenceStopped, FurtherFence, FurtherFences, ReservationFence, Suspect};
pub use key::{Beat, ClusterTag, Epoch, KeyFlags, MemberId, ReservationKey};
pub use mailbox::{Foreign, Holder, Mailbox, MemberEntry};
pub use mono::Mono;
pub use permit::{Drain, Licence, PermitLost, PermitRecord, WritePermit};
pub use reservation::{
    AbsenceEvidence, Claim, Expectation, FenceSequence, FenceUnverified, Limits, OwnHold,
    Registered, StartRefused, StartSequence, Victim,
};
