//! What runs beside the steps: beats, lease renewals, heartbeats, the platform's label.
//!
//! Signs of life come from a member that gets on: none while a step is overdue or the path is lost.

use std::collections::BTreeMap;

use fencing::{Epoch, KeyFlags, Mono};

use super::action::Action;
use super::memory::{
    BeatSaid, Handover, HandoverStage, RestartStage, Role, Routed, Said, TakeOverPhase,
};
use super::observation::{
    HandoverNotice, HandoverPhase, Heard, Heartbeat, LeaseRecord, LeaseVersion, Postgres, RoleName,
};
use super::turn::Turn;

impl Turn<'_> {
    /// After the role has decided.
    pub(super) fn chores(&mut self) {
        self.beat();
        self.keep_lease();
        self.publish();
        self.route();
    }

    /// What this member's key says besides `clean`.
    pub(super) fn key_flags(&self) -> KeyFlags {
        KeyFlags {
            clean: false,
            ready: self.ready() && !self.failed_lately(),
            reachable: self.lease().is_some(),
            ..KeyFlags::NONE
        }
    }

    /// The epoch that this member owns now, and when its hold was proven.
    fn owned(&self) -> Option<(Epoch, Mono)> {
        match &self.memory.role {
            Role::TakingOver(takeover) => Some((takeover.epoch, takeover.proven_at?)),
            Role::Active(own) => Some((own.epoch, own.proven_at)),
            Role::HandingOver(handover) => Some((handover.epoch, handover.proven_at)),
            Role::Joining { .. }
            | Role::Standby
            | Role::Returning { .. }
            | Role::Leaving
            | Role::Stopped => None,
        }
    }

    /// It cannot get on: an overdue step, or an owner without a path.
    fn stuck(&self) -> bool {
        let lost = self
            .owned()
            .and_then(|(epoch, proven_at)| self.path_lost(epoch, proven_at));
        let detection = self.timings().detection;
        self.blocked() || lost.is_some_and(|since| since.elapsed(detection, self.now))
    }

    fn beat(&mut self) {
        let Some(epoch) = self.beat_epoch() else {
            return;
        };
        if !self.timings().storage_beats || self.blocked() {
            return;
        }
        let flags = self.key_flags();
        let due = self.memory.beat.is_none_or(|said| {
            said.epoch != epoch
                || said.flags != flags
                || said.at.elapsed(self.timings().storage_beat, self.now)
        });
        if due {
            self.memory.beat = Some(BeatSaid {
                at: self.now,
                epoch,
                flags,
            });
            self.actions.push(Action::Beat { epoch, flags });
        }
        if let Some(said) = self.memory.beat {
            self.wake_at(said.at + self.timings().storage_beat);
        }
    }

    /// The epoch for this member's key; `None` where its key must rest: a fence needs it still, a
    /// clean one must keep its flag, and a hold that is not in use must not look alive.
    fn beat_epoch(&self) -> Option<Epoch> {
        let registered = self.memory.registered.is_some() && !self.may_hold();
        match &self.memory.role {
            Role::Standby => registered.then_some(self.memory.newest),
            Role::TakingOver(takeover) => match takeover.phase {
                TakeOverPhase::Inspecting | TakeOverPhase::Claiming | TakeOverPhase::Fencing => {
                    None
                }
                TakeOverPhase::Preparing
                | TakeOverPhase::Formatting
                | TakeOverPhase::Mounting
                | TakeOverPhase::Starting => Some(takeover.epoch),
            },
            Role::Active(own) => Some(own.epoch),
            Role::HandingOver(handover) => match handover.stage {
                HandoverStage::Announcing | HandoverStage::Waiting => None,
                HandoverStage::Checkpointing
                | HandoverStage::Withdrawing
                | HandoverStage::StoppingFast
                | HandoverStage::StoppingImmediate
                | HandoverStage::Killing
                | HandoverStage::Unmounting => Some(handover.epoch),
            },
            Role::Joining { .. } | Role::Returning { .. } | Role::Leaving | Role::Stopped => None,
        }
    }

    pub(super) fn write_lease(&mut self, expected: Option<LeaseVersion>, record: LeaseRecord) {
        let deadline = self.now + self.timings().lease_deadline;
        self.memory.lease_written = Some(self.now);
        self.actions.push(Action::WriteLease {
            expected,
            record,
            deadline,
        });
    }

    /// The owner keeps its record; one that is clean says so.
    fn keep_lease(&mut self) {
        let Some((epoch, _)) = self.owned().filter(|_| !self.stuck()) else {
            return;
        };
        let Some(lease) = self.lease() else { return };
        let writing = self
            .actions
            .iter()
            .any(|action| matches!(action, Action::WriteLease { .. }));
        let renew = self.timings().lease_renew;
        let due = self
            .memory
            .lease_written
            .is_none_or(|at| at.elapsed(renew, self.now));
        let clean = match &self.memory.role {
            Role::HandingOver(handover) if handover.stage == HandoverStage::Waiting => {
                if !self.lease_says_clean_now(handover) {
                    return;
                }
                true
            }
            Role::HandingOver(_) | Role::Active(_) | Role::TakingOver(_) => false,
            Role::Joining { .. }
            | Role::Standby
            | Role::Returning { .. }
            | Role::Leaving
            | Role::Stopped => return,
        };
        let record = lease.map(|lease| &lease.record);
        let said = record.is_some_and(|record| {
            record.holder == Some(self.me()) && record.epoch == epoch && record.clean == clean
        });
        let urgent = clean && !said;
        if writing || self.claiming() || !(due || urgent) || (clean && said) {
            return;
        }
        if record.is_some_and(|record| self.leave_to_claimant(epoch, record)) {
            return;
        }
        let mut next = self.lease_record(epoch, record);
        next.clean = clean;
        next.initialized |= matches!(self.memory.role, Role::Active(_));
        self.write_lease(lease.map(|lease| lease.version.clone()), next);
    }

    /// The claim itself is a step.
    fn claiming(&self) -> bool {
        let issued = self.memory.issued.as_ref();
        issued.is_some_and(|issued| matches!(issued.work, super::Work::ClaimLease { .. }))
    }

    /// While the standby it is meant for may be claiming, a write here would only cost it a retry.
    fn lease_says_clean_now(&self, handover: &Handover) -> bool {
        let since = handover.clean_since.unwrap_or(self.now);
        handover.to.is_none() || since.elapsed(self.timings().detection, self.now)
    }

    /// A standby has claimed a greater epoch: it will fence this owner, or its claim grows old.
    fn leave_to_claimant(&self, epoch: Epoch, record: &LeaseRecord) -> bool {
        let other = record.epoch > epoch && record.holder != Some(self.me());
        let since = self
            .memory
            .watch
            .lease
            .as_ref()
            .map_or(self.now, |track| track.since);
        other && !since.elapsed(self.timings().detection * 2, self.now)
    }

    fn publish(&mut self) {
        let heartbeat = self.heartbeat();
        let due = self.memory.said.as_ref().is_none_or(|said| {
            said.at.elapsed(self.timings().heartbeat, self.now)
                || !same_statement(&said.heartbeat, &heartbeat)
        });
        if due {
            self.memory.heartbeats = heartbeat.sequence;
            self.memory.said = Some(Said {
                at: self.now,
                heartbeat: heartbeat.clone(),
            });
            self.actions.push(Action::Publish(heartbeat));
        }
        if let Some(said) = &self.memory.said {
            self.wake_at(said.at + self.timings().heartbeat);
        }
    }

    fn heartbeat(&self) -> Heartbeat {
        let heard: BTreeMap<_, _> = self
            .seen
            .peers
            .iter()
            .filter_map(|(member, seen)| {
                let heartbeat = seen.known()?;
                let heard = Heard {
                    incarnation: heartbeat.incarnation,
                    sequence: heartbeat.sequence,
                };
                Some((*member, heard))
            })
            .collect();
        Heartbeat {
            member: self.me(),
            incarnation: self.seen.local.incarnation,
            sequence: self.memory.heartbeats + 1,
            role: self.said_role(),
            epoch: self.owned().map_or(self.memory.newest, |(epoch, _)| epoch),
            custody: self.custody(),
            ready: self.ready(),
            reachable: self.lease().is_some(),
            volume: self.mailbox().is_ok(),
            failed: self.failed_lately(),
            stuck: self.stuck(),
            handover: self.notice(),
            heard,
        }
    }

    /// Among several sites an active may have more to do than a start before it serves: until then it
    /// says that it takes over, as one that has a single site does.
    fn said_role(&self) -> RoleName {
        let starting = self.config.zone.is_some() && self.memory.zone.runs.is_none();
        match &self.memory.role {
            Role::Active(_) if starting => RoleName::TakingOver,
            role => role.name(),
        }
    }

    fn notice(&self) -> Option<HandoverNotice> {
        match &self.memory.role {
            Role::HandingOver(handover) => Some(HandoverNotice {
                epoch: handover.epoch,
                to: handover.to,
                cause: handover.cause,
                phase: if handover.stage == HandoverStage::Waiting {
                    HandoverPhase::Clean
                } else {
                    HandoverPhase::Preparing
                },
            }),
            Role::Joining { .. }
            | Role::Standby
            | Role::TakingOver(_)
            | Role::Active(_)
            | Role::Returning { .. }
            | Role::Leaving
            | Role::Stopped => None,
        }
    }

    /// During the checkpoint of a handover or a restart, which may take long, clients are still served.
    fn wants_clients(&self) -> bool {
        match &self.memory.role {
            Role::Active(_) => self
                .memory
                .restarting
                .is_none_or(|restarting| restarting.stage == RestartStage::Checkpointing),
            Role::HandingOver(handover) => handover.stage == HandoverStage::Checkpointing,
            Role::Joining { .. }
            | Role::Standby
            | Role::TakingOver(_)
            | Role::Returning { .. }
            | Role::Leaving
            | Role::Stopped => false,
        }
    }

    fn route(&mut self) {
        let role = self.memory.role.name();
        let epoch = self.owned().map_or(self.memory.newest, |(epoch, _)| epoch);
        let runs = self.wants_clients() && self.seen.local.postgres == Postgres::Running;
        let (serving, follows) = (
            runs && self.runs_the_primary(),
            runs && !self.runs_the_primary(),
        );
        let zone = self.memory.zone.runs.as_ref();
        let routed = Routed {
            role,
            epoch,
            term: zone.filter(|_| serving).map_or(0, |(term, _)| *term),
            serving,
            follows,
        };
        if self.memory.routed != Some(routed) {
            self.memory.routed = Some(routed);
            self.actions.push(Action::PublishRole {
                role,
                epoch,
                term: routed.term,
                serving,
                follows,
            });
        }
    }
}

/// Whether two heartbeats say the same, apart from their number and what was heard.
fn same_statement(one: &Heartbeat, other: &Heartbeat) -> bool {
    let plain = |heartbeat: &Heartbeat| Heartbeat {
        sequence: 0,
        heard: BTreeMap::new(),
        ..heartbeat.clone()
    };
    plain(one) == plain(other)
}
