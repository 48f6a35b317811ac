//! `baton failover`: makes a replica's site the primary's when that one is lost.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;

use super::ask::{ask, patience};
use super::reach::{OutputArgs, Reach};
use super::topology::{bytes, last_seen};
use crate::control::{Reply, Request, Status};

/// Make another site the primary's, because the one that has it is lost
///
/// Refused while the primary's site shows any sign of life (use switchover --site then), and where
/// acknowledged writes may be missing, unless --allow-data-loss says that this is accepted: then it
/// shows what is known of the loss and asks.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    reach: Reach,
    #[command(flatten)]
    wanted: Wanted,
    #[command(flatten)]
    output: OutputArgs,
}

/// What a failover is to do, whoever is asked for it.
#[derive(clap::Args)]
pub(super) struct Wanted {
    /// The site that shall have the primary; a member that is asked itself must be of it
    #[arg(long, value_name = "SITE")]
    pub site: String,
    /// Also where acknowledged writes may be lost: shows why they may, and asks
    #[arg(long)]
    pub allow_data_loss: bool,
    /// Do not ask again
    #[arg(long, requires = "allow_data_loss")]
    pub yes: bool,
    /// How long to wait
    #[arg(long, default_value = "90s", value_parser = patience)]
    pub timeout: Duration,
}

/// Asks the active of the site.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let wanted = args.wanted;
    let mut client = args.reach.client(wanted.timeout)?;
    client.send(&Request::Status)?;
    let Reply::Status(status) = client.receive()? else {
        bail!("the member gave no status");
    };
    if status.site != wanted.site {
        bail!(
            "{} is a member of site {}; ask a member of site {} (--config, --socket or --member)",
            status.member,
            status.site,
            wanted.site
        );
    }
    if wanted.allow_data_loss {
        warn(&status, &wanted.site);
        if !wanted.yes && !confirmed(&wanted.site)? {
            bail!("not confirmed: nothing was changed");
        }
    }
    let request = Request::Failover {
        allow_data_loss: wanted.allow_data_loss,
    };
    ask(client, &request, args.output.output)
}

/// What is known of the loss.
fn warn(status: &Status, site: &str) {
    let Some(zone) = &status.zone else { return };
    let own = zone.sites.iter().find(|known| known.name == site);
    let verdict = own.and_then(|own| own.failover.as_ref());
    match verdict {
        Some(verdict) if verdict.safe => {
            eprintln!("By the record nothing would be lost: {}.", verdict.why)
        }
        Some(verdict) => eprintln!("Acknowledged writes may be lost: {}.", verdict.why),
        None => eprintln!("What would be lost is unknown: the cluster's record cannot be read."),
    }
    if let Some(position) = zone.position {
        eprintln!("Site {site} has the log up to {position}.");
    }
    match zone.lag_bytes {
        Some(0) => eprintln!("The primary's log ended there when it was last asked."),
        Some(lag) => eprintln!(
            "When the primary was last asked, it was {} further.",
            bytes(lag)
        ),
        None => eprintln!("How far the primary was is not known."),
    }
    if let Some(primary) = &zone.primary {
        eprintln!("Site {primary}: {}.", last_seen(zone, primary));
    }
}

/// Asks at the terminal.
pub(super) fn confirmed(site: &str) -> anyhow::Result<bool> {
    if !std::io::stdin().is_terminal() {
        bail!("no terminal to ask at: say --yes if the loss is accepted");
    }
    eprint!("Promote site {site} nevertheless? Type its name: ");
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(answer.trim() == site)
}
