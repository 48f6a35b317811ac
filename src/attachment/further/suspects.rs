//! Whom the further fences have not been proven against yet: a small file on this node, which
//! outlives the process and the boot.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use fencing::{Epoch, MemberId, ReservationKey};
use nvme::{HostId, ReservationReport};
use serde::{Deserialize, Serialize};

/// An owner that was fenced by the reservation, or was about to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Suspected {
    pub host: HostId,
    pub member: MemberId,
    pub epoch: Epoch,
}

/// The list.
pub(super) struct Suspects {
    path: PathBuf,
}

impl Suspects {
    /// In a directory that is this member's alone and survives a reboot.
    pub fn in_file(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
        }
    }

    /// Nobody, where there is no file.
    pub fn read(&self) -> io::Result<Vec<Suspected>> {
        match fs::read(&self.path) {
            Ok(text) => serde_json::from_slice(&text).map_err(io::Error::from),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// Durable when it returns, and whole at any moment.
    pub fn write(&self, suspected: &[Suspected]) -> io::Result<()> {
        if suspected.is_empty() && !self.path.exists() {
            return Ok(());
        }
        let new = self.path.with_extension("suspects-new");
        let mut file = File::create(&new)?;
        file.write_all(&serde_json::to_vec(suspected)?)?;
        file.sync_all()?;
        fs::rename(&new, &self.path)?;
        let directory = self.path.parent().unwrap_or(Path::new("/"));
        File::open(directory)?.sync_all()
    }

    /// Nobody is suspect any more.
    pub fn forget(&self) {
        if let Err(error) = fs::remove_file(&self.path)
            && error.kind() != ErrorKind::NotFound
        {
            tracing::warn!(%error, path = %self.path.display(), "the list of suspects stays");
        }
    }
}

/// Adds one; of each host the newest counts.
pub(super) fn add(suspected: &mut Vec<Suspected>, new: Suspected) {
    suspected.retain(|known| known.host != new.host);
    suspected.push(new);
}

/// Strikes out whoever is registered as `ready`: its ownership's key does not say that, and a
/// member says it only after it has proven that nothing of its ownership is left (SAFETY.md I6).
pub(super) fn strike_returned(suspected: &mut Vec<Suspected>, report: &ReservationReport) {
    suspected.retain(|suspect| {
        let returned = report.registrants.iter().any(|entry| {
            let key = ReservationKey::unpack(entry.key);
            !entry.holder
                && entry.host == suspect.host
                && key.is_some_and(|key| key.member == suspect.member && key.flags.ready)
        });
        !returned
    });
}
