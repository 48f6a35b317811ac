//! The ext4 superblock, read without the page cache.
//!
//! Parsing only: what a superblock means for a take-over is decided elsewhere. The offsets are those
//! of `struct ext4_super_block` (Linux, fs/ext4/ext4.h; Documentation/filesystems/ext4/super.rst).

use std::fmt;
use std::path::{Path, PathBuf};

use nvme::block::{BlockDevice, BlockError};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::label::Label;

/// Where the primary superblock begins, in bytes from the start of the device.
pub const SUPERBLOCK_OFFSET: u64 = 1024;
/// The length of a superblock in bytes.
pub const SUPERBLOCK_LEN: usize = 1024;

const MAGIC: u16 = 0xef53;
const CHECKSUM_OFFSET: usize = 0x3fc;

const COMPAT_HAS_JOURNAL: u32 = 0x4;
const INCOMPAT_RECOVER: u32 = 0x4;
const INCOMPAT_JOURNAL_DEVICE: u32 = 0x8;
const INCOMPAT_EXTENTS: u32 = 0x40;
const INCOMPAT_64BIT: u32 = 0x80;
const INCOMPAT_MMP: u32 = 0x100;
const RO_COMPAT_METADATA_CSUM: u32 = 0x400;

const STATE_VALID: u16 = 0x1;
const STATE_ERRORS: u16 = 0x2;

const DEFAULT_OPTION_NOBARRIER: u32 = 0x100;

/// What an ext4 superblock says, as far as a handover needs it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Superblock {
    /// The filesystem's UUID.
    pub uuid: Uuid,
    /// The volume label, up to its first zero byte.
    pub label: String,
    /// Size in filesystem blocks.
    pub blocks: u64,
    /// Size of a filesystem block in bytes.
    pub block_size: u32,
    /// Whether the journal holds transactions that a mount must replay.
    pub needs_recovery: bool,
    /// Whether the "valid" flag of the state is set: unmounted, or mounted with a journal.
    pub state_valid: bool,
    /// Whether the filesystem recorded an error of its own metadata.
    pub has_errors: bool,
    /// Number of errors recorded since the last check.
    pub error_count: u32,
    /// Whether it has a journal of its own.
    pub has_journal: bool,
    /// Whether its journal lies on another device.
    pub external_journal: bool,
    /// Whether Multiple Mount Protection is on.
    pub mmp: bool,
    /// Whether files are mapped by extents, which distinguishes ext4 from ext2 and ext3.
    pub extents: bool,
    /// Whether the superblock's default mount options turn write barriers off.
    pub default_nobarrier: bool,
    /// The default mount options stored as text (`tune2fs -E mount_opts=`).
    pub mount_options: String,
    /// Where it was mounted last.
    pub last_mounted: String,
    /// Mounts since the last check.
    pub mount_count: u16,
    /// Time of the last write, in seconds since 1970 by the writer's clock. For people only.
    pub written_at: u64,
}

/// What a superblock says about how its last owner left it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cleanliness {
    /// Unmounted in order: nothing to replay, no error recorded.
    Clean,
    /// The journal must be replayed: mounted now, or its owner went without unmounting.
    NeedsRecovery,
    /// Unmounted, but the filesystem recorded an error: `e2fsck` has to look at it.
    Errors,
}

impl fmt::Display for Cleanliness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Clean => "clean",
            Self::NeedsRecovery => "its journal needs recovery",
            Self::Errors => "it recorded errors: run e2fsck",
        })
    }
}

/// Why bytes are no usable ext4 superblock.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ParseError {
    /// The magic number is missing: no ext2, ext3 or ext4.
    #[error("no ext4 superblock: magic is {found:#06x}, not 0xef53")]
    Magic {
        /// What stood there.
        found: u16,
    },
    /// The superblock's own checksum does not match: damaged, or read while it was being written.
    #[error(
        "the ext4 superblock is damaged: its checksum is {stored:#010x}, computed {computed:#010x}"
    )]
    Checksum {
        /// The checksum in the superblock.
        stored: u32,
        /// The checksum of its bytes.
        computed: u32,
    },
    /// A field has a value that no ext4 has.
    #[error("the ext4 superblock is damaged: {field} is {value}")]
    Field {
        /// The field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// Fewer bytes than a superblock has.
    #[error("{got} bytes are too few for an ext4 superblock")]
    Short {
        /// How many there were.
        got: usize,
    },
}

/// Why no superblock was read from a device.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The device could not be read.
    #[error("reading a superblock")]
    Device(#[from] BlockError),
    /// What was read is no superblock.
    #[error("{} holds no usable ext4", device.display())]
    Parse {
        /// The block device.
        device: PathBuf,
        /// What is wrong.
        #[source]
        source: ParseError,
    },
}

/// Why a volume with a sound superblock must not be mounted by this cluster.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Refusal {
    /// The label belongs to another cluster or site, or to nothing of Baton's at all.
    #[error(
        "the volume belongs to something else: its label is {found:?}, this site's is {expected:?}; \
         attach the right volume"
    )]
    OtherLabel {
        /// The label of this site.
        expected: String,
        /// The label on the volume.
        found: String,
    },
    /// Preparing it for the first time was interrupted; nothing on it ever served anybody.
    #[error("preparing the volume for the first time was interrupted; it can be formatted again")]
    Unfinished,
    /// Multiple Mount Protection: its wait of up to 42 s after a crash cannot be skipped.
    #[error("ext4 Multiple Mount Protection is on; turn it off: tune2fs -O ^mmp DEVICE")]
    MultipleMountProtection,
    /// Without a journal there is no crash consistency.
    #[error("the filesystem has no journal; add one: tune2fs -j DEVICE")]
    NoJournal,
    /// A journal on another device is not fenced with this volume.
    #[error(
        "the filesystem's journal is on another device, which this volume's fence does not cover"
    )]
    ExternalJournal,
    /// Not ext4, but its older relative.
    #[error("the filesystem is ext2 or ext3, not ext4")]
    NotExt4,
    /// Write barriers are off by default: a Flush would never reach the volume.
    #[error(
        "the filesystem's default mount options turn barriers off; reset them: tune2fs -o ^nobarrier -E mount_opts= DEVICE"
    )]
    NoBarrier,
}

impl Superblock {
    /// Reads the primary superblock of `device` past the page cache.
    pub fn read(device: &Path) -> Result<Self, ReadError> {
        let bytes =
            BlockDevice::open_direct(device)?.read_direct(SUPERBLOCK_OFFSET, SUPERBLOCK_LEN)?;
        Self::parse(&bytes).map_err(|source| ReadError::Parse {
            device: device.to_owned(),
            source,
        })
    }

    /// Parses the 1024 bytes of a superblock.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let block: &[u8; SUPERBLOCK_LEN] = bytes
            .get(..SUPERBLOCK_LEN)
            .and_then(|b| b.try_into().ok())
            .ok_or(ParseError::Short { got: bytes.len() })?;
        let field = Fields(block);
        let magic = field.u16(0x38);
        if magic != MAGIC {
            return Err(ParseError::Magic { found: magic });
        }
        let (compat, incompat, ro_compat) = (field.u32(0x5c), field.u32(0x60), field.u32(0x64));
        if ro_compat & RO_COMPAT_METADATA_CSUM != 0 {
            verify_checksum(block)?;
        }
        let log_block_size = field.u32(0x18);
        // 1 KiB << 6 is 64 KiB, the largest block that ext4 knows.
        if log_block_size > 6 {
            return Err(ParseError::Field {
                field: "log_block_size",
                value: log_block_size.into(),
            });
        }
        let blocks_high = if incompat & INCOMPAT_64BIT != 0 {
            field.u32(0x150)
        } else {
            0
        };
        let state = field.u16(0x3a);
        Ok(Self {
            uuid: Uuid::from_bytes(field.array(0x68)),
            label: field.text(0x78, 16),
            blocks: u64::from(blocks_high) << 32 | u64::from(field.u32(0x4)),
            block_size: 1024 << log_block_size,
            needs_recovery: incompat & INCOMPAT_RECOVER != 0,
            state_valid: state & STATE_VALID != 0,
            has_errors: state & STATE_ERRORS != 0,
            error_count: field.u32(0x194),
            has_journal: compat & COMPAT_HAS_JOURNAL != 0,
            external_journal: incompat & INCOMPAT_JOURNAL_DEVICE != 0 || field.u32(0xe4) != 0,
            mmp: incompat & INCOMPAT_MMP != 0,
            extents: incompat & INCOMPAT_EXTENTS != 0,
            default_nobarrier: field.u32(0x100) & DEFAULT_OPTION_NOBARRIER != 0,
            mount_options: field.text(0x200, 64),
            last_mounted: field.text(0x88, 64),
            mount_count: field.u16(0x34),
            written_at: u64::from(field.u32(0x30)) | u64::from(block[0x274]) << 32,
        })
    }

    /// How the last owner left the filesystem.
    ///
    /// An error that is recorded wins over nothing to replay; a journal that must be replayed wins
    /// over both, because only the replay tells what the filesystem really holds.
    pub fn cleanliness(&self) -> Cleanliness {
        if self.needs_recovery || !self.state_valid {
            Cleanliness::NeedsRecovery
        } else if self.has_errors {
            Cleanliness::Errors
        } else {
            Cleanliness::Clean
        }
    }

    /// Whether the site with this label may mount the filesystem and serve from it.
    pub fn admit(&self, label: &Label) -> Result<(), Refusal> {
        if self.label == label.unfinished() {
            return Err(Refusal::Unfinished);
        }
        if self.label != label.finished() {
            return Err(Refusal::OtherLabel {
                expected: label.to_string(),
                found: self.label.clone(),
            });
        }
        if !self.extents {
            return Err(Refusal::NotExt4);
        }
        if self.mmp {
            return Err(Refusal::MultipleMountProtection);
        }
        if self.external_journal {
            return Err(Refusal::ExternalJournal);
        }
        if !self.has_journal {
            return Err(Refusal::NoJournal);
        }
        if self.default_nobarrier || names_nobarrier(&self.mount_options) {
            return Err(Refusal::NoBarrier);
        }
        Ok(())
    }
}

/// Whether a list of mount options turns write barriers off.
pub(super) fn names_nobarrier(options: &str) -> bool {
    options
        .split(',')
        .any(|option| matches!(option.trim(), "nobarrier" | "barrier=0"))
}

/// ext4 keeps the CRC-32C without its final inversion (`ext4_chksum`, fs/ext4/ext4.h).
fn verify_checksum(block: &[u8; SUPERBLOCK_LEN]) -> Result<(), ParseError> {
    let stored = Fields(block).u32(CHECKSUM_OFFSET);
    let computed = !crc32c::crc32c(&block[..CHECKSUM_OFFSET]);
    if stored == computed {
        Ok(())
    } else {
        Err(ParseError::Checksum { stored, computed })
    }
}

/// Little-endian fields at constant offsets, all of which lie within the block.
struct Fields<'a>(&'a [u8; SUPERBLOCK_LEN]);

impl Fields<'_> {
    fn array<const N: usize>(&self, offset: usize) -> [u8; N] {
        std::array::from_fn(|i| self.0[offset + i])
    }

    fn u16(&self, offset: usize) -> u16 {
        u16::from_le_bytes(self.array(offset))
    }

    fn u32(&self, offset: usize) -> u32 {
        u32::from_le_bytes(self.array(offset))
    }

    fn text(&self, offset: usize, len: usize) -> String {
        let bytes = &self.0[offset..offset + len];
        let end = bytes.iter().position(|b| *b == 0).unwrap_or(len);
        String::from_utf8_lossy(&bytes[..end]).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn label() -> Label {
        Label::of("c", "s")
    }

    fn sound() -> [u8; SUPERBLOCK_LEN] {
        let mut block = [0_u8; SUPERBLOCK_LEN];
        block[0x38..0x3a].copy_from_slice(&MAGIC.to_le_bytes());
        block[0x3a] = 1;
        block[0x18] = 2;
        block[0x4..0x8].copy_from_slice(&1000_u32.to_le_bytes());
        block[0x5c] = 0x4;
        block[0x60] = 0x40;
        block[0x78..0x88].copy_from_slice(label().finished().as_bytes());
        block
    }

    fn with(change: impl FnOnce(&mut [u8; SUPERBLOCK_LEN])) -> Superblock {
        let mut block = sound();
        change(&mut block);
        Superblock::parse(&block).unwrap()
    }

    #[test]
    fn cleanliness_follows_the_flags() {
        assert_eq!(with(|_| ()).cleanliness(), Cleanliness::Clean);
        assert_eq!(
            with(|b| b[0x60] |= 4).cleanliness(),
            Cleanliness::NeedsRecovery
        );
        assert_eq!(
            with(|b| b[0x3a] = 0).cleanliness(),
            Cleanliness::NeedsRecovery
        );
        assert_eq!(with(|b| b[0x3a] = 3).cleanliness(), Cleanliness::Errors);
        let both = with(|b| {
            b[0x3a] = 3;
            b[0x60] |= 4;
        });
        assert_eq!(both.cleanliness(), Cleanliness::NeedsRecovery);
    }

    #[test]
    fn admission_names_what_is_wrong() {
        let label = label();
        assert_eq!(with(|_| ()).admit(&label), Ok(()));
        let other = with(|_| ()).admit(&Label::of("d", "s"));
        assert!(
            matches!(other, Err(Refusal::OtherLabel { .. })),
            "{other:?}"
        );
        type Change<'a> = &'a dyn Fn(&mut [u8; SUPERBLOCK_LEN]);
        let cases: [(Change<'_>, Refusal); 7] = [
            (&|b| b[0x7d] = b'?', Refusal::Unfinished),
            (&|b| b[0x61] |= 1, Refusal::MultipleMountProtection),
            (&|b| b[0x5c] = 0, Refusal::NoJournal),
            (&|b| b[0x60] |= 8, Refusal::ExternalJournal),
            (&|b| b[0x60] = 0, Refusal::NotExt4),
            (&|b| b[0x101] = 1, Refusal::NoBarrier),
            (
                &|b| b[0x200..0x200 + 13].copy_from_slice(b"ro, nobarrier"),
                Refusal::NoBarrier,
            ),
        ];
        for (change, refusal) in cases {
            assert_eq!(with(change).admit(&label), Err(refusal));
        }
    }

    #[test]
    fn damage_is_seen() {
        assert_eq!(
            Superblock::parse(&[0; SUPERBLOCK_LEN]),
            Err(ParseError::Magic { found: 0 })
        );
        assert_eq!(
            Superblock::parse(&[0; 10]),
            Err(ParseError::Short { got: 10 })
        );
        let mut block = sound();
        block[0x18] = 7;
        assert!(matches!(
            Superblock::parse(&block),
            Err(ParseError::Field { .. })
        ));
        let mut block = sound();
        block[0x65] = 4; // metadata_csum, without a checksum
        assert!(matches!(
            Superblock::parse(&block),
            Err(ParseError::Checksum { .. })
        ));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..1100)) {
            let _ = Superblock::parse(&bytes);
        }
    }
}
