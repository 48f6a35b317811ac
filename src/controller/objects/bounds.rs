//! How long things may take in a pod. The steps of a handover must end before its grace period does, or the
//! kubelet kills PostgreSQL in the midst of one and the other member has to recover.
//!
//! ```text
//! checkpoint + withdraw + stop_fast + stop_immediate + kill + unmount + command + margin ≤ grace
//! with the defaults:    60 + 2 + 20 + 5 + 5 + 20 + 2 + 6 = 120 s
//! ```

use std::collections::BTreeMap;
use std::time::Duration;

use super::settings::timings;
use crate::cluster::BatonCluster;
use crate::decide::TimingSettings;

/// For what is between the steps: signals, the kubelet, a busy machine. Of a short grace period a tenth.
const MARGIN: Duration = Duration::from_secs(6);

/// Bounds that the specification does not set may become this much shorter than their defaults, not more.
const SHORTEST: u32 = 16;

/// The bounds do not fit into the grace period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shortfall {
    /// The least grace period for them, in seconds.
    pub needed: u64,
}

/// The steps between SIGTERM and the word that the volume is clean, each with its bound.
fn steps(t: &TimingSettings) -> [(&'static str, Duration); 6] {
    [
        ("checkpoint", t.checkpoint),
        ("withdraw", t.withdraw),
        ("stop_fast", t.stop_fast),
        ("stop_immediate", t.stop_immediate),
        ("kill", t.kill),
        ("unmount", t.unmount),
    ]
}

/// What the members' timings would be; `None` where they cannot be read, which the members say themselves.
fn settings(cluster: &BatonCluster) -> Option<TimingSettings> {
    let mut all = toml::Table::try_from(TimingSettings::kubernetes()).ok()?;
    for (name, value) in timings(cluster) {
        all.insert(name.to_owned(), value);
    }
    all.try_into().ok()
}

fn grace(cluster: &BatonCluster) -> Duration {
    let seconds = cluster.spec.termination_grace_period_seconds;
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

/// The bounds that must be shorter than they would be, so that a handover fits into the grace period. Those
/// that the specification sets stay; the others are shortened in proportion.
///
/// # Errors
/// They cannot be short enough.
pub fn shortened(cluster: &BatonCluster) -> Result<BTreeMap<&'static str, Duration>, Shortfall> {
    let Some(settings) = settings(cluster) else {
        return Ok(BTreeMap::new());
    };
    let (own, free): (Vec<_>, Vec<_>) = steps(&settings)
        .into_iter()
        .partition(|(name, _)| cluster.spec.timings.contains_key(*name));
    let sum = |of: &[(&str, Duration)]| of.iter().map(|(_, bound)| *bound).sum::<Duration>();
    let (fixed, rest) = (sum(&own) + settings.command, sum(&free));
    let grace = grace(cluster);
    let left = grace.checked_sub(MARGIN.min(grace / 10) + fixed);
    if left.is_some_and(|left| left >= rest) {
        return Ok(BTreeMap::new());
    }
    let Some(left) = left.filter(|left| *left >= rest / SHORTEST) else {
        let least = fixed + rest / SHORTEST;
        let needed = (least + MARGIN.min(least / 9)).as_millis().div_ceil(1000);
        let needed = u64::try_from(needed).unwrap_or(u64::MAX);
        return Err(Shortfall { needed });
    };
    let share = |bound: Duration| bound.mul_f64(left.as_secs_f64() / rest.as_secs_f64());
    Ok(free
        .into_iter()
        .map(|(name, bound)| (name, share(bound)))
        .collect())
}

/// How long nobody may serve while one member hands over and another takes over, recovery included. After
/// that, nothing is under way that an end could interrupt.
pub fn takeover(cluster: &BatonCluster) -> Duration {
    let t = settings(cluster).unwrap_or_else(TimingSettings::kubernetes);
    grace(cluster) + t.handover + t.fence + t.prepare + t.mount + t.start
}

/// How long a copy of another site's database may take.
pub fn copy(cluster: &BatonCluster) -> Duration {
    settings(cluster)
        .unwrap_or_else(TimingSettings::kubernetes)
        .seed
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn cluster(grace: Option<u64>, timings: serde_json::Value) -> BatonCluster {
        let mut object = json!({
            "apiVersion": "baton.dev/v1alpha1",
            "kind": "BatonCluster",
            "metadata": {"name": "main", "namespace": "db"},
            "spec": {"image": "baton:1", "volume": {"claimName": "disk"}, "timings": timings,
                "members": [{"name": "a"}, {"name": "b"}]},
        });
        if let Some(grace) = grace {
            object["spec"]["terminationGracePeriodSeconds"] = json!(grace);
        }
        serde_json::from_value(object).unwrap()
    }

    /// What a member is told fits, whatever the grace period and whichever bounds the user sets.
    #[test]
    fn every_handover_fits_into_its_grace_period() {
        let some = json!({"checkpoint": "20s", "unmount": "5s"});
        for (seconds, timings) in [
            (10, json!({})),
            (30, json!({})),
            (60, json!({})),
            (119, json!({})),
            (60, some.clone()),
            (3600, json!({})),
        ] {
            let cluster = cluster(Some(seconds), timings.clone());
            let mut all = settings(&cluster).unwrap();
            let short = shortened(&cluster).unwrap();
            let of = |name: &str, bound| short.get(name).copied().unwrap_or(bound);
            let told = steps(&all).map(|(name, bound)| (name, of(name, bound)));
            let grace = Duration::from_secs(seconds);
            let whole = told.iter().map(|(_, bound)| *bound).sum::<Duration>() + all.command;
            assert!(
                whole + MARGIN.min(grace / 10) <= grace + Duration::from_millis(1),
                "{seconds}: {told:?}"
            );
            assert!(
                told.iter()
                    .all(|(_, bound)| *bound >= Duration::from_millis(100))
            );
            if timings == some {
                all.checkpoint = Duration::from_secs(20);
                assert_eq!(told[0].1, all.checkpoint, "the user's stays");
            }
        }
    }

    #[test]
    fn the_defaults_fit_as_they_are() {
        assert_eq!(shortened(&cluster(None, json!({}))), Ok(BTreeMap::new()));
    }

    #[test]
    fn what_cannot_fit_says_what_would() {
        let timings = json!({"checkpoint": "60s"});
        let Shortfall { needed } = shortened(&cluster(Some(60), timings.clone())).unwrap_err();
        assert_eq!(needed, 72);
        assert!(shortened(&cluster(Some(needed), timings.clone())).is_ok());
        assert!(shortened(&cluster(Some(needed - 1), timings)).is_err());
        let all = json!({"checkpoint": "10s", "withdraw": "1s", "stop_fast": "10s", "stop_immediate": "5s",
            "kill": "5s", "unmount": "10s"});
        assert!(shortened(&cluster(Some(40), all.clone())).is_err());
        assert_eq!(shortened(&cluster(Some(60), all)), Ok(BTreeMap::new()));
    }
}
