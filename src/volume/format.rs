//! The first format of a volume: only where nothing is lost by it, only under a permit.
//!
//! `probe` → `format` (label "unfinished") → mount, marker, `initdb`, unmount → `finish` (final label).

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use fencing::WritePermit;
use nvme::block::{BlockDevice, BlockError};
use uuid::Uuid;

use super::label::Label;
use super::signature::Formattable;
use super::superblock::{self, Superblock};

const MKFS: &str = "mkfs.ext4";
const TUNE2FS: &str = "tune2fs";

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
    /// A program of e2fsprogs could not be run.
    #[error("running {program} (install e2fsprogs)")]
    Run {
        /// The program.
        program: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The device could not be read or flushed.
    #[error("formatting the volume")]
    Device(#[from] BlockError),
    /// The superblock could not be read back.
    #[error("verifying the volume's label")]
    ReadBack(#[from] superblock::ReadError),
    /// The label that was set does not read back.
    #[error("the volume's label reads back as {found:?}: the volume does not keep what is written")]
    Label {
        /// The label found.
        found: String,
    },
    /// A program failed; the volume may be half formatted.
    #[error("{program} {} failed ({status}): {message}", device.display())]
    Failed {
        /// The program.
        program: &'static str,
        /// The block device.
        device: PathBuf,
        /// How it ended.
        status: std::process::ExitStatus,
        /// What it said.
        message: String,
    },
}

/// Makes an ext4 on a volume that may be formatted; returns its new UUID. Its label says
/// "unfinished" until [`finish`]. Blocks until all is written.
pub fn format(_permit: &WritePermit, volume: Formattable) -> Result<Uuid, FormatError> {
    let uuid = Uuid::new_v4();
    let size = BlockDevice::open_direct(volume.device())?.size()?;
    let mut command = Command::new(MKFS);
    command
        .args(["-q", "-b", "4096", "-I", "256", "-m", "0"])
        .args(["-O", FEATURES, "-E", EXTENDED, "-i", BYTES_PER_INODE])
        .args(["-L", &volume.label().unfinished(), "-U", &uuid.to_string()]);
    if size >= SMALL_VOLUME {
        command.args(["-J", &format!("size={JOURNAL_MIB}")]);
    }
    if volume.again() {
        // Otherwise without it: should there be a filesystem after all, mkfs asks, gets no answer
        // and gives up.
        command.arg("-F");
    }
    run(MKFS, command.arg(volume.device()), volume.device())?;
    Ok(uuid)
}

/// Gives a prepared volume its final label: from now on it is never formatted again. It must not be
/// mounted; durable on return.
pub fn finish(_permit: &WritePermit, device: &Path, label: &Label) -> Result<(), FormatError> {
    let mut command = Command::new(TUNE2FS);
    run(
        TUNE2FS,
        command.args(["-L", &label.finished()]).arg(device),
        device,
    )?;
    // tune2fs writes through the page cache; dropping it writes back, and shows the volume's truth.
    BlockDevice::open_direct(device)?.drop_cache()?;
    let found = Superblock::read(device)?.label;
    if found == label.finished() {
        Ok(())
    } else {
        Err(FormatError::Label { found })
    }
}

fn run(program: &'static str, command: &mut Command, device: &Path) -> Result<(), FormatError> {
    let output = command
        .stdin(Stdio::null())
        .env("LC_ALL", "C")
        .output()
        .map_err(|source| FormatError::Run { program, source })?;
    if output.status.success() {
        return Ok(());
    }
    Err(FormatError::Failed {
        program,
        device: device.to_owned(),
        status: output.status,
        message: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}
