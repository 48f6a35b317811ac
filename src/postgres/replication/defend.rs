//! What a running PostgreSQL must not be left with: acknowledgements by strangers, and settings that somebody
//! changed under Baton's hands.

use std::time::Duration;

use super::facts::Facts;
use super::look::STRANGER;
use crate::clock;
use crate::postgres::session::{Session, SessionError, literal};

/// What was put right.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PutRight {
    /// Connections that were ended, each by the site's name that it bore and its role.
    pub ended: Vec<(String, String)>,
    /// Settings that are Baton's again.
    pub reset: Vec<String>,
}

impl Session {
    /// Ends the connections that bear a site's name and are not that site's: without its slot, or of another role than
    /// `user`. Takes back what `ALTER SYSTEM` set of that which is Baton's. Does nothing where `facts` show nothing.
    pub async fn put_right(
        &self,
        facts: &Facts,
        user: &str,
        deadline: Duration,
    ) -> Result<PutRight, SessionError> {
        let ends = clock::now() + deadline;
        let left = || clock::now().until(ends);
        let mut done = PutRight::default();
        if !facts.strangers(user).is_empty() {
            done.ended = self.end_strangers(user, left()).await?;
        }
        for name in &facts.overridden {
            let reset = format!("ALTER SYSTEM RESET {name}");
            self.execute("taking back an ALTER SYSTEM", &reset, left())
                .await?;
            done.reset.push(name.clone());
        }
        if !done.reset.is_empty() {
            let reload = "SELECT pg_reload_conf()";
            self.execute("having the configuration read", reload, left())
                .await?;
        }
        Ok(done)
    }

    /// Looks again: a connection that ended since has no process any more to be ended.
    async fn end_strangers(
        &self,
        user: &str,
        deadline: Duration,
    ) -> Result<Vec<(String, String)>, SessionError> {
        const WHAT: &str = "ending a stranger's connection";
        let user = literal(user);
        let sql = format!(
            "SELECT application_name, usename, pg_terminate_backend(pid) FROM pg_stat_replication connection \
             WHERE application_name ILIKE 'baton\\_%' AND state IN ('catchup', 'streaming', 'stopping') \
             AND ({STRANGER} OR usename IS DISTINCT FROM {user})"
        );
        let answer = self.rows(WHAT, &sql, deadline).await?;
        let rows = answer.into_iter().next().unwrap_or_default();
        let ended = rows.into_iter().map(|row| {
            let mut values = row.into_iter().map(Option::unwrap_or_default);
            let mut next = || values.next().unwrap_or_default();
            (next(), next())
        });
        Ok(ended.collect())
    }
}
