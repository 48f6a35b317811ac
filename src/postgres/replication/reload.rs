//! Changing a running PostgreSQL's part in replication: write the files anew, have them read, and wait until
//! what safety rests on is in force.

use std::time::Duration;

use super::configure::{self, OWN};
use super::facts::Position;
use super::look;
use super::source::{Replication, Serving, Source};
use crate::clock;
use crate::postgres::configuration::{self, ConfigurationError};
use crate::postgres::session::{Session, SessionError, literal};
use crate::postgres::{Instance, Lsn};

/// Between two looks at whether it has happened: PostgreSQL announces neither of these things.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// With less time than this there is no other look: its being cut off would tell less than what was seen.
const LAST_LOOK: Duration = Duration::from_millis(250);

/// Between the two looks that must both see no WAL receiver. A process that was forked before its password was
/// taken away shows itself within this time.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// Why PostgreSQL does not play the part that was asked for.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// The files could not be written.
    #[error("configuring PostgreSQL")]
    Configuration(#[from] ConfigurationError),
    /// PostgreSQL did not answer, or refused.
    #[error("changing PostgreSQL's part in replication")]
    Session(#[from] SessionError),
    /// Another value is in force at the deadline.
    #[error("{name} is {found:?} instead of {wanted:?} after {deadline:?}; set in {place}")]
    NotInForce {
        /// The setting.
        name: String,
        /// What was wanted.
        wanted: String,
        /// What is in force.
        found: String,
        /// The file that sets it, as far as PostgreSQL tells.
        place: String,
        /// How long was waited.
        deadline: Duration,
    },
    /// The WAL receiver still runs at the deadline.
    #[error("the WAL receiver still runs after {deadline:?}")]
    StillReceiving {
        /// How long was waited.
        deadline: Duration,
    },
    /// Nobody receives any more, but it is unknown yet how much was received.
    #[error("received write-ahead log is still being replayed after {deadline:?}")]
    StillReplaying {
        /// How long was waited.
        deadline: Duration,
    },
}

/// A deadline that shrinks.
struct Until {
    deadline: Duration,
    ends: crate::clock::Mono,
}

impl Until {
    fn new(deadline: Duration) -> Self {
        Self {
            deadline,
            ends: clock::now() + deadline,
        }
    }

    fn left(&self) -> Duration {
        clock::now().until(self.ends)
    }

    /// Whether there is no time for another look.
    fn is_over(&self) -> bool {
        self.left() < LAST_LOOK
    }
}

/// Writes the configuration for `serving` and has PostgreSQL read it. When it returns, what safety between
/// sites rests on is in force for every session that begins. `standby.signal` is left alone: only a start or
/// a promotion changes the role.
///
/// # Errors
/// At the deadline something else is in force; the files are written and may still come into force.
pub async fn reload(
    instance: &Instance,
    session: &Session,
    serving: &Serving,
    deadline: Duration,
) -> Result<(), ReloadError> {
    let until = Until::new(deadline);
    configuration::rewrite(instance, serving)?;
    request(session, &until).await?;
    let wanted = configure::own(instance, serving);
    loop {
        let Some((name, wanted, found, place)) = difference(session, &wanted, &until).await? else {
            return Ok(());
        };
        if until.is_over() {
            let deadline = until.deadline;
            return Err(ReloadError::NotInForce {
                name,
                wanted,
                found,
                place,
                deadline,
            });
        }
        // Somebody used ALTER SYSTEM since the start. Through PostgreSQL, which locks the file.
        if place.ends_with("postgresql.auto.conf") {
            let reset = format!("ALTER SYSTEM RESET {name}");
            session
                .execute("taking back an ALTER SYSTEM", &reset, until.left())
                .await?;
            request(session, &until).await?;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn request(session: &Session, until: &Until) -> Result<(), SessionError> {
    let sql = "SELECT pg_reload_conf()";
    session
        .execute("having the configuration read", sql, until.left())
        .await
}

type Difference = (String, String, String, String);

/// The first of the settings that has another value in force: its name, what is wanted, what is found, where.
async fn difference(
    session: &Session,
    wanted: &[(&'static str, String)],
    until: &Until,
) -> Result<Option<Difference>, SessionError> {
    const WHAT: &str = "reading what is in force";
    let names = OWN.iter().filter(|name| !configure::is_target(name));
    let names: Vec<String> = names.map(|name| literal(name)).collect();
    // A size is shown in another unit than it was written in: its file counts, and that it was read.
    let sql = format!(
        "SELECT name, setting, coalesce(sourcefile, '') FROM pg_settings WHERE name IN ({})",
        names.join(", ")
    );
    let answer = session.rows(WHAT, &sql, until.left()).await?;
    let rows = answer.first().ok_or(SessionError::Answer { what: WHAT })?;
    let differs = rows.iter().find_map(|row| match row.as_slice() {
        [Some(name), Some(found), Some(place)] => {
            let (_, wanted) = wanted.iter().find(|(known, _)| known == name)?;
            let ours = !place.ends_with("postgresql.auto.conf");
            let same = found == wanted || name.as_str() == "max_slot_wal_keep_size";
            let all = || (name.clone(), wanted.clone(), found.clone(), place.clone());
            (!(ours && same)).then(all)
        }
        _ => None,
    });
    Ok(differs)
}

/// Sets for whom a primary's commits wait; on a replica that does not receive, for whom they will wait once it
/// is promoted. Empty: for nobody.
///
/// Sessions wait by what the checkpointer has read, which PostgreSQL does not show: see
/// [`enforced_from`].
pub async fn set_names(
    instance: &Instance,
    session: &Session,
    replication: &Replication,
    names: &str,
    deadline: Duration,
) -> Result<(), ReloadError> {
    let serving = Serving::Primary {
        names: names.to_owned(),
        replication: replication.clone(),
    };
    reload(instance, session, &serving, deadline).await
}

/// Proves that commits wait for the names that are in force, and since when: every commit that is acknowledged
/// or visible and ends beyond the returned position has waited.
///
/// Whether a commit waits at all is a flag in shared memory that only the checkpointer sets, when it has read
/// the configuration: before every checkpoint. So this makes one, which may take long on a busy server.
pub async fn enforced_from(session: &Session, deadline: Duration) -> Result<Lsn, SessionError> {
    const WHAT: &str = "reading since when commits wait";
    let until = Until::new(deadline);
    session.checkpoint(until.left()).await?;
    let sql = "SELECT pg_current_wal_insert_lsn()";
    let answer = session.rows(WHAT, sql, until.left()).await?;
    look::single(&answer)
        .and_then(|value| value.parse().ok())
        .ok_or(SessionError::Answer { what: WHAT })
}

/// Has a replica receive from `source`.
pub async fn receive(
    instance: &Instance,
    session: &Session,
    replication: &Replication,
    source: &Source,
    deadline: Duration,
) -> Result<(), ReloadError> {
    let serving = Serving::Replica {
        receive: Some(source.clone()),
        replication: replication.clone(),
    };
    reload(instance, session, &serving, deadline).await
}

/// Has a replica stop receiving. When it returns no WAL receiver exists and none will until
/// [`receive`] or a start: nothing more is confirmed to the primary. Returns all that was ever confirmed.
///
/// In this order: libpq's password file goes, so that no connection begun from now on is authenticated;
/// `primary_conninfo` becomes empty, so that PostgreSQL starts no receiver any more; the one there is is ended; none
/// is seen, twice.
pub async fn stop_receiving(
    instance: &Instance,
    session: &Session,
    replication: &Replication,
    deadline: Duration,
) -> Result<Position, ReloadError> {
    let until = Until::new(deadline);
    let serving = Serving::Replica {
        receive: None,
        replication: replication.clone(),
    };
    reload(instance, session, &serving, deadline).await?;
    loop {
        await_no_receiver(session, &until).await?;
        tokio::time::sleep(LOOK_AGAIN).await;
        let end = look::received(session, until.left()).await?;
        match (end.receiver, end.complete) {
            (false, true) => return Ok(end.position),
            (_, _) if !until.is_over() => session.make_way(until.left()).await?,
            (true, _) => {
                let deadline = until.deadline;
                return Err(ReloadError::StillReceiving { deadline });
            }
            (false, false) => {
                let deadline = until.deadline;
                return Err(ReloadError::StillReplaying { deadline });
            }
        }
    }
}

/// PostgreSQL itself ends the receiver only when replay next waits for more: behind a paused replay, or a reader that it
/// must not disturb, that may be never.
async fn await_no_receiver(session: &Session, until: &Until) -> Result<(), ReloadError> {
    let mut told = None;
    while let Some(pid) = look::receiver(session, until.left()).await? {
        if until.is_over() {
            let deadline = until.deadline;
            return Err(ReloadError::StillReceiving { deadline });
        }
        if told.replace(pid) != Some(pid)
            && let Err(error) = end_receiver(session, pid, until.left()).await
        {
            // It may have ended meanwhile; else PostgreSQL will end it.
            tracing::debug!(%error, pid, "the WAL receiver was not told to end");
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(())
}

/// Sends SIGTERM, as PostgreSQL does. `pg_terminate_backend` takes no receiver, and this process may not see those of
/// PostgreSQL's namespace: so the server's own shell does it, as its own user.
async fn end_receiver(session: &Session, pid: u32, deadline: Duration) -> Result<(), SessionError> {
    let end = format!("COPY (SELECT WHERE false) TO PROGRAM 'kill -TERM {pid}'");
    session
        .execute("ending the WAL receiver", &end, deadline)
        .await
}
