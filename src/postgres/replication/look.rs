//! Looks at PostgreSQL's state of replication: the questions in SQL, the answers as facts.
//!
//! All of it is understood by PostgreSQL 14 to 18, and answered to a member of `pg_monitor`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::OWN;
use super::facts::{Facts, Follower, Position, Slot, WalStatus};
use crate::postgres::session::{Rows, Session, SessionError, literal};

/// A replica's end of what it received and flushed. Before the first connection since a start PostgreSQL
/// knows only what it replayed; after a connection, its beginning may lie before that.
const RECEIVED: &str =
    "greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn(), '0/0'::pg_lsn)";

/// Whether a process exists that receives, connected or not. `pg_stat_wal_receiver` shows none that is
/// still connecting.
const RECEIVER: &str = "EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'walreceiver')";

/// The position up to which this server has flushed write-ahead log.
fn flushed() -> String {
    format!("CASE WHEN pg_is_in_recovery() THEN {RECEIVED} ELSE pg_current_wal_flush_lsn() END")
}

/// The timeline that is written or received, in hexadecimal. A replica that has no connection tells it by the
/// newest timeline of a segment in `pg_wal` that holds its last byte, and by its control file.
fn timeline() -> String {
    let byte = format!("greatest(pg_wal_lsn_diff({RECEIVED}, '0/0') - 1, 0)");
    let size = "(SELECT setting::numeric FROM pg_settings WHERE name = 'wal_segment_size')";
    let segment = format!("div({byte}, {size})::bigint");
    let per_file = format!("(4294967296 / {size}::bigint)");
    let name = format!(
        "upper(lpad(to_hex({segment} / {per_file}), 8, '0') || lpad(to_hex({segment} % {per_file}), 8, '0'))"
    );
    let hex = |number: &str| format!("upper(lpad(to_hex({number}), 8, '0'))");
    let received = hex("received_tli");
    let checkpoint = hex("timeline_id");
    let minimum = hex("min_recovery_end_timeline");
    format!(
        "CASE WHEN NOT pg_is_in_recovery() THEN substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) \
         ELSE coalesce((SELECT {received} FROM pg_stat_wal_receiver WHERE received_tli > 0), \
         greatest((SELECT max(substr(name, 1, 8)) FROM pg_ls_waldir() \
         WHERE length(name) = 24 AND substr(name, 9) = {name}), \
         (SELECT {checkpoint} FROM pg_control_checkpoint()), \
         (SELECT {minimum} FROM pg_control_recovery()))) END"
    )
}

/// A connection for replication that does not hold the physical slot of its name.
pub(super) const STRANGER: &str = "NOT EXISTS (SELECT FROM pg_replication_slots \
    WHERE slot_type = 'physical' AND slot_name = application_name AND active_pid = connection.pid)";

/// The columns of a slot, read by [`slot`].
const SLOT_COLUMNS: &str = "active, wal_status, restart_lsn, \
    pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() \
    ELSE pg_current_wal_flush_lsn() END, restart_lsn)::bigint, safe_wal_size";

/// The one value of the first statement's one row.
pub(super) fn single(answer: &[Rows]) -> Option<&str> {
    answer.first()?.first()?.first()?.as_deref()
}

/// One row's values, taken one after another.
struct Row<'a>(std::slice::Iter<'a, Option<String>>);

impl<'a> Row<'a> {
    fn new(row: &'a [Option<String>]) -> Self {
        Self(row.iter())
    }

    /// The next value, `Some(None)` for NULL; `None` if there is no more, or it cannot be read.
    fn parsed<T: std::str::FromStr>(&mut self) -> Option<Option<T>> {
        match self.0.next()? {
            None => Some(None),
            Some(text) => text.parse().ok().map(Some),
        }
    }

    fn some<T: std::str::FromStr>(&mut self) -> Option<T> {
        self.parsed()?
    }

    fn flag(&mut self) -> Option<bool> {
        match self.some::<String>()?.as_str() {
            "t" => Some(true),
            "f" => Some(false),
            _ => None,
        }
    }

    fn timeline(&mut self) -> Option<u32> {
        u32::from_str_radix(&self.some::<String>()?, 16).ok()
    }

    /// Seconds; a negative age comes from a clock that was set, and is none.
    fn age(&mut self) -> Option<Option<Duration>> {
        let seconds: Option<f64> = self.parsed()?;
        Some(seconds.map(|s| Duration::try_from_secs_f64(s).unwrap_or_default()))
    }

    /// A number of bytes that may come out negative when a position has just moved.
    fn bytes(&mut self) -> Option<Option<u64>> {
        let number: Option<i64> = self.parsed()?;
        Some(number.map(|n| u64::try_from(n).unwrap_or(0)))
    }
}

fn slot(row: &mut Row<'_>) -> Option<Slot> {
    Some(Slot {
        active: row.flag()?,
        wal_status: match row.parsed::<String>()?.as_deref() {
            None => None,
            Some("reserved") => Some(WalStatus::Reserved),
            Some("extended") => Some(WalStatus::Extended),
            Some("unreserved") => Some(WalStatus::Unreserved),
            Some("lost") => Some(WalStatus::Lost),
            Some(_) => return None,
        },
        restart: row.parsed()?,
        retained: row.bytes()?.unwrap_or(0),
        safe: row.bytes()?,
    })
}

impl Session {
    /// One look at this site's PostgreSQL.
    pub async fn facts(&self, deadline: Duration) -> Result<Facts, SessionError> {
        const WHAT: &str = "looking at replication";
        let answer = self.rows(WHAT, &facts_sql(), deadline).await?;
        read_facts(&answer).ok_or(SessionError::Answer { what: WHAT })
    }
}

fn facts_sql() -> String {
    let (flushed, timeline) = (flushed(), timeline());
    let own: Vec<String> = OWN.iter().map(|name| literal(name)).collect();
    let own = own.join(", ");
    format!(
        "SELECT pg_is_in_recovery(), (SELECT system_identifier FROM pg_control_system()), {timeline}, {flushed}, \
         CASE WHEN pg_is_in_recovery() THEN coalesce(pg_last_wal_replay_lsn(), '0/0') \
         ELSE pg_current_wal_flush_lsn() END, current_setting('synchronous_standby_names'), {RECEIVER}, \
         (SELECT extract(epoch FROM clock_timestamp() - last_msg_receipt_time) FROM pg_stat_wal_receiver \
         WHERE status = 'streaming'), \
         CASE WHEN pg_is_in_recovery() AND pg_last_wal_replay_lsn() < pg_last_wal_receive_lsn() \
         THEN extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp()) END; \
         SELECT application_name, {STRANGER}, coalesce(usename, ''), state, coalesce(sent_lsn, '0/0'), coalesce(flush_lsn, '0/0'), \
         coalesce(replay_lsn, '0/0'), sync_state, extract(epoch FROM flush_lag), extract(epoch FROM replay_lag), \
         (extract(epoch FROM backend_start) * 1000000)::bigint \
         FROM pg_stat_replication connection WHERE application_name ILIKE 'baton\\_%'; \
         SELECT slot_name, {SLOT_COLUMNS} FROM pg_replication_slots \
         WHERE slot_type = 'physical' AND slot_name LIKE 'baton\\_%'; \
         SELECT name FROM pg_settings WHERE name IN ({own}) AND sourcefile LIKE '%postgresql.auto.conf'"
    )
}

fn read_facts(answer: &[Rows]) -> Option<Facts> {
    let [own, followers, slots, overridden] = answer else {
        return None;
    };
    let mut row = Row::new(own.first()?);
    let in_recovery = row.flag()?;
    // `bigint` is signed, the identifier is not.
    let system = row.some::<i64>()?.cast_unsigned();
    let mut facts = Facts {
        in_recovery,
        system,
        timeline: row.timeline()?,
        flushed: row.some()?,
        replayed: row.some()?,
        names: row.some()?,
        receiving: row.flag()?,
        heard: row.age()?,
        replay_delay: row.age()?,
        followers: BTreeMap::new(),
        pretenders: BTreeSet::new(),
        overridden: BTreeSet::new(),
        slots: BTreeMap::new(),
    };
    for row in followers {
        read_follower(&mut Row::new(row), &mut facts)?;
    }
    for row in slots {
        let mut row = Row::new(row);
        facts.slots.insert(row.some()?, slot(&mut row)?);
    }
    for row in overridden {
        facts.overridden.insert(Row::new(row).some()?);
    }
    Some(facts)
}

/// A connection that is about to begin holds no slot yet, and is not waited for either.
fn read_follower(row: &mut Row<'_>, facts: &mut Facts) -> Option<()> {
    let name: String = row.some()?;
    let stranger = row.flag()?;
    let user = row.some()?;
    // While a connection begins its state is not known yet.
    let state = row.parsed()?.unwrap_or_else(|| "startup".to_owned());
    let follower = Follower {
        user,
        state,
        sent: row.some()?,
        flushed: row.some()?,
        replayed: row.some()?,
        sync_state: row.parsed()?.unwrap_or_else(|| "async".to_owned()),
        flush_lag: row.age()?,
        replay_lag: row.age()?,
        started: row.some()?,
    };
    let counts = ["catchup", "streaming", "stopping"].contains(&follower.state.as_str());
    match stranger {
        true if counts => drop(facts.pretenders.insert(name.to_ascii_lowercase())),
        true => {}
        false => drop(facts.followers.insert(name, follower)),
    }
    Some(())
}

/// What a replica has received.
pub(super) struct Received {
    /// Whether a WAL receiver exists.
    pub receiver: bool,
    /// The end of what was received and flushed.
    pub position: Position,
    /// Whether that is all there is: since its start it received something, or replayed all that was there.
    pub complete: bool,
}

/// The process that receives, connected or not, by its id where PostgreSQL runs.
pub(super) async fn receiver(
    session: &Session,
    deadline: Duration,
) -> Result<Option<u32>, SessionError> {
    const WHAT: &str = "looking for the WAL receiver";
    let sql = "SELECT max(pid) FROM pg_stat_activity WHERE backend_type = 'walreceiver'";
    let answer = session.rows(WHAT, sql, deadline).await?;
    let read = || Row::new(answer.first()?.first()?).parsed();
    read().ok_or(SessionError::Answer { what: WHAT })
}

/// How much a replica has received.
pub(super) async fn received(
    session: &Session,
    deadline: Duration,
) -> Result<Received, SessionError> {
    const WHAT: &str = "looking at what was received";
    let timeline = timeline();
    let sql = format!(
        "SELECT {RECEIVER}, {timeline}, {RECEIVED}, \
         pg_last_wal_receive_lsn() IS NOT NULL OR EXISTS (SELECT FROM pg_stat_activity \
         WHERE backend_type = 'startup' AND wait_event IN ('RecoveryRetrieveRetryInterval', 'RecoveryWalStream'))"
    );
    let answer = session.rows(WHAT, &sql, deadline).await?;
    let read = || {
        let mut row = Row::new(answer.first()?.first()?);
        Some(Received {
            receiver: row.flag()?,
            position: Position {
                timeline: row.timeline()?,
                lsn: row.some()?,
            },
            complete: row.flag()?,
        })
    };
    read().ok_or(SessionError::Answer { what: WHAT })
}

/// What another site's PostgreSQL is asked, for [`read_probe`].
pub(super) fn probe_sql(name: &str) -> String {
    let (flushed, timeline) = (flushed(), timeline());
    let name = literal(name);
    format!(
        "SELECT (SELECT system_identifier FROM pg_control_system()), \
         current_setting('server_version_num')::int / 10000, pg_is_in_recovery(), {timeline}, {flushed}; \
         SELECT {SLOT_COLUMNS} FROM pg_replication_slots WHERE slot_type = 'physical' AND slot_name = {name}"
    )
}

/// Reads the answer to [`probe_sql`].
pub(super) fn read_probe(answer: &[Rows]) -> Option<super::Probe> {
    let [own, slots] = answer else {
        return None;
    };
    let mut row = Row::new(own.first()?);
    Some(super::Probe {
        system: row.some::<i64>()?.cast_unsigned(),
        major: row.some()?,
        in_recovery: row.flag()?,
        timeline: row.timeline()?,
        position: row.some()?,
        slot: match slots.first() {
            Some(row) => Some(slot(&mut Row::new(row))?),
            None => None,
        },
    })
}
