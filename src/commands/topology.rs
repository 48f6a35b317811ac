//! `baton topology`: the sites of a cluster.

use std::process::ExitCode;

use super::reach::{Output, OutputArgs, Reach, print_json, print_table};
use crate::control::Status;
use crate::control::zone::{ServingAs, SiteStatus, Verdict, ZoneStatus};
use crate::postgres::replication::Progress;

/// Show the sites: which has the primary, how far the others are, and whether a failover would be safe
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    reach: Reach,
    #[command(flatten)]
    output: OutputArgs,
}

/// Prints the sites as the member sees them that knows most: the primary's active, else a replica's.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut statuses: Vec<Status> = args.reach.statuses()?.into_iter().flatten().collect();
    let rank = |status: &Status| match status.zone.as_ref().map(|zone| zone.serving_as) {
        Some(ServingAs::Primary) => 0,
        Some(ServingAs::Replica) => 1,
        Some(ServingAs::Nothing) => 2,
        None => 3,
    };
    statuses.sort_by_key(rank);
    let Some(best) = statuses.first() else {
        anyhow::bail!("no member answers");
    };
    let Some(zone) = &best.zone else {
        anyhow::bail!("cluster {} has one site, {}", best.cluster, best.site);
    };
    match args.output.output {
        Output::Json => print_json(zone)?,
        Output::Text => print(best, zone, &statuses),
    }
    Ok(match zone.reachable {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

fn print(status: &Status, zone: &ZoneStatus, all: &[Status]) {
    let primary = zone.primary.as_deref().unwrap_or("none");
    println!(
        "Cluster {}, term {}: primary at site {primary}; as {} of site {} sees it",
        status.cluster, zone.term, status.member, status.site
    );
    let rows: Vec<_> = zone
        .sites
        .iter()
        .map(|site| row(site, status, zone, all))
        .collect();
    print_table(
        [
            "Site",
            "Role",
            "State",
            "Behind",
            "Slot keeps",
            "Lease",
            "Failover",
        ],
        &rows,
    );
    println!("{}", sentence(zone));
    println!("{}: {}", status.member, status.reason);
    for (member, copy) in all.iter().filter_map(copier) {
        println!("{member}: {}", copying_text(copy));
    }
}

/// Whether a failover would be safe, in one sentence.
pub(super) fn sentence(zone: &ZoneStatus) -> String {
    judged(&zone.failover)
}

/// The same of a verdict.
pub(super) fn judged(verdict: &Verdict) -> String {
    let words = match verdict.safe {
        true => "A failover to another site now would lose nothing",
        false => "A failover to another site now would NOT be safe",
    };
    format!("{words}: {}.", verdict.why)
}

fn row(site: &SiteStatus, status: &Status, zone: &ZoneStatus, all: &[Status]) -> [String; 7] {
    let dash = || "-".to_owned();
    let own = site.name == status.site;
    let role = match (site.primary, site.may_lead) {
        (true, _) => "primary",
        (false, true) => "replica",
        (false, false) => "read replica",
    };
    let mut there = all.iter().filter(|status| status.site == site.name);
    let copy = there.find_map(copy_of);
    let state = match (copy, site.streaming) {
        (Some(copy), _) => short(copy),
        (None, _) if own => status.reason_word(zone),
        (None, _) if site.cut => "follows no more".to_owned(),
        (None, Some(true)) => "streaming".to_owned(),
        (None, Some(false)) if site.slot_lost == Some(true) => "away, slot lost".to_owned(),
        (None, Some(false)) => "away".to_owned(),
        (None, None) => dash(),
    };
    [
        site.name.clone(),
        role.to_owned(),
        state,
        site.lag_bytes.map_or_else(dash, bytes),
        site.slot_retained.map_or_else(dash, bytes),
        site.lease_ms.map_or_else(dash, |ms| format!("{ms} ms")),
        match &site.failover {
            Some(verdict) if verdict.safe => "safe".to_owned(),
            Some(_) => "not safe".to_owned(),
            None => dash(),
        },
    ]
}

impl Status {
    fn reason_word(&self, zone: &ZoneStatus) -> String {
        match zone.serving_as {
            ServingAs::Primary => "serving".to_owned(),
            ServingAs::Replica => match zone.lag_ms {
                Some(0) | None => "following".to_owned(),
                Some(ms) => format!("following, {:.1} s old", ms as f64 / 1000.0),
            },
            ServingAs::Nothing => "not running".to_owned(),
        }
    }
}

/// The copy that is under way at a member.
pub(super) fn copy_of(status: &Status) -> Option<&Progress> {
    status.zone.as_ref()?.copying.as_ref()
}

/// The same, with the member's name.
fn copier(status: &Status) -> Option<(&str, &Progress)> {
    Some((&status.member, copy_of(status)?))
}

/// How far a copy is, for a table.
fn short(copy: &Progress) -> String {
    match percent(copy) {
        Some(percent) => format!("copying, {percent} %"),
        None => "copying".to_owned(),
    }
}

/// How far a copy is, in a sentence.
pub(super) fn copying_text(copy: &Progress) -> String {
    let Progress {
        by,
        done,
        total,
        instead,
    } = copy;
    let why = instead.as_ref();
    let why = why.map_or(String::new(), |why| {
        format!(", for replication.seed failed: {why}")
    });
    match percent(copy) {
        Some(percent) => {
            let (done, total) = (bytes(*done), bytes(*total));
            format!("copying {done} of {total} ({percent} %) by {by}{why}")
        }
        None => format!("copying {} by {by}{why}", bytes(*done)),
    }
}

/// None as long as nobody knows how much it will be. The total is an estimate: there may be more.
fn percent(copy: &Progress) -> Option<u64> {
    let done = u128::from(copy.done.min(copy.total)) * 100;
    let percent = done.checked_div(u128::from(copy.total))?;
    u64::try_from(percent).ok()
}

/// When a site was last seen.
pub(super) fn last_seen(zone: &ZoneStatus, site: &str) -> String {
    let known = zone.sites.iter().find(|known| known.name == site);
    known.and_then(|known| known.lease_ms).map_or_else(
        || "its lease cannot be read".to_owned(),
        |ms| format!("its lease last changed {:.1} s ago", ms as f64 / 1000.0),
    )
}

/// A number of bytes for people.
pub(super) fn bytes(count: u64) -> String {
    match count {
        0..1024 => format!("{count} B"),
        1024..1_048_576 => format!("{:.1} kB", count as f64 / 1024.0),
        1_048_576..1_073_741_824 => format!("{:.1} MB", count as f64 / 1_048_576.0),
        _ => format!("{:.1} GB", count as f64 / 1_073_741_824.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::replication::CopiedBy;

    #[test]
    fn bytes_are_for_people() {
        let shown = [0, 1023, 1536, 5 << 20, 3 << 30].map(bytes);
        assert_eq!(shown, ["0 B", "1023 B", "1.5 kB", "5.0 MB", "3.0 GB"]);
    }

    #[test]
    fn a_copy_tells_how_far_it_is() {
        let by = CopiedBy::BaseBackup;
        let (done, total) = (6 << 29, 10 << 30);
        let mut copy = Progress {
            by,
            done,
            total,
            instead: None,
        };
        let text = "copying 3.0 GB of 10.0 GB (30 %) by pg_basebackup";
        assert_eq!(copying_text(&copy), text);
        assert_eq!(short(&copy), "copying, 30 %");
        // the estimate was too low
        copy.done = 11 << 30;
        assert_eq!(short(&copy), "copying, 100 %");
        (copy.done, copy.total) = (0, 0);
        assert_eq!(copying_text(&copy), "copying 0 B by pg_basebackup");
    }
}
