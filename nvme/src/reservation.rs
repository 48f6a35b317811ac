//! Reservations: types, commands and the report's byte format
//! (NVMe Base Specification 2.3, 7.2 to 7.8 and 8.1.24).

use serde::{Deserialize, Serialize};

use crate::HostId;

/// What a reservation allows to whom (NVMe Base 2.3, 8.1.24, "Reservation Types").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum ReservationType {
    /// Only the holder writes; everybody reads.
    WriteExclusive = 1,
    /// Only the holder reads and writes.
    ExclusiveAccess = 2,
    /// Registrants write; everybody reads.
    WriteExclusiveRegistrantsOnly = 3,
    /// Registrants read and write.
    ExclusiveAccessRegistrantsOnly = 4,
    /// As 3, and every registrant is a holder.
    WriteExclusiveAllRegistrants = 5,
    /// As 4, and every registrant is a holder.
    ExclusiveAccessAllRegistrants = 6,
}

impl ReservationType {
    /// All six, in the order of their numbers.
    pub const ALL: [Self; 6] = [
        Self::WriteExclusive,
        Self::ExclusiveAccess,
        Self::WriteExclusiveRegistrantsOnly,
        Self::ExclusiveAccessRegistrantsOnly,
        Self::WriteExclusiveAllRegistrants,
        Self::ExclusiveAccessAllRegistrants,
    ];

    /// The type with this number; `None` for reserved numbers and for 0, "no reservation".
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|t| *t as u8 == number)
    }

    /// Whether every registrant is a holder (types 5 and 6).
    pub fn is_all_registrants(self) -> bool {
        matches!(
            self,
            Self::WriteExclusiveAllRegistrants | Self::ExclusiveAccessAllRegistrants
        )
    }
}

/// Reservation Register (NVMe Base 2.3, 7.6): RREGA with its keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Register {
    /// RREGA 0: register `key`.
    Register {
        /// The new key, not zero.
        key: u64,
    },
    /// RREGA 1: unregister; releases the reservation if this host holds it.
    Unregister {
        /// The current key.
        key: u64,
    },
    /// RREGA 2: replace `current` with `new`.
    Replace {
        /// The current key, named so that a lost race is seen (CRKEY).
        current: u64,
        /// The new key.
        new: u64,
    },
}

/// Change Persist Through Power Loss State (CPTPL) of a Reservation Register.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[repr(u8)]
pub enum ChangePersistence {
    /// 0: leave as it is.
    #[default]
    Unchanged = 0,
    /// 2: reservations and registrations are released on power loss.
    Volatile = 2,
    /// 3: they persist through power loss.
    Persistent = 3,
}

/// Reservation Acquire (NVMe Base 2.3, 7.5): RACQA with the victim's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Acquire {
    /// RACQA 0.
    Acquire,
    /// RACQA 1. Leaves the victim's started commands running: never a fence.
    Preempt {
        /// PRKEY.
        victim: u64,
    },
    /// RACQA 2: completes only after the victims' commands have.
    PreemptAndAbort {
        /// PRKEY.
        victim: u64,
    },
}

/// Reservation Release (NVMe Base 2.3, 7.7): RRELA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Release {
    /// RRELA 0: release the reservation of this type.
    Release(ReservationType),
    /// RRELA 1: release it and unregister everybody.
    Clear,
}

/// One registrant of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registrant {
    /// Controller identifier; 0xffff for a dynamic controller (NVMe over Fabrics).
    pub controller: u16,
    /// RCSTS bit 0: this host holds the reservation.
    pub holder: bool,
    /// The host to whom the registration belongs.
    pub host: HostId,
    /// Its reservation key.
    pub key: u64,
}

/// A Reservation Report with the extended data structure (NVMe Base 2.3, 7.8).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReservationReport {
    /// GEN: counts successful Register, Clear and Preempt commands; wraps.
    pub generation: u32,
    /// RTYPE; `None` when nobody holds.
    pub reservation: Option<ReservationType>,
    /// PTPLS: whether registrations survive a power loss of the target.
    pub persistent: bool,
    /// One entry per registered controller: a host may appear several times, with one key.
    pub registrants: Vec<Registrant>,
}

impl ReservationReport {
    /// The holder's entry; `None` when nobody holds. With the all-registrants types, the first.
    pub fn holder(&self) -> Option<&Registrant> {
        self.reservation?;
        self.registrants.iter().find(|r| r.holder)
    }

    /// This host's entry.
    pub fn of_host(&self, host: HostId) -> Option<&Registrant> {
        self.registrants.iter().find(|r| r.host == host)
    }
}
