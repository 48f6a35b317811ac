//! A mark on this node that says "this host owned the volume and was not seen to leave it clean".
//!
//! It outlives the process and not the boot: after a crash, commands of the dead process's
//! controllers may still be under way to the target, and would become legal the moment this host
//! holds again. Whoever starts next and finds the mark lets its fence wait until they are over.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::config::Volume;

/// The mark's file, in the runtime directory, which does not survive a reboot.
pub(super) struct Marks {
    path: PathBuf,
    /// This very process has owned since its start: only a clean end takes the mark away.
    renewed: Mutex<bool>,
}

impl Marks {
    /// The mark of one host identity on one volume.
    pub fn new(runtime_dir: &Path, volume: &Volume) -> Self {
        let Volume {
            host_id,
            namespace_id,
            ..
        } = volume;
        Self {
            path: runtime_dir.join(format!("host-{host_id}-{namespace_id}.owner")),
            renewed: Mutex::new(false),
        }
    }

    /// This host is about to own the volume.
    ///
    /// # Errors
    /// The mark could not be made: nothing may be mounted.
    pub fn owned(&self) -> io::Result<()> {
        let mut renewed = self.renewed.lock().unwrap_or_else(PoisonError::into_inner);
        *renewed = true;
        fs::write(&self.path, b"")
    }

    /// This process goes on with what an earlier one owned.
    pub fn resumed(&self) {
        *self.renewed.lock().unwrap_or_else(PoisonError::into_inner) = true;
    }

    /// The time has passed in which commands of an earlier process of this host can have lived.
    pub fn outlived(&self) {
        // Held to the end: the mark that is removed must not be one that was made meanwhile.
        let renewed = self.renewed.lock().unwrap_or_else(PoisonError::into_inner);
        if !*renewed {
            self.disowned();
        }
    }

    /// Everything that this host wrote has been completed, or is provably over.
    pub fn disowned(&self) {
        // A mark that stays costs a wait, never data.
        if let Err(error) = fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, path = %self.path.display(), "the owner's mark stays");
        }
    }

    /// Whether this host owned the volume and was not seen to leave it clean.
    pub fn stands(&self) -> bool {
        self.path.exists()
    }
}
