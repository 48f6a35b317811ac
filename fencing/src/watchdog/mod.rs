//! The watchdog as a fence: a node that is not fed resets itself.
//!
//! Two sides. The *active* feeds its node's watchdog ([`Watchdog`]), and only on a fresh confirmation
//! that the volume is still its own. The *standby* cannot see that; its proof is a wait
//! ([`WatchdogWait`]) that is long enough in every case:
//!
//! ```text
//! last true        age still     fed after being      watchdog
//! confirmation     accepted      stopped in between   fires
//! ──┬─────────────────┬──────────────────┬─────────────────┬──────────►
//!   │◄── max_age = c ►│◄── < timeout w ──►│◄── timeout w ──►│
//!   └ at the latest when the volume was fenced (F)
//! ```
//!
//! The active confirms, checks that the confirmation is younger than `c`, and feeds. The process may
//! be stopped between check and feeding, but for less than `w`, or the watchdog fires before. So the
//! last feeding comes before `F + c + w`, and the reset before `F + c + 2w`. To that comes `margin`: for
//! the reset itself, and for the two machines' clocks, of which one may run slower: at least one part
//! in fifty.
//!
//! It protects only where every member's node has a watchdog that resets the whole machine (for a
//! container: the host's), whose time-out is the configured one or less, and which goes on when its
//! feeder dies (the kernel's default unless it is closed by the magic character).
//!
//! Not run against a real device so far: the machines of the tests have none. Tested on files are the
//! rules of feeding and closing; the ioctls only in that they refuse what is no watchdog.

mod raw;

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::Mono;
use crate::fence::{Clock, Fence, Suspect};

/// Tells the driver that the closing to come is meant (`WDIOF_MAGICCLOSE`).
const MAGIC_CLOSE: &[u8] = b"V";
/// Any other byte feeds.
const FEED: &[u8] = b"\0";
/// The least part of the wait that the margin must be: clocks of 2 % difference.
const MARGIN_PART: u32 = 50;

/// The times on which both sides rest; the same on every member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "UncheckedWait", into = "UncheckedWait")]
pub struct WatchdogWait {
    timeout: Duration,
    max_age: Duration,
    margin: Duration,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct UncheckedWait {
    timeout: Duration,
    max_age: Duration,
    margin: Duration,
}

/// Times that prove nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidWait {
    /// The device counts whole seconds.
    #[error("the watchdog's timeout must be whole seconds, 1 to 65535, not {timeout:?}")]
    Timeout {
        /// What was given.
        timeout: Duration,
    },
    /// A confirmation older than the time-out would be fed for.
    #[error("max_age ({max_age:?}) must be more than zero and less than the timeout ({timeout:?})")]
    MaxAge {
        /// What was given.
        max_age: Duration,
        /// The time-out.
        timeout: Duration,
    },
    /// Clocks differ by more than the margin allows.
    #[error("margin ({margin:?}) must be at least {least:?}: 2 % of max_age + 2 × timeout")]
    Margin {
        /// What was given.
        margin: Duration,
        /// What is needed.
        least: Duration,
    },
}

impl WatchdogWait {
    /// Checks the inequalities of the module's proof. `timeout`: the device's; `max_age`: how old the
    /// confirmation of the hold may be when the active feeds; `margin`: for the reset and the clocks.
    pub fn new(
        timeout: Duration,
        max_age: Duration,
        margin: Duration,
    ) -> Result<Self, InvalidWait> {
        let whole = timeout.subsec_nanos() == 0;
        if !whole || !(1..=65_535).contains(&timeout.as_secs()) {
            return Err(InvalidWait::Timeout { timeout });
        }
        if max_age.is_zero() || max_age >= timeout {
            return Err(InvalidWait::MaxAge { max_age, timeout });
        }
        let least = (max_age + timeout * 2) / MARGIN_PART;
        if margin < least {
            return Err(InvalidWait::Margin { margin, least });
        }
        Ok(Self {
            timeout,
            max_age,
            margin,
        })
    }

    /// After this time since the volume was fenced, the suspect's node has been reset:
    /// `max_age + 2 × timeout + margin`.
    pub fn wait(&self) -> Duration {
        self.max_age + self.timeout * 2 + self.margin
    }

    /// The device's time-out.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// How old the confirmation of the hold may be when the active feeds.
    pub fn max_age(&self) -> Duration {
        self.max_age
    }

    /// For the reset itself and for clocks that differ.
    pub fn margin(&self) -> Duration {
        self.margin
    }
}

impl TryFrom<UncheckedWait> for WatchdogWait {
    type Error = InvalidWait;

    fn try_from(unchecked: UncheckedWait) -> Result<Self, InvalidWait> {
        Self::new(unchecked.timeout, unchecked.max_age, unchecked.margin)
    }
}

impl From<WatchdogWait> for UncheckedWait {
    fn from(checked: WatchdogWait) -> Self {
        Self {
            timeout: checked.timeout,
            max_age: checked.max_age,
            margin: checked.margin,
        }
    }
}

/// The suspect's node has been reset by its watchdog.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchdogProof {
    /// When that had become certain.
    pub at: Mono,
}

/// The wait would have ended too late; nothing was waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the suspect's watchdog has fired for certain only at {certain_at}, after the deadline")]
pub struct WatchdogTooSlow {
    /// When it would have been certain.
    pub certain_at: Mono,
}

impl Fence for WatchdogWait {
    type Proof = WatchdogProof;
    type Unproven = WatchdogTooSlow;

    async fn fence(
        &self,
        suspect: &Suspect,
        clock: &impl Clock,
        deadline: Mono,
    ) -> Result<WatchdogProof, WatchdogTooSlow> {
        let certain_at = suspect.since + self.wait();
        if certain_at > deadline {
            return Err(WatchdogTooSlow { certain_at });
        }
        // The timer stands still while the machine sleeps, the clock does not: ask it again.
        while clock() < certain_at {
            tokio::time::sleep(clock().until(certain_at)).await;
        }
        Ok(WatchdogProof { at: certain_at })
    }
}

/// This node's watchdog, armed: from now on it must be fed.
#[derive(Debug)]
pub struct Watchdog {
    device: File,
    path: PathBuf,
    times: WatchdogWait,
}

/// What can go wrong with the device.
#[derive(Debug, thiserror::Error)]
pub enum WatchdogError {
    /// It cannot be opened.
    #[error("cannot open the watchdog {}: load a driver (softdog where there is no hardware), and \
             see that no other program has it open", .path.display())]
    Open {
        /// The device.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// Its time-out cannot be set or read.
    #[error("cannot set the time-out of {}: is it a watchdog device?", .path.display())]
    Timeout {
        /// The device.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The driver took another, longer time-out.
    #[error("the watchdog {} resets after {actual} s, not after {wanted} s as configured on every \
             member: configure at least {actual} s", .path.display())]
    LongerTimeout {
        /// The device.
        path: PathBuf,
        /// What the driver does.
        actual: i32,
        /// What was asked for.
        wanted: u64,
    },
    /// The hold was confirmed too long ago: not fed. Unless it is confirmed in time, the node resets.
    #[error(
        "the watchdog was not fed: the hold of the volume was last confirmed {age:?} ago, at \
             most {max_age:?} is allowed"
    )]
    Unconfirmed {
        /// How long ago.
        age: Duration,
        /// How long it may be.
        max_age: Duration,
    },
    /// The device did not take the byte.
    #[error("cannot write to the watchdog {}", .path.display())]
    Write {
        /// The device.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

impl Watchdog {
    /// Opens the device, which arms it, and sets its time-out. Where the driver takes a longer one
    /// the device is disarmed again: the others' wait would be too short.
    pub fn arm(path: &Path, times: WatchdogWait) -> Result<Self, WatchdogError> {
        let opened = OpenOptions::new().write(true).open(path);
        let device = opened.map_err(|source| WatchdogError::Open {
            path: path.to_owned(),
            source,
        })?;
        let watchdog = Self::over(device, path, times);
        match watchdog.set_timeout() {
            Ok(()) => Ok(watchdog),
            Err(error) => {
                // The first error tells more than a failure to disarm, after which the node resets.
                let _ = watchdog.disarm();
                Err(error)
            }
        }
    }

    /// Over a device that is open and whose time-out is set already. [`Watchdog::arm`] is the way for
    /// a real one; this is for whatever stands in for it in a test.
    pub fn over(device: File, path: &Path, times: WatchdogWait) -> Self {
        Self {
            device,
            path: path.to_owned(),
            times,
        }
    }

    fn set_timeout(&self) -> Result<(), WatchdogError> {
        let wanted = self.times.timeout.as_secs();
        let failed = |source| WatchdogError::Timeout {
            path: self.path.clone(),
            source,
        };
        let seconds = i32::try_from(wanted).unwrap_or(i32::MAX);
        raw::set_timeout(&self.device, seconds).map_err(failed)?;
        let actual = raw::get_timeout(&self.device).map_err(failed)?;
        if actual < 1 || actual > seconds {
            return Err(WatchdogError::LongerTimeout {
                path: self.path.clone(),
                actual,
                wanted,
            });
        }
        Ok(())
    }

    /// Feeds the watchdog, if the hold of the volume (or that nothing of it is in use here) was
    /// confirmed at `confirmed`, not longer ago than the wait of the others allows.
    pub fn feed(&mut self, confirmed: Mono, now: Mono) -> Result<(), WatchdogError> {
        let age = now.since(confirmed);
        if age > self.times.max_age {
            return Err(WatchdogError::Unconfirmed {
                age,
                max_age: self.times.max_age,
            });
        }
        self.write(FEED)
    }

    /// Stops the watchdog: nothing of the volume is in use here any more. Dropping it instead leaves
    /// it running, so that a feeder that dies takes the node with it.
    pub fn disarm(mut self) -> Result<(), WatchdogError> {
        self.write(MAGIC_CLOSE)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), WatchdogError> {
        let written = self.device.write_all(bytes);
        written.map_err(|source| WatchdogError::Write {
            path: self.path.clone(),
            source,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tempfile::NamedTempFile;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn times() -> WatchdogWait {
        WatchdogWait::new(5 * SECOND, 2 * SECOND, SECOND).unwrap()
    }

    fn on_a_file() -> (NamedTempFile, Watchdog) {
        let file = NamedTempFile::new().unwrap();
        let watchdog = Watchdog::over(file.reopen().unwrap(), file.path(), times());
        (file, watchdog)
    }

    #[test]
    fn the_wait_is_the_sum_of_the_proof() {
        assert_eq!(times().wait(), 13 * SECOND);
        let json = serde_json::to_string(&times()).unwrap();
        assert_eq!(
            serde_json::from_str::<WatchdogWait>(&json).unwrap(),
            times()
        );
    }

    #[test]
    fn times_that_prove_nothing_are_refused() {
        let half = Duration::from_millis(500);
        assert!(matches!(
            WatchdogWait::new(SECOND + half, half, SECOND),
            Err(InvalidWait::Timeout { .. })
        ));
        for max_age in [Duration::ZERO, 5 * SECOND] {
            let refused = WatchdogWait::new(5 * SECOND, max_age, SECOND);
            assert!(matches!(refused, Err(InvalidWait::MaxAge { .. })));
        }
        let least = Duration::from_millis(240);
        let too_little = least - Duration::from_millis(1);
        assert_eq!(
            WatchdogWait::new(5 * SECOND, 2 * SECOND, too_little),
            Err(InvalidWait::Margin {
                margin: too_little,
                least
            })
        );
        let json = r#"{"timeout":{"secs":5,"nanos":0},"max_age":{"secs":9,"nanos":0},"margin":{"secs":1,"nanos":0}}"#;
        assert!(serde_json::from_str::<WatchdogWait>(json).is_err());
    }

    #[test]
    fn it_is_fed_on_a_fresh_confirmation_only_and_closed_on_purpose_only() {
        let (file, mut watchdog) = on_a_file();
        let confirmed = Mono::from_millis(10_000);
        watchdog.feed(confirmed, confirmed + 2 * SECOND).unwrap();
        let late = watchdog.feed(confirmed, confirmed + 2 * SECOND + Duration::from_millis(1));
        assert!(matches!(late, Err(WatchdogError::Unconfirmed { .. })));
        drop(watchdog);
        assert_eq!(
            std::fs::read(file.path()).unwrap(),
            b"\0",
            "no magic close by a drop"
        );

        let (file, mut watchdog) = on_a_file();
        watchdog.feed(confirmed, confirmed).unwrap();
        watchdog.disarm().unwrap();
        assert_eq!(std::fs::read(file.path()).unwrap(), b"\0V");
    }

    #[test]
    fn what_is_no_watchdog_is_refused_with_a_reason() {
        let file = NamedTempFile::new().unwrap();
        let refused = Watchdog::arm(file.path(), times()).unwrap_err();
        assert!(
            matches!(refused, WatchdogError::Timeout { .. }),
            "{refused}"
        );
        let absent = Watchdog::arm(Path::new("/nonexistent/watchdog"), times()).unwrap_err();
        assert!(absent.to_string().contains("softdog"), "{absent}");
    }

    proptest! {
        /// An active that confirms, is stopped, feeds and is stopped again, at any moments: once the
        /// wait is over its watchdog has fired.
        #[test]
        fn no_schedule_of_the_active_outlives_the_wait(
            pauses in proptest::collection::vec((0u64..6_000, 0u64..6_000, 0u64..6_000), 1..40),
        ) {
            let times = times();
            let fenced = Mono::from_millis(20_000);
            let (mut now, mut fires) = (Mono::ZERO, Mono::ZERO + times.timeout);
            let mut confirmed = Mono::ZERO;
            for (before, between, after) in pauses {
                let wait = Duration::from_millis;
                now = now + wait(before);
                if now < fenced {
                    confirmed = now;
                }
                now = now + wait(between);
                let accepted = now.since(confirmed) <= times.max_age;
                now = now + wait(after);
                if now >= fires {
                    break;
                }
                if accepted {
                    fires = now + times.timeout;
                }
            }
            prop_assert!(fires <= fenced + times.wait());
        }
    }
}
