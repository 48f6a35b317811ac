//! One call of `decide` on its way: inputs, the memory being written, the actions so far.

use fencing::{Epoch, Mailbox, MemberEntry, MemberId, Mono};

use super::action::{Action, Step, Work, allowance};
use super::memory::{Issued, Memory, Role};
use super::observation::{
    Custody, Device, HandoverPhase, Heartbeat, Lease, Mount, Observation, Outcome, Postgres, Seen,
    StepId,
};
use super::reason::Reason;
use super::{Config, Timings};

/// What a role's function says.
pub(super) enum Next {
    /// Nothing more to decide now.
    Wait(Reason),
    /// The role or its phase has changed: decide again at once, an event is not worth a tick.
    Again,
}

pub(super) struct Turn<'a> {
    pub config: &'a Config,
    pub seen: &'a Observation,
    pub now: Mono,
    pub memory: Memory,
    pub actions: Vec<Action>,
    pub wake: Mono,
    /// The step that has just ended, for the role that ordered it.
    pub ended: Option<(Work, Outcome)>,
    /// A step began in this very decision: no second one.
    pub began: bool,
}

impl<'a> Turn<'a> {
    pub fn timings(&self) -> &'a Timings {
        &self.config.timings
    }

    pub fn me(&self) -> MemberId {
        self.config.member
    }

    /// Orders a step, unless one is under way; an urgent one takes the place of another.
    pub fn begin(&mut self, work: Work) {
        let same = self
            .memory
            .issued
            .as_ref()
            .is_some_and(|issued| issued.work == work);
        let busy = self.memory.issued.is_some() && !work.is_urgent();
        if self.began || same || busy {
            return;
        }
        let id = self.memory.next_step;
        let deadline = self.now + allowance(&work, self.timings());
        self.memory.next_step = StepId(id.0 + 1);
        self.memory.issued = Some(Issued {
            id,
            work: work.clone(),
            at: self.now,
            deadline,
        });
        self.began = true;
        self.actions
            .push(Action::Begin(Step { id, work, deadline }));
    }

    /// Whether a step is under way.
    pub fn pending(&self) -> bool {
        self.memory.issued.is_some()
    }

    /// Whether the step under way is past its deadline and does not end.
    pub fn overdue(&self) -> bool {
        self.memory
            .issued
            .as_ref()
            .is_some_and(|issued| self.now > issued.deadline)
    }

    /// Whether something of this member hangs: it must not look like a member that gets on.
    pub fn blocked(&self) -> bool {
        self.overdue() || self.seen.local.mount == Mount::Stuck
    }

    /// The outcome of the step that has just ended, once.
    pub fn take_ended(&mut self) -> Option<Outcome> {
        self.ended.take().map(|(_, outcome)| outcome)
    }

    /// Nothing hazardous for a while.
    pub fn back_off(&mut self, times: u32) {
        self.memory.not_before = self.now + self.timings().retry * times;
        self.memory.held_up = None;
    }

    /// As [`Turn::back_off`], for a longer while, where only a person can help: the reason stands
    /// until the next try.
    pub fn hold_up(&mut self, why: Reason) -> Next {
        self.back_off(5);
        self.memory.held_up = Some(why.clone());
        Next::Wait(why)
    }

    /// The wait after a failure, if it is not over.
    pub fn backing_off(&mut self) -> Option<Next> {
        let at = self.memory.not_before;
        (self.now < at).then(|| {
            self.wake_at(at);
            Next::Wait(
                self.memory
                    .held_up
                    .clone()
                    .unwrap_or(Reason::Retrying { at }),
            )
        })
    }

    pub fn wake_at(&mut self, at: Mono) {
        if at > self.now {
            self.wake = self.wake.min(at);
        }
    }

    pub fn refresh(&mut self, mailbox: bool, lease: bool) {
        self.actions.push(Action::Refresh { mailbox, lease });
    }

    pub fn become_role(&mut self, role: Role) -> Next {
        self.memory.role = role;
        Next::Again
    }

    /// Ends the ownership of `epoch`: everything of it must go before anything else.
    pub fn give_up(&mut self, epoch: Epoch, why: Reason) -> Next {
        self.ended = None;
        // A failure of before must not delay the end of an ownership.
        self.memory.not_before = self.now;
        self.become_role(Role::Returning {
            why,
            epoch,
            clean: false,
            shut: false,
        })
    }

    /// The mailbox, if it was read lately enough to act on.
    pub fn mailbox(&self) -> Result<(&'a Mailbox, Mono), Mono> {
        match &self.seen.mailbox {
            Seen::Known { value, at } if !at.elapsed(self.timings().detection, self.now) => {
                Ok((value, *at))
            }
            Seen::Known { value: _, at } => Err(*at),
            Seen::Unknown { since, cause: _ } => Err(*since),
        }
    }

    /// This host's registration, as the newest mailbox shows it.
    pub fn own_entry(&self) -> Option<&'a MemberEntry> {
        let mailbox = self.mailbox().ok()?.0;
        mailbox.of_host(self.seen.local.host)
    }

    /// Whether this host holds, as far as is known. Unknown counts as holding: what only a
    /// non-holder may do is then not done.
    pub fn may_hold(&self) -> bool {
        match self.mailbox() {
            Ok((mailbox, _)) => {
                let host = self.seen.local.host;
                mailbox.of_host(host).is_some_and(|entry| entry.holder)
                    || mailbox
                        .foreign
                        .iter()
                        .any(|entry| entry.host == host && entry.holder)
            }
            Err(_) => true,
        }
    }

    /// The lease, if it was read lately enough to act on: `None` unknown, `Some(None)` no record.
    pub fn lease(&self) -> Option<Option<&'a Lease>> {
        let (value, at) = self.seen.lease.known_at()?;
        (!at.elapsed(self.timings().lease_age, self.now)).then_some(value.as_ref())
    }

    /// A peer's heartbeat that arrived within the detection.
    pub fn peer(&self, member: MemberId) -> Option<(&'a Heartbeat, Mono)> {
        let (heartbeat, at) = self.seen.peers.get(&member)?.known_at()?;
        (!at.elapsed(self.timings().detection, self.now)).then_some((heartbeat, at))
    }

    /// Fresh heartbeats of all peers.
    pub fn peers(&self) -> impl Iterator<Item = &'a Heartbeat> + use<'a, '_> {
        self.config
            .peers()
            .filter_map(|member| Some(self.peer(member)?.0))
    }

    /// Whether this member's device was made by this process and after its last mount.
    pub fn device_clean(&self) -> bool {
        match self.seen.local.device {
            Device::Absent => false,
            Device::Attached { made } => made > self.memory.tainted.unwrap_or(0),
        }
    }

    /// What this member still has of the volume.
    pub fn custody(&self) -> Custody {
        let local = &self.seen.local;
        match &self.memory.role {
            Role::TakingOver(_) | Role::Active(_) => Custody::Held,
            Role::HandingOver(handover) if handover.clean_since.is_none() => Custody::Held,
            Role::HandingOver(_)
            | Role::Joining { .. }
            | Role::Standby
            | Role::Returning { .. }
            | Role::Leaving
            | Role::Stopped => match (local.postgres, local.mount) {
                (
                    Postgres::Starting | Postgres::Running | Postgres::Stopping | Postgres::Unknown,
                    _,
                ) => Custody::Held,
                (Postgres::Stopped, Mount::Mounted | Mount::Stuck) => Custody::Relinquished,
                (Postgres::Stopped, Mount::Unmounted) if self.device_clean() => Custody::Nothing,
                (Postgres::Stopped, Mount::Unmounted) => Custody::Relinquished,
            },
        }
    }

    /// Whether this member gave the volume away lately because it could not serve.
    pub fn failed_lately(&self) -> bool {
        let window = self.timings().restart_window;
        self.memory
            .failed
            .is_some_and(|at| !at.elapsed(window, self.now))
    }

    /// Unplanned take-overs of this member within the window.
    pub fn recent_takeovers(&self) -> u32 {
        u32::try_from(self.memory.takeovers.len()).unwrap_or(u32::MAX)
    }

    /// Until when a write of this host's former controllers may still arrive, if it may now.
    ///
    /// SAFETY: such a write is refused as long as another host holds, and legal from the moment this
    /// host does. Waiting between the fence and the mount would be too late: it would have
    /// overwritten what the owner in between has acknowledged.
    pub fn former_writes_until(&self) -> Option<Mono> {
        let timings = self.timings();
        let until = self.memory.former_gone? + timings.keep_alive * 3 + timings.quiesce;
        (self.now < until).then_some(until)
    }

    /// Whether this standby could take over now.
    pub fn ready(&self) -> bool {
        matches!(self.memory.role, Role::Standby)
            && self.custody() == Custody::Nothing
            && self.memory.registered.is_some()
            && !self.seen.stopping
            && self.former_writes_until().is_none()
            && self.recent_takeovers() < self.timings().max_takeovers
    }

    /// Whether the member says, by heartbeat, that it is clean at `epoch`, and what notice it gave.
    pub fn clean_notice(
        &self,
        member: MemberId,
        epoch: Epoch,
    ) -> Option<super::observation::HandoverNotice> {
        let notice = self.peer(member)?.0.handover?;
        (notice.epoch == epoch && notice.phase == HandoverPhase::Clean).then_some(notice)
    }
}
