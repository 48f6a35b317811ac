//! `/switchover` and `/failover` to a site, with a word of Baton's own in Patroni's forms.

use super::{Move, SWITCHOVER, Verb, ask, bad, impossible};
use crate::api::Office;
use crate::api::answer::done;
use crate::api::serve::Deadline;
use crate::decide::Ask;
use crate::decide::zone::ZoneConfig;

/// The primary moves to another site, with nothing lost.
pub(super) async fn move_to(office: &Office, deadline: &Deadline, site: &str) -> Verb {
    let zone = office.desk.config().zone();
    let number = zone.as_ref().and_then(|zone| zone.number_of(site));
    let number = number.ok_or_else(|| impossible(unknown(zone.as_ref(), site)))?;
    let asked = Ask::SwitchoverSite { site: number };
    ask(office, deadline, asked, SWITCHOVER).await?;
    Ok(done(&format!("the primary is at site {site:?} now")))
}

/// This member's site becomes the primary's, whose site is silent.
pub(super) async fn fail_over(
    office: &Office,
    deadline: &Deadline,
    site: &str,
    asked: &Move,
) -> Verb {
    if asked.leader.is_some() || asked.candidate.is_some() || asked.scheduled_at.is_some() {
        return Err(bad(
            "a failover to a site has no leader, candidate or time: {\"site\": \"b\"}",
        ));
    }
    let config = office.desk.config();
    if config.zone().is_none() || config.site != site {
        return Err(impossible(format!(
            "this is a member of site {:?}: a failover is asked of the site that shall have the primary",
            config.site
        )));
    }
    let asked = Ask::Failover {
        allow_data_loss: asked.allow_data_loss.unwrap_or(false),
    };
    ask(office, deadline, asked, SWITCHOVER).await?;
    Ok(done(&format!("the primary is at site {site:?} now")))
}

fn unknown(zone: Option<&ZoneConfig>, site: &str) -> String {
    let Some(zone) = zone else {
        return "the cluster has one site".to_owned();
    };
    let names: Vec<_> = zone.sites.keys().map(ToString::to_string).collect();
    format!("there is no site {site:?}; there are {}", names.join(", "))
}
