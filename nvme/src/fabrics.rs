//! Fabrics commands and controller properties (NVMe Base 2.3, 3.1.4 and 6).

use crate::command::{Command, admin, le16, le64};
use crate::identity::NQN_MAX_LEN;
use crate::{HostId, HostIdentity, Nqn};

/// FCTYPE Property Set.
pub const PROPERTY_SET: u8 = 0x00;
/// FCTYPE Connect.
pub const CONNECT: u8 = 0x01;
/// FCTYPE Property Get.
pub const PROPERTY_GET: u8 = 0x04;
/// FCTYPE Disconnect.
pub const DISCONNECT: u8 = 0x08;

/// Length of Connect's data, in bytes.
pub const CONNECT_DATA_LEN: usize = 1024;
/// CNTLID that asks for any controller (dynamic controller model).
pub const ANY_CONTROLLER: u16 = 0xffff;

/// Property offset of CAP (8 bytes).
pub const CAP: u32 = 0x00;
/// Property offset of VS (4 bytes).
pub const VS: u32 = 0x08;
/// Property offset of CC (4 bytes).
pub const CC: u32 = 0x14;
/// Property offset of CSTS (4 bytes).
pub const CSTS: u32 = 0x1c;
/// CC bit 0: enable.
pub const CC_ENABLE: u32 = 1;
/// CC bits 15:14: shutdown notification.
pub const CC_SHUTDOWN_MASK: u32 = 3 << 14;
/// CC as hosts set it: enabled, 64-byte submission and 16-byte completion entries, 4 KiB pages, NVM.
pub const CC_ENABLED: u32 = CC_ENABLE | 6 << 16 | 4 << 20;
/// CC with normal shutdown notification.
pub const CC_SHUTDOWN: u32 = CC_ENABLED | 1 << 14;
/// CSTS bit 0: ready.
pub const CSTS_READY: u32 = 1;
/// CSTS bit 1: controller fatal status.
pub const CSTS_FATAL: u32 = 2;
/// CSTS bits 3:2 with value 2: shutdown complete.
pub const CSTS_SHUTDOWN_COMPLETE: u32 = 2 << 2;

/// Connect's 1024 bytes: which host wants which subsystem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectData {
    /// The host that connects.
    pub host: HostIdentity,
    /// [`ANY_CONTROLLER`] on the admin queue; the controller's own identifier on I/O queues.
    pub controller: u16,
    /// The subsystem.
    pub subsystem: Nqn,
}

/// Why bytes are no Connect data: the field, whose byte offset the completion must name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Connect data: the field at byte {offset} is not valid")]
pub struct InvalidConnectData {
    /// Byte offset of the wrong field.
    pub offset: u16,
}

impl ConnectData {
    const HOST_ID_AT: usize = 0;
    const CONTROLLER_AT: usize = 16;
    const SUBSYSTEM_AT: usize = 256;
    const HOST_NQN_AT: usize = 512;
    const NQN_FIELD: usize = 256;

    /// The 1024 bytes on the wire.
    pub fn encode(&self) -> [u8; CONNECT_DATA_LEN] {
        let mut bytes = [0; CONNECT_DATA_LEN];
        bytes[..16].copy_from_slice(&self.host.id.to_bytes());
        bytes[Self::CONTROLLER_AT..][..2].copy_from_slice(&self.controller.to_le_bytes());
        put_text(&mut bytes[Self::SUBSYSTEM_AT..], self.subsystem.as_str());
        put_text(&mut bytes[Self::HOST_NQN_AT..], self.host.nqn.as_str());
        bytes
    }

    /// The Connect data in these bytes. A zero host identifier is refused: registrations could not
    /// be told apart.
    pub fn decode(bytes: &[u8]) -> Result<Self, InvalidConnectData> {
        let invalid = |offset: usize| InvalidConnectData {
            offset: offset as u16,
        };
        if bytes.len() < CONNECT_DATA_LEN {
            return Err(invalid(bytes.len()));
        }
        let mut id = [0; 16];
        id.copy_from_slice(&bytes[..16]);
        if id == [0; 16] {
            return Err(invalid(Self::HOST_ID_AT));
        }
        let nqn = |at| nqn_field(&bytes[at..at + Self::NQN_FIELD]).ok_or_else(|| invalid(at));
        Ok(Self {
            host: HostIdentity {
                nqn: nqn(Self::HOST_NQN_AT)?,
                id: HostId::from_bytes(id),
            },
            controller: le16(bytes, Self::CONTROLLER_AT),
            subsystem: nqn(Self::SUBSYSTEM_AT)?,
        })
    }
}

/// The zero-terminated NQN at the beginning of a field.
pub(crate) fn nqn_field(field: &[u8]) -> Option<Nqn> {
    let end = field.iter().position(|b| *b == 0)?;
    if end > NQN_MAX_LEN {
        return None;
    }
    std::str::from_utf8(&field[..end]).ok()?.parse().ok()
}

pub(crate) fn put_text(field: &mut [u8], text: &str) {
    field[..text.len()].copy_from_slice(text.as_bytes());
}

/// The fields of a Connect command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connect {
    /// RECFMT, 0.
    pub record_format: u16,
    /// QID: 0 for the admin queue.
    pub queue: u16,
    /// SQSIZE: number of entries minus one.
    pub size_minus_one: u16,
    /// CATTR; bit 2 disables submission queue flow control.
    pub attributes: u8,
    /// KATO in milliseconds, on the admin queue only; 0 for none.
    pub keep_alive_ms: u32,
}

/// A Fabrics command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fabrics {
    /// Connect; its data is [`ConnectData`].
    Connect(Connect),
    /// Property Get; the value is the completion's result.
    PropertyGet {
        /// Whether the property has 8 bytes.
        wide: bool,
        /// Property offset.
        offset: u32,
    },
    /// Property Set.
    PropertySet {
        /// Whether the property has 8 bytes.
        wide: bool,
        /// Property offset.
        offset: u32,
        /// The value.
        value: u64,
    },
    /// Disconnect: end this queue.
    Disconnect,
    /// Any other FCTYPE.
    Other(u8),
}

impl Fabrics {
    /// The command for the wire; Connect with its data by [`crate::command::Sgl::InCapsule`].
    pub fn to_command(self) -> Command {
        let of_type = |kind: u8| Command::new(admin::FABRICS, u32::from(kind));
        match self {
            Self::Connect(connect) => {
                let mut command = of_type(CONNECT)
                    .with_cdw(
                        10,
                        u32::from(connect.record_format) | u32::from(connect.queue) << 16,
                    )
                    .with_cdw(
                        11,
                        u32::from(connect.size_minus_one) | u32::from(connect.attributes) << 16,
                    )
                    .with_cdw(12, connect.keep_alive_ms);
                command.sgl = crate::command::Sgl::InCapsule {
                    offset: 0,
                    length: CONNECT_DATA_LEN as u32,
                };
                command
            }
            Self::PropertyGet { wide, offset } => of_type(PROPERTY_GET)
                .with_cdw(10, u32::from(wide))
                .with_cdw(11, offset),
            Self::PropertySet {
                wide,
                offset,
                value,
            } => of_type(PROPERTY_SET)
                .with_cdw(10, u32::from(wide))
                .with_cdw(11, offset)
                .with_cdw(12, value as u32)
                .with_cdw(13, (value >> 32) as u32),
            Self::Disconnect => of_type(DISCONNECT),
            Self::Other(kind) => of_type(kind),
        }
    }

    /// The Fabrics command in this entry, whose opcode is [`admin::FABRICS`].
    pub fn from_command(command: &Command) -> Self {
        let wide = command.cdw(10) & 7 == 1;
        let offset = command.cdw(11);
        match command.nsid as u8 {
            CONNECT => Self::Connect(Connect {
                record_format: command.cdw(10) as u16,
                queue: (command.cdw(10) >> 16) as u16,
                size_minus_one: command.cdw(11) as u16,
                attributes: (command.cdw(11) >> 16) as u8,
                keep_alive_ms: command.cdw(12),
            }),
            PROPERTY_GET => Self::PropertyGet { wide, offset },
            PROPERTY_SET => Self::PropertySet {
                wide,
                offset,
                value: u64::from(command.cdw(12)) | u64::from(command.cdw(13)) << 32,
            },
            DISCONNECT => Self::Disconnect,
            other => Self::Other(other),
        }
    }
}

/// The CAP property's fields that matter on fabrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// MQES: largest queue size, minus one.
    pub max_queue_entries_minus_one: u16,
    /// TO: how long enabling may take, in units of 500 ms.
    pub timeout_500ms: u8,
}

impl Capabilities {
    const CONTIGUOUS_QUEUES: u64 = 1 << 16;
    const NVM_COMMAND_SET: u64 = 1 << 37;

    /// The property's value.
    pub fn encode(self) -> u64 {
        u64::from(self.max_queue_entries_minus_one)
            | Self::CONTIGUOUS_QUEUES
            | u64::from(self.timeout_500ms) << 24
            | Self::NVM_COMMAND_SET
    }

    /// The fields of this value.
    pub fn decode(value: u64) -> Self {
        let bytes = value.to_le_bytes();
        Self {
            max_queue_entries_minus_one: le64(&bytes, 0) as u16,
            timeout_500ms: (value >> 24) as u8,
        }
    }
}
