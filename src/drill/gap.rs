//! How long no write was acknowledged, from the ledger's times. Pure: no clock, no database.

use std::collections::BTreeMap;
use std::time::Duration;

use super::ledger::{Entry, Fate};
use crate::clock::Mono;

/// An interval without any acknowledged write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The last acknowledgement before it, or the window's start.
    pub from: Mono,
    /// The first acknowledgement after it, or the window's end.
    pub to: Mono,
}

impl Gap {
    /// Its length.
    pub fn length(self) -> Duration {
        self.to.since(self.from)
    }
}

/// The gaps around a fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gaps {
    /// The longest interval in which no connection had an acknowledgement.
    pub longest: Gap,
    /// Each connection's own longest interval.
    pub per_connection: BTreeMap<u16, Gap>,
}

/// The gaps that end after `fault`; each may begin before it, with the last acknowledgement then
/// seen. `end` closes them: a service that never returned has a gap up to there.
pub fn gaps(entries: &[Entry], connections: u16, fault: Mono, end: Mono) -> Gaps {
    let mut times = Vec::new();
    let mut own: BTreeMap<u16, Vec<Mono>> = (0..connections).map(|c| (c, Vec::new())).collect();
    for entry in entries {
        match entry.fate {
            Fate::Acknowledged => {
                times.push(entry.at);
                own.entry(entry.row.connection).or_default().push(entry.at);
            }
            Fate::Unknown => {}
        }
    }
    let per_connection = own
        .into_iter()
        .map(|(connection, times)| (connection, longest(times, fault, end)))
        .collect();
    Gaps {
        longest: longest(times, fault, end),
        per_connection,
    }
}

/// The longest interval between two neighbours that ends after `fault`.
fn longest(mut times: Vec<Mono>, fault: Mono, end: Mono) -> Gap {
    times.retain(|at| *at <= end);
    times.sort_unstable();
    let before = times.partition_point(|at| *at <= fault);
    let mut from = match before {
        0 => fault,
        n => times[n - 1],
    };
    let mut longest = Gap { from, to: from };
    for to in times[before..].iter().copied().chain([end]) {
        let gap = Gap { from, to };
        if gap.length() > longest.length() {
            longest = gap;
        }
        from = to;
    }
    longest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drill::ledger::Row;

    fn acknowledged(connection: u16, at: u64) -> Entry {
        Entry {
            fate: Fate::Acknowledged,
            row: Row {
                connection,
                number: at,
            },
            at: Mono::from_millis(at),
        }
    }

    #[test]
    fn a_gap_begins_with_the_last_acknowledgement_before_the_fault() {
        // (acknowledgements, fault, end, from, to)
        for (times, fault, end, from, to) in [
            (vec![0, 10, 20, 90, 100], 30, 105, 20, 90),
            // an older, longer gap is none of this fault's
            (vec![0, 500, 510, 600, 605], 520, 610, 510, 600),
            // never returned
            (vec![0, 10], 30, 5_000, 10, 5_000),
            // never served
            (vec![], 30, 5_000, 30, 5_000),
            // times arrive in any order; what is after the end does not count
            (vec![100, 10, 90, 20, 9_000], 30, 105, 20, 90),
        ] {
            let entries: Vec<_> = times.iter().map(|at| acknowledged(0, *at)).collect();
            let found = gaps(
                &entries,
                1,
                Mono::from_millis(fault),
                Mono::from_millis(end),
            )
            .longest;
            assert_eq!(
                (found.from.as_millis(), found.to.as_millis()),
                (from, to),
                "{times:?}"
            );
        }
    }

    #[test]
    fn a_connection_that_stayed_silent_has_a_gap_of_its_own() {
        let entries = [
            acknowledged(0, 10),
            acknowledged(0, 20),
            acknowledged(0, 30),
        ];
        let found = gaps(&entries, 2, Mono::from_millis(15), Mono::from_millis(35));
        assert_eq!(found.longest.length(), Duration::from_millis(10));
        assert_eq!(found.per_connection[&1].length(), Duration::from_millis(20));
    }
}
