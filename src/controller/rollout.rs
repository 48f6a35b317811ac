//! Which pod is replaced next after a change of the specification. Pure: [`next`] is a function of what
//! is seen. Never two pods at once, never the owner while nobody could take over from it.
//!
//! ```text
//! standbys, one by one, each until it is ready again ─► owner (its SIGTERM hands over) ─► done
//! ```
//!
//! Of several sites those with replicas go first, one after the other, and the primary's last.
//!
//! The owner is replaced by deleting its pod, not by asking it for a switchover first: the pod must go
//! anyway, SIGTERM starts the same handover, and no token is needed. What a switchover would have checked
//! (is a standby ready?) is looked at right before, and the deletion names the very version of the pod
//! that was looked at.

use super::view::{MemberView, PodView, Record, SiteView};
use super::zones::{ClusterView, Zones};

/// What to do about pods that were made from something else than they should be.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// There are none.
    Current,
    /// Delete this pod; it is made anew when it is gone.
    Replace {
        /// Which.
        pod: PodView,
        /// The member.
        member: String,
        /// It owns the volume: its end is a handover.
        owner: bool,
    },
    /// Not now.
    Wait(Waiting),
}

/// Why no pod is replaced although one should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Waiting {
    /// The specification is not accepted.
    #[error("the specification is not accepted: nothing is replaced")]
    NotAccepted,
    /// The API server refuses something else.
    #[error(
        "not everything of the cluster could be made (condition Reconciled): nothing is replaced until it is"
    )]
    Refused,
    /// The cluster is deleted.
    #[error("the cluster is deleted: nothing is replaced")]
    Leaving,
    /// The user wants it so.
    #[error("spec.paused is true: nothing is replaced")]
    Paused,
    /// A pod is missing or ends.
    #[error("the pod of member {member} is not there yet")]
    PodMissing {
        /// Whose.
        member: String,
    },
    /// Who owns the volume is unknown.
    #[error("the site's Lease cannot be understood: {why}")]
    LeaseUnreadable {
        /// Why.
        why: String,
    },
    /// Which site has the primary is unknown.
    #[error("the record of all sites cannot be understood: {why}")]
    RecordUnreadable {
        /// Why.
        why: String,
    },
    /// The record names a site that the specification does not have.
    #[error("the record of all sites has the primary at {site}, which spec.sites does not name")]
    PrimaryUnknown {
        /// Which.
        site: String,
    },
    /// The primary is on its way to another site.
    #[error("the primary moves to site {to}")]
    Moving {
        /// To which.
        to: String,
    },
    /// The Lease names a member that the specification does not have.
    #[error("the site's Lease names an owner that is no member")]
    OwnerUnknown,
    /// Ownership is passing.
    #[error("a handover is under way")]
    Handover,
    /// Replacing a standby would take away what could bring service back.
    #[error("the active does not serve: nothing is replaced until it does")]
    NotServing,
    /// A replaced standby is not back yet.
    #[error("member {member} is not ready yet: nothing else is replaced until it is")]
    StandbyNotReady {
        /// Which.
        member: String,
    },
    /// Nobody could take over.
    #[error("no standby is ready: the active is not replaced until one is")]
    NoReadyStandby,
}

impl Waiting {
    /// The reason in the condition `UpToDate`.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotAccepted => "NotAccepted",
            Self::Refused => "Refused",
            Self::Leaving => "Leaving",
            Self::Paused => "Paused",
            Self::PodMissing { .. } => "PodMissing",
            Self::LeaseUnreadable { .. } => "LeaseUnreadable",
            Self::RecordUnreadable { .. } => "RecordUnreadable",
            Self::PrimaryUnknown { .. } => "PrimaryUnknown",
            Self::Moving { .. } => "MoveUnderWay",
            Self::OwnerUnknown => "OwnerUnknown",
            Self::Handover => "HandoverUnderWay",
            Self::NotServing => "NotServing",
            Self::StandbyNotReady { .. } => "StandbyNotReady",
            Self::NoReadyStandby => "NoReadyStandby",
        }
    }
}

/// The next step.
pub fn next(view: &ClusterView, paused: bool) -> Step {
    let current = |site: &SiteView| {
        let mut members = site.members.iter();
        members.all(|member| member.outdated().is_none())
    };
    if view.sites.iter().all(current) {
        return Step::Current;
    }
    let judged = between_sites(view, paused).and_then(|()| {
        let mut sites = view.primary_last();
        sites
            .find(|site| !current(site))
            .map_or(Ok(Step::Current), judge)
    });
    judged.unwrap_or_else(Step::Wait)
}

/// Whether all sites together let one pod go.
fn between_sites(view: &ClusterView, paused: bool) -> Result<(), Waiting> {
    if paused {
        return Err(Waiting::Paused);
    }
    match &view.zones {
        Zones::One | Zones::Unmade(_) => {}
        Zones::Unreadable(why) => {
            return Err(Waiting::RecordUnreadable { why: why.clone() });
        }
        Zones::Known(record) => {
            if let Some(moving) = &record.moving {
                let to = moving.to.0.clone();
                return Err(Waiting::Moving { to });
            }
            if view.primary().is_none() {
                let site = record.primary.0.clone();
                return Err(Waiting::PrimaryUnknown { site });
            }
        }
    }
    // Never two pods at once, in whichever sites.
    view.sites.iter().try_for_each(at_rest)
}

/// All pods are there, and ownership rests.
fn at_rest(site: &SiteView) -> Result<(), Waiting> {
    for member in &site.members {
        let there = member.pod.as_ref().is_some_and(|pod| !pod.terminating);
        if !there {
            let member = member.name.clone();
            return Err(Waiting::PodMissing { member });
        }
    }
    if site.in_handover() {
        return Err(Waiting::Handover);
    }
    Ok(())
}

fn judge(site: &SiteView) -> Result<Step, Waiting> {
    let owned = match &site.record {
        Record::Unreadable(why) => return Err(Waiting::LeaseUnreadable { why: why.clone() }),
        Record::None => false,
        Record::Known(record) => record.holder.is_some(),
    };
    match (owned, site.owner()) {
        (false, _) => Ok(never_served(site)),
        (true, None) => Err(Waiting::OwnerUnknown),
        (true, Some(owner)) => with_owner(site, owner),
    }
}

/// No member has ever owned the volume: every pod may be replaced, one after the other.
fn never_served(site: &SiteView) -> Step {
    let outdated = site.members.iter();
    let mut outdated = outdated.filter_map(|member| Some((member, member.outdated()?)));
    outdated
        .next()
        .map_or(Step::Current, |(member, pod)| replace(member, pod, false))
}

fn with_owner(site: &SiteView, owner: &MemberView) -> Result<Step, Waiting> {
    if !site.serves() {
        return Err(Waiting::NotServing);
    }
    // A replaced standby must be back first. One that should be replaced itself may be broken: it is
    // replaced rather than waited for.
    for (member, pod) in site.others() {
        if member.outdated().is_none() && !pod.ready_standby() {
            let member = member.name.clone();
            return Err(Waiting::StandbyNotReady { member });
        }
    }
    let outdated = site
        .others()
        .filter(|(member, _)| member.outdated().is_some());
    // Those that could not take over anyway go first.
    if let Some((member, pod)) = outdated.min_by_key(|(_, pod)| pod.ready_standby()) {
        return Ok(replace(member, pod, false));
    }
    match (site.standby(), owner.outdated()) {
        (Some(_), Some(pod)) => Ok(replace(owner, pod, true)),
        (None, Some(_)) => Err(Waiting::NoReadyStandby),
        (_, None) => Ok(Step::Current),
    }
}

fn replace(member: &MemberView, pod: &PodView, owner: bool) -> Step {
    Step::Replace {
        pod: pod.clone(),
        member: member.name.clone(),
        owner,
    }
}

#[cfg(test)]
mod tests;
