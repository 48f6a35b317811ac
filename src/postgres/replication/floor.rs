//! How far a copy of the database must get before it stands for the one that it replaced.
//!
//! A backup may be older than what this site had acknowledged to the primary. The mark lies within the copy, so that
//! it takes its place, and leaves it, in the same moment as the copy.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::configure::{self, ConfigureError};
use super::facts::Position;
use crate::postgres::Instance;

/// In the data directory. PostgreSQL does not look at it.
const FLOOR: &str = "baton-floor.json";

/// Whether a copy is complete cannot be told.
#[derive(Debug, thiserror::Error)]
#[error("reading {}, without which nobody can tell whether this copy is complete", path.display())]
pub struct FloorError {
    /// The mark.
    pub path: PathBuf,
    /// What is wrong with it.
    #[source]
    pub source: io::Error,
}

/// Marks a copy that is being made: the primary was there when nothing received at this site any more. It is durable
/// when the copy takes its place.
pub(super) fn mark(
    instance: &Instance,
    directory: &Path,
    primary: Position,
) -> Result<(), ConfigureError> {
    let text = format!(
        r#"{{"timeline":{},"lsn":{}}}"#,
        primary.timeline, primary.lsn.0
    );
    // A base backup of this copy reads it as PostgreSQL's user.
    configure::replace(
        &directory.join(FLOOR),
        text.as_bytes(),
        0o600,
        Some(instance),
    )
}

/// What the database must have received before all is there that this site ever acknowledged; `None` where it never
/// was a copy.
///
/// # Errors
/// The mark cannot be read: then this is not known.
pub fn floor(instance: &Instance) -> Result<Option<Position>, FloorError> {
    let path = instance.data_directory.join(FLOOR);
    let failed = |source| FloorError {
        path: path.clone(),
        source,
    };
    match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|error| failed(error.into())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(error)),
    }
}
