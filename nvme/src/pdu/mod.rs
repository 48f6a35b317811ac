//! NVMe/TCP protocol data units (NVMe/TCP Transport Specification 1.1, 3.6), for both sides.
//!
//! ```text
//! | common header 8 | rest of header | HDGST 4? | padding | data | DDGST 4? |
//! |<------------- HLEN ------------->|          |<- PDO             PLEN ->|
//! ```
//!
//! [`codec`] turns headers into bytes and back; [`stream`] reads and writes whole units.

pub mod codec;
pub mod stream;

use bytes::Bytes;

use crate::command::{Command, Completion};

pub use stream::{PduReader, PduWriter, ReadError};

/// Length of every unit's common header, in bytes.
pub const COMMON_HEADER_LEN: usize = 8;
/// Length of ICReq and ICResp, in bytes.
pub const INITIALIZE_LEN: usize = 128;
/// Length of a digest, in bytes.
pub const DIGEST_LEN: usize = 4;
/// Header length of the termination requests and of all data units, in bytes.
pub const DATA_HEADER_LEN: usize = 24;
/// Header length of a command capsule, in bytes.
pub const COMMAND_HEADER_LEN: usize = 72;
/// Header length of a response capsule, in bytes.
pub const RESPONSE_HEADER_LEN: usize = 24;
/// Most bytes of the offending header that a termination request may carry.
pub const TERMINATION_DATA_MAX: usize = 128;
/// In-capsule data that every controller accepts on the admin queue, in bytes.
pub const ADMIN_IN_CAPSULE_MAX: u32 = 8192;

/// PDU types.
pub mod kind {
    /// Initialize Connection Request.
    pub const IC_REQ: u8 = 0x00;
    /// Initialize Connection Response.
    pub const IC_RESP: u8 = 0x01;
    /// Host to Controller Terminate Connection Request.
    pub const H2C_TERM: u8 = 0x02;
    /// Controller to Host Terminate Connection Request.
    pub const C2H_TERM: u8 = 0x03;
    /// Command capsule.
    pub const COMMAND: u8 = 0x04;
    /// Response capsule.
    pub const RESPONSE: u8 = 0x05;
    /// Host to Controller Data.
    pub const H2C_DATA: u8 = 0x06;
    /// Controller to Host Data.
    pub const C2H_DATA: u8 = 0x07;
    /// Ready to Transfer.
    pub const R2T: u8 = 0x09;
}

/// Which digests a connection uses, as agreed by ICReq and ICResp.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digests {
    /// CRC32C after each header.
    pub header: bool,
    /// CRC32C after each unit's data.
    pub data: bool,
}

/// ICReq.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InitializeRequest {
    /// PFV; 0.
    pub format: u16,
    /// HPDA: the host wants data at multiples of 4 × (n + 1) bytes.
    pub data_alignment: u8,
    /// The digests that the host asks for.
    pub digests: Digests,
    /// MAXR2T: outstanding R2Ts for one command, minus one.
    pub max_r2t_minus_one: u32,
}

/// ICResp.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InitializeResponse {
    /// PFV; 0.
    pub format: u16,
    /// CPDA: the controller wants data at multiples of 4 × (n + 1) bytes. Linux accepts 0 only.
    pub data_alignment: u8,
    /// The digests in use.
    pub digests: Digests,
    /// MAXH2CDATA: most data bytes of one H2CData unit; at least 4096, a multiple of 4.
    pub max_host_data: u32,
}

/// Fatal Error Status of a termination request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum FatalStatus {
    /// A header field is not valid; the information is its byte offset.
    InvalidHeaderField = 1,
    /// A unit of a type that must not come now.
    SequenceError = 2,
    /// The header digest is wrong; the information is the digest received.
    HeaderDigest = 3,
    /// Data outside the command's range.
    DataOutOfRange = 4,
    /// More data or more R2Ts than agreed.
    LimitExceeded = 5,
    /// A parameter that is not supported; the information is its byte offset.
    Unsupported = 6,
}

/// A termination request: the connection ends, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Termination {
    /// FES; the number as received, for reserved ones exist.
    pub status: u16,
    /// FEI.
    pub information: u32,
    /// The beginning of the offending unit.
    pub offending: Bytes,
}

/// H2CData or C2HData.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Data {
    /// The command that the data belongs to.
    pub command: u16,
    /// TTAG of the R2T that asked for it; 0 in C2HData.
    pub tag: u16,
    /// Offset in the command's data, in bytes.
    pub offset: u32,
    /// The data; not empty.
    pub data: Bytes,
    /// LAST_PDU.
    pub last: bool,
    /// SUCCESS, C2HData only: no response capsule follows, the command succeeded.
    pub success: bool,
}

/// R2T.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadyToTransfer {
    /// The command whose data is wanted.
    pub command: u16,
    /// TTAG, which the data units repeat.
    pub tag: u16,
    /// Offset of the wanted bytes in the command's data.
    pub offset: u32,
    /// How many bytes; not 0.
    pub length: u32,
}

/// A protocol data unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pdu {
    /// ICReq.
    InitializeRequest(InitializeRequest),
    /// ICResp.
    InitializeResponse(InitializeResponse),
    /// H2CTermReq.
    HostTermination(Termination),
    /// C2HTermReq.
    ControllerTermination(Termination),
    /// A command, perhaps with data in the capsule.
    Command(Command, Bytes),
    /// A completion.
    Response(Completion),
    /// H2CData.
    HostData(Data),
    /// C2HData.
    ControllerData(Data),
    /// R2T.
    ReadyToTransfer(ReadyToTransfer),
}

impl Pdu {
    /// The PDU type's number.
    pub fn kind(&self) -> u8 {
        match self {
            Self::InitializeRequest(_) => kind::IC_REQ,
            Self::InitializeResponse(_) => kind::IC_RESP,
            Self::HostTermination(_) => kind::H2C_TERM,
            Self::ControllerTermination(_) => kind::C2H_TERM,
            Self::Command(..) => kind::COMMAND,
            Self::Response(_) => kind::RESPONSE,
            Self::HostData(_) => kind::H2C_DATA,
            Self::ControllerData(_) => kind::C2H_DATA,
            Self::ReadyToTransfer(_) => kind::R2T,
        }
    }

    /// The data that follows the header; empty for units without.
    pub fn data(&self) -> &Bytes {
        static NONE: Bytes = Bytes::new();
        match self {
            Self::Command(_, data) => data,
            Self::HostData(unit) | Self::ControllerData(unit) => &unit.data,
            Self::HostTermination(t) | Self::ControllerTermination(t) => &t.offending,
            Self::InitializeRequest(_)
            | Self::InitializeResponse(_)
            | Self::Response(_)
            | Self::ReadyToTransfer(_) => &NONE,
        }
    }
}

/// The side of a connection that receives: each type of unit goes one way only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Receiver {
    /// The host receives: ICResp, C2HTermReq, responses, C2HData, R2T.
    Host,
    /// The controller receives: ICReq, H2CTermReq, commands, H2CData.
    Controller,
}

/// A unit that breaks the protocol: what a termination request must say of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} (fatal error status {status:?}, information {information:#x})")]
pub struct Violation {
    /// FES.
    pub status: FatalStatus,
    /// FEI.
    pub information: u32,
    /// In words, for the log.
    pub what: &'static str,
    /// The beginning of the offending unit.
    pub offending: Bytes,
}

impl Violation {
    /// A violation without an offending header at hand.
    pub fn new(status: FatalStatus, information: u32, what: &'static str) -> Self {
        Self {
            status,
            information,
            what,
            offending: Bytes::new(),
        }
    }

    /// The termination request to send.
    pub fn termination(&self) -> Termination {
        let end = self.offending.len().min(TERMINATION_DATA_MAX);
        Termination {
            status: self.status as u16,
            information: self.information,
            offending: self.offending.slice(..end),
        }
    }
}
