//! Reservations that survive a power loss (PTPL): one JSON file, replaced as a whole.
//!
//! The new file is written and synced beside the old one, renamed over it, and the directory is
//! synced: after a crash at any point either the old or the new state is there.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::reservation::ReservationTable;

const VERSION: u32 = 1;

/// Why the state cannot be read. It is never replaced by an empty one: that would lift fences.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Reading failed.
    #[error("cannot read the reservation state {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It is no state of this version.
    #[error("the reservation state {} is damaged; remove it only if no host relies on its reservation", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// It was written by another version.
    #[error("the reservation state {} has version {version}, not {VERSION}", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    version: u32,
    namespaces: BTreeMap<u32, ReservationTable>,
}

/// The state file.
pub struct StateFile {
    path: PathBuf,
    /// What the file holds.
    saved: Mutex<BTreeMap<u32, ReservationTable>>,
}

impl StateFile {
    /// Reads the file; an absent one is an empty state.
    pub fn open(path: &Path) -> Result<Self, LoadError> {
        let path = path.to_owned();
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(source) => return Err(LoadError::Io { path, source }),
        };
        if bytes.is_empty() {
            let saved = Mutex::default();
            return Ok(Self { path, saved });
        }
        let state: State = match serde_json::from_slice(&bytes) {
            Ok(state) => state,
            Err(source) => return Err(LoadError::Damaged { path, source }),
        };
        if state.version != VERSION {
            let version = state.version;
            return Err(LoadError::Version { path, version });
        }
        let saved = Mutex::new(state.namespaces);
        Ok(Self { path, saved })
    }

    /// The saved state of a namespace.
    pub fn load(&self, namespace_id: u32) -> Option<ReservationTable> {
        let saved = self.saved.lock().unwrap_or_else(PoisonError::into_inner);
        saved.get(&namespace_id).cloned()
    }

    /// Makes a namespace's state durable; one without PTPL leaves the file. Blocks for the disk.
    pub fn save(&self, namespace_id: u32, table: &ReservationTable) -> io::Result<()> {
        let mut saved = self.saved.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = saved.clone();
        if table.persistent() {
            next.insert(namespace_id, table.clone());
        } else {
            next.remove(&namespace_id);
        }
        if next == *saved {
            return Ok(());
        }
        let state = State {
            version: VERSION,
            namespaces: next,
        };
        replace(&self.path, &serde_json::to_vec_pretty(&state)?)?;
        *saved = state.namespaces;
        Ok(())
    }
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let beside = path.with_extension("new");
    let mut file = File::create(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    let directory = path.parent().filter(|p| !p.as_os_str().is_empty());
    File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::HostId;
    use crate::reservation::{ChangePersistence, Register};
    use uuid::Uuid;

    #[test]
    fn persistent_state_comes_back_and_damage_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        let mut table = ReservationTable::new(true);
        let host = HostId(Uuid::from_u128(5));
        let register = Register::Register { key: u64::MAX };
        table
            .register_action(host, register, ChangePersistence::Persistent)
            .unwrap();
        StateFile::open(&path).unwrap().save(1, &table).unwrap();
        let loaded = StateFile::open(&path).unwrap().load(1).unwrap();
        assert_eq!(loaded.with_can_persist(true), table);

        table.set_persistent(false).unwrap();
        StateFile::open(&path).unwrap().save(1, &table).unwrap();
        assert_eq!(StateFile::open(&path).unwrap().load(1), None);

        fs::write(&path, "{\"version\":1,").unwrap();
        assert!(matches!(
            StateFile::open(&path),
            Err(LoadError::Damaged { .. })
        ));
        fs::write(&path, "{\"version\":9,\"namespaces\":{}}").unwrap();
        assert!(matches!(
            StateFile::open(&path),
            Err(LoadError::Version { version: 9, .. })
        ));
    }
}
