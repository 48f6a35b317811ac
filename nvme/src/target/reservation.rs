//! The reservation state of one namespace as a table: commands go in, a status and their effects
//! come out. No I/O, no clock, no connection (NVMe Base 2.3, 8.1.24).
//!
//! Whoever drives it makes a change durable *before* anybody sees it, and waits for the commands of
//! [`Effects::abort`] *before* the command completes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::log_page::NotificationKind;
use crate::reservation::{
    Acquire, ChangePersistence, Register, Registrant, Release, ReservationReport, ReservationType,
};
use crate::reservation_codec::{
    AcquireRequest, DYNAMIC_CONTROLLER, RegisterRequest, ReleaseRequest,
};
use crate::{HostId, Status};

/// Most registrants: the report counts them in 16 bits.
const REGISTRANTS_MAX: usize = u16::MAX as usize;

/// What a command does to the medium, as reservations see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read command group: Read, Compare.
    Read,
    /// Write command group: Write, Write Zeroes, Dataset Management, and Flush too.
    Write,
}

/// What a successful command brings about besides the new state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Effects {
    /// Hosts to notify, and of what. Never the host that sent the command.
    pub notify: Vec<(HostId, NotificationKind)>,
    /// Hosts that were unregistered by another's command, with the key that each had.
    pub removed: Vec<(HostId, u64)>,
    /// Whether the command must not complete before the removed hosts' commands on this namespace
    /// have.
    pub abort: bool,
    /// Whether anything but the generation changed, so that a persistent state must be saved.
    pub changed: bool,
}

/// The holder of a reservation of types 1 to 4; with types 5 and 6 every registrant holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Reservation {
    kind: ReservationType,
    holder: HostId,
}

/// Registrations and the reservation of one namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReservationTable {
    generation: u32,
    persistent: bool,
    reservation: Option<Reservation>,
    registrants: BTreeMap<HostId, u64>,
    /// Whether the target can keep state over a power loss at all (RESCAP bit 0).
    #[serde(skip)]
    can_persist: bool,
}

impl ReservationTable {
    /// Nobody registered. `can_persist`: whether CPTPL 3 is accepted.
    pub fn new(can_persist: bool) -> Self {
        Self {
            can_persist,
            ..Self::default()
        }
    }

    /// The same state in a target that can, or cannot, keep it over a power loss.
    pub fn with_can_persist(mut self, can_persist: bool) -> Self {
        self.can_persist = can_persist;
        self
    }

    /// PTPLS: whether the state survives a power loss.
    pub fn persistent(&self) -> bool {
        self.persistent
    }

    /// The type of the reservation; `None` when nobody holds.
    pub fn reservation(&self) -> Option<ReservationType> {
        self.reservation.map(|r| r.kind)
    }

    /// The host's key.
    pub fn key_of(&self, host: HostId) -> Option<u64> {
        self.registrants.get(&host).copied()
    }

    /// Whether the host holds the reservation.
    pub fn is_holder(&self, host: HostId) -> bool {
        self.reservation.is_some_and(|r| {
            if r.kind.is_all_registrants() {
                self.registrants.contains_key(&host)
            } else {
                r.holder == host
            }
        })
    }

    /// Whether a command of this group may begin: the access matrix (NVMe Base 2.3, figure "Command
    /// Behavior in the Presence of a Reservation").
    pub fn allows(&self, host: HostId, access: Access) -> bool {
        use ReservationType as T;
        let Some(reservation) = self.reservation else {
            return true;
        };
        if self.is_holder(host) {
            return true;
        }
        let registrant = self.registrants.contains_key(&host);
        match (reservation.kind, access) {
            (T::WriteExclusive, Access::Read) => true,
            (T::WriteExclusive, Access::Write) => false,
            (T::ExclusiveAccess, Access::Read | Access::Write) => false,
            (T::WriteExclusiveRegistrantsOnly | T::WriteExclusiveAllRegistrants, Access::Read) => {
                true
            }
            (T::WriteExclusiveRegistrantsOnly | T::WriteExclusiveAllRegistrants, Access::Write)
            | (
                T::ExclusiveAccessRegistrantsOnly | T::ExclusiveAccessAllRegistrants,
                Access::Read | Access::Write,
            ) => registrant,
        }
    }

    /// The report, one entry for each host: the controllers are dynamic.
    pub fn report(&self) -> ReservationReport {
        let entry = |(host, key): (&HostId, &u64)| Registrant {
            controller: DYNAMIC_CONTROLLER,
            holder: self.is_holder(*host),
            host: *host,
            key: *key,
        };
        ReservationReport {
            generation: self.generation,
            reservation: self.reservation(),
            persistent: self.persistent,
            registrants: self.registrants.iter().map(entry).collect(),
        }
    }

    /// Reservation Register as an action, without IEKEY: for tests and models.
    pub fn register_action(
        &mut self,
        host: HostId,
        action: Register,
        persistence: ChangePersistence,
    ) -> Result<Effects, Status> {
        self.register(
            host,
            &RegisterRequest::from_action(action, false, persistence),
        )
    }

    /// Reservation Acquire as an action: for tests and models.
    pub fn acquire_action(
        &mut self,
        host: HostId,
        action: Acquire,
        key: u64,
        kind: ReservationType,
    ) -> Result<Effects, Status> {
        self.acquire(host, &AcquireRequest::from_action(action, key, kind))
    }

    /// Reservation Release as an action: for tests and models.
    pub fn release_action(
        &mut self,
        host: HostId,
        action: Release,
        key: u64,
    ) -> Result<Effects, Status> {
        self.release(host, &ReleaseRequest::from_action(action, key))
    }

    /// Reservation Register (NVMe Base 2.3, 7.6, 8.1.24.3, 8.1.24.4). An error changes nothing.
    pub fn register(&mut self, host: HostId, request: &RegisterRequest) -> Result<Effects, Status> {
        let persistent = self.persistence_after(request.persistence)?;
        let mut effects = match request.action {
            0 => self.register_key(host, request)?,
            1 => self.unregister(host, request)?,
            2 => self.replace_key(host, request)?,
            _ => return Err(Status::INVALID_FIELD.dnr()),
        };
        effects.changed |= self.persistent != persistent;
        self.persistent = persistent;
        self.generation = self.generation.wrapping_add(1);
        Ok(effects)
    }

    fn persistence_after(&self, cptpl: u8) -> Result<bool, Status> {
        match cptpl {
            0 => Ok(self.persistent),
            2 => Ok(false),
            3 if self.can_persist => Ok(true),
            _ => Err(Status::INVALID_FIELD.dnr()),
        }
    }

    fn register_key(&mut self, host: HostId, request: &RegisterRequest) -> Result<Effects, Status> {
        match self.key_of(host) {
            Some(key) if key == request.new => Ok(Effects::default()),
            Some(_) => Err(Status::RESERVATION_CONFLICT.dnr()),
            None => self.insert(host, request.new),
        }
    }

    /// The key 0 means "no key" to other commands, so nobody can register it.
    fn insert(&mut self, host: HostId, key: u64) -> Result<Effects, Status> {
        if key == 0 {
            return Err(Status::INVALID_FIELD.dnr());
        }
        if self.registrants.len() >= REGISTRANTS_MAX && !self.registrants.contains_key(&host) {
            return Err(Status::INTERNAL_ERROR.dnr());
        }
        let changed = self.registrants.insert(host, key) != Some(key);
        Ok(Effects {
            changed,
            ..Effects::default()
        })
    }

    fn replace_key(&mut self, host: HostId, request: &RegisterRequest) -> Result<Effects, Status> {
        if !request.ignore_existing_key && self.key_of(host) != Some(request.current) {
            return Err(Status::RESERVATION_CONFLICT.dnr());
        }
        self.insert(host, request.new)
    }

    fn unregister(&mut self, host: HostId, request: &RegisterRequest) -> Result<Effects, Status> {
        match self.key_of(host) {
            // With IEKEY the absence of a key is no error either.
            None if request.ignore_existing_key => return Ok(Effects::default()),
            None => return Err(Status::RESERVATION_CONFLICT.dnr()),
            Some(key) if key != request.current && !request.ignore_existing_key => {
                return Err(Status::RESERVATION_CONFLICT.dnr());
            }
            Some(_) => {}
        }
        let before = self.reservation;
        self.remove(host);
        let mut effects = Effects {
            changed: true,
            ..Effects::default()
        };
        if let (Some(ended), None) = (before, self.reservation) {
            self.notify_released(ended.kind, host, &mut effects);
        }
        Ok(effects)
    }

    /// Reservation Acquire (NVMe Base 2.3, 7.5, 8.1.24.5, 8.1.24.7). An error changes nothing.
    pub fn acquire(&mut self, host: HostId, request: &AcquireRequest) -> Result<Effects, Status> {
        if request.ignore_existing_key || request.action > 2 {
            return Err(Status::INVALID_FIELD.dnr());
        }
        let kind = ReservationType::from_number(request.kind).ok_or(Status::INVALID_FIELD.dnr())?;
        self.check_registrant(host, request.current)?;
        if request.action == 0 {
            return self.acquire_free(host, kind);
        }
        let mut effects = self.preempt(host, request.preempted, kind)?;
        effects.abort = request.action == 2;
        effects.changed = true;
        self.generation = self.generation.wrapping_add(1);
        Ok(effects)
    }

    fn check_registrant(&self, host: HostId, current: u64) -> Result<(), Status> {
        if self.key_of(host) == Some(current) {
            Ok(())
        } else {
            Err(Status::RESERVATION_CONFLICT.dnr())
        }
    }

    fn acquire_free(&mut self, host: HostId, kind: ReservationType) -> Result<Effects, Status> {
        match self.reservation {
            Some(held) if held.kind == kind && self.is_holder(host) => Ok(Effects::default()),
            Some(_) => Err(Status::RESERVATION_CONFLICT.dnr()),
            None => {
                self.reservation = Some(Reservation { kind, holder: host });
                Ok(Effects {
                    changed: true,
                    ..Effects::default()
                })
            }
        }
    }

    fn preempt(
        &mut self,
        host: HostId,
        victim: u64,
        kind: ReservationType,
    ) -> Result<Effects, Status> {
        let all_registrants = self
            .reservation
            .is_some_and(|r| r.kind.is_all_registrants());
        if victim == 0 && !all_registrants {
            return Err(Status::INVALID_FIELD.dnr());
        }
        let matches = |key: u64| victim == 0 || key == victim;
        if all_registrants && victim != 0 && !self.registrants.values().any(|k| matches(*k)) {
            return Err(Status::RESERVATION_CONFLICT.dnr());
        }
        let holder_preempted = !all_registrants
            && self
                .reservation
                .is_some_and(|r| self.key_of(r.holder) == Some(victim));
        let takes_over = holder_preempted || (all_registrants && victim == 0);
        // Who takes over stays registered; who only evicts by key evicts itself if it has that key.
        let gone: Vec<(HostId, u64)> = self
            .registrants
            .iter()
            .filter(|(h, key)| matches(**key) && !(takes_over && **h == host))
            .map(|(h, key)| (*h, *key))
            .collect();
        let before = self.reservation;
        for (removed, _) in &gone {
            self.remove(*removed);
        }
        if takes_over {
            self.reservation = Some(Reservation { kind, holder: host });
        }
        let mut effects = Effects::default();
        for (removed, key) in gone.into_iter().filter(|(removed, _)| *removed != host) {
            effects
                .notify
                .push((removed, NotificationKind::RegistrationPreempted));
            effects.removed.push((removed, key));
        }
        if let Some(old) = before.filter(|old| Some(old.kind) != self.reservation()) {
            self.notify_released(old.kind, host, &mut effects);
        }
        Ok(effects)
    }

    /// Reservation Release (NVMe Base 2.3, 7.7, 8.1.24.6, 8.1.24.8). An error changes nothing.
    pub fn release(&mut self, host: HostId, request: &ReleaseRequest) -> Result<Effects, Status> {
        if request.ignore_existing_key || request.action > 1 {
            return Err(Status::INVALID_FIELD.dnr());
        }
        let kind = ReservationType::from_number(request.kind);
        if request.action == 0 && kind.is_none() {
            return Err(Status::INVALID_FIELD.dnr());
        }
        self.check_registrant(host, request.current)?;
        if request.action == 1 {
            return Ok(self.clear(host));
        }
        let Some(held) = self.reservation.filter(|_| self.is_holder(host)) else {
            return Ok(Effects::default());
        };
        if Some(held.kind) != kind {
            return Err(Status::INVALID_FIELD.dnr());
        }
        self.reservation = None;
        let mut effects = Effects {
            changed: true,
            ..Effects::default()
        };
        self.notify_released(held.kind, host, &mut effects);
        Ok(effects)
    }

    fn clear(&mut self, host: HostId) -> Effects {
        let mut effects = Effects {
            changed: true,
            ..Effects::default()
        };
        for (other, key) in std::mem::take(&mut self.registrants) {
            if other != host {
                effects
                    .notify
                    .push((other, NotificationKind::ReservationPreempted));
                effects.removed.push((other, key));
            }
        }
        self.reservation = None;
        self.generation = self.generation.wrapping_add(1);
        effects
    }

    /// Set Features, Reservation Persistence.
    pub fn set_persistent(&mut self, persistent: bool) -> Result<Effects, Status> {
        if persistent && !self.can_persist {
            return Err(Status::INVALID_FIELD.dnr());
        }
        let changed = self.persistent != persistent;
        self.persistent = persistent;
        Ok(Effects {
            changed,
            ..Effects::default()
        })
    }

    /// What a power loss leaves: everything with PTPL, nothing without.
    pub fn power_loss(&mut self) {
        if !self.persistent {
            *self = Self::new(self.can_persist);
        }
    }

    /// Takes the host's registration away, and the reservation with it if nobody else holds it.
    fn remove(&mut self, host: HostId) {
        self.registrants.remove(&host);
        self.reservation = self.reservation.filter(|r| {
            if r.kind.is_all_registrants() {
                !self.registrants.is_empty()
            } else {
                r.holder != host
            }
        });
    }

    /// "Reservation released" goes to the remaining registrants where their rights depended on it.
    fn notify_released(&self, ended: ReservationType, by: HostId, effects: &mut Effects) {
        let exclusive = matches!(
            ended,
            ReservationType::WriteExclusive | ReservationType::ExclusiveAccess
        );
        if exclusive {
            return;
        }
        let others = self.registrants.keys().filter(|host| **host != by);
        effects
            .notify
            .extend(others.map(|host| (*host, NotificationKind::ReservationReleased)));
    }
}

#[cfg(test)]
mod tests;
