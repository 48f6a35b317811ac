//! Whether requests wait in a bridge: those that it has taken from the kernel, or not yet.

use std::io;
use std::path::{Path, PathBuf};

use super::fuse::{self, Connection};
use super::process::Process;

/// Where the kernel counts the requests of a bridge's device.
pub enum BridgeQueue {
    /// In its FUSE connection.
    Fuse(Connection),
    /// In its ublk device: the file with the numbers of reads and writes under way.
    Ublk(PathBuf),
}

impl BridgeQueue {
    /// That of a running bridge.
    pub fn of(bridge: Process) -> io::Result<Self> {
        for entry in std::fs::read_dir(format!("/proc/{}/fd", bridge.pid))? {
            // a descriptor may be closed while we look
            let Ok(file) = std::fs::read_link(entry?.path()) else {
                continue;
            };
            if let Some(device) = ublk_device(&file) {
                let inflight = Path::new("/sys/block").join(device).join("inflight");
                return Ok(Self::Ublk(inflight));
            }
        }
        Connection::of(bridge).map(Self::Fuse)
    }

    /// Where it is counted.
    pub fn place(&self) -> &Path {
        match self {
            Self::Fuse(_) => Path::new(fuse::CONTROL),
            Self::Ublk(inflight) => inflight,
        }
    }

    /// Whether at least one request waits.
    pub fn waits(&self) -> io::Result<bool> {
        match self {
            Self::Fuse(connection) => connection.waits(),
            Self::Ublk(inflight) => {
                let text = std::fs::read_to_string(inflight)?;
                Ok(text.split_whitespace().any(|count| count != "0"))
            }
        }
    }
}

/// The block device's name, of an open `/dev/ublkcN`.
fn ublk_device(file: &Path) -> Option<String> {
    let number = file.to_str()?.strip_prefix("/dev/ublkc")?;
    let number: u32 = number.parse().ok()?;
    Some(format!("ublkb{number}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_character_device_tells_the_block_device() {
        let of = |path: &str| ublk_device(Path::new(path));
        assert_eq!(of("/dev/ublkc12").as_deref(), Some("ublkb12"));
        assert_eq!(of("/dev/ublk-control"), None);
        assert_eq!(of("/dev/fuse"), None);
    }
}
