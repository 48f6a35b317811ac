//! `baton status`: how the members of a site are.

use std::process::ExitCode;

use crate::control::{MemberStatus, Status};
use crate::decide::RoleName;

use super::reach::{Output, OutputArgs, Reach, print_json, print_table};
use super::topology::{copy_of, copying_text, sentence};

/// A status older than this means that the member's loop hangs, in milliseconds: ten times the
/// longest time between two decisions.
const STALE_MS: u64 = 2_500;

/// Show the members, who is active, and what somebody should know
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    reach: Reach,
    #[command(flatten)]
    output: OutputArgs,
}

/// Prints what each member says; fails if none answers.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let (mut found, mut absent) = (Vec::new(), Vec::new());
    for status in args.reach.statuses()? {
        match status {
            Ok(status) => found.push(status),
            Err(error) => absent.push(error),
        }
    }
    // The member that serves knows best; else the one that has looked last.
    found.sort_by_key(|status| (!status.serving, status.age_ms));
    let answered = !found.is_empty();
    match (args.output.output, found.as_slice()) {
        (Output::Json, [only]) if absent.is_empty() => print_json(only)?,
        (Output::Json, [_, ..]) => print_json(&found)?,
        (Output::Text, [best, others @ ..]) => {
            print(best, others);
        }
        (Output::Json | Output::Text, []) => {}
    }
    for error in absent {
        eprintln!("baton: {:#}", anyhow::Error::from(error));
    }
    Ok(if answered {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn print(best: &Status, others: &[Status]) {
    let active = best
        .active()
        .map_or("none".to_owned(), |active| active.name.clone());
    let paused = if best.paused { ", PAUSED" } else { "" };
    println!(
        "Cluster {}, site {}: active {active}{paused}",
        best.cluster, best.site
    );
    // What a member says of itself is better than what another heard of it.
    let own = |name: &str| {
        let said = others.iter().find(|status| status.member == name);
        said.and_then(|status| status.members.first())
    };
    let lines = best
        .members
        .iter()
        .map(|line| own(&line.name).unwrap_or(line));
    let rows: Vec<_> = lines.map(row).collect();
    print_table(
        [
            "Member", "No", "Role", "State", "Epoch", "Ready", "Lease", "Heard", "Address",
        ],
        &rows,
    );
    for status in std::iter::once(best).chain(others) {
        let stale = if status.age_ms > STALE_MS {
            format!("  (its loop has not moved for {} ms)", status.age_ms)
        } else {
            String::new()
        };
        let step = status.step.as_ref();
        let step = step.map_or(String::new(), |s| {
            format!("  [{} for {} ms]", s.name, s.running_ms)
        });
        let copy = copy_of(status).map(copying_text);
        let copy = copy.map_or(String::new(), |copy| format!("; {copy}"));
        println!("{}: {}{copy}{step}{stale}", status.member, status.reason);
    }
    println!("volume: {}", best.volume.says);
    println!("lease:  {}", best.lease.says);
    if let Some(zone) = &best.zone {
        let primary = zone.primary.as_deref().unwrap_or("unknown");
        println!(
            "sites:  primary at {primary}, term {}. {}",
            zone.term,
            sentence(zone)
        );
    }
    for status in std::iter::once(best).chain(others) {
        if let Some(route) = status.route.says() {
            println!("route of {}: {route}", status.member);
        }
    }
    for status in std::iter::once(best).chain(others) {
        for warning in &status.warnings {
            println!("WARNING {}: {warning}", status.member);
        }
    }
}

/// A role in the words of the documentation.
pub(super) fn role_text(role: RoleName) -> &'static str {
    match role {
        RoleName::Joining => "joining",
        RoleName::Standby => "standby",
        RoleName::TakingOver => "taking over",
        RoleName::Active => "active",
        RoleName::HandingOver => "handing over",
        RoleName::Returning => "returning",
        RoleName::Stopped => "stopped",
    }
}

fn row(member: &MemberStatus) -> [String; 9] {
    let MemberStatus {
        name,
        number,
        role,
        epoch,
        ready,
        reachable,
        heard_ms,
        address,
        state,
    } = member;
    let dash = || "-".to_owned();
    let yes = |yes: &bool| if *yes { "yes" } else { "no" }.to_owned();
    let known = role.is_some();
    [
        name.clone(),
        number.to_string(),
        role.map_or_else(dash, |role| role_text(role).to_owned()),
        state.clone(),
        epoch.map_or_else(dash, |epoch| epoch.to_string()),
        if known { yes(ready) } else { dash() },
        if known { yes(reachable) } else { dash() },
        heard_ms.map_or_else(dash, |ms| {
            if ms == 0 {
                "now".to_owned()
            } else {
                format!("{ms} ms")
            }
        }),
        address.clone(),
    ]
}
