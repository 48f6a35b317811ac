//! All durations that decisions rest on, and the proof that they fit together.
//!
//! [`Timings::new`] checks every inequality once and names all that fail, with the arithmetic. A
//! value of this type is therefore consistent; nothing adjusts a setting silently.

use std::fmt;
use std::ops::Deref;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The settings of `[timings]`, not yet checked. Missing ones take their default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TimingSettings {
    /// How often heartbeats go to the peers. Default 250 ms.
    #[serde(with = "text")]
    pub heartbeat: Duration,
    /// How often the mailbox and the lease are re-read, and the longest time between two decisions.
    /// Default 250 ms.
    #[serde(with = "text")]
    pub observe: Duration,
    /// How often the owner re-checks its hold, and every member replaces its key. Default 1 s.
    #[serde(with = "text")]
    pub storage_beat: Duration,
    /// Whether members replace their keys at all. Off, the hold is still checked every
    /// `storage_beat`, and silence needs the lease store. Default on.
    pub storage_beats: bool,
    /// How often the owner renews the lease. Default 1 s; in Kubernetes 3 s.
    #[serde(with = "text")]
    pub lease_renew: Duration,
    /// How long one request to the lease store may take. Default 1 s.
    #[serde(with = "text")]
    pub lease_deadline: Duration,
    /// How old a reading of the lease may be to act on. Default 2 s; in Kubernetes 6 s.
    #[serde(with = "text")]
    pub lease_age: Duration,
    /// Silence of all readable channels for so long lets a standby take over. Default 2 s.
    #[serde(with = "text")]
    pub detection: Duration,
    /// A longer gap between two looks of this member restarts its detection: it was frozen itself.
    /// Default 750 ms.
    #[serde(with = "text")]
    pub sample_gap: Duration,
    /// How long the owner goes on without a path to the volume when no peer can take over. Default 10 s.
    #[serde(with = "text")]
    pub path_loss_timeout: Duration,
    /// How long the owner goes on while the agent of its node, which alone reaches the volume, is away: its
    /// restart must fit. Default 1 min.
    #[serde(with = "text")]
    pub agent_absence: Duration,
    /// How long the owner is without lease store and peers before it hands over through the
    /// volume's mailbox. Default 3 s; in Kubernetes 8 s.
    #[serde(with = "text")]
    pub isolation: Duration,
    /// How long the former owner waits, clean, for somebody to take over before it takes back.
    /// Default 15 s.
    #[serde(with = "text")]
    pub handover: Duration,
    /// Between a failure and the next try. Default 1 s.
    #[serde(with = "text")]
    pub retry: Duration,
    /// Keep-alive time-out of the members' NVMe associations. Default 5 s.
    #[serde(with = "text")]
    pub keep_alive: Duration,
    /// How long a controller takes at most to stop its commands after its host is gone, where it
    /// reports nothing itself (CQT). Default 10 s.
    #[serde(with = "text")]
    pub quiesce: Duration,
    /// Deadline of one reservation command. Default 2 s.
    #[serde(with = "text")]
    pub command: Duration,
    /// Deadline of a whole fence, the wait for an unprovable drain included. Default 40 s.
    #[serde(with = "text")]
    pub fence: Duration,
    /// Deadline for destroying the device and making it anew. Default 15 s.
    #[serde(with = "text")]
    pub rebuild: Duration,
    /// Deadline for reading superblock and pg_control. Default 5 s.
    #[serde(with = "text")]
    pub prepare: Duration,
    /// Deadline for mkfs and initdb. Default 2 min.
    #[serde(with = "text")]
    pub format: Duration,
    /// Deadline of a mount, journal replay included. Default 1 min.
    #[serde(with = "text")]
    pub mount: Duration,
    /// Deadline of PostgreSQL's start, WAL replay included. Default 5 min.
    #[serde(with = "text")]
    pub start: Duration,
    /// Deadline of the checkpoint before a stop. Default 1 min.
    #[serde(with = "text")]
    pub checkpoint: Duration,
    /// Bound of leading clients away before a stop, where something routes them. Default 2 s.
    #[serde(with = "text")]
    pub withdraw: Duration,
    /// Bound of a fast stop; then immediate. Default 20 s.
    #[serde(with = "text")]
    pub stop_fast: Duration,
    /// Bound of an immediate stop; then kill. Default 5 s.
    #[serde(with = "text")]
    pub stop_immediate: Duration,
    /// Bound of a kill: beyond it a process hangs in the kernel. Default 5 s.
    #[serde(with = "text")]
    pub kill: Duration,
    /// Bound of syncfs, unmount and Flush. Default 20 s.
    #[serde(with = "text")]
    pub unmount: Duration,
    /// How long the primary's site must be silent on every channel before another takes over.
    /// Default 10 s.
    #[serde(with = "text")]
    pub site_detection: Duration,
    /// How long commits wait for a site that does not keep up before `preferred` goes on without it.
    /// Default 5 s.
    #[serde(with = "text")]
    pub sync_patience: Duration,
    /// Deadline of a promotion, replay of what was received included. Default 1 min.
    #[serde(with = "text")]
    pub promote: Duration,
    /// Deadline of a copy of another site's database. Default 24 h; one that gets no further ends
    /// long before.
    #[serde(with = "text")]
    pub seed: Duration,
    /// How many unplanned take-overs this member makes within `takeover_window`. Default 3.
    pub max_takeovers: u32,
    /// See `max_takeovers`. Default 10 min.
    #[serde(with = "text")]
    pub takeover_window: Duration,
    /// How many times PostgreSQL is started again here within `restart_window`. Default 3.
    pub restart_budget: u32,
    /// See `restart_budget`. Default 10 min.
    #[serde(with = "text")]
    pub restart_window: Duration,
}

impl Default for TimingSettings {
    fn default() -> Self {
        let ms = Duration::from_millis;
        let s = Duration::from_secs;
        Self {
            heartbeat: ms(250),
            observe: ms(250),
            storage_beat: s(1),
            storage_beats: true,
            lease_renew: s(1),
            lease_deadline: s(1),
            lease_age: s(2),
            detection: s(2),
            sample_gap: ms(750),
            path_loss_timeout: s(10),
            agent_absence: s(60),
            isolation: s(3),
            handover: s(15),
            retry: s(1),
            keep_alive: s(5),
            quiesce: s(10),
            command: s(2),
            fence: s(40),
            rebuild: s(15),
            prepare: s(5),
            format: s(120),
            mount: s(60),
            start: s(300),
            checkpoint: s(60),
            withdraw: s(2),
            stop_fast: s(20),
            stop_immediate: s(5),
            kill: s(5),
            unmount: s(20),
            site_detection: s(10),
            sync_patience: s(5),
            promote: s(60),
            seed: s(24 * 3600),
            max_takeovers: 3,
            takeover_window: s(600),
            restart_budget: 3,
            restart_window: s(600),
        }
    }
}

impl TimingSettings {
    /// The defaults where the lease is an object of the Kubernetes API: it is renewed and read more
    /// rarely, for that server's sake. The volume's beats alone show silence then.
    ///
    /// ```text
    /// requests of a quiet pair   60 s / lease_renew, and a few for its watches  = 20 + 3 a minute
    /// a reading grows as old as  lease_renew × 3/2 + lease_deadline + observe   = 5.75 s ≤ 6 s
    /// ```
    pub fn kubernetes() -> Self {
        Self {
            lease_renew: Duration::from_secs(3),
            lease_age: Duration::from_secs(6),
            isolation: Duration::from_secs(8),
            ..Self::default()
        }
    }
}

/// Settings that are proven to fit together. Reads like [`TimingSettings`].
///
/// With the defaults:
/// ```text
/// a beat is seen to move at least every   storage_beat + observe + command's usual few ms  = 1.25 s
/// slack before a live owner looks silent  detection − 1.25 s                               = 0.75 s
/// heartbeats that must all be lost        detection / heartbeat                            = 8
/// looks that must all succeed             detection / observe                              = 8
/// crash → fence begins, at the latest     heartbeat + detection + observe                  = 2.5 s
/// path lost, a peer ready → stop          detection after the last successful report       = 2 s
/// path lost, nobody ready → stop          path_loss_timeout                                = 10 s
/// fence that must wait for a drain        3 × keep_alive + quiesce                         = 25 s ≤ 40 s
/// a site's loss → another is promoted     site_detection + observe and two writes          = 10.5 s
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "TimingSettings", into = "TimingSettings")]
pub struct Timings(TimingSettings);

impl Timings {
    /// Proves that the settings fit together.
    ///
    /// # Errors
    /// Every inequality that does not hold, with both sides and the reason for it.
    pub fn new(settings: TimingSettings) -> Result<Self, InvalidTimings> {
        let violations: Vec<_> = rules(&settings)
            .into_iter()
            .filter(|rule| rule.left < rule.right)
            .map(|rule| Violation {
                setting: rule.setting,
                left: rule.left,
                bound: rule.bound,
                right: rule.right,
                why: rule.why,
            })
            .chain(counts(&settings))
            .collect();
        if violations.is_empty() {
            Ok(Self(settings))
        } else {
            Err(InvalidTimings(violations))
        }
    }

    /// Whether a live owner's renewals are near enough to each other that the lease's silence for
    /// `detection` is evidence.
    pub fn lease_shows_silence(&self) -> bool {
        self.detection >= renewal_seen_within(&self.0)
    }

    /// The settings as they can be written down.
    pub fn settings(&self) -> &TimingSettings {
        &self.0
    }
}

impl Default for Timings {
    /// The defaults; a test proves that they fit.
    fn default() -> Self {
        Self(TimingSettings::default())
    }
}

impl Deref for Timings {
    type Target = TimingSettings;

    fn deref(&self) -> &TimingSettings {
        &self.0
    }
}

impl TryFrom<TimingSettings> for Timings {
    type Error = InvalidTimings;

    fn try_from(settings: TimingSettings) -> Result<Self, InvalidTimings> {
        Self::new(settings)
    }
}

impl From<Timings> for TimingSettings {
    fn from(timings: Timings) -> Self {
        timings.0
    }
}

/// One inequality that must hold: `left ≥ right`.
struct Rule {
    setting: &'static str,
    left: Duration,
    bound: &'static str,
    right: Duration,
    why: &'static str,
}

/// A renewal that is half an interval late, and the look that sees it.
fn renewal_seen_within(t: &TimingSettings) -> Duration {
    t.lease_renew * 3 / 2 + t.observe
}

#[rustfmt::skip] // A table: one inequality in two lines.
fn rules(t: &TimingSettings) -> Vec<Rule> {
    let rule = |setting, left, bound, right, why| Rule { setting, left, bound, right, why };
    let positive = Duration::from_millis(1);
    let mut rules: Vec<_> = [
        ("heartbeat", t.heartbeat), ("observe", t.observe), ("storage_beat", t.storage_beat),
        ("lease_renew", t.lease_renew), ("lease_deadline", t.lease_deadline), ("detection", t.detection),
        ("retry", t.retry), ("keep_alive", t.keep_alive), ("command", t.command), ("rebuild", t.rebuild),
        ("prepare", t.prepare), ("format", t.format), ("mount", t.mount), ("start", t.start),
        ("checkpoint", t.checkpoint), ("withdraw", t.withdraw), ("stop_fast", t.stop_fast), ("stop_immediate", t.stop_immediate),
        ("kill", t.kill), ("unmount", t.unmount), ("sync_patience", t.sync_patience),
        ("promote", t.promote), ("seed", t.seed), ("takeover_window", t.takeover_window),
        ("restart_window", t.restart_window),
    ]
    .map(|(setting, value)| rule(setting, value, "1ms", positive, "zero would mean never or always"))
    .into();
    rules.extend([
        rule("detection", t.detection, "4 × heartbeat", 4 * t.heartbeat,
            "one lost heartbeat must not look like silence"),
        rule("detection", t.detection, "storage_beat × 3/2 + observe", t.storage_beat * 3 / 2 + t.observe,
            "a live owner's beat, half an interval late, must be seen to move in time"),
        rule("lease_age", t.lease_age, "lease_renew + lease_deadline", t.lease_renew + t.lease_deadline,
            "an owner knows its lease by its renewals, each of which may take its deadline"),
        rule("lease_age", t.lease_age, "2 × observe", 2 * t.observe,
            "one late look must not make the lease unknown"),
        rule("detection", t.detection, "2 × sample_gap", 2 * t.sample_gap,
            "silence must rest on several looks, not on one"),
        rule("sample_gap", t.sample_gap, "2 × observe", 2 * t.observe,
            "one late look must not restart the detection"),
        rule("path_loss_timeout", t.path_loss_timeout, "detection + command + storage_beat",
            t.detection + t.command + t.storage_beat,
            "the owner must have tried a whole command again before it gives up its path"),
        rule("isolation", t.isolation, "detection", t.detection,
            "an owner is not isolated before its peers had time to be heard"),
        rule("isolation", t.isolation, "lease_age", t.lease_age,
            "a lease that is still good to act on is no sign of isolation"),
        rule("handover", t.handover, "2 × detection + lease_deadline + command",
            2 * t.detection + t.lease_deadline + t.command,
            "the standby must have time to notice, claim and fence before the owner takes back"),
        rule("fence", t.fence, "3 × keep_alive + quiesce + 4 × command",
            3 * t.keep_alive + t.quiesce + 4 * t.command,
            "a drain that nobody confirms is over only after the old controllers' time-outs"),
    ]);
    if !t.storage_beats {
        rules.push(rule("detection", t.detection, "lease_renew × 3/2 + observe", renewal_seen_within(t),
            "without storage beats a live owner's renewal, half an interval late, must be seen in time"));
    }
    rules
}

fn counts(t: &TimingSettings) -> impl Iterator<Item = Violation> {
    let none = |setting, count: u32, why| {
        (count == 0).then_some(Violation {
            setting,
            left: Duration::ZERO,
            bound: "1",
            right: Duration::ZERO,
            why,
        })
    };
    let takeovers = "with no take-over allowed a standby is of no use; pause the cluster instead";
    [none("max_takeovers", t.max_takeovers, takeovers)]
        .into_iter()
        .flatten()
}

/// One inequality that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The setting that is too small.
    pub setting: &'static str,
    /// Its value.
    pub left: Duration,
    /// What it must at least be, in terms of the other settings.
    pub bound: &'static str,
    /// That, computed.
    pub right: Duration,
    /// Why.
    pub why: &'static str,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            setting,
            left,
            bound,
            right,
            why,
        } = self;
        write!(f, "timings.{setting} is {left:?}, must be at least {bound}")?;
        if !right.is_zero() {
            write!(f, " = {right:?}")?;
        }
        write!(f, ": {why}")
    }
}

/// Settings that do not fit together: every inequality that fails.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct InvalidTimings(pub Vec<Violation>);

/// Durations as text with one unit: `250ms`, `2s`, `1m`.
pub(crate) mod text {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{}ms", value.as_millis()))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(deserializer)?;
        let wrong = || {
            D::Error::custom(format!(
                "{text:?} is no duration such as \"250ms\", \"2s\" or \"1m\""
            ))
        };
        let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let number: u64 = text[..digits].parse().map_err(|_| wrong())?;
        let unit = match &text[digits..] {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return Err(wrong()),
        };
        number
            .checked_mul(unit)
            .map(Duration::from_millis)
            .ok_or_else(wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_fit() {
        assert_eq!(
            Timings::new(TimingSettings::default()),
            Ok(Timings::default())
        );
    }

    #[test]
    fn every_violation_is_named_at_once() {
        let settings = TimingSettings {
            heartbeat: Duration::from_secs(1),
            storage_beat: Duration::from_secs(2),
            fence: Duration::from_secs(10),
            max_takeovers: 0,
            ..TimingSettings::default()
        };
        let InvalidTimings(violations) = Timings::new(settings).unwrap_err();
        let named: Vec<_> = violations.iter().map(|v| (v.setting, v.bound)).collect();
        assert_eq!(
            named,
            [
                ("detection", "4 × heartbeat"),
                ("detection", "storage_beat × 3/2 + observe"),
                ("fence", "3 × keep_alive + quiesce + 4 × command"),
                ("max_takeovers", "1"),
            ]
        );
    }

    #[test]
    fn settings_survive_json() {
        let json = serde_json::to_string(&Timings::default()).unwrap();
        assert_eq!(
            serde_json::from_str::<Timings>(&json).unwrap(),
            Timings::default()
        );
        let some: Timings =
            serde_json::from_str(r#"{"detection":"3s","storage_beats":false}"#).unwrap();
        assert_eq!(some.detection, Duration::from_secs(3));
        assert!(serde_json::from_str::<Timings>(r#"{"detection":"1s"}"#).is_err());
        assert!(serde_json::from_str::<Timings>(r#"{"detectoin":"3s"}"#).is_err());
    }
}
