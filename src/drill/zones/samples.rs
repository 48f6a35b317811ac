//! What the sites say of a failover while the line between them is slow, look for look, held against what
//! the primary's PostgreSQL does.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use super::ground::Zones;
use super::sql;
use crate::clock::{self, Mono};
use crate::control::zone::ZoneStatus;
use crate::decide::Timings;
use crate::decide::zone::Sync;

/// How often it is looked.
const LOOK: Duration = Duration::from_millis(100);

/// How long PostgreSQL may take to answer.
const ANSWER: Duration = Duration::from_secs(2);

/// How long what a member says may be older than what PostgreSQL does: a look at the record and at the member.
const REACTION: Duration = Duration::from_secs(2);

/// What the primary itself does.
const TRUTH: &str = "SELECT current_setting('synchronous_standby_names'), \
    coalesce(string_agg(application_name, ',' ORDER BY application_name), '') \
    FROM pg_stat_replication WHERE state = 'streaming'";

/// What the primary's PostgreSQL does at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Truth {
    /// `synchronous_standby_names` in force.
    names: String,
    /// Who streams from it, by name.
    streaming: BTreeSet<String>,
}

impl Truth {
    fn of(row: &[String]) -> Option<Self> {
        let [names, streaming] = row else {
            return None;
        };
        let streaming = streaming.split(',').filter(|name| !name.is_empty());
        Some(Self {
            names: names.clone(),
            streaming: streaming.map(str::to_owned).collect(),
        })
    }

    /// How many of whom commits wait for: `ANY n (a, b)`.
    fn waits_for(&self) -> Option<(u8, BTreeSet<String>)> {
        let (need, names) = self.names.strip_prefix("ANY ")?.split_once(" (")?;
        let names = names.strip_suffix(')')?.split(", ");
        Some((need.parse().ok()?, names.map(str::to_owned).collect()))
    }

    /// What of a promise it does not do, and for how long that may be.
    fn breaks(&self, promise: &Sync) -> [Option<(&'static str, Duration)>; 2] {
        let names: BTreeSet<_> = promise
            .sites
            .iter()
            .map(|site| site.in_postgres())
            .collect();
        let streaming = names.intersection(&self.streaming).count();
        let waits = self.waits_for() == Some((promise.need, names));
        // Until then commits only wait: nothing is lost, and the promise still stands.
        let patience = Timings::default().sync_patience + REACTION;
        [
            (!waits).then_some(("commits do not wait so", REACTION)),
            (streaming < usize::from(promise.need)).then_some(("too few sites stream", patience)),
        ]
    }
}

/// What was said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Samples {
    /// How often a failover was said to be safe.
    pub safe: u32,
    /// How often it was said not to be.
    pub unsafe_: u32,
    /// How often the primary's PostgreSQL was asked what it does.
    pub checked: u32,
    /// The reasons that were given.
    pub reasons: BTreeSet<String>,
    /// What must not be said, in words.
    pub wrong: BTreeSet<String>,
    /// What a member says and PostgreSQL does not do, and since when.
    broken: BTreeMap<(String, &'static str), Mono>,
}

impl Samples {
    /// Takes one look: what a member says, and what the primary does, if it answered.
    pub(super) fn take(
        &mut self,
        member: &str,
        zone: &ZoneStatus,
        truth: Option<&Truth>,
        now: Mono,
    ) {
        let ZoneStatus { sync, failover, .. } = zone;
        if failover.safe {
            self.safe += 1;
        } else {
            self.unsafe_ += 1;
            self.reasons.insert(failover.why.clone());
            if failover.why.trim().is_empty() {
                self.wrong.insert(format!(
                    "{member} says that no failover is safe, but not why"
                ));
            }
        }
        if let Some(truth) = truth {
            self.checked += 1;
            let promise = sync.as_ref().filter(|_| failover.safe);
            self.hold(member, promise, truth, now);
        }
        let silent = sync
            .as_ref()
            .is_some_and(|sync| sync.need == 0 && sync.why.is_none());
        if silent {
            self.wrong.insert(format!(
                "{member} says that commits do not wait, but not why"
            ));
        }
    }

    /// Holds a promise, on which a safe failover rests, against the truth.
    fn hold(&mut self, member: &str, promise: Option<&Sync>, truth: &Truth, now: Mono) {
        let broken = promise.map_or_else(Default::default, |promise| truth.breaks(promise));
        self.broken.retain(|(of, what), _| {
            let still = |(known, _): &(&str, Duration)| known == what;
            of != member || broken.iter().flatten().any(still)
        });
        for (what, bound) in broken.into_iter().flatten() {
            let since = *self.broken.entry((member.to_owned(), what)).or_insert(now);
            if since.elapsed(bound, now) {
                let text = format!(
                    "{member} says for {bound:?} that a failover is safe by {promise:?}, but {what}: {truth:?}"
                );
                self.wrong.insert(text);
            }
        }
    }

    /// What is wrong with them all, in words.
    pub(super) fn wrong(&self) -> Vec<String> {
        let silent = (self.safe + self.unsafe_ == 0).then_some("nobody said how the sites are");
        let blind = (self.checked == 0).then_some("the primary never said what it does");
        let none = silent.into_iter().chain(blind).map(str::to_owned);
        self.wrong.iter().cloned().chain(none).collect()
    }
}

impl fmt::Display for Samples {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { safe, checked, .. } = self;
        let all = safe + self.unsafe_;
        write!(
            f,
            "failover said to be safe {safe} times of {all}, {checked} held against PostgreSQL"
        )?;
        let reasons: Vec<_> = self.reasons.iter().map(String::as_str).collect();
        match reasons.is_empty() {
            true => Ok(()),
            false => write!(f, ", else: {}", reasons.join("; ")),
        }
    }
}

/// Looks at these members, each with its site, for a while, and at the primary's PostgreSQL.
pub(super) async fn sample(
    zones: &Zones,
    members: &[(usize, &str)],
    primary: SocketAddr,
    lasts: Duration,
) -> Samples {
    let mut samples = Samples::default();
    let until = clock::now() + lasts;
    while clock::now() < until {
        let truth = sql::rows(primary, TRUTH, ANSWER).await;
        let truth = truth.ok().and_then(|rows| Truth::of(rows.first()?));
        for (site, member) in members {
            if let Ok(status) = zones.status(*site, member).await
                && let Some(zone) = &status.zone
            {
                samples.take(member, zone, truth.as_ref(), clock::now());
            }
        }
        tokio::time::sleep(LOOK).await;
    }
    samples
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::zone::{ServingAs, Verdict};
    use crate::decide::zone::{Degraded, SiteName, Sync};

    /// A primary's.
    const ZONE: ZoneStatus = ZoneStatus {
        reachable: true,
        cause: None,
        term: 1,
        primary: None,
        serving_as: ServingAs::Primary,
        sync: None,
        position: None,
        lag_bytes: None,
        lag_ms: None,
        readable: false,
        copying: None,
        failover: Verdict {
            safe: false,
            why: String::new(),
        },
        sites: Vec::new(),
    };

    fn zone(safe: bool, why: &str, sync: Sync) -> ZoneStatus {
        ZoneStatus {
            sync: Some(sync),
            failover: Verdict {
                safe,
                why: why.to_owned(),
            },
            ..ZONE
        }
    }

    #[test]
    fn what_is_said_must_be_what_postgresql_does() {
        let promise = Sync {
            need: 1,
            sites: [SiteName("b".to_owned())].into(),
            confirmed: true,
            why: None,
        };
        let silent = Sync {
            why: None,
            ..Sync::none(Degraded::NotYet)
        };
        let none = Sync::none(Degraded::NotYet);
        let truth = |names: &str, streaming: &str| {
            Truth::of(&[names.to_owned(), streaming.to_owned()]).unwrap()
        };
        let keeps = truth("ANY 1 (baton_b)", "baton_b");
        let alone = truth("ANY 1 (baton_b)", "other");
        let empty = truth("", "baton_b");
        let wider = truth("ANY 1 (baton_b, baton_c)", "baton_b");
        let fewer = truth("ANY 0 (baton_b)", "baton_b");
        let safe = || zone(true, "all is there", promise.clone());
        for (zone, truth, seconds, wrong) in [
            (safe(), &keeps, 60, None),
            (zone(false, "b is behind", none.clone()), &empty, 60, None),
            (safe(), &empty, 1, None),
            (safe(), &empty, 2, Some("commits do not wait so")),
            (safe(), &wider, 2, Some("commits do not wait so")),
            (safe(), &fewer, 2, Some("commits do not wait so")),
            (safe(), &alone, 6, None),
            (safe(), &alone, 7, Some("too few sites stream")),
            (
                zone(true, "?", none),
                &empty,
                2,
                Some("commits do not wait so"),
            ),
            (
                zone(false, " ", promise.clone()),
                &keeps,
                0,
                Some("but not why"),
            ),
            (
                zone(false, "b is behind", silent),
                &empty,
                0,
                Some("do not wait, but not why"),
            ),
        ] {
            let mut samples = Samples::default();
            for second in 0..=seconds {
                let now = Mono::from_millis(second * 1_000);
                samples.take("a1", &zone, Some(truth), now);
            }
            let told = samples.wrong().join("; ");
            match wrong {
                None => assert_eq!(told, ""),
                Some(text) => assert!(told.contains(text), "{told}"),
            }
        }
        assert_eq!(Samples::default().wrong().len(), 2, "silence is wrong too");
    }

    #[test]
    fn what_is_put_right_in_time_is_forgotten() {
        let promise = Sync {
            need: 1,
            sites: [SiteName("b".to_owned())].into(),
            confirmed: true,
            why: None,
        };
        let zone = zone(true, "all is there", promise);
        let mut samples = Samples::default();
        for (names, millis) in [
            ("", 0),
            ("ANY 1 (baton_b)", 1_500),
            ("", 2_500),
            ("", 4_000),
        ] {
            let truth = Truth::of(&[names.to_owned(), "baton_b".to_owned()]).unwrap();
            samples.take("a1", &zone, Some(&truth), Mono::from_millis(millis));
        }
        assert_eq!(samples.wrong(), Vec::<String>::new());
    }
}
