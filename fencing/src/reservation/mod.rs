//! The reservation fence: sequences of NVMe reservation commands that end in a proof.

mod claim;
mod sequence;
mod start;
mod unverified;

pub use claim::{AbsenceEvidence, Claim, Expectation, Limits, OwnHold, Victim, drain_wait};
pub use sequence::FenceSequence;
pub use start::{Registered, StartRefused, StartSequence};
pub use unverified::{Failure, FenceUnverified, Trouble};
