//! A reservation in memory, for simulation: all six types, the access matrix, commands in flight, so
//! that the drain of preempt-and-abort takes its time, and the ways in which real targets differ.
//!
//! Written from the specification's text (NVMe Base 2.3, 8.1.24), apart from the target in `nvme`, so
//! that a property test can hold the two against each other. It does no input or output and knows
//! no time: whoever uses it says when a command ends.

use std::collections::{BTreeMap, BTreeSet};

use nvme::reservation::{Acquire, ChangePersistence, Register, Registrant, Release};
use nvme::{HostId, ReservationReport, ReservationType, Status};

use crate::{Command, Outcome};

/// In which group of commands the specification's access matrix puts a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Access {
    /// Read, Compare.
    Read,
    /// Write, Write Zeroes, Dataset Management, Flush.
    Write,
}

/// How targets differ from the specification, or use its liberties.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quirks {
    /// nvmet: a holder that preempts another registrant only changes the type; the victim stays.
    pub holder_preempt_keeps_victim: bool,
    /// nvmet: a preempt whose key matches nobody is a conflict; the specification has that for the
    /// all-registrants types only.
    pub missing_victim_conflicts: bool,
    /// nvmet: releasing another type than the one held is a conflict instead of an invalid field.
    pub wrong_release_conflicts: bool,
    /// SPDK: a preempt-and-abort that would have to wait ends with Command Interrupted, after the
    /// change of state and before the old commands are over.
    pub drain_gives_up: bool,
    /// The target cannot keep registrations over a power loss: CPTPL 3 is an invalid field.
    pub volatile: bool,
    /// nvmet: CPTPL is ignored instead of refused.
    pub persistence_ignored: bool,
}

impl Quirks {
    /// The specification, with persistence.
    pub const NONE: Self = Self {
        holder_preempt_keeps_victim: false,
        missing_victim_conflicts: false,
        wrong_release_conflicts: false,
        drain_gives_up: false,
        volatile: false,
        persistence_ignored: false,
    };
    /// Linux' nvmet as of 6.13.
    pub const NVMET: Self = Self {
        holder_preempt_keeps_victim: true,
        missing_victim_conflicts: true,
        wrong_release_conflicts: true,
        volatile: true,
        persistence_ignored: true,
        ..Self::NONE
    };
    /// SPDK 26.01 with a PTPL file.
    pub const SPDK: Self = Self {
        drain_gives_up: true,
        ..Self::NONE
    };
}

/// A command on the namespace's blocks that has begun and not ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CommandId(u64);

/// A preempt-and-abort that waits for its victims' commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DrainId(u64);

/// What became of a reservation command at the target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Executed {
    /// It completed.
    Completed(Outcome),
    /// The state has changed; it completes with [`Outcome::Done`] when this drain ends.
    Draining(DrainId),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Held {
    kind: ReservationType,
    by: HostId,
}

/// The reservation state of one namespace and the commands in flight on it.
#[derive(Clone, Debug, Default)]
pub struct Model {
    quirks: Quirks,
    generation: u32,
    persistent: bool,
    held: Option<Held>,
    keys: BTreeMap<HostId, u64>,
    in_flight: BTreeMap<CommandId, (HostId, Access)>,
    drains: BTreeMap<DrainId, BTreeSet<CommandId>>,
    last_id: u64,
}

const CONFLICT: Status = Status::RESERVATION_CONFLICT.dnr();
const INVALID: Status = Status::INVALID_FIELD.dnr();

impl Model {
    /// A namespace with no registrations.
    pub fn new(quirks: Quirks) -> Self {
        Self {
            quirks,
            ..Self::default()
        }
    }

    /// Carries out a sequence's command for `host`.
    pub fn execute(&mut self, host: HostId, command: &Command) -> Executed {
        const KIND: ReservationType = ReservationType::WriteExclusive;
        match *command {
            Command::Report => Executed::Completed(Outcome::Report(self.report())),
            Command::PreemptAndAbort { key, victim } => {
                let victim = victim.pack();
                self.acquire(host, Acquire::PreemptAndAbort { victim }, key.pack(), KIND)
            }
            Command::Acquire { key } => self.acquire(host, Acquire::Acquire, key.pack(), KIND),
            Command::Register { key, persistence } => {
                let key = key.pack();
                completed(self.register(host, Register::Register { key }, persistence))
            }
            Command::Replace {
                current,
                new,
                persistence,
            } => {
                let (current, new) = (current.pack(), new.pack());
                completed(self.register(host, Register::Replace { current, new }, persistence))
            }
        }
    }

    /// Reservation Register without IEKEY. A refusal changes nothing.
    pub fn register(
        &mut self,
        host: HostId,
        action: Register,
        persistence: ChangePersistence,
    ) -> Result<(), Status> {
        let persistent = match persistence {
            _ if self.quirks.persistence_ignored => self.persistent,
            ChangePersistence::Unchanged => self.persistent,
            ChangePersistence::Volatile => false,
            ChangePersistence::Persistent if self.quirks.volatile => return Err(INVALID),
            ChangePersistence::Persistent => true,
        };
        let current = self.keys.get(&host).copied();
        match action {
            Register::Register { key } if current == Some(key) => {}
            Register::Register { .. } if current.is_some() => return Err(CONFLICT),
            Register::Replace { current: named, .. } | Register::Unregister { key: named }
                if current != Some(named) =>
            {
                return Err(CONFLICT);
            }
            Register::Register { key: 0 } | Register::Replace { new: 0, .. } => {
                return Err(INVALID);
            }
            Register::Register { key } | Register::Replace { new: key, .. } => {
                self.keys.insert(host, key);
            }
            Register::Unregister { .. } => self.remove(host),
        }
        self.persistent = persistent;
        self.generation = self.generation.wrapping_add(1);
        Ok(())
    }

    /// Reservation Acquire. A refusal changes nothing, but for [`Quirks::drain_gives_up`].
    pub fn acquire(
        &mut self,
        host: HostId,
        action: Acquire,
        key: u64,
        kind: ReservationType,
    ) -> Executed {
        if self.keys.get(&host) != Some(&key) {
            return completed(Err(CONFLICT));
        }
        match action {
            Acquire::Acquire => completed(self.acquire_free(host, kind)),
            Acquire::Preempt { victim } => completed(self.preempt(host, victim, kind).map(drop)),
            Acquire::PreemptAndAbort { victim } => match self.preempt(host, victim, kind) {
                Ok(removed) => self.drain(&removed),
                Err(status) => completed(Err(status)),
            },
        }
    }

    fn acquire_free(&mut self, host: HostId, kind: ReservationType) -> Result<(), Status> {
        match self.held {
            None => self.held = Some(Held { kind, by: host }),
            Some(held) if self.holds(host) && held.kind == kind => {}
            Some(_) => return Err(CONFLICT),
        }
        Ok(())
    }

    /// Who was unregistered.
    fn preempt(
        &mut self,
        host: HostId,
        victim: u64,
        kind: ReservationType,
    ) -> Result<BTreeSet<HostId>, Status> {
        let all = self.held.is_some_and(|held| held.kind.is_all_registrants());
        let holder_key = self.held.filter(|_| !all).map(|held| self.keys[&held.by]);
        let named: BTreeSet<HostId> = match victim {
            0 if all => self.keys.keys().copied().collect(),
            0 => return Err(INVALID),
            _ => {
                let matching = self.keys.iter().filter(|(_, key)| **key == victim);
                matching.map(|(host, _)| *host).collect()
            }
        };
        if named.is_empty() && (all || self.quirks.missing_victim_conflicts) {
            return Err(CONFLICT);
        }
        self.generation = self.generation.wrapping_add(1);
        if self.quirks.holder_preempt_keeps_victim && !all && self.holds(host) {
            self.held = Some(Held { kind, by: host });
            return Ok(BTreeSet::new());
        }
        let takes_over = (all && victim == 0) || holder_key == Some(victim);
        let mut removed = named;
        if takes_over {
            removed.remove(&host);
        }
        for gone in &removed {
            self.remove(*gone);
        }
        if takes_over {
            self.held = Some(Held { kind, by: host });
        }
        removed.remove(&host);
        Ok(removed)
    }

    fn drain(&mut self, removed: &BTreeSet<HostId>) -> Executed {
        let of_removed = self
            .in_flight
            .iter()
            .filter(|(_, (host, _))| removed.contains(host));
        let waiting: BTreeSet<CommandId> = of_removed.map(|(id, _)| *id).collect();
        if waiting.is_empty() {
            return completed(Ok(()));
        }
        if self.quirks.drain_gives_up {
            return completed(Err(Status::COMMAND_INTERRUPTED));
        }
        let id = DrainId(self.fresh_id());
        self.drains.insert(id, waiting);
        Executed::Draining(id)
    }

    /// Reservation Release. A refusal changes nothing.
    pub fn release(&mut self, host: HostId, action: Release, key: u64) -> Result<(), Status> {
        if self.keys.get(&host) != Some(&key) {
            return Err(CONFLICT);
        }
        match (action, self.held) {
            (Release::Clear, _) => {
                self.held = None;
                self.keys.clear();
                self.generation = self.generation.wrapping_add(1);
            }
            (Release::Release(_), _) if !self.holds(host) => {}
            (Release::Release(kind), Some(held)) if held.kind != kind => {
                return Err(match self.quirks.wrong_release_conflicts {
                    true => CONFLICT,
                    false => INVALID,
                });
            }
            (Release::Release(_), _) => self.held = None,
        }
        Ok(())
    }

    /// Reservation Report: one entry for each host.
    pub fn report(&self) -> ReservationReport {
        let registrants = self.keys.iter().map(|(host, key)| Registrant {
            controller: 0xffff,
            holder: self.holds(*host),
            host: *host,
            key: *key,
        });
        ReservationReport {
            generation: self.generation,
            reservation: self.held.map(|held| held.kind),
            persistent: self.persistent,
            registrants: registrants.collect(),
        }
    }

    /// Whether this host holds the reservation.
    pub fn holds(&self, host: HostId) -> bool {
        self.held
            .is_some_and(|held| match held.kind.is_all_registrants() {
                true => self.keys.contains_key(&host),
                false => held.by == host,
            })
    }

    /// This host's key.
    pub fn key_of(&self, host: HostId) -> Option<u64> {
        self.keys.get(&host).copied()
    }

    /// The type of the reservation; `None` when nobody holds.
    pub fn reservation(&self) -> Option<ReservationType> {
        self.held.map(|held| held.kind)
    }

    /// Whether the access matrix lets a command of this host begin.
    pub fn allows(&self, host: HostId, access: Access) -> bool {
        use ReservationType as T;
        let Some(Held { kind, .. }) = self.held else {
            return true;
        };
        let others_may_read = matches!(
            kind,
            T::WriteExclusive | T::WriteExclusiveRegistrantsOnly | T::WriteExclusiveAllRegistrants
        );
        let registrants_may_all = !matches!(kind, T::WriteExclusive | T::ExclusiveAccess);
        self.holds(host)
            || (registrants_may_all && self.keys.contains_key(&host))
            || (others_may_read && access == Access::Read)
    }

    /// A command on the namespace's blocks begins, which is when reservations are checked. It may
    /// end long after the reservation has changed.
    pub fn begin(&mut self, host: HostId, access: Access) -> Result<CommandId, Status> {
        if !self.allows(host, access) {
            return Err(CONFLICT);
        }
        let id = CommandId(self.fresh_id());
        self.in_flight.insert(id, (host, access));
        Ok(id)
    }

    /// A command ends. The drains that were waiting for it alone end too.
    pub fn finish(&mut self, command: CommandId) -> Vec<DrainId> {
        self.in_flight.remove(&command);
        let mut ended = Vec::new();
        self.drains.retain(|id, waiting| {
            waiting.remove(&command);
            if waiting.is_empty() {
                ended.push(*id);
            }
            !waiting.is_empty()
        });
        ended
    }

    /// Commands in flight: whose, and of which group.
    pub fn in_flight(&self) -> impl Iterator<Item = (CommandId, HostId, Access)> {
        let commands = self.in_flight.iter();
        commands.map(|(id, (host, access))| (*id, *host, *access))
    }

    /// The commands that this drain still waits for; none when it has ended.
    pub fn draining(&self, drain: DrainId) -> impl Iterator<Item = CommandId> {
        self.drains.get(&drain).into_iter().flatten().copied()
    }

    /// The target forgets all registrations and the reservation. Commands in flight go on.
    pub fn forget(&mut self) {
        self.held = None;
        self.keys.clear();
        self.generation = 0;
    }

    /// The target forgets the reservation and keeps the registrations.
    pub fn forget_holder(&mut self) {
        self.held = None;
    }

    /// The target loses power: what was in flight is gone, unanswered, and without persistence so
    /// are the registrations.
    pub fn power_loss(&mut self) {
        if !self.persistent {
            self.forget();
        }
        self.in_flight.clear();
        self.drains.clear();
    }

    /// Takes a registration away, and the reservation with it where nobody else holds it.
    fn remove(&mut self, host: HostId) {
        let held = self.holds(host);
        self.keys.remove(&host);
        let others_hold = self.keys.keys().any(|other| self.holds(*other));
        if held && !others_hold {
            self.held = None;
        }
    }

    fn fresh_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }
}

fn completed(result: Result<(), Status>) -> Executed {
    Executed::Completed(match result {
        Ok(()) => Outcome::Done,
        Err(status) => Outcome::Refused(status),
    })
}
