//! What is in the lease file: a checked first line, then the record as JSON that people can read.
//!
//! ```text
//! baton-lease 1 <SHA-256 of all that follows, in hexadecimal>
//! { "cluster": …, "site": …, "id": …, "generation": …, "record": …, "history": […], "written": … }
//! ```

use fencing::{Epoch, MemberId};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::Writer;
use crate::clock::Wall;
use crate::decide::{Incarnation, Lease, LeaseRecord, LeaseVersion};
use crate::hex::hex;

/// First word of the file and version of its format.
const MAGIC: &str = "baton-lease 1 ";

/// How many changes of ownership are kept: the file stays under 32 kB.
const HISTORY_MAX: usize = 100;

/// A larger file is none of ours: do not read it into memory.
pub(super) const FILE_MAX_BYTES: u64 = 1 << 20;

/// One change of ownership.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ownership {
    /// The epoch that began.
    pub epoch: Epoch,
    /// Who owns it.
    pub holder: Option<MemberId>,
    /// Which run of it.
    pub incarnation: Incarnation,
    /// The member's name.
    pub name: String,
    /// The owner before had said that it flushed and unmounted.
    pub planned: bool,
    /// When it was written, by the writer's wall clock: for people only.
    pub at: Wall,
}

/// Who wrote the record last, for people only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mark {
    #[serde(flatten)]
    pub by: Writer,
    /// By the writer's wall clock.
    pub at: Wall,
}

/// The file's content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Document {
    pub cluster: String,
    pub site: String,
    /// Drawn when the file is created, so that a version of a file that was removed and made again
    /// never equals one of the first.
    pub id: Uuid,
    /// Counts the writes.
    pub generation: u64,
    pub record: LeaseRecord,
    pub history: Vec<Ownership>,
    pub written: Mark,
}

impl Document {
    /// The version that a compare-and-set names.
    pub fn version(&self) -> LeaseVersion {
        LeaseVersion(format!("{}:{}", self.id, self.generation))
    }

    /// The record with its version.
    pub fn lease(&self) -> Lease {
        Lease {
            version: self.version(),
            record: self.record.clone(),
        }
    }

    /// The document that follows `before`, or the first one.
    pub fn next(
        before: Option<Self>,
        cluster: &str,
        site: &str,
        record: LeaseRecord,
        mark: Mark,
    ) -> Self {
        let (id, generation, mut history, last) = match before {
            Some(before) => (
                before.id,
                before.generation + 1,
                before.history,
                Some(before.record),
            ),
            None => (Uuid::new_v4(), 1, Vec::new(), None),
        };
        follow(&mut history, last.as_ref(), &record, &mark.by, mark.at);
        let (cluster, site) = (cluster.to_owned(), site.to_owned());
        Self {
            cluster,
            site,
            id,
            generation,
            record,
            history,
            written: mark,
        }
    }

    /// The bytes of the file.
    pub fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        let mut body = serde_json::to_vec_pretty(self)?;
        body.push(b'\n');
        let mut bytes = format!("{MAGIC}{}\n", digest(&body)).into_bytes();
        bytes.extend_from_slice(&body);
        Ok(bytes)
    }

    /// Reads the bytes of the file; the error says what is wrong with them.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let (head, body) = bytes.split_at(end.map_or(bytes.len(), |end| end + 1));
        let head = std::str::from_utf8(head).map_err(|_| "its first line is no text")?;
        let sum = match head.trim_end().strip_prefix(MAGIC) {
            Some(sum) => sum,
            None if bytes.is_empty() => return Err("it is empty".to_owned()),
            None => return Err("it does not begin as a lease does".to_owned()),
        };
        if sum != digest(body) {
            return Err("its checksum does not match".to_owned());
        }
        serde_json::from_slice(body).map_err(|error| error.to_string())
    }
}

/// Adds what `record` says to the history of what was before. Whether the ownership changed.
pub(super) fn follow(
    history: &mut Vec<Ownership>,
    last: Option<&LeaseRecord>,
    record: &LeaseRecord,
    by: &Writer,
    at: Wall,
) -> bool {
    let changed = last.map(|last| (last.epoch, last.holder)) != Some((record.epoch, record.holder));
    if changed && record.holder.is_some() {
        history.push(Ownership {
            epoch: record.epoch,
            holder: record.holder,
            incarnation: record.incarnation,
            name: by.name.clone(),
            planned: record.planned,
            at,
        });
        let surplus = history.len().saturating_sub(HISTORY_MAX);
        history.drain(..surplus);
    }
    changed
}

fn digest(body: &[u8]) -> String {
    hex(&Sha256::digest(body))
}
