//! The only reader of the machine's clocks. Everything else takes the time as an argument.

use std::fmt;

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

pub use fencing::Mono;

/// Now, by the clock that goes on while the machine sleeps: a member that was suspended must see
/// that its time has passed.
pub fn now() -> Mono {
    Mono::from_millis(millis(ClockId::CLOCK_BOOTTIME))
}

/// Now, for people who read logs. Never compared, never decided on.
pub fn wall() -> Wall {
    Wall(millis(ClockId::CLOCK_REALTIME))
}

/// Both clocks exist on every Linux since 2.6.39 and cannot fail with a valid address; zero, the
/// clock's beginning, would stop all progress rather than make anything look expired.
fn millis(clock: ClockId) -> u64 {
    clock_gettime(clock).map_or(0, |time| {
        let seconds = u64::try_from(time.tv_sec()).unwrap_or(0);
        let nanos = u64::try_from(time.tv_nsec()).unwrap_or(0);
        seconds * 1_000 + nanos / 1_000_000
    })
}

/// A date and time for people: milliseconds since 1970-01-01T00:00:00Z, printed as RFC 3339.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Wall(pub u64);

impl fmt::Display for Wall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (days, in_day) = (self.0 / 86_400_000, self.0 % 86_400_000);
        let (year, month, day) = civil(days);
        let (hour, minute) = (in_day / 3_600_000, in_day / 60_000 % 60);
        let (second, milli) = (in_day / 1_000 % 60, in_day % 1_000);
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milli:03}Z"
        )
    }
}

/// Year, month and day of a day counted from 1970-01-01, by the Gregorian calendar (the algorithm
/// `civil_from_days` by Howard Hinnant, for days after the epoch).
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_people_know() {
        let cases = [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_709_251_199_999, "2024-02-29T23:59:59.999Z"),
            (1_709_251_200_000, "2024-03-01T00:00:00.000Z"),
            (4_102_444_800_000, "2100-01-01T00:00:00.000Z"),
        ];
        for (millis, text) in cases {
            assert_eq!(Wall(millis).to_string(), text);
        }
    }

    #[test]
    fn time_does_not_run_backwards() {
        let first = now();
        assert!(first > Mono::ZERO);
        assert!(now() >= first);
    }
}
