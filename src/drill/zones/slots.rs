//! The primary's replication slots, and more log than one may keep.

use std::net::SocketAddr;
use std::time::Duration;

use super::sql;
use crate::clock;
use crate::drill::stage_error::StageError;
use crate::postgres::replication::name_of;

/// How long one question may take; a checkpoint may be among them.
const ASK_WITHIN: Duration = Duration::from_secs(60);

/// How long the primary may take to give a slot up.
const GIVEN_UP_WITHIN: Duration = Duration::from_secs(60);

/// Log that is written between two looks at the slot: 16 segments of 16 MiB. A switch fills the rest
/// of a segment, so that little has to be written for it.
const WRITE: &str = "DO $$ BEGIN FOR i IN 1..16 LOOP \
    PERFORM pg_logical_emit_message(false, 'drill', 'a'); PERFORM pg_switch_wal(); \
    END LOOP; END $$";

/// The slot of a site at the primary: its `wal_status`, none if it is not there.
pub(super) async fn wal_status(
    primary: SocketAddr,
    site: &str,
) -> Result<Option<String>, StageError> {
    let name = name_of(site);
    let sql = format!(
        "SELECT coalesce(wal_status, 'lost') FROM pg_replication_slots WHERE slot_name = '{name}'"
    );
    let row = sql::rows(primary, &sql, ASK_WITHIN).await?.pop();
    Ok(row.and_then(|mut row| row.pop()))
}

/// Writes log until it is more than the volume holds and the slot of a site is given up. Returns how
/// much log the primary kept at most, in bytes.
pub(super) async fn overflow(
    primary: SocketAddr,
    site: &str,
    volume: u64,
) -> Result<u64, StageError> {
    let written = async |from: &str| {
        let sql = format!("SELECT (pg_current_wal_lsn() - '{from}'::pg_lsn)::bigint");
        number(primary, &sql).await
    };
    let from = sql::value(primary, "SELECT pg_current_wal_lsn()", ASK_WITHIN).await?;
    let mut most = 0;
    while written(&from).await? <= volume {
        sql::rows(primary, WRITE, ASK_WITHIN).await?;
        most = most.max(number(primary, "SELECT sum(size)::bigint FROM pg_ls_waldir()").await?);
    }
    let until = clock::now() + GIVEN_UP_WITHIN;
    loop {
        // slots are given up at a checkpoint
        sql::rows(primary, "CHECKPOINT", ASK_WITHIN).await?;
        let status = wal_status(primary, site).await?;
        if status.as_deref().is_none_or(|status| status == "lost") {
            return Ok(most);
        }
        if clock::now() >= until {
            return Err(StageError::Overdue {
                what: "the end of the slot".to_owned(),
                within: GIVEN_UP_WITHIN,
                state: format!("its wal_status is {status:?}"),
            });
        }
        sql::rows(primary, WRITE, ASK_WITHIN).await?;
    }
}

async fn number(primary: SocketAddr, sql: &str) -> Result<u64, StageError> {
    let text = sql::value(primary, sql, ASK_WITHIN).await?;
    text.parse().map_err(|_| StageError::Machine {
        what: format!("ask PostgreSQL at {primary} with {sql:?}"),
        why: format!("{text:?} is no number"),
    })
}
