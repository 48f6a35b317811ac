//! Submission and completion queue entries (NVMe Base 2.3, 4.1 and 4.2), SGL descriptors as NVMe/TCP
//! uses them (4.3.2 and NVMe/TCP 1.1, 2.2), opcodes, and builders for the commands that Baton sends.
//!
//! Bytes only: nothing here knows a connection, a queue or what a command does.

use crate::Status;
use crate::reservation::{Acquire, ChangePersistence, Register, Release};
use crate::reservation_codec as codec;

/// Length of a submission queue entry, in bytes.
pub const COMMAND_LEN: usize = 64;
/// Length of a completion queue entry, in bytes.
pub const COMPLETION_LEN: usize = 16;
/// NSID that addresses all namespaces.
pub const NSID_ALL: u32 = 0xffff_ffff;

/// Opcodes of the Admin Command Set (NVMe Base 2.3, figure "Opcodes for Admin Commands").
pub mod admin {
    /// Get Log Page.
    pub const GET_LOG_PAGE: u8 = 0x02;
    /// Identify.
    pub const IDENTIFY: u8 = 0x06;
    /// Abort.
    pub const ABORT: u8 = 0x08;
    /// Set Features.
    pub const SET_FEATURES: u8 = 0x09;
    /// Get Features.
    pub const GET_FEATURES: u8 = 0x0a;
    /// Asynchronous Event Request.
    pub const ASYNC_EVENT_REQUEST: u8 = 0x0c;
    /// Keep Alive.
    pub const KEEP_ALIVE: u8 = 0x18;
    /// The one opcode of all Fabrics commands; FCTYPE tells them apart.
    pub const FABRICS: u8 = 0x7f;
}

/// Opcodes of the NVM Command Set and of the reservation commands.
pub mod io {
    /// Flush.
    pub const FLUSH: u8 = 0x00;
    /// Write.
    pub const WRITE: u8 = 0x01;
    /// Read.
    pub const READ: u8 = 0x02;
    /// Compare.
    pub const COMPARE: u8 = 0x05;
    /// Write Zeroes.
    pub const WRITE_ZEROES: u8 = 0x08;
    /// Dataset Management.
    pub const DATASET_MANAGEMENT: u8 = 0x09;
    /// Reservation Register.
    pub const RESERVATION_REGISTER: u8 = 0x0d;
    /// Reservation Report.
    pub const RESERVATION_REPORT: u8 = 0x0e;
    /// Reservation Acquire.
    pub const RESERVATION_ACQUIRE: u8 = 0x11;
    /// Reservation Release.
    pub const RESERVATION_RELEASE: u8 = 0x15;
}

/// Feature identifiers (NVMe Base 2.3, 5.1.25).
pub mod feature {
    /// Number of Queues.
    pub const NUMBER_OF_QUEUES: u8 = 0x07;
    /// Volatile Write Cache.
    pub const VOLATILE_WRITE_CACHE: u8 = 0x06;
    /// Asynchronous Event Configuration.
    pub const ASYNC_EVENT_CONFIGURATION: u8 = 0x0b;
    /// Keep Alive Timer, in milliseconds.
    pub const KEEP_ALIVE_TIMER: u8 = 0x0f;
    /// Host Identifier.
    pub const HOST_IDENTIFIER: u8 = 0x81;
    /// Reservation Notification Mask.
    pub const RESERVATION_NOTIFICATION_MASK: u8 = 0x82;
    /// Reservation Persistence.
    pub const RESERVATION_PERSISTENCE: u8 = 0x83;
}

/// Log page identifiers (NVMe Base 2.3, 5.1.12).
pub mod log {
    /// Error Information.
    pub const ERROR: u8 = 0x01;
    /// SMART / Health Information.
    pub const SMART: u8 = 0x02;
    /// Firmware Slot Information.
    pub const FIRMWARE_SLOT: u8 = 0x03;
    /// Changed Attached Namespace List.
    pub const CHANGED_NAMESPACES: u8 = 0x04;
    /// Commands Supported and Effects.
    pub const EFFECTS: u8 = 0x05;
    /// Discovery.
    pub const DISCOVERY: u8 = 0x70;
    /// Reservation Notification.
    pub const RESERVATION_NOTIFICATION: u8 = 0x80;
}

/// CDW12 bit 30 of Read, Write, Compare and Write Zeroes: Force Unit Access.
pub const FORCE_UNIT_ACCESS: u32 = 1 << 30;
/// CDW12 bit 25 of Write Zeroes: the blocks may be deallocated.
pub const DEALLOCATE: u32 = 1 << 25;

/// Where a command's data is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sgl {
    /// All zero: the command moves no data.
    #[default]
    None,
    /// Type 0x01: in the capsule, `length` bytes from `offset` of its data.
    InCapsule {
        /// Offset in the capsule's data, in bytes.
        offset: u64,
        /// Length in bytes.
        length: u32,
    },
    /// Type 0x5A: by data PDUs (C2HData, or H2CData after an R2T).
    Transport {
        /// Length in bytes.
        length: u32,
    },
    /// Any other descriptor, kept as it is.
    Other([u8; 16]),
}

impl Sgl {
    const TYPE_IN_CAPSULE: u8 = 0x01;
    const TYPE_TRANSPORT: u8 = 0x5a;

    /// The descriptor's bytes.
    pub fn encode(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        match self {
            Self::None => {}
            Self::InCapsule { offset, length } => {
                bytes[..8].copy_from_slice(&offset.to_le_bytes());
                bytes[8..12].copy_from_slice(&length.to_le_bytes());
                bytes[15] = Self::TYPE_IN_CAPSULE;
            }
            Self::Transport { length } => {
                bytes[8..12].copy_from_slice(&length.to_le_bytes());
                bytes[15] = Self::TYPE_TRANSPORT;
            }
            Self::Other(raw) => bytes = raw,
        }
        bytes
    }

    /// The descriptor in these bytes.
    pub fn decode(bytes: &[u8; 16]) -> Self {
        let address = le64(bytes, 0);
        let length = le32(bytes, 8);
        let reserved_clear = bytes[12..15] == [0; 3];
        match bytes[15] {
            0 if *bytes == [0; 16] => Self::None,
            Self::TYPE_IN_CAPSULE if reserved_clear => Self::InCapsule {
                offset: address,
                length,
            },
            Self::TYPE_TRANSPORT if reserved_clear && address == 0 => Self::Transport { length },
            _ => Self::Other(*bytes),
        }
    }
}

/// A submission queue entry. Metadata (bytes 16 to 23) is never used with NVMe/TCP and sent as zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Command {
    /// Byte 0.
    pub opcode: u8,
    /// Byte 1: PSDT in bits 7:6 (01b: SGL), FUSE in bits 1:0. See [`Command::SGL_FLAG`].
    pub flags: u8,
    /// Command identifier, unique among the queue's outstanding commands.
    pub id: u16,
    /// Namespace identifier; of a Fabrics command, FCTYPE in its lowest byte.
    pub nsid: u32,
    /// Command dwords 2 and 3.
    pub cdw2_3: [u32; 2],
    /// SGL entry 1.
    pub sgl: Sgl,
    /// Command dwords 10 to 15.
    pub cdw10_15: [u32; 6],
}

impl Command {
    /// PSDT 01b: this command uses an SGL. Every command on NVMe/TCP does.
    pub const SGL_FLAG: u8 = 0x40;

    /// A command of this opcode for this namespace, without data. The queue sets `id`.
    pub fn new(opcode: u8, nsid: u32) -> Self {
        Self {
            opcode,
            flags: Self::SGL_FLAG,
            nsid,
            ..Self::default()
        }
    }

    /// Command dword `n`, 10 to 15.
    pub fn cdw(&self, n: usize) -> u32 {
        self.cdw10_15[n - 10]
    }

    /// The same command with dword `n` (10 to 15) set.
    pub fn with_cdw(mut self, n: usize, value: u32) -> Self {
        self.cdw10_15[n - 10] = value;
        self
    }

    /// Dwords 10 and 11 as one number: the starting LBA of the NVM commands.
    pub fn lba(&self) -> u64 {
        u64::from(self.cdw(10)) | u64::from(self.cdw(11)) << 32
    }

    /// The number of logical blocks of an NVM command: NLB is zero-based on the wire.
    pub fn blocks(&self) -> u32 {
        (self.cdw(12) & 0xffff) + 1
    }

    /// Whether Force Unit Access is set.
    pub fn fua(&self) -> bool {
        self.cdw(12) & FORCE_UNIT_ACCESS != 0
    }

    /// The 64 bytes on the wire.
    pub fn encode(&self) -> [u8; COMMAND_LEN] {
        let mut bytes = [0; COMMAND_LEN];
        bytes[0] = self.opcode;
        bytes[1] = self.flags;
        bytes[2..4].copy_from_slice(&self.id.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.nsid.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.cdw2_3[0].to_le_bytes());
        bytes[12..16].copy_from_slice(&self.cdw2_3[1].to_le_bytes());
        bytes[24..40].copy_from_slice(&self.sgl.encode());
        for (chunk, dword) in bytes[40..].chunks_exact_mut(4).zip(self.cdw10_15) {
            chunk.copy_from_slice(&dword.to_le_bytes());
        }
        bytes
    }

    /// The command in these 64 bytes.
    pub fn decode(bytes: &[u8; COMMAND_LEN]) -> Self {
        let mut sgl = [0; 16];
        sgl.copy_from_slice(&bytes[24..40]);
        let mut cdw10_15 = [0; 6];
        for (n, dword) in cdw10_15.iter_mut().enumerate() {
            *dword = le32(bytes, 40 + 4 * n);
        }
        Self {
            opcode: bytes[0],
            flags: bytes[1],
            id: le16(bytes, 2),
            nsid: le32(bytes, 4),
            cdw2_3: [le32(bytes, 8), le32(bytes, 12)],
            sgl: Sgl::decode(&sgl),
            cdw10_15,
        }
    }
}

/// A completion queue entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// Dwords 0 and 1: the command's result.
    pub result: u64,
    /// Submission queue head pointer, for the host's flow control.
    pub sq_head: u16,
    /// Submission queue identifier; reserved on fabrics.
    pub sq_id: u16,
    /// The identifier of the completed command.
    pub id: u16,
    /// How it ended.
    pub status: Status,
}

impl Completion {
    /// The 16 bytes on the wire. The phase bit, unused on fabrics, is zero.
    pub fn encode(&self) -> [u8; COMPLETION_LEN] {
        let mut bytes = [0; COMPLETION_LEN];
        bytes[..8].copy_from_slice(&self.result.to_le_bytes());
        bytes[8..10].copy_from_slice(&self.sq_head.to_le_bytes());
        bytes[10..12].copy_from_slice(&self.sq_id.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.id.to_le_bytes());
        bytes[14..].copy_from_slice(&(self.status.0 << 1).to_le_bytes());
        bytes
    }

    /// The completion in these 16 bytes.
    pub fn decode(bytes: &[u8; COMPLETION_LEN]) -> Self {
        Self {
            result: le64(bytes, 0),
            sq_head: le16(bytes, 8),
            sq_id: le16(bytes, 10),
            id: le16(bytes, 12),
            status: Status(le16(bytes, 14) >> 1),
        }
    }
}

/// Builders. A command that moves data carries [`Sgl::Transport`] with its length; who sends small
/// data in the capsule replaces the SGL.
impl Command {
    /// Identify with this CNS; 4096 bytes come back.
    pub fn identify(cns: u8, nsid: u32) -> Self {
        Self::new(admin::IDENTIFY, nsid)
            .with_cdw(10, u32::from(cns))
            .transfer(crate::identify::IDENTIFY_LEN)
    }

    /// Get Log Page: `length` bytes (a multiple of 4, at least 4) of page `page` from `offset`.
    pub fn get_log_page(page: u8, nsid: u32, offset: u64, length: u32) -> Self {
        let dwords = length / 4 - 1;
        Self::new(admin::GET_LOG_PAGE, nsid)
            .with_cdw(10, u32::from(page) | (dwords & 0xffff) << 16)
            .with_cdw(11, dwords >> 16)
            .with_cdw(12, offset as u32)
            .with_cdw(13, (offset >> 32) as u32)
            .transfer(length as usize)
    }

    /// Set Features without data; the value goes to CDW11.
    pub fn set_features(feature: u8, nsid: u32, value: u32) -> Self {
        Self::new(admin::SET_FEATURES, nsid)
            .with_cdw(10, u32::from(feature))
            .with_cdw(11, value)
    }

    /// Get Features, current value.
    pub fn get_features(feature: u8, nsid: u32) -> Self {
        Self::new(admin::GET_FEATURES, nsid).with_cdw(10, u32::from(feature))
    }

    /// Keep Alive.
    pub fn keep_alive() -> Self {
        Self::new(admin::KEEP_ALIVE, 0)
    }

    /// Read of `blocks` logical blocks (1 to 65536) of `block_size` bytes.
    pub fn read(nsid: u32, lba: u64, blocks: u32, block_size: u32) -> Self {
        Self::blocks_command(io::READ, nsid, lba, blocks).transfer((blocks * block_size) as usize)
    }

    /// Write of `blocks` logical blocks (1 to 65536) of `block_size` bytes.
    pub fn write(nsid: u32, lba: u64, blocks: u32, block_size: u32, fua: bool) -> Self {
        let command = Self::blocks_command(io::WRITE, nsid, lba, blocks)
            .transfer((blocks * block_size) as usize);
        let nlb = command.cdw(12);
        command.with_cdw(12, nlb | if fua { FORCE_UNIT_ACCESS } else { 0 })
    }

    /// Flush.
    pub fn flush(nsid: u32) -> Self {
        Self::new(io::FLUSH, nsid)
    }

    /// Write Zeroes to `blocks` logical blocks (1 to 65536).
    pub fn write_zeroes(nsid: u32, lba: u64, blocks: u32, deallocate: bool) -> Self {
        let command = Self::blocks_command(io::WRITE_ZEROES, nsid, lba, blocks);
        let nlb = command.cdw(12);
        command.with_cdw(12, nlb | if deallocate { DEALLOCATE } else { 0 })
    }

    /// Dataset Management, deallocate, of `ranges` ranges (1 to 256); the data is
    /// [`encode_ranges`].
    pub fn deallocate(nsid: u32, ranges: u32) -> Self {
        Self::new(io::DATASET_MANAGEMENT, nsid)
            .with_cdw(10, ranges - 1)
            .with_cdw(11, 1 << 2)
            .transfer(16 * ranges as usize)
    }

    /// Reservation Register and its 16 bytes of data.
    pub fn reservation_register(
        nsid: u32,
        action: Register,
        ignore_existing_key: bool,
        persistence: ChangePersistence,
    ) -> (Self, Vec<u8>) {
        let request = codec::RegisterRequest::from_action(action, ignore_existing_key, persistence);
        let command = Self::new(io::RESERVATION_REGISTER, nsid).with_cdw(10, request.cdw10());
        (command.transfer(16), request.data().to_vec())
    }

    /// Reservation Acquire and its 16 bytes of data.
    pub fn reservation_acquire(
        nsid: u32,
        action: Acquire,
        key: u64,
        kind: crate::ReservationType,
    ) -> (Self, Vec<u8>) {
        let request = codec::AcquireRequest::from_action(action, key, kind);
        let command = Self::new(io::RESERVATION_ACQUIRE, nsid).with_cdw(10, request.cdw10());
        (command.transfer(16), request.data().to_vec())
    }

    /// Reservation Release and its 8 bytes of data.
    pub fn reservation_release(nsid: u32, action: Release, key: u64) -> (Self, Vec<u8>) {
        let request = codec::ReleaseRequest::from_action(action, key);
        let command = Self::new(io::RESERVATION_RELEASE, nsid).with_cdw(10, request.cdw10());
        (command.transfer(8), request.data().to_vec())
    }

    /// Reservation Report with the extended data structure; at most `length` bytes (a multiple of 4).
    pub fn reservation_report(nsid: u32, length: u32) -> Self {
        Self::new(io::RESERVATION_REPORT, nsid)
            .with_cdw(10, length / 4 - 1)
            .with_cdw(11, 1)
            .transfer(length as usize)
    }

    /// The same command, moving `length` bytes by data PDUs.
    pub fn transfer(mut self, length: usize) -> Self {
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        self.sgl = Sgl::Transport { length };
        self
    }

    fn blocks_command(opcode: u8, nsid: u32, lba: u64, blocks: u32) -> Self {
        Self::new(opcode, nsid)
            .with_cdw(10, lba as u32)
            .with_cdw(11, (lba >> 32) as u32)
            .with_cdw(12, (blocks - 1) & 0xffff)
    }
}

/// One range of a Dataset Management command (NVM Command Set 1.1, 3.2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First logical block.
    pub lba: u64,
    /// Number of logical blocks; here the number is not zero-based.
    pub blocks: u32,
}

/// The data of Dataset Management: 16 bytes for each range.
pub fn encode_ranges(ranges: &[Range]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(16 * ranges.len());
    for range in ranges {
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&range.blocks.to_le_bytes());
        bytes.extend_from_slice(&range.lba.to_le_bytes());
    }
    bytes
}

/// The ranges in these bytes; a tail of less than 16 bytes is ignored.
pub fn decode_ranges(bytes: &[u8]) -> Vec<Range> {
    bytes
        .chunks_exact(16)
        .map(|chunk| Range {
            blocks: le32(chunk, 4),
            lba: le64(chunk, 8),
        })
        .collect()
}

/// Little-endian u16 at `at`. Panics beyond the end: callers have checked the length.
pub(crate) fn le16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

/// Little-endian u32 at `at`. Panics beyond the end.
pub(crate) fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from(le16(bytes, at)) | u32::from(le16(bytes, at + 2)) << 16
}

/// Little-endian u64 at `at`. Panics beyond the end.
pub(crate) fn le64(bytes: &[u8], at: usize) -> u64 {
    u64::from(le32(bytes, at)) | u64::from(le32(bytes, at + 4)) << 32
}
