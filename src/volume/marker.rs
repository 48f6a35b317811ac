//! The marker: a file on the filesystem that says whose data it holds.
//!
//! The label keeps other clusters out before the mount; the marker, which holds the whole name and
//! PostgreSQL's system identifier, settles it after the mount and before anything is started.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use fencing::{Epoch, WritePermit};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::beneath::Beneath;

/// The marker's name in the root of the filesystem.
pub const MARKER_NAME: &str = "baton-volume.json";

/// The format that this program writes and reads.
const FORMAT: u32 = 1;

/// Larger than any marker: a longer file is not read at all.
const MARKER_MAX_LEN: u64 = 64 * 1024;

/// No name of a cluster with its namespace, or of a site, is longer.
const NAME_MAX_LEN: usize = 127;

/// Whose data a volume holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Marker {
    /// Version of this format; another one is refused.
    pub format: u32,
    /// The cluster's name.
    pub cluster: String,
    /// The site's name: each site of a cluster has a volume of its own.
    pub site: String,
    /// The filesystem's UUID, so that a marker copied to another filesystem is seen.
    pub filesystem: Uuid,
    /// PostgreSQL's system identifier; absent until the data directory was made.
    pub system_identifier: Option<u64>,
    /// The epoch in which the volume was formatted.
    pub created_epoch: Epoch,
}

/// Why a volume's marker does not admit this cluster.
#[derive(Debug, thiserror::Error)]
pub enum MarkerError {
    /// The file is not there: formatting was interrupted, or it is not one of Baton's volumes.
    #[error("{} is missing: the volume was not prepared by Baton, or preparing it was interrupted", path.display())]
    Missing {
        /// Where it should be.
        path: PathBuf,
    },
    /// It could not be read or written.
    #[error("{operation} {}", path.display())]
    Io {
        /// What was attempted.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// It is not what this program writes.
    #[error("{} is damaged or of another version (line {line})", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Where it stops to make sense.
        line: usize,
    },
    /// It is of a later format.
    #[error("the marker has format {found}; this program knows {FORMAT}: update Baton")]
    Version {
        /// The format found.
        found: u32,
    },
    /// Another cluster's or site's data.
    #[error("the volume holds the data of {found}, not of {expected}; attach the right volume")]
    OtherOwner {
        /// This cluster and site.
        expected: String,
        /// The cluster and site of the data.
        found: String,
    },
    /// The marker was written for another filesystem: somebody copied files between volumes.
    #[error(
        "the marker was written for filesystem {found}, but this is {expected}: the volume was copied; an operator must say which one counts"
    )]
    OtherFilesystem {
        /// This filesystem.
        expected: Uuid,
        /// The filesystem in the marker.
        found: Uuid,
    },
}

impl Marker {
    /// A marker for a freshly formatted filesystem.
    pub fn new(cluster: &str, site: &str, filesystem: Uuid, created_epoch: Epoch) -> Self {
        Self {
            format: FORMAT,
            cluster: cluster.to_owned(),
            site: site.to_owned(),
            filesystem,
            system_identifier: None,
            created_epoch,
        }
    }

    /// Reads the marker of the filesystem that is mounted.
    ///
    /// # Errors
    /// There is none, or it is none of this program's.
    pub fn read(root: &Beneath) -> Result<Self, MarkerError> {
        let path = root.path().join(MARKER_NAME);
        let read = root.read(Path::new(MARKER_NAME), MARKER_MAX_LEN);
        let bytes = read.map_err(|source| match source.kind() {
            ErrorKind::NotFound => MarkerError::Missing { path: path.clone() },
            _ => MarkerError::Io {
                operation: "reading",
                path: path.clone(),
                source,
            },
        })?;
        // The parser's own words would quote the file.
        let marker: Self = serde_json::from_slice(&bytes).map_err(|error| MarkerError::Format {
            path,
            line: error.line(),
        })?;
        if marker.format == FORMAT {
            Ok(marker)
        } else {
            Err(MarkerError::Version {
                found: marker.format,
            })
        }
    }

    /// Whether the data is this site's of this cluster, on this very filesystem.
    pub fn admit(&self, cluster: &str, site: &str, filesystem: Uuid) -> Result<(), MarkerError> {
        let owner =
            |cluster: &str, site: &str| format!("cluster {}, site {}", name(cluster), name(site));
        if (self.cluster.as_str(), self.site.as_str()) != (cluster, site) {
            return Err(MarkerError::OtherOwner {
                expected: owner(cluster, site),
                found: owner(&self.cluster, &self.site),
            });
        }
        if self.filesystem != filesystem {
            return Err(MarkerError::OtherFilesystem {
                expected: filesystem,
                found: self.filesystem,
            });
        }
        Ok(())
    }

    /// Replaces the marker of the filesystem that is mounted, durably: the file, then its name.
    ///
    /// # Errors
    /// The system refuses.
    pub fn write(&self, _permit: &WritePermit, root: &Beneath) -> Result<(), MarkerError> {
        let written = serde_json::to_vec_pretty(self)
            .map_err(std::io::Error::from)
            .and_then(|text| root.replace(MARKER_NAME, &text));
        written.map_err(|source| MarkerError::Io {
            operation: "writing",
            path: root.path().join(MARKER_NAME),
            source,
        })
    }
}

/// A name that may be a cluster's or a site's; of anything else the text is not repeated.
fn name(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
    if text.len() <= NAME_MAX_LEN && text.chars().all(plain) {
        format!("{text:?}")
    } else {
        "of no valid name".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_clusters_filesystem_is_admitted() {
        let (one, two) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let marker = Marker::new("orders", "north", one, Epoch::new(1).unwrap());
        assert!(marker.admit("orders", "north", one).is_ok());
        assert!(matches!(
            marker.admit("other", "north", one),
            Err(MarkerError::OtherOwner { .. })
        ));
        assert!(matches!(
            marker.admit("orders", "north", two),
            Err(MarkerError::OtherFilesystem { .. })
        ));
    }

    #[test]
    fn damaged_and_missing_markers_are_told_apart() {
        let directory = tempfile::tempdir().unwrap();
        let root = Beneath::at(directory.path()).unwrap();
        let missing = Marker::read(&root);
        assert!(
            matches!(missing, Err(MarkerError::Missing { .. })),
            "{missing:?}"
        );
        let cases = [
            ("", false),
            ("{}", false),
            (
                r#"{"format":1,"cluster":"c","site":"s","filesystem":"00000000-0000-0000-0000-000000000001","system_identifier":null,"created_epoch":1,"extra":1}"#,
                false,
            ),
            (
                r#"{"format":1,"cluster":"c","site":"s","filesystem":"00000000-0000-0000-0000-000000000001","system_identifier":7,"created_epoch":1}"#,
                true,
            ),
        ];
        for (text, sound) in cases {
            std::fs::write(directory.path().join(MARKER_NAME), text).unwrap();
            assert_eq!(Marker::read(&root).is_ok(), sound, "{text}");
        }
    }

    #[test]
    fn no_error_repeats_what_the_file_holds() {
        let directory = tempfile::tempdir().unwrap();
        let root = Beneath::at(directory.path()).unwrap();
        let path = directory.path().join(MARKER_NAME);
        for text in [
            r#"{"format":"hunter2"}"#,
            r#"{"hunter2":1}"#,
            r#""hunter2""#,
            "hunter2",
        ] {
            std::fs::write(&path, text).unwrap();
            let error = crate::attachment::whole(Marker::read(&root).unwrap_err());
            assert!(!error.contains("hunter2"), "{error}");
        }
        let other = Marker::new("hunter2 is it", "s", Uuid::nil(), Epoch::new(1).unwrap());
        let error = other.admit("orders", "north", Uuid::nil()).unwrap_err();
        assert!(!error.to_string().contains("hunter2"), "{error}");
        let other = Marker::new("db/sales", "s", Uuid::nil(), Epoch::new(1).unwrap());
        let error = other.admit("db/orders", "north", Uuid::nil()).unwrap_err();
        assert!(error.to_string().contains("\"db/sales\""), "{error}");
    }
}
