//! The ledger against the table. Pure.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::ledger::{Entry, Fate, Row};

/// What became of the rows that were written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Writes {
    /// Rows whose commit PostgreSQL acknowledged.
    pub acknowledged: u64,
    /// Acknowledged rows that are not there. Must be 0.
    pub lost: u64,
    /// Rows that are there more than once. Must be 0: no number is tried twice.
    pub duplicated: u64,
    /// Rows whose session broke before the answer: there or not, both are right.
    pub unknown: u64,
}

/// The result of the comparison.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The counts.
    pub writes: Writes,
    /// Rows of unknown fate that are there.
    pub unknown_present: u64,
    /// Rows that are there although the ledger never heard of them, or the server had refused
    /// them. Must be 0.
    pub unexpected: u64,
    /// The first few rows that are wrong, in words.
    pub examples: Vec<String>,
}

/// How many wrong rows are named one by one.
const EXAMPLES: usize = 5;

impl Verdict {
    /// Whether every acknowledged row is there exactly once and nothing is there that must not be.
    pub fn holds(&self) -> bool {
        self.writes.lost == 0 && self.writes.duplicated == 0 && self.unexpected == 0
    }
}

/// Compares every entry of the ledger with every row of the table.
pub fn verify(entries: &[Entry], rows: &[Row]) -> Verdict {
    let mut present: HashMap<Row, u64> = HashMap::with_capacity(rows.len());
    for row in rows {
        *present.entry(*row).or_default() += 1;
    }
    let mut verdict = Verdict {
        writes: Writes::default(),
        unknown_present: 0,
        unexpected: 0,
        examples: Vec::new(),
    };
    for (row, times) in &present {
        if *times > 1 {
            verdict.writes.duplicated += 1;
            verdict.example(*row, "is there more than once");
        }
    }
    for entry in entries {
        let there = present.remove(&entry.row).is_some();
        match (entry.fate, there) {
            (Fate::Acknowledged, true) => verdict.writes.acknowledged += 1,
            (Fate::Acknowledged, false) => {
                verdict.writes.acknowledged += 1;
                verdict.writes.lost += 1;
                verdict.example(entry.row, "was acknowledged and is lost");
            }
            (Fate::Unknown, there) => {
                verdict.writes.unknown += 1;
                verdict.unknown_present += u64::from(there);
            }
        }
    }
    verdict.unexpected = present.len() as u64;
    for row in present.into_keys() {
        verdict.example(
            row,
            "is there although it was never acknowledged nor in doubt",
        );
    }
    verdict
}

impl Verdict {
    fn example(&mut self, row: Row, what: &str) {
        if self.examples.len() < EXAMPLES {
            let Row { connection, number } = row;
            let text = format!("row {number} of connection {connection} {what}");
            self.examples.push(text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Mono;

    #[test]
    fn each_kind_of_wrong_row_is_found() {
        let entry = |fate, number| Entry {
            fate,
            row: row(number),
            at: Mono::ZERO,
        };
        let ledger = [
            entry(Fate::Acknowledged, 1),
            entry(Fate::Acknowledged, 2),
            entry(Fate::Unknown, 3),
            entry(Fate::Unknown, 4),
        ];
        // (rows, lost, duplicated, unexpected, unknown and present)
        for (rows, lost, duplicated, unexpected, unknown_present) in [
            (vec![1, 2], 0, 0, 0, 0),
            (vec![1, 2, 3], 0, 0, 0, 1),
            (vec![2, 3, 4], 1, 0, 0, 2),
            (vec![1, 2, 2], 0, 1, 0, 0),
            (vec![1, 2, 5], 0, 0, 1, 0),
            (vec![], 2, 0, 0, 0),
        ] {
            let rows: Vec<_> = rows.into_iter().map(row).collect();
            let verdict = verify(&ledger, &rows);
            let found = (
                verdict.writes.lost,
                verdict.writes.duplicated,
                verdict.unexpected,
                verdict.unknown_present,
            );
            assert_eq!(found, (lost, duplicated, unexpected, unknown_present));
            assert_eq!(
                (verdict.writes.acknowledged, verdict.writes.unknown),
                (2, 2)
            );
            assert_eq!(verdict.holds(), lost + duplicated + unexpected == 0);
        }
    }

    fn row(number: u64) -> Row {
        Row {
            connection: 7,
            number,
        }
    }
}
