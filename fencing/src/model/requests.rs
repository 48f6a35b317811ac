//! What a target does with each reservation command, as the wire has it: reserved values too.
//!
//! Each place where a real target departs from the specification asks [`Model::departs`] for it by
//! name, and only where the departure changes the answer or the state.

use std::collections::BTreeSet;

use nvme::command::io;
use nvme::reservation_codec::{
    AcquireRequest, REPORT_ENTRY_LEN, REPORT_HEADER_LEN, RegisterRequest, ReleaseRequest,
    encode_report,
};
use nvme::{HostId, ReservationType, Status};

use super::{Access, CONFLICT, Departure, Executed, Held, INVALID, Model, completed};

const UNKNOWN: Status = Status::INVALID_OPCODE.dnr();

impl Model {
    /// Reservation Register. A refusal changes nothing.
    pub fn register_request(
        &mut self,
        host: HostId,
        request: &RegisterRequest,
    ) -> Result<(), Status> {
        let persistent = self.persistence_after(request.persistence)?;
        match request.action {
            0 => self.register_key(host, request.new)?,
            1 => self.unregister(host, request)?,
            2 => self.replace_key(host, request)?,
            _ if self.departs(Departure::ReservedActionIsOpcode) => return Err(UNKNOWN),
            _ => return Err(INVALID),
        }
        self.persistent = persistent;
        self.generation = self.generation.wrapping_add(1);
        Ok(())
    }

    fn persistence_after(&mut self, asked: u8) -> Result<bool, Status> {
        let refused = asked == 1 || (asked == 3 && self.quirks.volatile);
        let after = match asked {
            2 => false,
            3 => true,
            _ => self.persistent,
        };
        let matters = refused || after != self.persistent;
        if matters && self.departs(Departure::PersistenceIgnored) {
            return Ok(self.persistent);
        }
        if refused { Err(INVALID) } else { Ok(after) }
    }

    fn register_key(&mut self, host: HostId, new: u64) -> Result<(), Status> {
        match self.key_of(host) {
            Some(current) if current == new => Ok(()),
            Some(_) => Err(CONFLICT),
            None => self.insert(host, new),
        }
    }

    /// The key 0 means "everybody" to a preempt, so nobody can have it.
    fn insert(&mut self, host: HostId, key: u64) -> Result<(), Status> {
        if key == 0 && !self.departs(Departure::ZeroKeyRegisters) {
            return Err(INVALID);
        }
        if self.keys.insert(host, key).is_none() {
            self.arrived.push(host);
        }
        Ok(())
    }

    fn replace_key(&mut self, host: HostId, request: &RegisterRequest) -> Result<(), Status> {
        match self.key_of(host) {
            None if request.ignore_existing_key => {
                if self.departs(Departure::ReplaceNeedsRegistration) {
                    return Err(CONFLICT);
                }
                if request.new == 0 {
                    return Err(INVALID);
                }
            }
            Some(_) if request.ignore_existing_key => {}
            Some(current) if current == request.current => {}
            Some(_) | None => return Err(CONFLICT),
        }
        self.insert(host, request.new)
    }

    fn unregister(&mut self, host: HostId, request: &RegisterRequest) -> Result<(), Status> {
        match self.key_of(host) {
            None if request.ignore_existing_key => {
                if self.departs(Departure::UnregisterNeedsRegistration) {
                    return Err(CONFLICT);
                }
            }
            Some(current) if request.ignore_existing_key || current == request.current => {
                self.remove(host);
            }
            Some(_) | None => return Err(CONFLICT),
        }
        Ok(())
    }

    /// Reservation Acquire. A refusal changes nothing, but for [`Departure::DrainGivesUp`].
    pub fn acquire_request(&mut self, host: HostId, request: &AcquireRequest) -> Executed {
        let kind = ReservationType::from_number(request.kind);
        let Some(kind) = kind.filter(|_| !request.ignore_existing_key) else {
            return completed(Err(INVALID));
        };
        let reserved = request.action > 2;
        if reserved && !self.departs(Departure::ReservedActionIsOpcode) {
            return completed(Err(INVALID));
        }
        if self.key_of(host) != Some(request.current) {
            return completed(Err(CONFLICT));
        }
        if reserved {
            return completed(Err(UNKNOWN));
        }
        if request.action == 0 {
            return completed(self.acquire_free(host, kind));
        }
        match self.preempt(host, request.preempted, kind) {
            Ok(removed) if request.action == 2 => self.drain(&removed),
            Ok(_) => completed(Ok(())),
            Err(status) => completed(Err(status)),
        }
    }

    fn acquire_free(&mut self, host: HostId, kind: ReservationType) -> Result<(), Status> {
        match self.held {
            None => self.held = Some(Held { kind, by: host }),
            Some(held) if self.holds(host) && held.kind == kind => {
                if held.by != host && self.departs(Departure::OneHolderOfAll) {
                    return Err(CONFLICT);
                }
            }
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
        if let Some(held) = self.held.filter(|held| !all && held.by == host)
            && self.only_changes_type(held, victim, kind)
        {
            self.held = Some(Held { kind, ..held });
            self.generation = self.generation.wrapping_add(1);
            return Ok(BTreeSet::new());
        }
        let holder_key = self.held.filter(|_| !all).map(|held| self.keys[&held.by]);
        let named: BTreeSet<HostId> = match victim {
            0 if all => self.keys.keys().copied().collect(),
            0 if holder_key == Some(0) => self.with_key(0),
            0 if self.held.is_none() && self.departs(Departure::ZeroVictimConflicts) => {
                self.with_key(0)
            }
            0 => return Err(INVALID),
            _ => self.with_key(victim),
        };
        if named.is_empty() {
            let named_by_spec = all || victim == 0;
            if named_by_spec || self.departs(Departure::MissingVictimConflicts) {
                return Err(CONFLICT);
            }
        }
        self.generation = self.generation.wrapping_add(1);
        let takes_over = (all && victim == 0) || holder_key == Some(victim);
        Ok(self.unregister_all(host, named, takes_over.then_some(kind)))
    }

    /// Whether the holder's own preempt does not unregister anybody on this target. That makes no
    /// difference where nobody else has the key and the type is the same, or the key is its own.
    fn only_changes_type(&mut self, held: Held, victim: u64, kind: ReservationType) -> bool {
        let own = self.keys[&held.by] == victim;
        let others = self.with_key(victim).iter().any(|host| *host != held.by);
        let departure = match own {
            true if self.has(Departure::HolderKeepsNamesake) => Departure::HolderKeepsNamesake,
            _ if self.has(Departure::HolderKeepsVictim) => Departure::HolderKeepsVictim,
            _ => return false,
        };
        let same = victim != 0 && !others && (own || kind == held.kind);
        if !same {
            self.met.add(departure);
        }
        true
    }

    /// Unregisters `named`; who takes over, with this type, stays.
    fn unregister_all(
        &mut self,
        host: HostId,
        named: BTreeSet<HostId>,
        takes_over: Option<ReservationType>,
    ) -> BTreeSet<HostId> {
        let mut removed = named;
        if takes_over.is_some() {
            removed.remove(&host);
        }
        for gone in &removed {
            self.remove(*gone);
        }
        if let Some(kind) = takes_over {
            self.held = Some(Held { kind, by: host });
        }
        removed.remove(&host);
        removed
    }

    fn with_key(&self, key: u64) -> BTreeSet<HostId> {
        let with = self.keys.iter().filter(|(_, other)| **other == key);
        with.map(|(host, _)| *host).collect()
    }

    /// Reservation Release. A refusal changes nothing.
    pub fn release_request(
        &mut self,
        host: HostId,
        request: &ReleaseRequest,
    ) -> Result<(), Status> {
        if request.ignore_existing_key {
            return Err(INVALID);
        }
        let reserved = request.action > 1;
        if reserved && !self.departs(Departure::ReservedActionIsOpcode) {
            return Err(INVALID);
        }
        let kind = ReservationType::from_number(request.kind);
        if request.action == 0 && kind.is_none() && !self.departs(Departure::ReleaseTypeUnchecked) {
            return Err(INVALID);
        }
        if self.key_of(host) != Some(request.current) {
            return Err(CONFLICT);
        }
        match request.action {
            0 => self.release_held(host, kind),
            1 => {
                self.clear();
                Ok(())
            }
            _ => Err(UNKNOWN),
        }
    }

    fn release_held(&mut self, host: HostId, kind: Option<ReservationType>) -> Result<(), Status> {
        let Some(held) = self.held.filter(|_| self.holds(host)) else {
            return Ok(());
        };
        if held.by != host && self.departs(Departure::OneHolderOfAll) {
            return Ok(());
        }
        if kind == Some(held.kind) {
            self.held = None;
            return Ok(());
        }
        match self.departs(Departure::WrongReleaseConflicts) {
            true => Err(CONFLICT),
            false => Err(INVALID),
        }
    }

    fn clear(&mut self) {
        self.held = None;
        self.keys.clear();
        self.arrived.clear();
        self.generation = self.generation.wrapping_add(1);
    }

    /// Reservation Report of `length` bytes, with the extended data structure or without.
    pub fn report_request(&mut self, extended: bool, length: usize) -> Result<Vec<u8>, Status> {
        if !extended {
            let status = Status::HOST_ID_INCONSISTENT;
            return Err(match self.departs(Departure::PlainReportForbidsRetry) {
                true => status.dnr(),
                false => status,
            });
        }
        if length < REPORT_HEADER_LEN && self.departs(Departure::ShortReportRefused) {
            return Err(INVALID);
        }
        let mut bytes = encode_report(&self.report());
        let whole = length.saturating_sub(REPORT_HEADER_LEN) / REPORT_ENTRY_LEN;
        let whole = REPORT_HEADER_LEN + whole * REPORT_ENTRY_LEN;
        if whole < length.min(bytes.len()) && self.departs(Departure::ReportInWholeEntries) {
            bytes.truncate(whole);
        }
        if self.keys.len() > 1 && self.sorted() != self.arrived {
            self.departs(Departure::ReportInOrderOfArrival);
        }
        bytes.resize(length, 0);
        Ok(bytes)
    }

    /// Whether an I/O command of this opcode may begin.
    pub fn admits(&mut self, host: HostId, opcode: u8) -> Result<(), Status> {
        let access = match opcode {
            io::COMPARE if self.departs(Departure::CompareUnknown) => return Err(UNKNOWN),
            io::READ | io::COMPARE => Access::Read,
            io::WRITE | io::WRITE_ZEROES | io::DATASET_MANAGEMENT | io::FLUSH => Access::Write,
            _ => return Err(UNKNOWN),
        };
        match self.allows(host, access) {
            true => Ok(()),
            false => Err(CONFLICT),
        }
    }
}
