//! The departures with how often each was met, for people.

use std::collections::BTreeMap;

use fencing::model::Departure;

use super::compare::Summary;

/// A line for the whole, and one for each departure.
pub fn lines(seeds: std::ops::Range<u64>, summary: &Summary) -> Vec<String> {
    let Summary {
        sequences,
        steps,
        alike,
        different,
        met,
    } = summary;
    let (first, last) = (seeds.start, seeds.end - 1);
    let mut lines = vec![format!(
        "{sequences} sequences (seeds {first} to {last}), {steps} commands on each target: \
         {different} answers or reports differ, all as named; {alike} sequences without a difference"
    )];
    lines.extend(met.iter().map(|(departure, times)| row(*departure, *times)));
    lines
}

fn row(departure: Departure, times: u64) -> String {
    let row = departure.described();
    let (name, clause) = (row.name, row.clause);
    let kind = if row.liberty { "liberty" } else { "departure" };
    format!(
        "{name} ({kind}, {clause}): {times} times; asked: {}; done: {}",
        row.asks, row.does
    )
}

/// Name and times of each departure, for the report.
pub fn counts(summary: &Summary) -> BTreeMap<&'static str, u64> {
    let counted = summary.met.iter();
    counted
        .map(|(one, times)| (one.described().name, *times))
        .collect()
}
