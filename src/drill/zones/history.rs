//! The timelines of both sites: the same, and with the promotions that there were.

use std::net::SocketAddr;
use std::time::Duration;

use super::sql;
use crate::drill::stage_error::StageError;
use crate::drill::wait::until;

/// How long one question may take.
const ASK_WITHIN: Duration = Duration::from_secs(10);

/// How long a replica may take to replay what the primary has written, after the writers stopped.
const CAUGHT_UP_WITHIN: Duration = Duration::from_secs(60);

/// The history file of a PostgreSQL's newest timeline; none on the first one, which has no history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Timelines(Option<Newest>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Newest {
    file: String,
    text: String,
}

impl Timelines {
    /// Those of the PostgreSQL at this address.
    pub(super) async fn of(address: SocketAddr) -> Result<Self, StageError> {
        let sql = "SELECT name, pg_read_file('pg_wal/' || name) FROM pg_ls_waldir() \
                   WHERE name LIKE '%.history' ORDER BY name DESC LIMIT 1";
        let newest = sql::rows(address, sql, ASK_WITHIN).await?.pop();
        let newest = newest.and_then(|row| {
            let [file, text] = row.try_into().ok()?;
            Some(Newest { file, text })
        });
        Ok(Self(newest))
    }

    /// The newest timeline. A history file is named after it, in hexadecimal.
    pub(super) fn newest(&self) -> Option<u32> {
        let Some(newest) = &self.0 else {
            return Some(1);
        };
        u32::from_str_radix(newest.file.strip_suffix(".history")?, 16).ok()
    }

    /// The timelines that it came from, oldest first: each line that is no comment begins with one.
    fn parents(&self) -> Vec<u32> {
        let text = self.0.as_ref().map_or("", |newest| newest.text.as_str());
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines
            .filter_map(|line| line.split_whitespace().next()?.parse().ok())
            .collect()
    }

    /// What is wrong with these timelines of the primary, after those before the drill, in words. Each
    /// promotion begins one; numbers may be left out.
    pub(super) fn wrong(&self, before: &Self, replica: &Self, promotions: usize) -> Vec<String> {
        let mut wrong = Vec::new();
        if self != replica {
            wrong.push(format!(
                "the sites' timelines differ: {self:?} and {replica:?}"
            ));
        }
        let [was, is] = [before, self].map(Self::line);
        let begun = is.len().checked_sub(was.len());
        let goes_on = is.starts_with(&was) && is.is_sorted_by(|a, b| a < b);
        if !goes_on || begun != Some(promotions) {
            wrong.push(format!(
                "the timelines were {was:?} and are {is:?}, but there were to be {promotions} new ones"
            ));
        }
        wrong
    }

    /// The timelines from the first one to this.
    fn line(&self) -> Vec<u32> {
        self.parents().into_iter().chain(self.newest()).collect()
    }
}

/// Waits until the replica has replayed all that the primary had written when this began.
pub(super) async fn caught_up(primary: SocketAddr, replica: SocketAddr) -> Result<(), StageError> {
    let end = sql::value(primary, "SELECT pg_current_wal_flush_lsn()", ASK_WITHIN).await?;
    let sql = format!("SELECT coalesce(pg_last_wal_replay_lsn() >= '{end}'::pg_lsn, false)");
    until(
        "the replica's replay of all log",
        CAUGHT_UP_WITHIN,
        async || Ok(sql::value(replica, &sql, ASK_WITHIN).await? == "t"),
    )
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timelines(newest: u32, parents: &[u32]) -> Timelines {
        let lines = parents
            .iter()
            .map(|parent| format!("{parent}\t0/5000000\tno recovery target\n\n"));
        Timelines((newest > 1).then(|| Newest {
            file: format!("{newest:08X}.history"),
            text: lines.collect(),
        }))
    }

    #[test]
    fn a_promotion_must_be_seen_on_both_sites() {
        let (first, second) = (timelines(1, &[]), timelines(2, &[1]));
        let fifth = timelines(5, &[1, 2]);
        let eleventh = timelines(11, &[1, 2, 5]);
        assert_eq!(eleventh.newest(), Some(11));
        for (after, before, promotions) in [
            (&first, &first, 0),
            (&second, &first, 1),
            (&fifth, &second, 1),
            (&eleventh, &second, 2),
        ] {
            assert_eq!(after.wrong(before, after, promotions), Vec::<String>::new());
        }
        // (after, before, replica, promotions, what is told)
        for (after, before, replica, promotions, told) in [
            (&second, &first, &first, 1, "differ"),
            (&first, &first, &first, 1, "1 new ones"),
            (&second, &first, &second, 0, "0 new ones"),
            (&first, &second, &first, 0, "0 new ones"),
            // a fork of the first one, beside the second
            (
                &timelines(3, &[1]),
                &second,
                &timelines(3, &[1]),
                1,
                "1 new ones",
            ),
        ] {
            let wrong = after.wrong(before, replica, promotions).join("; ");
            assert!(wrong.contains(told), "{wrong:?}");
        }
    }
}
