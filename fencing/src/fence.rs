//! The contract of every fence, and several of them as one.
//!
//! A fence makes another host's writes fail, *and proves it*. The reservation comes first: it alone
//! yields a [`WritePermit`], in milliseconds. Further fences, where configured, must be proven on
//! top; one that cannot be proven stops the take-over, for an operator who configured it did not
//! trust the others alone.
//!
//! The place of a volume access list by host NQN (for volumes without reservations: compare-and-set,
//! read back, check the connected hosts, keep watching) is beside [`ReservationFence`]: it will need
//! a proof of its own from which a permit can be made.

use std::time::Duration;

use nvme::{HostId, Namespace};
use serde::{Deserialize, Serialize};

use crate::command_fence::{CommandFence, CommandUnproven};
use crate::watchdog::WatchdogWait;
use crate::{
    Claim, Epoch, Expectation, FenceSequence, FenceUnverified, Limits, MemberId, Mono, PermitLost,
    WritePermit, drive,
};

/// Reads `CLOCK_BOOTTIME`; time is always an argument here.
pub trait Clock: Fn() -> Mono + Send + Sync {}

impl<F: Fn() -> Mono + Send + Sync> Clock for F {}

/// Whom to fence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Suspect {
    /// The member that owned the volume.
    pub member: MemberId,
    /// Its host identity.
    pub host: HostId,
    /// The epoch that it owned.
    pub epoch: Epoch,
    /// From when on it cannot have had its hold of the volume confirmed: when the reservation fence
    /// was proven.
    pub since: Mono,
}

/// Makes another host's writes fail, and proves it.
///
/// An implementation answers `Ok` only with a proof. No answer in time, an answer of unknown meaning,
/// or success without verification are errors: an unknown outcome is "not fenced".
pub trait Fence {
    /// What shows that the suspect cannot write any more.
    type Proof;
    /// Why that is not shown. Displayed, it says what was attempted, what happened, what to do.
    type Unproven: std::error::Error;

    /// Fences `suspect`, with an answer before `deadline`.
    fn fence(
        &self,
        suspect: &Suspect,
        clock: &impl Clock,
        deadline: Mono,
    ) -> impl Future<Output = Result<Self::Proof, Self::Unproven>> + Send;
}

/// The reservation as a [`Fence`]: its suspect is the victim that `expectation` names.
#[derive(Debug)]
pub struct ReservationFence<'a, N> {
    /// The volume.
    pub namespace: &'a N,
    /// Who claims it.
    pub claim: Claim,
    /// What is expected to be found.
    pub expectation: Expectation,
    /// How long it may take; the fence's deadline takes the place of the one here if earlier.
    pub limits: Limits,
    /// How long one command may take.
    pub command_timeout: Duration,
}

impl<N: Namespace> Fence for ReservationFence<'_, N> {
    type Proof = WritePermit;
    type Unproven = FenceUnverified;

    async fn fence(
        &self,
        _suspect: &Suspect,
        clock: &impl Clock,
        deadline: Mono,
    ) -> Result<WritePermit, FenceUnverified> {
        let deadline = deadline.min(self.limits.deadline);
        let limits = Limits {
            deadline,
            ..self.limits
        };
        let mut sequence = FenceSequence::new(self.claim, self.expectation, limits);
        drive(&mut sequence, self.namespace, clock, self.command_timeout).await
    }
}

/// A fence beside the reservation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum FurtherFence {
    /// Every member's node resets itself; the standby waits until it must have.
    Watchdog(WatchdogWait),
    /// An operator's command, such as a power switch.
    Command(CommandFence),
}

/// A configured fence that was not proven: the take-over stops here.
#[derive(Debug, thiserror::Error)]
pub enum FenceStopped {
    /// The wait for the suspect's watchdog would end after the deadline.
    #[error(
        "member {member}'s watchdog has reset its node for certain only {needed:?} after the fence, \
         later than this take-over may last: allow it more time, or remove the watchdog fence"
    )]
    WatchdogTooSlow {
        /// Whom.
        member: MemberId,
        /// The wait that is needed.
        needed: Duration,
    },
    /// The operator's command did not prove it.
    #[error("member {member} is not proven fenced")]
    Command {
        /// Whom.
        member: MemberId,
        /// Why.
        #[source]
        source: CommandUnproven,
    },
    /// The volume was lost while the further fences were at work.
    #[error("the volume was lost to another while the further fences were at work")]
    PermitLost(#[from] PermitLost),
    /// Whether the volume is still ours could not be read.
    #[error("after the further fences the volume could not be read again")]
    Unreadable(#[source] nvme::Error),
}

/// The configured fences beside the reservation, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FurtherFences(pub Vec<FurtherFence>);

impl FurtherFences {
    /// Proves every configured fence on top of the reservation's permit, one after the other, then
    /// confirms the permit by a fresh report and gives it back. The permit is gone with an error.
    ///
    /// Only for an unplanned take-over: after a handover whose key said `clean` nobody is suspect, and
    /// a power switch would hit a healthy node. Meanwhile the caller's beats go on.
    pub async fn prove(
        &self,
        permit: WritePermit,
        suspect: &Suspect,
        namespace: &impl Namespace,
        clock: &impl Clock,
        deadline: Mono,
    ) -> Result<WritePermit, FenceStopped> {
        if self.0.is_empty() {
            return Ok(permit);
        }
        let member = suspect.member;
        for fence in &self.0 {
            match fence {
                FurtherFence::Watchdog(fence) => {
                    let needed = fence.wait();
                    let proven = fence.fence(suspect, clock, deadline).await;
                    proven.map_err(|_| FenceStopped::WatchdogTooSlow { member, needed })?;
                }
                FurtherFence::Command(fence) => {
                    let proven = fence.fence(suspect, clock, deadline).await;
                    proven.map_err(|source| FenceStopped::Command { member, source })?;
                }
            }
        }
        let report = namespace.report().await.map_err(FenceStopped::Unreadable)?;
        permit.confirm(&report)?;
        Ok(permit)
    }
}
