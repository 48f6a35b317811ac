//! The volume of each pod as it was found when the kubelet had just published its device.
//!
//! With the kernel's initiator a session makes the device anew, under another number. What the kubelet shows
//! of the pod stays the device of before, for as long as the pod is there; its number is nobody's then, or
//! that of another volume. So it is looked at once for a pod, and not again when its container is started
//! again. Of this boot only, as numbers are. SAFETY.md I9

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::records::write_whole;
use crate::config::Volume;

/// What was found, in a directory that does not survive a reboot.
#[derive(Clone, Debug)]
pub(super) struct FoundVolumes {
    directory: PathBuf,
}

impl FoundVolumes {
    /// In this directory, made when it is first needed.
    pub fn at(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// The volume of this pod; `None` if it was not looked for yet.
    ///
    /// # Errors
    /// It cannot be read: it is not known what the pod may have.
    pub fn of(&self, pod: Uuid) -> io::Result<Option<Volume>> {
        match fs::read(self.path(pod)) {
            Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes down what was found, before anything is done to the device; forgets pods that are gone.
    ///
    /// # Errors
    /// It could not be written: nothing may be done to the device.
    pub fn keep(
        &self,
        pod: Uuid,
        volume: &Volume,
        is_there: impl Fn(Uuid) -> bool,
    ) -> io::Result<()> {
        fs::create_dir_all(&self.directory)?;
        write_whole(&self.path(pod), &serde_json::to_vec(volume)?)?;
        for entry in fs::read_dir(&self.directory)?.flatten() {
            let path = entry.path();
            if named(&path).is_some_and(|other| other != pod && !is_there(other)) {
                // One that stays is in nobody's way: no later pod has its name.
                let _stays = fs::remove_file(path);
            }
        }
        Ok(())
    }

    fn path(&self, pod: Uuid) -> PathBuf {
        self.directory.join(format!("{pod}.json"))
    }
}

fn named(path: &Path) -> Option<Uuid> {
    Uuid::try_parse(path.file_stem()?.to_str()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_found_for_a_pod_stays_as_long_as_the_pod() {
        let directory = tempfile::tempdir().unwrap();
        let found = FoundVolumes::at(directory.path().join("found"));
        let [first, second] = [Uuid::new_v4(), Uuid::new_v4()];
        assert_eq!(found.of(first).unwrap(), None);
        let volume: Volume = serde_json::from_value(serde_json::json!({
            "transport": "kernel",
            "address": "192.0.2.9:4420",
            "subsystem": "nqn.2026-11.dev.baton:one",
            "namespace_id": 1,
            "identifier": "6f1d2c3b-4a59-4687-9704-a5b6c7d8e9f0",
            "host_nqn": "nqn.2014-08.org.nvmexpress:uuid:3b6f2d30-1f6a-4b0e-8f5e-0e6b8c1d2a01",
            "host_id": "3b6f2d30-1f6a-4b0e-8f5e-0e6b8c1d2a01",
            "mount_point": "",
            "directory": "",
            "require_persistence": true,
        }))
        .unwrap();
        found.keep(first, &volume, |_| true).unwrap();
        assert_eq!(found.of(first).unwrap(), Some(volume.clone()));
        found.keep(second, &volume, |pod| pod != first).unwrap();
        assert_eq!(found.of(first).unwrap(), None, "its pod is gone");
        assert_eq!(found.of(second).unwrap(), Some(volume));
        fs::write(found.path(second), "{").unwrap();
        assert!(found.of(second).is_err(), "unknown, not absent");
    }
}
