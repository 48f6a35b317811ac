//! A point on this machine's monotonic clock. Only its own machine can read it: two machines'
//! values are never compared. This file reads no clock.

use std::fmt;
use std::ops::{Add, Sub};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Milliseconds of `CLOCK_BOOTTIME`, which goes on while the machine sleeps.
///
/// Arithmetic saturates at both ends, and errs on the long side: adding a [`Duration`] rounds up to
/// the next millisecond, so that a wait is never too short.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Mono(u64);

impl Mono {
    /// The clock's beginning.
    pub const ZERO: Self = Self(0);
    /// A time that never comes.
    pub const MAX: Self = Self(u64::MAX);

    /// The point this many milliseconds after the clock's beginning.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// Milliseconds since the clock's beginning.
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// How long ago `earlier` was; zero if it is not earlier.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// How long until `later`; zero if it has come.
    pub const fn until(self, later: Self) -> Duration {
        later.since(self)
    }

    /// Whether at least `duration` has passed since this point.
    pub fn elapsed(self, duration: Duration, now: Self) -> bool {
        now >= self + duration
    }
}

fn millis_rounded_up(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

impl Add<Duration> for Mono {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(millis_rounded_up(duration)))
    }
}

impl Sub<Duration> for Mono {
    type Output = Self;

    fn sub(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(millis_rounded_up(duration)))
    }
}

impl fmt::Display for Mono {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03} s", self.0 / 1000, self.0 % 1000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_never_too_short() {
        let start = Mono::from_millis(10);
        assert_eq!(start + Duration::from_micros(1), Mono::from_millis(11));
        assert_eq!(start + Duration::from_millis(5), Mono::from_millis(15));
        assert!(!start.elapsed(Duration::from_micros(1_500), Mono::from_millis(11)));
        assert!(start.elapsed(Duration::from_micros(1_500), Mono::from_millis(12)));
    }

    #[test]
    fn arithmetic_saturates() {
        assert_eq!(Mono::MAX + Duration::from_secs(1), Mono::MAX);
        assert_eq!(Mono::ZERO - Duration::from_secs(1), Mono::ZERO);
        assert_eq!(Mono::ZERO.since(Mono::from_millis(7)), Duration::ZERO);
        assert_eq!(Mono::ZERO + Duration::MAX, Mono::MAX);
    }
}
