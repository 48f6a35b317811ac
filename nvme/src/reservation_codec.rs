//! Bytes of the reservation commands and of the report (NVMe Base 2.3, 7.5 to 7.8).
//!
//! The request types hold the fields as the wire has them, reserved values too, so that a target can
//! answer each wrong value with its own status; the initiator builds them from the actions.

use crate::command::{le16, le32, le64};
use crate::reservation::{
    Acquire, ChangePersistence, Register, Registrant, Release, ReservationReport, ReservationType,
};
use crate::{HostId, Status};

/// Length of the extended report's header, in bytes.
pub const REPORT_HEADER_LEN: usize = 64;
/// Length of one extended report entry, in bytes.
pub const REPORT_ENTRY_LEN: usize = 64;
/// CNTLID of a report entry where the target uses the dynamic controller model.
pub const DYNAMIC_CONTROLLER: u16 = 0xffff;

/// Reservation Register as on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegisterRequest {
    /// RREGA: 0 register, 1 unregister, 2 replace.
    pub action: u8,
    /// IEKEY: do not compare the current key.
    pub ignore_existing_key: bool,
    /// CPTPL: 0 no change, 1 reserved, 2 volatile, 3 persistent.
    pub persistence: u8,
    /// CRKEY.
    pub current: u64,
    /// NRKEY.
    pub new: u64,
}

impl RegisterRequest {
    /// The request for this action.
    pub fn from_action(
        action: Register,
        ignore_existing_key: bool,
        persistence: ChangePersistence,
    ) -> Self {
        let (action, current, new) = match action {
            Register::Register { key } => (0, 0, key),
            Register::Unregister { key } => (1, key, 0),
            Register::Replace { current, new } => (2, current, new),
        };
        Self {
            action,
            ignore_existing_key,
            persistence: persistence as u8,
            current,
            new,
        }
    }

    /// Command dword 10.
    pub fn cdw10(&self) -> u32 {
        u32::from(self.action & 7)
            | u32::from(self.ignore_existing_key) << 3
            | u32::from(self.persistence & 3) << 30
    }

    /// The command's data.
    pub fn data(&self) -> [u8; 16] {
        two_keys(self.current, self.new)
    }

    /// The request in dword 10 and the data; shorter data is an error of the data's length.
    pub fn decode(cdw10: u32, data: &[u8]) -> Result<Self, Status> {
        let (current, new) = decode_two_keys(data)?;
        Ok(Self {
            action: (cdw10 & 7) as u8,
            ignore_existing_key: cdw10 & 8 != 0,
            persistence: (cdw10 >> 30) as u8,
            current,
            new,
        })
    }
}

/// Reservation Acquire as on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AcquireRequest {
    /// RACQA: 0 acquire, 1 preempt, 2 preempt and abort.
    pub action: u8,
    /// IEKEY: an error from NVMe 1.3 on.
    pub ignore_existing_key: bool,
    /// RTYPE.
    pub kind: u8,
    /// CRKEY.
    pub current: u64,
    /// PRKEY.
    pub preempted: u64,
}

impl AcquireRequest {
    /// The request for this action.
    pub fn from_action(action: Acquire, key: u64, kind: ReservationType) -> Self {
        let (action, preempted) = match action {
            Acquire::Acquire => (0, 0),
            Acquire::Preempt { victim } => (1, victim),
            Acquire::PreemptAndAbort { victim } => (2, victim),
        };
        Self {
            action,
            ignore_existing_key: false,
            kind: kind as u8,
            current: key,
            preempted,
        }
    }

    /// Command dword 10.
    pub fn cdw10(&self) -> u32 {
        u32::from(self.action & 7)
            | u32::from(self.ignore_existing_key) << 3
            | u32::from(self.kind) << 8
    }

    /// The command's data.
    pub fn data(&self) -> [u8; 16] {
        two_keys(self.current, self.preempted)
    }

    /// The request in dword 10 and the data.
    pub fn decode(cdw10: u32, data: &[u8]) -> Result<Self, Status> {
        let (current, preempted) = decode_two_keys(data)?;
        Ok(Self {
            action: (cdw10 & 7) as u8,
            ignore_existing_key: cdw10 & 8 != 0,
            kind: (cdw10 >> 8) as u8,
            current,
            preempted,
        })
    }
}

/// Reservation Release as on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReleaseRequest {
    /// RRELA: 0 release, 1 clear.
    pub action: u8,
    /// IEKEY: an error from NVMe 1.3 on.
    pub ignore_existing_key: bool,
    /// RTYPE; ignored by clear.
    pub kind: u8,
    /// CRKEY.
    pub current: u64,
}

impl ReleaseRequest {
    /// The request for this action.
    pub fn from_action(action: Release, key: u64) -> Self {
        let (action, kind) = match action {
            Release::Release(kind) => (0, kind as u8),
            Release::Clear => (1, 0),
        };
        Self {
            action,
            ignore_existing_key: false,
            kind,
            current: key,
        }
    }

    /// Command dword 10.
    pub fn cdw10(&self) -> u32 {
        u32::from(self.action & 7)
            | u32::from(self.ignore_existing_key) << 3
            | u32::from(self.kind) << 8
    }

    /// The command's data.
    pub fn data(&self) -> [u8; 8] {
        self.current.to_le_bytes()
    }

    /// The request in dword 10 and the data. Linux sends 16 bytes where 8 are specified: more than 8
    /// is fine.
    pub fn decode(cdw10: u32, data: &[u8]) -> Result<Self, Status> {
        if data.len() < 8 {
            return Err(Status::DATA_SGL_LENGTH_INVALID.dnr());
        }
        Ok(Self {
            action: (cdw10 & 7) as u8,
            ignore_existing_key: cdw10 & 8 != 0,
            kind: (cdw10 >> 8) as u8,
            current: le64(data, 0),
        })
    }
}

/// Why bytes are no extended report.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReportError {
    /// Shorter than the header, or than the entries that it announces: ask again with `needed`
    /// bytes.
    #[error("the reservation report has {had} bytes of {needed}")]
    Truncated {
        /// Bytes given.
        had: usize,
        /// Bytes of the whole report.
        needed: usize,
    },
    /// A reserved reservation type.
    #[error("the reservation report names the unknown reservation type {0}")]
    UnknownType(u8),
}

/// The extended report's bytes. Registrants beyond 65535, which no target admits, are left out.
pub fn encode_report(report: &ReservationReport) -> Vec<u8> {
    let count = u16::try_from(report.registrants.len()).unwrap_or(u16::MAX);
    let mut bytes = vec![0; REPORT_HEADER_LEN + REPORT_ENTRY_LEN * usize::from(count)];
    bytes[..4].copy_from_slice(&report.generation.to_le_bytes());
    bytes[4] = report.reservation.map_or(0, |kind| kind as u8);
    bytes[5..7].copy_from_slice(&count.to_le_bytes());
    bytes[9] = u8::from(report.persistent);
    let entries = bytes[REPORT_HEADER_LEN..].chunks_exact_mut(REPORT_ENTRY_LEN);
    for (entry, registrant) in entries.zip(&report.registrants) {
        entry[..2].copy_from_slice(&registrant.controller.to_le_bytes());
        entry[2] = u8::from(registrant.holder);
        entry[8..16].copy_from_slice(&registrant.key.to_le_bytes());
        entry[16..32].copy_from_slice(&registrant.host.to_bytes());
    }
    bytes
}

/// The report in these bytes (extended data structure).
pub fn decode_report(bytes: &[u8]) -> Result<ReservationReport, ReportError> {
    let had = bytes.len();
    if had < REPORT_HEADER_LEN {
        let needed = REPORT_HEADER_LEN;
        return Err(ReportError::Truncated { had, needed });
    }
    let count = usize::from(le16(bytes, 5));
    let needed = REPORT_HEADER_LEN + REPORT_ENTRY_LEN * count;
    if had < needed {
        return Err(ReportError::Truncated { had, needed });
    }
    let reservation = match bytes[4] {
        0 => None,
        number => {
            Some(ReservationType::from_number(number).ok_or(ReportError::UnknownType(number))?)
        }
    };
    let registrants = bytes[REPORT_HEADER_LEN..needed]
        .chunks_exact(REPORT_ENTRY_LEN)
        .map(decode_registrant)
        .collect();
    Ok(ReservationReport {
        generation: le32(bytes, 0),
        reservation,
        persistent: bytes[9] & 1 != 0,
        registrants,
    })
}

fn decode_registrant(entry: &[u8]) -> Registrant {
    let mut host = [0; 16];
    host.copy_from_slice(&entry[16..32]);
    Registrant {
        controller: le16(entry, 0),
        holder: entry[2] & 1 != 0,
        host: HostId::from_bytes(host),
        key: le64(entry, 8),
    }
}

fn two_keys(first: u64, second: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&first.to_le_bytes());
    bytes[8..].copy_from_slice(&second.to_le_bytes());
    bytes
}

fn decode_two_keys(data: &[u8]) -> Result<(u64, u64), Status> {
    if data.len() < 16 {
        return Err(Status::DATA_SGL_LENGTH_INVALID.dnr());
    }
    Ok((le64(data, 0), le64(data, 8)))
}
