//! Whether this member still holds: the check that every owner's decision begins with.

use fencing::{Epoch, Holder, MemberId, Mono};
use nvme::ReservationType;

use super::observation::Seen;
use super::reason::Reason;
use super::turn::Turn;

/// What the newest report says about this member's hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hold {
    /// It is ours, as of the newest report.
    Confirmed,
    /// There is no path; since when.
    PathLost(Mono),
    /// It is another's.
    LostTo(Option<MemberId>),
    /// Nobody holds.
    Vanished,
}

impl Turn<'_> {
    /// The hold of `epoch`, which was proven at `proven_at`: a report that began no later says
    /// nothing about it. SAFETY: absence and any doubt about who holds count as lost.
    pub(super) fn hold(&self, epoch: Epoch, proven_at: Mono) -> Hold {
        let (mailbox, at) = match &self.seen.mailbox {
            Seen::Unknown { since, cause: _ } => return Hold::PathLost((*since).max(proven_at)),
            Seen::Known { value: _, at } if *at <= proven_at => return self.aged(proven_at),
            Seen::Known { value, at } => (value, *at),
        };
        match mailbox.holder {
            Holder::Nobody => Hold::Vanished,
            Holder::Foreign(_) | Holder::Several(_) | Holder::Missing => Hold::LostTo(None),
            Holder::Member(entry) => {
                let mine = entry.host == self.seen.local.host
                    && entry.key.member == self.me()
                    && entry.key.epoch == epoch
                    && mailbox.reservation == Some(ReservationType::WriteExclusive);
                if mine {
                    self.aged(at)
                } else {
                    Hold::LostTo(Some(entry.key.member))
                }
            }
        }
    }

    /// A confirmation that has grown old is a lost path.
    fn aged(&self, at: Mono) -> Hold {
        if at.elapsed(self.timings().detection, self.now) {
            Hold::PathLost(at)
        } else {
            Hold::Confirmed
        }
    }

    /// Why an owner must stop at once, if it must.
    pub(super) fn must_stop(&self, epoch: Epoch, proven_at: Mono) -> Option<Reason> {
        match self.hold(epoch, proven_at) {
            Hold::Confirmed => None,
            Hold::LostTo(to) => Some(Reason::HoldLost {
                to: to.filter(|to| *to != self.me()),
            }),
            Hold::Vanished => Some(Reason::HoldVanished),
            Hold::PathLost(_) if self.agent_restarts() => None,
            Hold::PathLost(since) => {
                // A member that was frozen itself looks again before it concludes anything.
                let lost = self.now.since(since.max(self.memory.awake_since));
                let timings = self.timings();
                let peer_could = self.peers().any(|peer| peer.ready && peer.volume);
                let bound = if peer_could {
                    timings.detection
                } else {
                    timings.path_loss_timeout
                };
                (lost >= bound).then_some(Reason::PathLostTooLong)
            }
        }
    }

    /// Whether only the agent of this node is missing, and not for long: the volume is as it was, and what
    /// the kernel writes there is refused as soon as another fences this host.
    fn agent_restarts(&self) -> bool {
        let away = self.seen.local.agent_away;
        let absence = self.timings().agent_absence;
        away.is_some_and(|since| {
            !since
                .max(self.memory.awake_since)
                .elapsed(absence, self.now)
        })
    }

    /// Since when the path is lost, where the hold is not in doubt otherwise.
    pub(super) fn path_lost(&self, epoch: Epoch, proven_at: Mono) -> Option<Mono> {
        match self.hold(epoch, proven_at) {
            Hold::PathLost(_) if self.agent_restarts() => None,
            Hold::PathLost(since) => Some(since),
            Hold::Confirmed | Hold::LostTo(_) | Hold::Vanished => None,
        }
    }
}
