//! The pause before something that has failed is tried again.

use std::time::Duration;

/// Between half of it and all of it, by `chance` (from 0 to 1), so that those that failed together do not try
/// together for ever: `first`, doubled for each of the `earlier` failures, at most `longest`.
pub(crate) fn pause(first: Duration, longest: Duration, earlier: u32, chance: f64) -> Duration {
    let whole = (first * 2_u32.saturating_pow(earlier.min(8))).min(longest);
    whole.mul_f64(0.5 + chance / 2.0)
}
