//! The first format of a volume: only one that is proven blank, only under a permit.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use fencing::WritePermit;
use uuid::Uuid;

use super::label::Label;
use super::signature::Blank;

/// What every filesystem of Baton is made of, spelled out so that `/etc/mke2fs.conf` has no say.
///
/// `none` first clears the defaults. No `mmp`: its wait of up to 42 s after a crash cannot be
/// skipped. No `orphan_file` or `metadata_csum_seed`: kernels and tools of 2022 do not know them.
const FEATURES: &str = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,\
                        flex_bg,sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum";

/// Extended options. Both lazy initialisations off: with them the kernel would go on writing zeros
/// for minutes after the first mount, into the first hand-over. `nodiscard`: what was not read while
/// proving that the volume is blank is not thrown away either.
const EXTENDED: &str = "lazy_itable_init=0,lazy_journal_init=0,nodiscard";

/// Bytes per inode. PostgreSQL has few, large files; a quarter of the usual inodes is a quarter of
/// the zeros to write here, and still 32,000 files for 2 GiB.
const BYTES_PER_INODE: &str = "65536";

/// Size of the journal in MiB. It bounds what a mount after a crash has to read and replay; ext4
/// would take 1 GiB on a large volume. PostgreSQL writes data, not metadata: 64 is plenty.
const JOURNAL_MIB: &str = "64";

/// Below this size the journal is left to `mkfs`: 64 MiB would be a large part of the volume.
const SMALL_VOLUME: u64 = 1 << 30;

/// Why a volume was not formatted.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// `mkfs.ext4` could not be run.
    #[error("running mkfs.ext4 (install e2fsprogs)")]
    Run(#[source] io::Error),
    /// The device's size could not be read.
    #[error("reading the size of the volume")]
    Device(#[from] nvme::block::BlockError),
    /// `mkfs.ext4` failed; the volume may be half formatted.
    #[error("mkfs.ext4 {} failed ({status}): {message}", device.display())]
    Failed {
        /// The block device.
        device: PathBuf,
        /// How it ended.
        status: std::process::ExitStatus,
        /// What it said.
        message: String,
    },
}

/// Makes an ext4 with this label on a volume that was proven blank; returns its new UUID.
///
/// Blocks until all is written; on failure the volume may hold an incomplete filesystem without a
/// [marker](super::marker), which is recognised as "preparation interrupted".
pub fn format(_permit: &WritePermit, blank: Blank, label: &Label) -> Result<Uuid, FormatError> {
    let uuid = Uuid::new_v4();
    let size = nvme::block::BlockDevice::open_direct(blank.device())?.size()?;
    let output = command(blank.device(), label, uuid, size)
        .output()
        .map_err(FormatError::Run)?;
    if output.status.success() {
        return Ok(uuid);
    }
    Err(FormatError::Failed {
        device: blank.device().to_owned(),
        status: output.status,
        message: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

fn command(device: &Path, label: &Label, uuid: Uuid, size: u64) -> Command {
    let mut command = Command::new("mkfs.ext4");
    // Without -F: should there be a filesystem after all, mkfs asks, gets no answer and gives up.
    command
        .args(["-q", "-b", "4096", "-I", "256", "-m", "0"])
        .args(["-O", FEATURES, "-E", EXTENDED, "-i", BYTES_PER_INODE])
        .args(["-L", label.as_str(), "-U", &uuid.to_string()]);
    if size >= SMALL_VOLUME {
        command.args(["-J", &format!("size={JOURNAL_MIB}")]);
    }
    command.arg(device).stdin(Stdio::null()).env("LC_ALL", "C");
    command
}
