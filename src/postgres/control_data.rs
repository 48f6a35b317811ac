//! PostgreSQL's control file, `global/pg_control`: read, verified, never written.
//!
//! Layouts of PostgreSQL 14 to 16 (format 1300), 17 (1700) and 18 (1800) as in
//! `src/include/catalog/pg_control.h` on 64-bit little-endian machines. The three agree on every
//! field read here; 17 puts `wal_level` into padding, 18 adds `default_char_signedness` before the
//! checksum. Another format is refused, because a wrong guess would be worse than none.

use std::fmt;
use std::path::{Path, PathBuf};

use nvme::block::{BlockDevice, BlockError};
use serde::{Deserialize, Serialize};

use crate::volume::Beneath;

/// Where the control file lies in a data directory.
pub const CONTROL_FILE: &str = "global/pg_control";

/// The file is 8192 bytes; its contents fit the first 512, one sector, so a torn read cannot be.
const SECTOR: usize = 512;

/// Every supported machine is little-endian with 8-byte alignment (`maxAlign`, `floatFormat`).
const MAX_ALIGN: u32 = 8;
const FLOAT_FORMAT: f64 = 1_234_567.0;

/// A position in the write-ahead log.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Lsn(pub u64);

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xffff_ffff)
    }
}

/// A text that is no position in the write-ahead log.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{text:?} is no LSN such as 16/B374D848")]
pub struct InvalidLsn {
    /// What was given.
    pub text: String,
}

impl std::str::FromStr for Lsn {
    type Err = InvalidLsn;

    fn from_str(text: &str) -> Result<Self, InvalidLsn> {
        let half = |part: &str| u32::from_str_radix(part, 16).ok();
        text.split_once('/')
            .and_then(|(high, low)| Some((half(high)?, half(low)?)))
            .map(|(high, low)| Self(u64::from(high) << 32 | u64::from(low)))
            .ok_or_else(|| InvalidLsn {
                text: text.to_owned(),
            })
    }
}

/// PostgreSQL's own word for the state of a database system (`DBState`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DatabaseState {
    /// "starting up"
    StartingUp,
    /// "shut down": stopped in order as a primary; nothing to replay.
    ShutDown,
    /// "shut down in recovery": stopped in order as a replica.
    ShutDownInRecovery,
    /// "shutting down"
    ShuttingDown,
    /// "in crash recovery"
    InCrashRecovery,
    /// "in archive recovery": a running (or crashed) replica.
    InArchiveRecovery,
    /// "in production": a running (or crashed) primary.
    InProduction,
}

impl DatabaseState {
    fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::StartingUp,
            1 => Self::ShutDown,
            2 => Self::ShutDownInRecovery,
            3 => Self::ShuttingDown,
            4 => Self::InCrashRecovery,
            5 => Self::InArchiveRecovery,
            6 => Self::InProduction,
            _ => return None,
        })
    }

    /// Whether PostgreSQL was stopped in order, so that a start replays nothing.
    pub fn is_shut_down(self) -> bool {
        matches!(self, Self::ShutDown | Self::ShutDownInRecovery)
    }
}

impl fmt::Display for DatabaseState {
    /// The words of `pg_controldata`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::StartingUp => "starting up",
            Self::ShutDown => "shut down",
            Self::ShutDownInRecovery => "shut down in recovery",
            Self::ShuttingDown => "shutting down",
            Self::InCrashRecovery => "in crash recovery",
            Self::InArchiveRecovery => "in archive recovery",
            Self::InProduction => "in production",
        })
    }
}

/// What the control file says, as far as a handover needs it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlData {
    /// The database system's identifier, the same for a primary and all its replicas.
    pub system_identifier: u64,
    /// Format of the control file: 1300, 1700 or 1800.
    pub control_version: u32,
    /// Version of the system catalogues.
    pub catalog_version: u32,
    /// The state at the last write of the file.
    pub state: DatabaseState,
    /// Time of the last write, in seconds since 1970 by the writer's clock. For people only.
    pub written_at: i64,
    /// The latest checkpoint's record.
    pub checkpoint: Lsn,
    /// Where a replay of the write-ahead log begins.
    pub redo: Lsn,
    /// The latest checkpoint's timeline.
    pub timeline: u32,
    /// The timeline before it; the same unless the checkpoint began a new one.
    pub previous_timeline: u32,
    /// Whether full-page writes were on at the latest checkpoint.
    pub full_page_writes: bool,
    /// On a replica: the position it must replay to before it is consistent. Zero otherwise.
    pub minimum_recovery: Lsn,
    /// The timeline of `minimum_recovery`; zero where that is.
    pub minimum_recovery_timeline: u32,
    /// Size of a segment of the write-ahead log in bytes.
    pub wal_segment_size: u32,
    /// Version of the data page checksums; zero without checksums.
    pub data_checksum_version: u32,
}

/// Why bytes are no control file that this program understands.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ParseError {
    /// Too few bytes.
    #[error("{got} bytes are too few for a control file")]
    Short {
        /// How many there were.
        got: usize,
    },
    /// A format of PostgreSQL before 14 or after 18.
    #[error("control file format {found} is not of PostgreSQL 14 to 18")]
    Version {
        /// The format found.
        found: u32,
    },
    /// Damaged.
    #[error(
        "the control file is damaged: its checksum is {stored:#010x}, computed {computed:#010x}"
    )]
    Checksum {
        /// The checksum in the file.
        stored: u32,
        /// The checksum of its bytes.
        computed: u32,
    },
    /// A field has a value that PostgreSQL never writes.
    #[error("the control file is damaged: {field} is {value}")]
    Field {
        /// The field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// Written on a machine with another alignment or floating-point format.
    #[error("the database was made on a machine of another architecture")]
    Architecture,
}

/// Why no control data was read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file could not be opened.
    #[error("opening {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The file could not be read.
    #[error("reading the control file")]
    File(#[from] BlockError),
    /// The file is not usable.
    #[error("{} is not usable", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: ParseError,
    },
}

impl ControlData {
    /// Reads the control file of a data directory, past the page cache.
    ///
    /// # Errors
    /// The file cannot be read, or is none that this program understands.
    pub fn read(data_directory: &Path) -> Result<Self, ReadError> {
        let root = Beneath::at(data_directory).map_err(|source| ReadError::Open {
            path: data_directory.to_owned(),
            source,
        })?;
        Self::look(&root, Path::new(""))
    }

    /// As [`ControlData::read`], of a data directory beneath a volume's root.
    ///
    /// # Errors
    /// As there.
    pub fn look(root: &Beneath, data_directory: &Path) -> Result<Self, ReadError> {
        let file = data_directory.join(CONTROL_FILE);
        let path = root.path().join(&file);
        // With O_DIRECT, so that no cache answers for the volume.
        let opened = root.open_direct(&file).map_err(|source| ReadError::Open {
            path: path.clone(),
            source,
        })?;
        let bytes = BlockDevice::of_direct(opened, &path).read_direct(0, SECTOR)?;
        Self::parse(&bytes).map_err(|source| ReadError::Parse { path, source })
    }

    /// Parses and verifies a control file's bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let sector: &[u8; SECTOR] = bytes
            .get(..SECTOR)
            .and_then(|b| b.try_into().ok())
            .ok_or(ParseError::Short { got: bytes.len() })?;
        let field = Fields(sector);
        let control_version = field.u32(8);
        // Each layout's `crc`; the checksum covers everything before it.
        let checksum_at = match control_version {
            1300 | 1700 => 288,
            1800 => 292,
            found => return Err(ParseError::Version { found }),
        };
        let (stored, computed) = (
            field.u32(checksum_at),
            crc32c::crc32c(&sector[..checksum_at]),
        );
        if stored != computed {
            return Err(ParseError::Checksum { stored, computed });
        }
        if field.u32(204) != MAX_ALIGN || f64::from_bits(field.u64(208)) != FLOAT_FORMAT {
            return Err(ParseError::Architecture);
        }
        let state = field.u32(16);
        Ok(Self {
            system_identifier: field.u64(0),
            control_version,
            catalog_version: field.u32(12),
            state: DatabaseState::from_number(state).ok_or(ParseError::Field {
                field: "state",
                value: state.into(),
            })?,
            written_at: field.u64(24).cast_signed(),
            checkpoint: Lsn(field.u64(32)),
            redo: Lsn(field.u64(40)),
            timeline: field.u32(48),
            previous_timeline: field.u32(52),
            full_page_writes: sector[56] != 0,
            minimum_recovery: Lsn(field.u64(136)),
            minimum_recovery_timeline: field.u32(144),
            wal_segment_size: field.u32(228),
            data_checksum_version: field.u32(252),
        })
    }
}

/// Little-endian fields at constant offsets, all of which lie within the sector.
struct Fields<'a>(&'a [u8; SECTOR]);

impl Fields<'_> {
    fn u32(&self, offset: usize) -> u32 {
        u32::from_le_bytes(std::array::from_fn(|i| self.0[offset + i]))
    }

    fn u64(&self, offset: usize) -> u64 {
        u64::from_le_bytes(std::array::from_fn(|i| self.0[offset + i]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sound(version: u32) -> Vec<u8> {
        let mut file = vec![0_u8; 8192];
        let mut put = |offset: usize, bytes: &[u8]| {
            file[offset..offset + bytes.len()].copy_from_slice(bytes);
        };
        put(0, &7_000_000_000_000_000_001_u64.to_le_bytes());
        put(8, &version.to_le_bytes());
        put(16, &1_u32.to_le_bytes());
        put(32, &0x16_b374_d848_u64.to_le_bytes());
        put(48, &3_u32.to_le_bytes());
        put(204, &8_u32.to_le_bytes());
        put(208, &FLOAT_FORMAT.to_le_bytes());
        put(228, &(16_u32 << 20).to_le_bytes());
        put(252, &1_u32.to_le_bytes());
        seal(&mut file, if version == 1800 { 292 } else { 288 });
        file
    }

    fn seal(file: &mut [u8], at: usize) {
        let checksum = crc32c::crc32c(&file[..at]);
        file[at..at + 4].copy_from_slice(&checksum.to_le_bytes());
    }

    #[test]
    fn every_supported_format_is_read() {
        for version in [1300, 1700, 1800] {
            let data = ControlData::parse(&sound(version)).unwrap();
            assert_eq!(data.system_identifier, 7_000_000_000_000_000_001);
            assert_eq!(data.control_version, version);
            assert_eq!(data.state, DatabaseState::ShutDown);
            assert_eq!(data.checkpoint.to_string(), "16/B374D848");
            assert_eq!(data.timeline, 3);
            assert_eq!(data.wal_segment_size, 16 << 20);
            assert_eq!(data.data_checksum_version, 1);
        }
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        assert_eq!(
            ControlData::parse(&[0; 100]),
            Err(ParseError::Short { got: 100 })
        );
        for version in [0, 1201, 1301, 1900] {
            let parsed = ControlData::parse(&sound(version));
            assert_eq!(parsed, Err(ParseError::Version { found: version }));
        }
        let mut flipped = sound(1300);
        flipped[100] ^= 1;
        assert!(matches!(
            ControlData::parse(&flipped),
            Err(ParseError::Checksum { .. })
        ));
        let mut state = sound(1300);
        state[16] = 9;
        seal(&mut state, 288);
        let expected = ParseError::Field {
            field: "state",
            value: 9,
        };
        assert_eq!(ControlData::parse(&state), Err(expected));
        let mut alignment = sound(1300);
        alignment[204] = 4;
        seal(&mut alignment, 288);
        assert_eq!(
            ControlData::parse(&alignment),
            Err(ParseError::Architecture)
        );
    }

    #[test]
    fn lsn_reads_what_it_writes() {
        for text in ["0/0", "16/B374D848", "FFFFFFFF/FFFFFFFF"] {
            assert_eq!(text.parse::<Lsn>().unwrap().to_string(), text);
        }
        for text in ["", "1", "/", "1/G", "1/2/3", "100000000/0"] {
            assert!(text.parse::<Lsn>().is_err(), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..600)) {
            let _ = ControlData::parse(&bytes);
        }
    }
}
