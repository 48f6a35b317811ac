//! Durations as people write them in a configuration: `250ms`, `2s`, `1m`, `1m30s`, `1h`.
//!
//! Whole milliseconds only: nothing in Baton is decided on a finer grain. A bare number is refused,
//! because a reader could not tell seconds from milliseconds.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A duration that reads and prints as text with units.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Human(pub Duration);

/// A text that is no duration with units.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "{text:?} is no duration: write a number with a unit, such as \"250ms\", \"2s\" or \"1m30s\""
)]
pub struct InvalidDuration {
    /// What was given.
    pub text: String,
}

/// Units, greatest first, in milliseconds.
const UNITS: [(&str, u64); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

impl FromStr for Human {
    type Err = InvalidDuration;

    fn from_str(text: &str) -> Result<Self, InvalidDuration> {
        parse_millis(text.trim())
            .map(|millis| Self(Duration::from_millis(millis)))
            .ok_or_else(|| InvalidDuration {
                text: text.to_owned(),
            })
    }
}

/// The sum of all `<number><unit>` parts, in milliseconds; none for anything else or on overflow.
fn parse_millis(text: &str) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    let mut rest = text;
    let mut total: u64 = 0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: u64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let letters = rest
            .find(|c: char| !c.is_ascii_alphabetic())
            .unwrap_or(rest.len());
        let (_, millis) = UNITS.iter().find(|(unit, _)| *unit == &rest[..letters])?;
        total = total.checked_add(number.checked_mul(*millis)?)?;
        rest = &rest[letters..];
    }
    Some(total)
}

impl fmt::Display for Human {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        if rest == 0 {
            return f.write_str("0s");
        }
        for (unit, millis) in UNITS {
            let count = rest / millis;
            rest %= millis;
            if count > 0 {
                write!(f, "{count}{unit}")?;
            }
        }
        Ok(())
    }
}

impl Serialize for Human {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Human {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// `#[serde(serialize_with = "config::duration::serialize")]`, or `with` for both directions.
pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    Human(*duration).serialize(serializer)
}

/// The other direction of [`serialize`].
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    Human::deserialize(deserializer).map(|human| human.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_people_write() {
        let cases = [
            ("250ms", Some(250)),
            ("2s", Some(2_000)),
            ("1m30s", Some(90_000)),
            ("1h", Some(3_600_000)),
            ("0s", Some(0)),
            (" 5s ", Some(5_000)),
            ("", None),
            ("2", None),
            ("s", None),
            ("2 s", None),
            ("-1s", None),
            ("1.5s", None),
            ("2sec", None),
            ("99999999999999999999s", None),
            ("18446744073709551615h", None),
        ];
        for (text, millis) in cases {
            let read = text
                .parse::<Human>()
                .ok()
                .map(|human| human.0.as_millis() as u64);
            assert_eq!(read, millis, "{text:?}");
        }
    }

    #[test]
    fn prints_what_it_reads() {
        for millis in [
            0, 1, 250, 999, 1_000, 1_500, 60_000, 90_250, 3_600_000, 86_400_001,
        ] {
            let human = Human(Duration::from_millis(millis));
            assert_eq!(human.to_string().parse(), Ok(human));
        }
    }
}
