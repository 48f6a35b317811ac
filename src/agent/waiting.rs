//! Sessions of an earlier agent, until each is resumed or cleaned up after: meanwhile their mounts stand, and
//! nobody else gets what they have.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use uuid::Uuid;

use super::records::Saved;
use super::tree;

/// Whoever works on one of them has its claim, and strikes it out only when it is done.
pub(super) struct Waiting {
    sessions: Mutex<Vec<Saved>>,
}

impl Waiting {
    /// What an earlier agent left.
    pub fn new(sessions: Vec<Saved>) -> Self {
        Self {
            sessions: Mutex::new(sessions),
        }
    }

    /// The session of this pod. It stays here.
    pub fn of_pod(&self, pod: Uuid) -> Option<Saved> {
        let sessions = self.sessions();
        sessions.iter().find(|saved| saved.pod == pod).cloned()
    }

    /// Whether this session still waits.
    pub fn has(&self, key: &str) -> bool {
        self.sessions().iter().any(|saved| saved.key == key)
    }

    /// The session that still has this pod's place or this volume: by its name.
    pub fn in_the_way(&self, key: &str, runtime_dir: &Path) -> Option<String> {
        let sessions = self.sessions();
        let found = sessions
            .iter()
            .find(|saved| saved.key == key || saved.runtime_dir == runtime_dir);
        found.map(|saved| saved.key.clone())
    }

    /// Those whose members have ended; with `late`, all.
    pub fn over(&self, late: bool) -> Vec<Saved> {
        let over = |saved: &&Saved| late || tree::is_empty(&saved.container).unwrap_or(false);
        self.sessions().iter().filter(over).cloned().collect()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.sessions().is_empty()
    }

    /// Resumed, or cleaned up after.
    pub fn done(&self, key: &str) {
        self.sessions().retain(|saved| saved.key != key);
    }

    fn sessions(&self) -> MutexGuard<'_, Vec<Saved>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
