//! Is a volume proven blank, Baton's own, or something else?
//!
//! Formatting destroys what was there, so "blank" must be proven: everything that any known format
//! keeps at the ends of a device, its backup copies and samples all over it must be zero, and
//! `blkid`, where it is installed, must know no signature either. In doubt the answer is "not blank".

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nvme::block::{BlockDevice, BlockError};
use serde::{Deserialize, Serialize};

use super::label::Label;
use super::superblock::{ParseError, ReadError, Superblock};

/// How much of either end of a device must be zero. Partition tables, LVM, LUKS, RAID, ZFS, bcache
/// and all filesystems keep their first or last magic number within it.
const END_LEN: u64 = 1 << 20;

/// Samples between the ends: enough that data of a database whose header was wiped is noticed.
const SAMPLES: u64 = 256;
const SAMPLE_LEN: u64 = 4096;

/// Where backup copies lie, in bytes: btrfs (64 MiB, 256 GiB), ext4 with blocks of 1 and 4 KiB
/// (groups 1 and 3), swap and f2fs are within the ends already.
const BACKUPS: [u64; 6] = [
    8193 << 10,
    24577 << 10,
    64 << 20,
    128 << 20,
    384 << 20,
    256 << 30,
];

/// What a volume holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Contents {
    /// Proven blank: it may be formatted.
    Blank,
    /// This site's own, but preparing it was interrupted: it may be formatted again.
    Unfinished,
    /// An ext4 (or its relative) with a sound superblock; whose, [`Superblock::admit`] tells.
    Ext4(Box<Superblock>),
    /// Something else, or something damaged. Never formatted, never mounted.
    Foreign {
        /// What was found, for a person.
        what: String,
    },
}

/// Why it could not be found out what a volume holds.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The device could not be read.
    #[error("looking for signatures")]
    Device(#[from] BlockError),
    /// `blkid` is there but could not be run.
    #[error("running blkid on {}", device.display())]
    Blkid {
        /// The block device.
        device: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Proof that nothing is lost by formatting a device, when it was looked at. Only [`probe`] makes it.
#[derive(Debug)]
pub struct Formattable {
    device: PathBuf,
    label: Label,
    /// Whether `mkfs` finds the filesystem of an interrupted attempt.
    again: bool,
}

impl Formattable {
    /// The device that may be formatted.
    pub fn device(&self) -> &Path {
        &self.device
    }

    /// The label that it shall get.
    pub fn label(&self) -> &Label {
        &self.label
    }

    /// Whether an interrupted attempt of the same site is on it.
    pub fn again(&self) -> bool {
        self.again
    }
}

/// Finds out what `device` holds, past the page cache; with a proof if it may be formatted for the
/// site with this label.
pub fn probe(device: &Path, label: &Label) -> Result<(Contents, Option<Formattable>), ProbeError> {
    let formattable = |again| Formattable {
        device: device.to_owned(),
        label: label.clone(),
        again,
    };
    match Superblock::read(device) {
        Ok(superblock) if superblock.label == label.unfinished() => {
            return Ok((Contents::Unfinished, Some(formattable(true))));
        }
        Ok(superblock) => return Ok((Contents::Ext4(Box::new(superblock)), None)),
        Err(ReadError::Parse {
            source: ParseError::Magic { .. },
            ..
        }) => {}
        Err(ReadError::Parse { source, .. }) => {
            let what = source.to_string();
            return Ok((Contents::Foreign { what }, None));
        }
        Err(ReadError::Device(error)) => return Err(error.into()),
    }
    if let Some(what) = first_data(device)? {
        return Ok((Contents::Foreign { what }, None));
    }
    if let Some(what) = blkid(device)? {
        return Ok((Contents::Foreign { what }, None));
    }
    Ok((Contents::Blank, Some(formattable(false))))
}

/// The first thing found on a device that should be all zeros.
fn first_data(device: &Path) -> Result<Option<String>, ProbeError> {
    let open = BlockDevice::open_direct(device)?;
    let size = open.size()?;
    if size < 4 * END_LEN {
        return Ok(Some(format!(
            "a device of {size} bytes, too small for a database"
        )));
    }
    for (offset, length) in regions(size) {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let bytes = open.read_direct(offset, length)?;
        if let Some(at) = bytes.iter().position(|byte| *byte != 0) {
            let name = known_signature(&bytes, offset).unwrap_or("unknown data");
            return Ok(Some(format!("{name} (at byte {})", offset + at as u64)));
        }
    }
    Ok(None)
}

/// The parts of a device of this size that are looked at, as offset and length in bytes.
fn regions(size: u64) -> Vec<(u64, u64)> {
    let last = size - END_LEN;
    let between = |offset: &u64| *offset >= END_LEN && offset + SAMPLE_LEN <= last;
    let step = (size / SAMPLES) & !(SAMPLE_LEN - 1);
    let mut samples: Vec<u64> = (1..SAMPLES)
        .map(|n| n * step)
        .chain(BACKUPS.map(|offset| offset & !(SAMPLE_LEN - 1)))
        .filter(between)
        .collect();
    samples.sort_unstable();
    samples.dedup();
    let ends = [
        (0, END_LEN),
        (last & !(SAMPLE_LEN - 1), size - (last & !(SAMPLE_LEN - 1))),
    ];
    ends.into_iter()
        .chain(samples.into_iter().map(|offset| (offset, SAMPLE_LEN)))
        .collect()
}

/// A magic number at a byte offset from the start of the device, and what has it.
const SIGNATURES: &[(usize, &[u8], &str)] = &[
    (0, b"XFSB", "an XFS filesystem"),
    (0, b"LUKS\xba\xbe", "a LUKS encrypted volume"),
    (0, b"hsqs", "a squashfs image"),
    (0, b"bluestore block device", "a Ceph BlueStore device"),
    (24, b"LVM2 001", "an LVM physical volume"),
    (512, b"LABELONE", "an LVM physical volume"),
    (512, b"EFI PART", "a GPT partition table"),
    (510, b"\x55\xaa", "a partition table or boot sector"),
    (1024, b"\x10\x20\xf5\xf2", "an F2FS filesystem"),
    (4086, b"SWAPSPACE2", "swap space"),
    (4096, b"\xfc\x4e\x2b\xa9", "a Linux RAID member"),
    (0, b"\xfc\x4e\x2b\xa9", "a Linux RAID member"),
    (4120, b"\xc6\x85\x73\xf6", "a bcache or bcachefs device"),
    (32769, b"CD001", "an ISO 9660 image"),
    (65600, b"_BHRfS_M", "a btrfs filesystem"),
];

/// Names what the bytes at the start of a device are, where it is well known.
fn known_signature(bytes: &[u8], offset: u64) -> Option<&'static str> {
    if offset != 0 {
        return None;
    }
    SIGNATURES
        .iter()
        .find(|(at, magic, _)| bytes.get(*at..*at + magic.len()) == Some(*magic))
        .map(|(_, _, name)| *name)
}

/// What libblkid knows of the device; `None` when it knows nothing or is not installed.
///
/// A second opinion on bytes that were just seen to be zero: it covers formats not known here.
fn blkid(device: &Path) -> Result<Option<String>, ProbeError> {
    let output = Command::new("blkid")
        .args(["--probe", "--output", "value", "--match-tag", "TYPE"])
        .args(["--match-tag", "PTTYPE"])
        .arg(device)
        .stdin(Stdio::null())
        .output();
    let output = match output {
        Ok(output) => output,
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => {
            return Err(ProbeError::Blkid {
                device: device.to_owned(),
                source,
            });
        }
    };
    // blkid(8): 2 means that nothing was found; 8 that the result is ambivalent.
    match output.status.code() {
        Some(2) => Ok(None),
        Some(0) => {
            let names = String::from_utf8_lossy(&output.stdout);
            let names: Vec<&str> = names.split_whitespace().collect();
            Ok(Some(format!("{} (says blkid)", names.join(", "))))
        }
        _ => Ok(Some(format!(
            "something that blkid is unsure of ({})",
            output.status
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_cover_both_ends_and_stay_within() {
        for size in [4 << 20, 5 << 20, (1 << 30) + 512, 2 << 30, 1 << 40] {
            let regions = regions(size);
            assert_eq!(regions[0], (0, END_LEN));
            let (offset, length) = regions[1];
            assert_eq!(offset + length, size);
            assert!(length >= END_LEN);
            for (offset, length) in &regions[2..] {
                assert!(
                    offset % SAMPLE_LEN == 0 && offset + length <= size,
                    "{size}"
                );
            }
            assert!(regions.len() <= 300, "{size}: {}", regions.len());
        }
    }

    #[test]
    fn well_known_formats_are_named() {
        for (at, magic, name) in SIGNATURES {
            let mut bytes = vec![0_u8; 70_000];
            bytes[*at..*at + magic.len()].copy_from_slice(magic);
            assert_eq!(known_signature(&bytes, 0), Some(*name));
            assert_eq!(known_signature(&bytes, 4096), None);
        }
    }
}
