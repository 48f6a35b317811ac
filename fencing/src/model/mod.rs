//! A reservation in memory, for simulation: all six types, the access matrix, commands in flight, so
//! that the drain of preempt-and-abort takes its time, and the ways in which real targets differ.
//!
//! Written from the specification's text (NVMe Base 2.3, 8.1.24), apart from the target in `nvme`, so
//! that a property test can hold the two against each other. It does no input or output and knows
//! no time: whoever uses it says when a command ends.

mod departures;
mod requests;

use std::collections::{BTreeMap, BTreeSet};

use nvme::reservation::{Acquire, ChangePersistence, Register, Registrant, Release};
use nvme::reservation_codec::{AcquireRequest, RegisterRequest, ReleaseRequest};
use nvme::{HostId, ReservationReport, ReservationType, Status};

pub use departures::{Departure, Departures, Described, Quirks};

use crate::{Command, Outcome};

/// In which group of commands the specification's access matrix puts a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Access {
    /// Read, Compare.
    Read,
    /// Write, Write Zeroes, Dataset Management, Flush.
    Write,
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
    /// With an all-registrants reservation every registrant holds; `by` is the one that a target
    /// with [`Departure::OneHolderOfAll`] takes for the holder.
    held: Option<Held>,
    keys: BTreeMap<HostId, u64>,
    /// The registrants in the order in which they registered.
    arrived: Vec<HostId>,
    /// Departures that made a difference since they were last taken.
    met: Departures,
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

    /// The same namespace whose generation counts on from `generation`.
    pub fn with_generation(self, generation: u32) -> Self {
        Self { generation, ..self }
    }

    /// The departures that made a difference since this was last asked.
    pub fn take_met(&mut self) -> Departures {
        std::mem::take(&mut self.met)
    }

    fn has(&self, departure: Departure) -> bool {
        self.quirks.departures.has(departure)
    }

    /// Whether this target departs so, to be asked where that makes a difference.
    fn departs(&mut self, departure: Departure) -> bool {
        let departs = self.has(departure);
        if departs {
            self.met.add(departure);
        }
        departs
    }

    /// Reservation Register without IEKEY. A refusal changes nothing.
    pub fn register(
        &mut self,
        host: HostId,
        action: Register,
        persistence: ChangePersistence,
    ) -> Result<(), Status> {
        let request = RegisterRequest::from_action(action, false, persistence);
        self.register_request(host, &request)
    }

    /// Reservation Acquire. A refusal changes nothing, but for [`Departure::DrainGivesUp`].
    pub fn acquire(
        &mut self,
        host: HostId,
        action: Acquire,
        key: u64,
        kind: ReservationType,
    ) -> Executed {
        self.acquire_request(host, &AcquireRequest::from_action(action, key, kind))
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
        if self.departs(Departure::DrainGivesUp) {
            return completed(Err(Status::COMMAND_INTERRUPTED));
        }
        let id = DrainId(self.fresh_id());
        self.drains.insert(id, waiting);
        Executed::Draining(id)
    }

    /// Reservation Release. A refusal changes nothing.
    pub fn release(&mut self, host: HostId, action: Release, key: u64) -> Result<(), Status> {
        self.release_request(host, &ReleaseRequest::from_action(action, key))
    }

    /// Reservation Report: one entry for each host.
    pub fn report(&self) -> ReservationReport {
        let order = match self.has(Departure::ReportInOrderOfArrival) {
            true => self.arrived.clone(),
            false => self.sorted(),
        };
        let registrants = order.into_iter().map(|host| Registrant {
            controller: 0xffff,
            holder: self.holds(host),
            host,
            key: self.keys[&host],
        });
        ReservationReport {
            generation: self.generation,
            reservation: self.held.map(|held| held.kind),
            persistent: self.persistent,
            registrants: registrants.collect(),
        }
    }

    fn sorted(&self) -> Vec<HostId> {
        self.keys.keys().copied().collect()
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
        self.arrived.clear();
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
        self.keys.remove(&host);
        self.arrived.retain(|other| *other != host);
        let Some(held) = self.held.filter(|held| held.by == host) else {
            return;
        };
        let next = self.arrived.first();
        let next = next.filter(|_| held.kind.is_all_registrants());
        self.held = next.map(|next| Held { by: *next, ..held });
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
