//! `kubectl baton switchover`, `failover`, `pause`, `resume`: which member is asked for what.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::json;

use super::super::failover::{Wanted, confirmed};
use super::proxy::post;
use super::site::{Seen, Site};
use super::sites;

/// How long `pause` and `resume` may take.
const QUICK: Duration = Duration::from_secs(15);

/// Hands over, and waits until the new active has committed a write.
pub async fn switchover(
    site: &Site,
    to: Option<&str>,
    patience: Duration,
) -> anyhow::Result<ExitCode> {
    let seen = site.look().await?;
    let said = hand_over(site, &seen, to, patience).await?;
    println!("{said}");
    Ok(ExitCode::SUCCESS)
}

/// Asks the active to hand over; its answer comes when it is done.
pub async fn hand_over(
    site: &Site,
    seen: &Seen,
    to: Option<&str>,
    patience: Duration,
) -> anyhow::Result<String> {
    let owner = seen.view.owner().context("no member owns the volume")?;
    let mut body = json!({"leader": owner.name});
    if let Some(to) = to {
        body["candidate"] = json!(to);
    }
    post(site, seen, &owner.name, "switchover", &body, patience).await
}

/// Moves the primary to another site, with nothing lost, and waits until it accepts writes there.
pub async fn switchover_site(
    site: &Site,
    to: &str,
    patience: Duration,
) -> anyhow::Result<ExitCode> {
    let seen = site.look().await?;
    known(&seen, to)?;
    let owner = seen.view.owner().context("no member owns the volume")?;
    let body = json!({"leader": owner.name, "site": to});
    let said = post(site, &seen, &owner.name, "switchover", &body, patience).await?;
    println!("{said}");
    Ok(ExitCode::SUCCESS)
}

/// Makes another site the primary's, whose own is lost, and waits until it accepts writes.
pub async fn failover(site: &Site, wanted: &Wanted) -> anyhow::Result<ExitCode> {
    let to = wanted.site.as_str();
    let seen = site.look().await?;
    known(&seen, to)?;
    let view = seen.all.sites.iter().find(|view| view.name == to);
    let owner = view.and_then(|view| view.owner());
    let owner = owner.with_context(|| format!("no member of site {to} owns its volume"))?;
    if wanted.allow_data_loss {
        let verdict = sites::verdict_on(&seen, to);
        match verdict.safe {
            true => eprintln!("By the record nothing would be lost: {}.", verdict.why),
            false => eprintln!("Acknowledged writes may be lost: {}.", verdict.why),
        }
        if !wanted.yes && !confirmed(to)? {
            bail!("not confirmed: nothing was changed");
        }
    }
    let body = json!({"site": to, "allow_data_loss": wanted.allow_data_loss});
    let said = post(site, &seen, &owner.name, "failover", &body, wanted.timeout).await?;
    println!("{said}");
    Ok(ExitCode::SUCCESS)
}

fn known(seen: &Seen, to: &str) -> anyhow::Result<()> {
    let names: Vec<_> = seen.all.sites.iter().map(|site| &*site.name).collect();
    match (seen.cluster.has_several_sites(), names.contains(&to)) {
        (true, true) if seen.view.name == to => bail!("the primary is at site {to} already"),
        (true, true) => Ok(()),
        (true, false) => bail!("there is no site {to}; there are {}", names.join(", ")),
        (false, _) => bail!("the cluster has one site"),
    }
}

/// Pauses or resumes automatic take-over.
pub async fn pause(site: &Site, on: bool) -> anyhow::Result<ExitCode> {
    let seen = site.look().await?;
    let owner = seen.view.owner().or(seen.view.standby());
    let owner = owner.context("no member owns the volume or could take over")?;
    let verb = if on { "pause" } else { "resume" };
    let said = post(site, &seen, &owner.name, verb, &json!({}), QUICK).await?;
    println!("{said}");
    Ok(ExitCode::SUCCESS)
}
