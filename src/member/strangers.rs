//! Whom of the followers to believe: PostgreSQL takes the word of whoever bears a site's name.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use fencing::Mono;

/// A stranger that was ended and is back within this time will be again: replicas and `pg_receivewal` try anew
/// every 5 s. For so long nothing counts that is said under its name.
const DOUBT: Duration = Duration::from_secs(30);

/// The names under which strangers were seen.
#[derive(Debug, Default)]
pub(super) struct Strangers {
    seen: BTreeMap<String, Sighting>,
}

#[derive(Clone, Copy, Debug)]
struct Sighting {
    last: Mono,
    again: bool,
}

impl Strangers {
    /// Takes in who was seen by the look at `now`. Returns the names that do not count by that look.
    pub fn doubted(&mut self, strangers: &BTreeSet<&str>, now: Mono) -> BTreeSet<String> {
        self.seen
            .retain(|_, sighting| !sighting.last.elapsed(DOUBT, now));
        for name in strangers {
            let again = self.seen.contains_key(*name);
            let sighting = Sighting { last: now, again };
            self.seen.insert((*name).to_owned(), sighting);
        }
        let doubted = |name: &str, sighting: &Sighting| sighting.again || strangers.contains(name);
        let names = self.seen.iter();
        let names = names.filter(|(name, sighting)| doubted(name, sighting));
        names.map(|(name, _)| name.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_back_is_doubted_for_a_while() {
        let mut strangers = Strangers::default();
        let (b, nobody) = (BTreeSet::from(["baton_b"]), BTreeSet::new());
        let mut counts = |seen, second: u64| {
            let doubted = strangers.doubted(seen, Mono::from_millis(second * 1_000));
            !doubted.contains("baton_b")
        };
        assert!(counts(&nobody, 0));
        assert!(!counts(&b, 1), "while the stranger is there");
        assert!(counts(&nobody, 2), "once is soon forgotten");
        assert!(!counts(&b, 6));
        assert!(!counts(&nobody, 35));
        assert!(counts(&nobody, 36));
        assert!(!counts(&b, 40));
        assert!(counts(&nobody, 41));
    }
}
