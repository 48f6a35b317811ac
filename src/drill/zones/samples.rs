//! What the sites say of a failover while the line between them is slow, look for look.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use super::cast::promises;
use super::ground::Zones;
use crate::clock;
use crate::control::zone::ZoneStatus;

/// How often it is looked.
const LOOK: Duration = Duration::from_millis(100);

/// What was said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Samples {
    /// How often a failover was said to be safe.
    pub safe: u32,
    /// How often it was said not to be.
    pub unsafe_: u32,
    /// The reasons that were given.
    pub reasons: BTreeSet<String>,
    /// What must not be said, in words.
    pub wrong: BTreeSet<String>,
}

impl Samples {
    /// Takes one look.
    pub(super) fn take(&mut self, member: &str, zone: &ZoneStatus) {
        let ZoneStatus { sync, failover, .. } = zone;
        let (safe, promised) = (failover.safe, promises(zone));
        if safe {
            self.safe += 1;
        } else {
            self.unsafe_ += 1;
            self.reasons.insert(failover.why.clone());
        }
        let why = failover.why.trim();
        if safe && !promised {
            let text = format!(
                "{member} says that a failover is safe, but nothing is confirmed: {sync:?}"
            );
            self.wrong.insert(text);
        }
        if !safe && why.is_empty() {
            self.wrong.insert(format!(
                "{member} says that no failover is safe, but not why"
            ));
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

    /// What is wrong with them all, in words.
    pub(super) fn wrong(&self) -> Vec<String> {
        let none =
            (self.safe + self.unsafe_ == 0).then(|| "nobody said how the sites are".to_owned());
        self.wrong.iter().cloned().chain(none).collect()
    }
}

impl fmt::Display for Samples {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = self.safe + self.unsafe_;
        write!(f, "failover said to be safe {} times of {all}", self.safe)?;
        let reasons: Vec<_> = self.reasons.iter().map(String::as_str).collect();
        match reasons.is_empty() {
            true => Ok(()),
            false => write!(f, ", else: {}", reasons.join("; ")),
        }
    }
}

/// Looks at these members, each with its site, for a while.
pub(super) async fn sample(zones: &Zones, members: &[(usize, &str)], lasts: Duration) -> Samples {
    let mut samples = Samples::default();
    let until = clock::now() + lasts;
    while clock::now() < until {
        for (site, member) in members {
            if let Ok(status) = zones.status(*site, member).await
                && let Some(zone) = &status.zone
            {
                samples.take(member, zone);
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
    fn what_is_said_must_rest_on_the_record() {
        let promised = |confirmed| Sync {
            need: 1,
            sites: [SiteName("b".to_owned())].into(),
            confirmed,
            why: None,
        };
        let silent = Sync {
            why: None,
            ..Sync::none(Degraded::NotYet)
        };
        for (zone, wrong) in [
            (zone(true, "all is there", promised(true)), None),
            (
                zone(false, "b is behind", Sync::none(Degraded::NotYet)),
                None,
            ),
            (
                zone(true, "all is there", promised(false)),
                Some("nothing is confirmed"),
            ),
            (
                zone(true, "all is there", Sync::none(Degraded::NotYet)),
                Some("nothing is confirmed"),
            ),
            (zone(false, " ", promised(false)), Some("but not why")),
            (
                zone(false, "b is behind", silent),
                Some("do not wait, but not why"),
            ),
        ] {
            let mut samples = Samples::default();
            samples.take("a1", &zone);
            let told = samples.wrong().join("; ");
            match wrong {
                None => assert_eq!(told, ""),
                Some(text) => assert!(told.contains(text), "{told}"),
            }
        }
        assert_eq!(Samples::default().wrong().len(), 1, "silence is wrong too");
    }
}
