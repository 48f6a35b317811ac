//! Headers of protocol data units as bytes (NVMe/TCP 1.1, 3.6.2). Nothing here reads or waits.

use bytes::{BufMut, Bytes, BytesMut};

use super::{
    COMMAND_HEADER_LEN, COMMON_HEADER_LEN, DATA_HEADER_LEN, DIGEST_LEN, Data, Digests, FatalStatus,
    INITIALIZE_LEN, InitializeRequest, InitializeResponse, Pdu, RESPONSE_HEADER_LEN,
    ReadyToTransfer, Receiver, TERMINATION_DATA_MAX, Termination, Violation, kind,
};
use crate::command::{COMMAND_LEN, COMPLETION_LEN, Command, Completion, le16, le32};

const FLAG_HEADER_DIGEST: u8 = 1 << 0;
const FLAG_DATA_DIGEST: u8 = 1 << 1;
const FLAG_LAST: u8 = 1 << 2;
const FLAG_SUCCESS: u8 = 1 << 3;

const _: () = assert!(COMMAND_HEADER_LEN == COMMON_HEADER_LEN + COMMAND_LEN);
const _: () = assert!(RESPONSE_HEADER_LEN == COMMON_HEADER_LEN + COMPLETION_LEN);

/// A unit's common header, with everything about the unit's shape checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// PDU type.
    pub kind: u8,
    /// Flags.
    pub flags: u8,
    /// HLEN: length of the header, in bytes.
    pub header: usize,
    /// Where the data begins; equal to `data_end` where there is none.
    pub data_start: usize,
    /// Where the data ends, before its digest.
    pub data_end: usize,
    /// PLEN: length of the whole unit.
    pub total: usize,
    /// Whether a header digest follows the header.
    pub header_digest: bool,
    /// Whether a data digest follows the data.
    pub data_digest: bool,
}

impl Shape {
    /// Checks the common header of a unit that came in.
    ///
    /// `max_data` bounds the data of one unit, in bytes. A violation's information is the byte
    /// offset of the wrong field.
    pub fn decode(
        header: &[u8; COMMON_HEADER_LEN],
        receiver: Receiver,
        digests: Digests,
        max_data: u32,
    ) -> Result<Self, Violation> {
        let [kind, flags, hlen, pdo, ..] = *header;
        let plen = le32(header, 4) as usize;
        let wrong = |at, what| Violation::new(FatalStatus::InvalidHeaderField, at, what);
        let Some(expected) = header_len(kind, receiver) else {
            return Err(wrong(0, "a PDU type that this side does not receive"));
        };
        if usize::from(hlen) != expected {
            return Err(wrong(2, "HLEN does not fit the PDU type"));
        }
        let digests = effective(kind, digests);
        if (flags & FLAG_HEADER_DIGEST != 0) != digests.header {
            return Err(wrong(
                1,
                "the header digest flag differs from what was agreed",
            ));
        }
        let after_header = expected + if digests.header { DIGEST_LEN } else { 0 };
        if plen < after_header {
            return Err(wrong(4, "PLEN is shorter than the header"));
        }
        if plen == after_header || !may_carry_data(kind) {
            if plen != after_header {
                return Err(wrong(4, "PLEN is longer than a unit of this type"));
            }
            return Ok(Self {
                kind,
                flags,
                header: expected,
                data_start: plen,
                data_end: plen,
                total: plen,
                header_digest: digests.header,
                data_digest: false,
            });
        }
        let data_digest = digests.data;
        if (flags & FLAG_DATA_DIGEST != 0) != data_digest {
            return Err(wrong(
                1,
                "the data digest flag differs from what was agreed",
            ));
        }
        let data_start = if is_termination(kind) {
            expected
        } else {
            usize::from(pdo)
        };
        let tail = if data_digest { DIGEST_LEN } else { 0 };
        if data_start < after_header || data_start + tail >= plen {
            return Err(wrong(3, "PDO is outside the unit"));
        }
        let data_end = plen - tail;
        let max = if is_termination(kind) {
            TERMINATION_DATA_MAX
        } else {
            max_data as usize
        };
        if data_end - data_start > max {
            return Err(Violation::new(
                FatalStatus::LimitExceeded,
                4,
                "more data than agreed",
            ));
        }
        Ok(Self {
            kind,
            flags,
            header: expected,
            data_start,
            data_end,
            total: plen,
            header_digest: digests.header,
            data_digest,
        })
    }
}

/// HLEN of each type that the receiver may get.
fn header_len(kind: u8, receiver: Receiver) -> Option<usize> {
    match (receiver, kind) {
        (Receiver::Controller, kind::IC_REQ) | (Receiver::Host, kind::IC_RESP) => {
            Some(INITIALIZE_LEN)
        }
        (Receiver::Controller, kind::H2C_TERM | kind::H2C_DATA)
        | (Receiver::Host, kind::C2H_TERM | kind::C2H_DATA | kind::R2T) => Some(DATA_HEADER_LEN),
        (Receiver::Controller, kind::COMMAND) => Some(COMMAND_HEADER_LEN),
        (Receiver::Host, kind::RESPONSE) => Some(RESPONSE_HEADER_LEN),
        _ => None,
    }
}

fn is_termination(kind: u8) -> bool {
    matches!(kind, kind::H2C_TERM | kind::C2H_TERM)
}

fn may_carry_data(kind: u8) -> bool {
    is_termination(kind) || matches!(kind, kind::COMMAND | kind::H2C_DATA | kind::C2H_DATA)
}

/// Initialization and termination never carry digests (NVMe/TCP 1.1, 3.3.1).
fn effective(kind: u8, digests: Digests) -> Digests {
    if is_termination(kind) || matches!(kind, kind::IC_REQ | kind::IC_RESP) {
        Digests::default()
    } else {
        digests
    }
}

/// The unit of this shape: `header` has the shape's header length, `data` its data.
pub fn decode_body(shape: &Shape, header: &[u8], data: Bytes) -> Result<Pdu, Violation> {
    let wrong = |at, what| Violation::new(FatalStatus::InvalidHeaderField, at, what);
    match shape.kind {
        kind::IC_REQ => Ok(Pdu::InitializeRequest(InitializeRequest {
            format: le16(header, 8),
            data_alignment: header[10],
            digests: digests_from(header[11]),
            max_r2t_minus_one: le32(header, 12),
        })),
        kind::IC_RESP => Ok(Pdu::InitializeResponse(InitializeResponse {
            format: le16(header, 8),
            data_alignment: header[10],
            digests: digests_from(header[11]),
            max_host_data: le32(header, 12),
        })),
        kind::H2C_TERM => Ok(Pdu::HostTermination(decode_termination(header, data))),
        kind::C2H_TERM => Ok(Pdu::ControllerTermination(decode_termination(header, data))),
        kind::COMMAND => {
            let mut entry = [0; COMMAND_LEN];
            entry.copy_from_slice(&header[COMMON_HEADER_LEN..COMMAND_HEADER_LEN]);
            Ok(Pdu::Command(Command::decode(&entry), data))
        }
        kind::RESPONSE => {
            let mut entry = [0; COMPLETION_LEN];
            entry.copy_from_slice(&header[COMMON_HEADER_LEN..RESPONSE_HEADER_LEN]);
            Ok(Pdu::Response(Completion::decode(&entry)))
        }
        kind::H2C_DATA => Ok(Pdu::HostData(decode_data(shape, header, data)?)),
        kind::C2H_DATA => Ok(Pdu::ControllerData(decode_data(shape, header, data)?)),
        kind::R2T => Ok(Pdu::ReadyToTransfer(ReadyToTransfer {
            command: le16(header, 8),
            tag: le16(header, 10),
            offset: le32(header, 12),
            length: le32(header, 16),
        })),
        _ => Err(wrong(0, "an unknown PDU type")),
    }
}

fn decode_termination(header: &[u8], data: Bytes) -> Termination {
    Termination {
        status: le16(header, 8),
        information: le32(header, 10),
        offending: data,
    }
}

fn decode_data(shape: &Shape, header: &[u8], data: Bytes) -> Result<Data, Violation> {
    let wrong = |at, what| Violation::new(FatalStatus::InvalidHeaderField, at, what);
    let length = le32(header, 16);
    if length as usize != data.len() || data.is_empty() {
        return Err(wrong(16, "the data length differs from PLEN"));
    }
    let last = shape.flags & FLAG_LAST != 0;
    let success = shape.kind == kind::C2H_DATA && shape.flags & FLAG_SUCCESS != 0;
    if success && !last {
        return Err(wrong(1, "SUCCESS without LAST_PDU"));
    }
    Ok(Data {
        command: le16(header, 8),
        tag: le16(header, 10),
        offset: le32(header, 12),
        data,
        last,
        success,
    })
}

fn digests_from(byte: u8) -> Digests {
    Digests {
        header: byte & 1 != 0,
        data: byte & 2 != 0,
    }
}

/// Appends a unit's header, header digest and padding to `out`; the data and its digest, which
/// [`data_digest`] computes, must follow. `alignment` is HPDA or CPDA of the receiver.
pub fn encode_header(pdu: &Pdu, digests: Digests, alignment: u8, out: &mut BytesMut) {
    let start = out.len();
    let digests = effective(pdu.kind(), digests);
    let data = pdu.data().len();
    let hlen = match pdu {
        Pdu::InitializeRequest(_) | Pdu::InitializeResponse(_) => INITIALIZE_LEN,
        Pdu::Command(..) => COMMAND_HEADER_LEN,
        Pdu::Response(_) => RESPONSE_HEADER_LEN,
        Pdu::HostTermination(_)
        | Pdu::ControllerTermination(_)
        | Pdu::HostData(_)
        | Pdu::ControllerData(_)
        | Pdu::ReadyToTransfer(_) => DATA_HEADER_LEN,
    };
    let after_header = hlen + if digests.header { DIGEST_LEN } else { 0 };
    let (pdo, tail) = if data == 0 || is_termination(pdu.kind()) {
        (0, 0)
    } else {
        let step = 4 * (usize::from(alignment) + 1);
        let tail = if digests.data { DIGEST_LEN } else { 0 };
        (after_header.div_ceil(step) * step, tail)
    };
    let data_start = if pdo == 0 { after_header } else { pdo };
    out.put_u8(pdu.kind());
    out.put_u8(flags_of(pdu, digests));
    out.put_u8(hlen as u8);
    out.put_u8(pdo as u8);
    out.put_u32_le((data_start + data + tail) as u32);
    encode_specific(pdu, out);
    out.resize(start + hlen, 0);
    if digests.header {
        let digest = crc32c::crc32c(&out[start..]);
        out.put_u32_le(digest);
    }
    out.resize(start + data_start, 0);
}

/// The data digest to append after the unit's data; `None` where there is none.
pub fn data_digest(pdu: &Pdu, digests: Digests) -> Option<u32> {
    let data = pdu.data();
    (effective(pdu.kind(), digests).data && !data.is_empty()).then(|| crc32c::crc32c(data))
}

fn flags_of(pdu: &Pdu, digests: Digests) -> u8 {
    let mut flags = if digests.header {
        FLAG_HEADER_DIGEST
    } else {
        0
    };
    if digests.data && !pdu.data().is_empty() {
        flags |= FLAG_DATA_DIGEST;
    }
    if let Pdu::HostData(unit) | Pdu::ControllerData(unit) = pdu {
        flags |= if unit.last { FLAG_LAST } else { 0 };
        flags |= if unit.success { FLAG_SUCCESS } else { 0 };
    }
    flags
}

fn encode_specific(pdu: &Pdu, out: &mut BytesMut) {
    match pdu {
        Pdu::InitializeRequest(unit) => {
            put_initialize(unit.format, unit.data_alignment, unit.digests, out);
            out.put_u32_le(unit.max_r2t_minus_one);
        }
        Pdu::InitializeResponse(unit) => {
            put_initialize(unit.format, unit.data_alignment, unit.digests, out);
            out.put_u32_le(unit.max_host_data);
        }
        Pdu::HostTermination(unit) | Pdu::ControllerTermination(unit) => {
            out.put_u16_le(unit.status);
            out.put_u32_le(unit.information);
        }
        Pdu::Command(command, _) => out.put_slice(&command.encode()),
        Pdu::Response(completion) => out.put_slice(&completion.encode()),
        Pdu::HostData(unit) | Pdu::ControllerData(unit) => {
            out.put_u16_le(unit.command);
            out.put_u16_le(unit.tag);
            out.put_u32_le(unit.offset);
            out.put_u32_le(unit.data.len() as u32);
        }
        Pdu::ReadyToTransfer(unit) => {
            out.put_u16_le(unit.command);
            out.put_u16_le(unit.tag);
            out.put_u32_le(unit.offset);
            out.put_u32_le(unit.length);
        }
    }
}

fn put_initialize(format: u16, alignment: u8, digests: Digests, out: &mut BytesMut) {
    out.put_u16_le(format);
    out.put_u8(alignment);
    out.put_u8(u8::from(digests.header) | u8::from(digests.data) << 1);
}
