//! Rules that are broken on purpose, to show that the invariants catch it. Never in production code:
//! here the simulated executor or what a member sees is false, `decide` is the real one.

use baton::decide::{Custody, Heard, Heartbeat, Incarnation, Observation, Seen};

use crate::world::World;

/// A rule that is broken on purpose, to show that an invariant catches it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// Nothing: the real thing.
    Nothing,
    /// The executor takes any fence that was tried for a proven one and mounts unconfirmed.
    SkipVerify,
    /// The standby does not see the owner's signs of life on the volume and in the lease.
    IgnoreBeats,
    /// Rebuilding the device keeps the old one's queue.
    KeepDevice,
    /// An absent reservation is taken for permission, at once.
    AbsenceIsPermission,
}

impl World {
    /// What a member with a broken rule sees.
    pub fn twisted_view(&self, index: usize) -> Option<Observation> {
        let node = &self.nodes[index];
        match self.broken {
            Broken::Nothing | Broken::SkipVerify | Broken::KeepDevice => None,
            Broken::IgnoreBeats => {
                let mut seen = node.seen.clone();
                if let Seen::Known { value, at: _ } = &mut seen.mailbox {
                    for entry in &mut value.members {
                        if entry.host != node.host {
                            entry.key.beat = fencing::Beat::ZERO;
                        }
                    }
                    if let fencing::Holder::Member(entry) = &mut value.holder
                        && entry.host != node.host
                    {
                        entry.key.beat = fencing::Beat::ZERO;
                    }
                }
                Some(seen)
            }
            Broken::AbsenceIsPermission => {
                let mut seen = node.seen.clone();
                let nobody = seen
                    .mailbox
                    .known()
                    .is_some_and(|mailbox| mailbox.holder == fencing::Holder::Nobody);
                if nobody {
                    let at = self.clock(index);
                    for peer in node.config.peers() {
                        let heartbeat = self.a_lie(index, peer);
                        seen.peers.insert(
                            peer,
                            Seen::Known {
                                value: heartbeat,
                                at,
                            },
                        );
                    }
                }
                Some(seen)
            }
        }
    }

    /// "I have nothing of the volume", which nobody said.
    pub fn a_lie(&self, index: usize, peer: fencing::MemberId) -> Heartbeat {
        let node = &self.nodes[index];
        let heard = Heard {
            incarnation: Incarnation(node.process),
            sequence: u64::MAX,
        };
        Heartbeat {
            member: peer,
            incarnation: Incarnation(0),
            sequence: 1,
            role: baton::decide::RoleName::Standby,
            epoch: node.memory.newest,
            custody: Custody::Nothing,
            ready: false,
            reachable: true,
            volume: true,
            failed: false,
            stuck: false,
            handover: None,
            heard: [(node.config.member, heard)].into(),
        }
    }
}
