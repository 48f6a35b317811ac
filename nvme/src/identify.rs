//! Identify data structures (NVMe Base 2.3, 5.1.13; NVM Command Set 1.1, 4.1.5): the fields that
//! Baton's target reports and its initiator reads. All other bytes are zero and ignored.

use uuid::Uuid;

use crate::Nqn;
use crate::command::{le16, le32, le64};
use crate::fabrics::{nqn_field, put_text};

/// Length of every Identify data structure, in bytes.
pub const IDENTIFY_LEN: usize = 4096;

/// CNS values.
pub mod cns {
    /// Identify Namespace, NVM Command Set.
    pub const NAMESPACE: u8 = 0x00;
    /// Identify Controller.
    pub const CONTROLLER: u8 = 0x01;
    /// Active namespaces' identifiers.
    pub const ACTIVE_NAMESPACES: u8 = 0x02;
    /// Namespace Identification Descriptors.
    pub const DESCRIPTORS: u8 = 0x03;
    /// Identify Controller, I/O Command Set specific.
    pub const CONTROLLER_COMMAND_SET: u8 = 0x06;
    /// Identify Namespace, independent of the I/O Command Set.
    pub const NAMESPACE_INDEPENDENT: u8 = 0x08;
}

/// CNTRLTYPE of an I/O controller.
pub const CONTROLLER_TYPE_IO: u8 = 1;
/// CNTRLTYPE of a Discovery controller.
pub const CONTROLLER_TYPE_DISCOVERY: u8 = 2;

/// ONCS bit 0: Compare.
pub const ONCS_COMPARE: u16 = 1 << 0;
/// ONCS bit 2: Dataset Management.
pub const ONCS_DATASET_MANAGEMENT: u16 = 1 << 2;
/// ONCS bit 3: Write Zeroes.
pub const ONCS_WRITE_ZEROES: u16 = 1 << 3;
/// ONCS bit 5: reservations.
pub const ONCS_RESERVATIONS: u16 = 1 << 5;
/// OAES bit 8: Namespace Attribute Changed notices.
pub const OAES_NAMESPACE_CHANGED: u32 = 1 << 8;
/// RESCAP bit 0: Persist Through Power Loss.
pub const RESCAP_PERSISTENCE: u8 = 1 << 0;
/// RESCAP bits 1 to 6: all six types.
pub const RESCAP_ALL_TYPES: u8 = 0x7e;
/// RESCAP bit 7: IEKEY as NVMe 1.3 and later define it.
pub const RESCAP_IEKEY_1_3: u8 = 1 << 7;

/// Identify Controller (CNS 1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentifyController {
    /// SN, at most 20 ASCII characters.
    pub serial: String,
    /// MN, at most 40 ASCII characters.
    pub model: String,
    /// FR, at most 8 ASCII characters.
    pub firmware: String,
    /// CMIC; bit 1: the subsystem may have several controllers.
    pub multi_path: u8,
    /// MDTS: transfers of at most 2^n pages of 4 KiB; 0 for no limit.
    pub max_transfer_exponent: u8,
    /// CNTLID.
    pub controller: u16,
    /// VER, as the VS property.
    pub version: u32,
    /// OAES.
    pub async_events: u32,
    /// CTRATT; bit 0: 128-bit host identifiers.
    pub attributes: u32,
    /// CNTRLTYPE.
    pub controller_type: u8,
    /// OACS.
    pub admin_commands: u16,
    /// AERL: Asynchronous Event Requests at once, minus one.
    pub async_event_limit: u8,
    /// LPA.
    pub log_page_attributes: u8,
    /// KAS: granularity of the keep-alive timer in units of 100 ms; 0 for no keep alive.
    pub keep_alive_granularity: u16,
    /// CQT in milliseconds; 0 where unknown.
    pub command_quiesce_time_ms: u16,
    /// MAXCMD: commands outstanding on one queue.
    pub max_commands: u16,
    /// NN: highest namespace identifier.
    pub namespaces: u32,
    /// ONCS.
    pub optional_commands: u16,
    /// VWC; bit 0: a volatile write cache is present.
    pub volatile_write_cache: u8,
    /// SGLS.
    pub sgl_support: u32,
    /// SUBNQN; `None` where the controller reports none that is valid.
    pub subsystem: Option<Nqn>,
    /// IOCCSZ: largest I/O command capsule in units of 16 bytes.
    pub io_command_capsule_16b: u32,
    /// IORCSZ: largest I/O response capsule in units of 16 bytes.
    pub io_response_capsule_16b: u32,
    /// ICDOFF: offset of in-capsule data, in units of 16 bytes.
    pub in_capsule_offset_16b: u16,
    /// MSDBD: SGL data block descriptors of one capsule.
    pub max_sgl_descriptors: u8,
}

impl IdentifyController {
    /// The 4096 bytes on the wire.
    pub fn encode(&self) -> Vec<u8> {
        let mut b = vec![0; IDENTIFY_LEN];
        put_padded(&mut b[4..24], &self.serial);
        put_padded(&mut b[24..64], &self.model);
        put_padded(&mut b[64..72], &self.firmware);
        b[76] = self.multi_path;
        b[77] = self.max_transfer_exponent;
        b[78..80].copy_from_slice(&self.controller.to_le_bytes());
        b[80..84].copy_from_slice(&self.version.to_le_bytes());
        b[92..96].copy_from_slice(&self.async_events.to_le_bytes());
        b[96..100].copy_from_slice(&self.attributes.to_le_bytes());
        b[111] = self.controller_type;
        b[256..258].copy_from_slice(&self.admin_commands.to_le_bytes());
        b[259] = self.async_event_limit;
        b[261] = self.log_page_attributes;
        b[320..322].copy_from_slice(&self.keep_alive_granularity.to_le_bytes());
        b[386..388].copy_from_slice(&self.command_quiesce_time_ms.to_le_bytes());
        // SQES and CQES: the entry sizes are fixed, 2^6 and 2^4 bytes.
        b[512] = 0x66;
        b[513] = 0x44;
        b[514..516].copy_from_slice(&self.max_commands.to_le_bytes());
        b[516..520].copy_from_slice(&self.namespaces.to_le_bytes());
        b[520..522].copy_from_slice(&self.optional_commands.to_le_bytes());
        b[525] = self.volatile_write_cache;
        b[536..540].copy_from_slice(&self.sgl_support.to_le_bytes());
        if let Some(nqn) = &self.subsystem {
            put_text(&mut b[768..1024], nqn.as_str());
        }
        b[1792..1796].copy_from_slice(&self.io_command_capsule_16b.to_le_bytes());
        b[1796..1800].copy_from_slice(&self.io_response_capsule_16b.to_le_bytes());
        b[1800..1802].copy_from_slice(&self.in_capsule_offset_16b.to_le_bytes());
        b[1803] = self.max_sgl_descriptors;
        b
    }

    /// The structure in these bytes; `None` if they are fewer than 4096.
    pub fn decode(b: &[u8]) -> Option<Self> {
        if b.len() < IDENTIFY_LEN {
            return None;
        }
        Some(Self {
            serial: padded_text(&b[4..24]),
            model: padded_text(&b[24..64]),
            firmware: padded_text(&b[64..72]),
            multi_path: b[76],
            max_transfer_exponent: b[77],
            controller: le16(b, 78),
            version: le32(b, 80),
            async_events: le32(b, 92),
            attributes: le32(b, 96),
            controller_type: b[111],
            admin_commands: le16(b, 256),
            async_event_limit: b[259],
            log_page_attributes: b[261],
            keep_alive_granularity: le16(b, 320),
            command_quiesce_time_ms: le16(b, 386),
            max_commands: le16(b, 514),
            namespaces: le32(b, 516),
            optional_commands: le16(b, 520),
            volatile_write_cache: b[525],
            sgl_support: le32(b, 536),
            subsystem: nqn_field(&b[768..1024]),
            io_command_capsule_16b: le32(b, 1792),
            io_response_capsule_16b: le32(b, 1796),
            in_capsule_offset_16b: le16(b, 1800),
            max_sgl_descriptors: b[1803],
        })
    }
}

/// Identify Namespace (CNS 0) with one LBA format, without metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdentifyNamespace {
    /// NSZE and NCAP, in logical blocks; 0 for an inactive namespace.
    pub blocks: u64,
    /// NUSE, in logical blocks.
    pub used: u64,
    /// NSFEAT; bit 0 thin provisioning, bit 4 the optimal I/O fields are valid.
    pub features: u8,
    /// NMIC; bit 0: may be attached to several controllers.
    pub multi_path: u8,
    /// RESCAP.
    pub reservations: u8,
    /// DLFEAT; bits 2:0 value 1: deallocated blocks read as zeros; bit 3: Write Zeroes may deallocate.
    pub deallocation: u8,
    /// NGUID; nil for none.
    pub nguid: Uuid,
    /// EUI64; 0 for none.
    pub eui64: u64,
    /// LBADS of the format in use: blocks of 2^n bytes.
    pub block_size_exponent: u8,
}

impl IdentifyNamespace {
    const FORMATS_AT: usize = 128;

    /// The 4096 bytes on the wire.
    pub fn encode(&self) -> Vec<u8> {
        let mut b = vec![0; IDENTIFY_LEN];
        b[..8].copy_from_slice(&self.blocks.to_le_bytes());
        b[8..16].copy_from_slice(&self.blocks.to_le_bytes());
        b[16..24].copy_from_slice(&self.used.to_le_bytes());
        b[24] = self.features;
        b[30] = self.multi_path;
        b[31] = self.reservations;
        b[33] = self.deallocation;
        b[104..120].copy_from_slice(self.nguid.as_bytes());
        b[120..128].copy_from_slice(&self.eui64.to_be_bytes());
        b[Self::FORMATS_AT + 2] = self.block_size_exponent;
        b
    }

    /// The structure in these bytes; `None` if they are fewer than 4096. The format is the one that
    /// FLBAS selects.
    pub fn decode(b: &[u8]) -> Option<Self> {
        if b.len() < IDENTIFY_LEN {
            return None;
        }
        let mut nguid = [0; 16];
        nguid.copy_from_slice(&b[104..120]);
        let mut eui64 = [0; 8];
        eui64.copy_from_slice(&b[120..128]);
        // FLBAS: bits 3:0 are the index's low bits, bits 6:5 its high bits.
        let format = usize::from(b[26] & 0xf) | usize::from(b[26] >> 5 & 3) << 4;
        Some(Self {
            blocks: le64(b, 0),
            used: le64(b, 16),
            features: b[24],
            multi_path: b[30],
            reservations: b[31],
            deallocation: b[33],
            nguid: Uuid::from_bytes(nguid),
            eui64: u64::from_be_bytes(eui64),
            block_size_exponent: b[Self::FORMATS_AT + 4 * format + 2],
        })
    }

    /// The logical block size in bytes; `None` for an exponent outside 9 to 16, which nobody uses.
    pub fn block_size(&self) -> Option<u32> {
        (9..=16)
            .contains(&self.block_size_exponent)
            .then(|| 1 << self.block_size_exponent)
    }
}

/// Namespace Identification Descriptors (CNS 3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Descriptors {
    /// NIDT 1; 0 for none.
    pub eui64: u64,
    /// NIDT 2; nil for none.
    pub nguid: Uuid,
    /// NIDT 3; nil for none.
    pub uuid: Uuid,
}

impl Descriptors {
    /// The 4096 bytes on the wire.
    pub fn encode(&self) -> Vec<u8> {
        let mut b = Vec::with_capacity(IDENTIFY_LEN);
        let mut put = |kind: u8, id: &[u8]| {
            b.extend_from_slice(&[kind, id.len() as u8, 0, 0]);
            b.extend_from_slice(id);
        };
        if self.eui64 != 0 {
            put(1, &self.eui64.to_be_bytes());
        }
        if !self.nguid.is_nil() {
            put(2, self.nguid.as_bytes());
        }
        if !self.uuid.is_nil() {
            put(3, self.uuid.as_bytes());
        }
        b.resize(IDENTIFY_LEN, 0);
        b
    }

    /// The descriptors in these bytes; unknown kinds are skipped, a list cut short ends there.
    pub fn decode(mut b: &[u8]) -> Self {
        let mut found = Self::default();
        while b.len() >= 4 && b[1] != 0 {
            let (kind, length) = (b[0], usize::from(b[1]));
            let Some(id) = b.get(4..4 + length) else {
                break;
            };
            match (kind, length) {
                (1, 8) => found.eui64 = id.iter().fold(0, |n, b| n << 8 | u64::from(*b)),
                (2, 16) => found.nguid = Uuid::from_slice(id).unwrap_or_default(),
                (3, 16) => found.uuid = Uuid::from_slice(id).unwrap_or_default(),
                _ => {}
            }
            b = &b[4 + length..];
        }
        found
    }
}

/// The list of active namespaces (CNS 2): ascending, at most 1024, zero-terminated if shorter.
pub fn encode_namespace_list(namespaces: &[u32]) -> Vec<u8> {
    let mut b: Vec<u8> = namespaces
        .iter()
        .take(IDENTIFY_LEN / 4)
        .flat_map(|nsid| nsid.to_le_bytes())
        .collect();
    b.resize(IDENTIFY_LEN, 0);
    b
}

/// The namespaces in such a list.
pub fn decode_namespace_list(bytes: &[u8]) -> Vec<u32> {
    bytes
        .chunks_exact(4)
        .map(|chunk| le32(chunk, 0))
        .take_while(|nsid| *nsid != 0)
        .collect()
}

/// ASCII, padded with spaces, cut to the field.
pub(crate) fn put_padded(field: &mut [u8], text: &str) {
    field.fill(b' ');
    for (to, from) in field.iter_mut().zip(text.bytes()) {
        *to = from;
    }
}

/// The text of such a field without its padding.
pub(crate) fn padded_text(field: &[u8]) -> String {
    String::from_utf8_lossy(field)
        .trim_matches(['\0', ' '])
        .to_owned()
}
