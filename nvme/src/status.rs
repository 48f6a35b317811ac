//! The status of a completed command (NVMe Base Specification 2.3, 4.2.3).

use std::fmt;

use serde::{Deserialize, Serialize};

/// Status code type and status code with the Do Not Retry bit, as in the upper 15 bits of a
/// completion's last word: `SC` in bits 7:0, `SCT` in 10:8, `CRD` in 12:11, `M` in 13, `DNR` in 14.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Status(pub u16);

impl Status {
    /// Bit 14: repeating the same command will fail again.
    pub const DNR: u16 = 1 << 14;
    const CODE_MASK: u16 = 0x7ff;

    /// Successful Completion.
    pub const SUCCESS: Self = Self(0x000);
    /// Invalid Command Opcode.
    pub const INVALID_OPCODE: Self = Self(0x001);
    /// Invalid Field in Command.
    pub const INVALID_FIELD: Self = Self(0x002);
    /// Command ID Conflict.
    pub const COMMAND_ID_CONFLICT: Self = Self(0x003);
    /// Data Transfer Error.
    pub const DATA_TRANSFER_ERROR: Self = Self(0x004);
    /// Internal Error.
    pub const INTERNAL_ERROR: Self = Self(0x006);
    /// Command Abort Requested.
    pub const ABORT_REQUESTED: Self = Self(0x007);
    /// Command Aborted due to SQ Deletion.
    pub const ABORTED_QUEUE_DELETED: Self = Self(0x008);
    /// Invalid Namespace or Format.
    pub const INVALID_NAMESPACE: Self = Self(0x00b);
    /// Command Sequence Error.
    pub const COMMAND_SEQUENCE_ERROR: Self = Self(0x00c);
    /// Data SGL Length Invalid.
    pub const DATA_SGL_LENGTH_INVALID: Self = Self(0x00f);
    /// SGL Descriptor Type Invalid.
    pub const SGL_DESCRIPTOR_TYPE_INVALID: Self = Self(0x011);
    /// Host Identifier Inconsistent Format.
    pub const HOST_ID_INCONSISTENT: Self = Self(0x018);
    /// Keep Alive Timeout Invalid.
    pub const KEEP_ALIVE_INVALID: Self = Self(0x01a);
    /// Transient Transport Error.
    pub const TRANSIENT_TRANSPORT_ERROR: Self = Self(0x022);
    /// Command Interrupted.
    pub const COMMAND_INTERRUPTED: Self = Self(0x021);
    /// LBA Out of Range.
    pub const LBA_OUT_OF_RANGE: Self = Self(0x080);
    /// Namespace Not Ready.
    pub const NAMESPACE_NOT_READY: Self = Self(0x082);
    /// Reservation Conflict.
    pub const RESERVATION_CONFLICT: Self = Self(0x083);
    /// Asynchronous Event Request Limit Exceeded (command specific).
    pub const ASYNC_EVENT_LIMIT: Self = Self(0x105);
    /// Invalid Log Page (command specific).
    pub const INVALID_LOG_PAGE: Self = Self(0x109);
    /// Feature Identifier Not Changeable (command specific).
    pub const FEATURE_NOT_CHANGEABLE: Self = Self(0x10e);
    /// Connect Incompatible Format (command specific).
    pub const CONNECT_INCOMPATIBLE_FORMAT: Self = Self(0x180);
    /// Connect Controller Busy (command specific).
    pub const CONNECT_CONTROLLER_BUSY: Self = Self(0x181);
    /// Connect Invalid Parameters (command specific).
    pub const CONNECT_INVALID_PARAMETERS: Self = Self(0x182);
    /// Write Fault (media and data integrity).
    pub const WRITE_FAULT: Self = Self(0x280);
    /// Unrecovered Read Error (media and data integrity).
    pub const UNRECOVERED_READ: Self = Self(0x281);
    /// Compare Failure (media and data integrity).
    pub const COMPARE_FAILURE: Self = Self(0x285);

    /// The same status with Do Not Retry set.
    pub const fn dnr(self) -> Self {
        Self(self.0 | Self::DNR)
    }

    /// Status code type and status code alone, without DNR, More and retry delay.
    pub const fn code(self) -> Self {
        Self(self.0 & Self::CODE_MASK)
    }

    /// Whether the command succeeded.
    pub const fn is_success(self) -> bool {
        self.code().0 == 0
    }

    /// Whether a reservation refused the command.
    pub const fn is_conflict(self) -> bool {
        self.code().0 == Self::RESERVATION_CONFLICT.0
    }

    /// Whether a controller may answer so although the command had its effect, in whole or in part:
    /// SPDK ends a preempt-and-abort that cannot drain with Command Interrupted, after the preempt.
    pub const fn may_have_had_effect(self) -> bool {
        matches!(
            self.code(),
            Self::INTERNAL_ERROR
                | Self::ABORT_REQUESTED
                | Self::ABORTED_QUEUE_DELETED
                | Self::COMMAND_INTERRUPTED
        )
    }

    /// Whether the controller says that a retry will fail again.
    pub const fn do_not_retry(self) -> bool {
        self.0 & Self::DNR != 0
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.code() {
            Self::SUCCESS => "Successful Completion",
            Self::INVALID_OPCODE => "Invalid Command Opcode",
            Self::INVALID_FIELD => "Invalid Field in Command",
            Self::COMMAND_ID_CONFLICT => "Command ID Conflict",
            Self::DATA_TRANSFER_ERROR => "Data Transfer Error",
            Self::INTERNAL_ERROR => "Internal Error",
            Self::ABORT_REQUESTED => "Command Abort Requested",
            Self::ABORTED_QUEUE_DELETED => "Command Aborted due to SQ Deletion",
            Self::INVALID_NAMESPACE => "Invalid Namespace or Format",
            Self::COMMAND_SEQUENCE_ERROR => "Command Sequence Error",
            Self::DATA_SGL_LENGTH_INVALID => "Data SGL Length Invalid",
            Self::SGL_DESCRIPTOR_TYPE_INVALID => "SGL Descriptor Type Invalid",
            Self::HOST_ID_INCONSISTENT => "Host Identifier Inconsistent Format",
            Self::KEEP_ALIVE_INVALID => "Keep Alive Timeout Invalid",
            Self::TRANSIENT_TRANSPORT_ERROR => "Transient Transport Error",
            Self::ASYNC_EVENT_LIMIT => "Asynchronous Event Request Limit Exceeded",
            Self::INVALID_LOG_PAGE => "Invalid Log Page",
            Self::FEATURE_NOT_CHANGEABLE => "Feature Identifier Not Changeable",
            Self::CONNECT_INCOMPATIBLE_FORMAT => "Connect Incompatible Format",
            Self::CONNECT_CONTROLLER_BUSY => "Connect Controller Busy",
            Self::CONNECT_INVALID_PARAMETERS => "Connect Invalid Parameters",
            Self::COMMAND_INTERRUPTED => "Command Interrupted",
            Self::LBA_OUT_OF_RANGE => "LBA Out of Range",
            Self::NAMESPACE_NOT_READY => "Namespace Not Ready",
            Self::RESERVATION_CONFLICT => "Reservation Conflict",
            Self::WRITE_FAULT => "Write Fault",
            Self::UNRECOVERED_READ => "Unrecovered Read Error",
            Self::COMPARE_FAILURE => "Compare Failure",
            _ => return write!(f, "status {:#05x}", self.0),
        };
        write!(
            f,
            "{name} ({:#05x}{})",
            self.code().0,
            if self.do_not_retry() { ", DNR" } else { "" }
        )
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
