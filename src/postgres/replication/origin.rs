//! Whether another site's PostgreSQL is one from which this site's database can be made or brought back.

use std::time::Duration;

use super::facts::{Probe, WalStatus};
use super::look;
use super::remote::{ProbeError, Remote};
use super::source::Source;
use crate::clock;
use crate::postgres::Instance;
use crate::postgres::session::SessionError;

/// Between two looks at whether the checkpoint is done: nothing announces it.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Why nothing can be had from another site.
#[derive(Debug, thiserror::Error)]
pub enum OriginError {
    /// It tells nothing.
    #[error("looking at the primary's site")]
    Probe(#[from] ProbeError),
    /// It did not answer.
    #[error("asking the primary's site")]
    Session(#[from] SessionError),
    /// It is another database.
    #[error(
        "the primary's site has system identifier {found}, expected {expected}: it is another database; correct replication.sites"
    )]
    OtherSystem {
        /// What was expected.
        expected: u64,
        /// What was found.
        found: u64,
    },
    /// It runs another major version.
    #[error(
        "the primary's site runs PostgreSQL {theirs}, this one {ours}: install PostgreSQL {theirs} here"
    )]
    OtherVersion {
        /// Its major version.
        theirs: u32,
        /// This member's.
        ours: u32,
    },
    /// It is no primary.
    #[error("PostgreSQL at the primary's site is a replica itself")]
    NotPrimary,
    /// The slot is missing, lost or taken.
    #[error("slot {slot} at the primary's site {why}")]
    Slot {
        /// The slot.
        slot: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Since its promotion there was no checkpoint.
    #[error("the primary's site has made no checkpoint on timeline {timeline} yet")]
    NoCheckpoint {
        /// Its timeline.
        timeline: u32,
    },
}

/// Connects, and admits the primary of this very database system, of this very major version.
pub(super) async fn connect(
    instance: &Instance,
    source: &Source,
    expected: Option<u64>,
    deadline: Duration,
) -> Result<(Remote, Probe), OriginError> {
    let ends = clock::now() + deadline;
    let remote = Remote::connect(source, deadline).await?;
    let probe = remote.look(&source.slot, clock::now().until(ends)).await?;
    if let Some(expected) = expected.filter(|expected| *expected != probe.system) {
        let found = probe.system;
        return Err(OriginError::OtherSystem { expected, found });
    }
    let (theirs, ours) = (probe.major, instance.programs.major);
    if theirs != ours {
        return Err(OriginError::OtherVersion { theirs, ours });
    }
    if probe.in_recovery {
        return Err(OriginError::NotPrimary);
    }
    Ok((remote, probe))
}

/// Whether the slot keeps what a new replica will need.
pub(super) fn admit_slot(source: &Source, probe: &Probe) -> Result<(), OriginError> {
    let why = match &probe.slot {
        None => "does not exist: the primary makes it when this site is configured there",
        Some(slot) if slot.wal_status == Some(WalStatus::Lost) => {
            "is lost: the primary has to make it anew first"
        }
        Some(slot) if slot.active => "is in use by another connection",
        Some(_) => return Ok(()),
    };
    let slot = source.slot.clone();
    Err(OriginError::Slot { slot, why })
}

/// How many bytes all its databases have.
pub(super) async fn size(remote: &Remote, deadline: Duration) -> Result<u64, SessionError> {
    const WHAT: &str = "asking how large the databases are";
    let sql = "SELECT sum(pg_database_size(oid))::bigint FROM pg_database";
    let answer = remote.rows(WHAT, sql, deadline).await?;
    look::single(&answer)
        .and_then(|text| text.parse().ok())
        .ok_or(SessionError::Answer { what: WHAT })
}

/// Waits until its control file tells its timeline: `pg_rewind` before PostgreSQL 16 believes it. Asks for the
/// checkpoint, which PostgreSQL 14 refuses to do for the role and makes in its own time.
pub(super) async fn await_checkpoint(
    remote: &Remote,
    timeline: u32,
    deadline: Duration,
) -> Result<(), OriginError> {
    const WHAT: &str = "asking for the primary's checkpoint";
    let ends = clock::now() + deadline;
    let left = || clock::now().until(ends);
    let is_there = async || {
        let sql = "SELECT timeline_id FROM pg_control_checkpoint()";
        let answer = remote.rows(WHAT, sql, left()).await?;
        let found = look::single(&answer).and_then(|text| text.parse::<u32>().ok());
        let found = found.ok_or(SessionError::Answer { what: WHAT })?;
        Ok::<_, SessionError>(found >= timeline)
    };
    if is_there().await? {
        return Ok(());
    }
    // Refused, or cut off at the deadline: what counts is whether it is there.
    let _asked = remote.rows(WHAT, "CHECKPOINT", left() / 2).await.is_ok();
    while !is_there().await? {
        if left() < 2 * LOOK_EVERY {
            return Err(OriginError::NoCheckpoint { timeline });
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(())
}

/// The history of one of its timelines, in hexadecimal; empty for the first, which has none, and if it is not there.
pub(super) async fn history(
    remote: &Remote,
    timeline: u32,
    deadline: Duration,
) -> Result<String, SessionError> {
    const WHAT: &str = "reading the history of the primary's timeline";
    let sql = format!(
        "SELECT coalesce(encode(pg_read_binary_file('pg_wal/{timeline:08X}.history', 0, 1048576, true), 'hex'), '')"
    );
    let answer = remote.rows(WHAT, &sql, deadline).await?;
    look::single(&answer)
        .map(str::to_owned)
        .ok_or(SessionError::Answer { what: WHAT })
}
