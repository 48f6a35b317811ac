//! What is written down of each session, so that the agent's successor can resume it. In a directory that
//! does not survive a reboot.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::protocol::Hello;
use crate::attachment::{Outlive, Record, Settings};
use crate::config::{Fencing, Volume};
use crate::node_lock::Owner;

/// One session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Saved {
    /// `<namespace>/<pod>`.
    pub key: String,
    pub pod: Uuid,
    /// The control group of the member's container.
    pub container: PathBuf,
    pub owner: (u32, u32),
    pub hello: Hello,
    pub volume: Volume,
    pub runtime_dir: PathBuf,
    pub record: Record,
}

impl Saved {
    /// Whose the lock of the host identity is.
    pub fn owner_of_lock(&self) -> Owner<'_> {
        Owner {
            cluster: &self.hello.cluster,
            member: &self.hello.member,
            runtime_dir: &self.runtime_dir,
            volume: &self.volume,
        }
    }

    /// Whose the volume is: clusters of one name in two namespaces are two clusters.
    fn cluster(&self) -> String {
        let namespace = self
            .key
            .split_once('/')
            .map_or("", |(namespace, _)| namespace);
        format!("{namespace}/{}", self.hello.cluster)
    }

    /// The settings of its attachment.
    pub fn settings(&self, outlive: &Outlive) -> Settings {
        let Hello {
            site,
            member,
            number,
            major,
            data_directory,
            timings,
            ..
        } = &self.hello;
        Settings {
            cluster: self.cluster(),
            site: site.clone(),
            member: member.clone(),
            number: *number,
            data_directory: self.volume.mount_point.join(data_directory),
            volume: self.volume.clone(),
            fencing: Fencing::default(),
            suspects: self.runtime_dir.join("suspects"),
            runtime_dir: self.runtime_dir.clone(),
            timings: timings.clone(),
            major: *major,
            owner: Some(self.owner),
            outlive: Some(outlive.clone()),
        }
    }
}

/// Where sessions are written down.
#[derive(Clone, Debug)]
pub(super) struct Records {
    directory: PathBuf,
}

impl Records {
    /// In this directory, which is made.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn at(directory: &Path) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        Ok(Self {
            directory: directory.to_owned(),
        })
    }

    /// Those that an earlier agent left. One that cannot be read is told and stays.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn all(&self) -> io::Result<Vec<Saved>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let read = fs::read(&path).and_then(|text| Ok(serde_json::from_slice(&text)?));
            match read {
                Ok(saved) => found.push(saved),
                Err(error) => {
                    tracing::error!(path = %path.display(), %error, "a session cannot be read");
                }
            }
        }
        Ok(found)
    }

    /// Writes one down, whole at any moment.
    ///
    /// # Errors
    /// It could not be written: the earlier one stands.
    pub fn save(&self, saved: &Saved) -> io::Result<()> {
        write_whole(&self.path(&saved.key), &serde_json::to_vec(saved)?)
    }

    /// The session has ended.
    pub fn forget(&self, key: &str) {
        if let Err(error) = fs::remove_file(self.path(key)) {
            tracing::warn!(key, %error, "the record of an ended session stays");
        }
    }

    fn path(&self, key: &str) -> PathBuf {
        // Names in Kubernetes have no underscore.
        self.directory
            .join(format!("{}.json", key.replace('/', "_")))
    }
}

/// Writes a file that is whole at any moment, for root alone.
pub(super) fn write_whole(path: &Path, content: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = fs::OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&new)?;
    file.write_all(content)?;
    fs::rename(new, path)
}
