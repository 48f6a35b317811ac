//! Which pod is replaced next after a change of the specification. Pure: [`next`] is a function of what
//! is seen. Never two pods at once, never the owner while nobody could take over from it.
//!
//! ```text
//! standbys, one by one, each until it is ready again ─► owner (its SIGTERM hands over) ─► done
//! ```
//!
//! Of several sites those with replicas go first, one after the other, and the primary's last.
//!
//! Where nobody serves and that will not change by itself there is nothing to interrupt, and a change of the
//! specification may be what mends it: standbys are replaced, then the owner, without waiting for readiness.
//! That is so where the owner calls for an operator, or nobody has served for longer than any take-over lasts.
//!
//! The owner is replaced by deleting its pod, not by asking it for a switchover first: the pod must go
//! anyway, SIGTERM starts the same handover, and no token is needed. What a switchover would have checked
//! (is a standby ready?) is looked at right before, and the deletion names the very version of the pod
//! that was looked at.

use std::collections::BTreeMap;
use std::time::Duration;

use super::view::{MemberView, PodView, Record, SiteView};
use super::zones::{ClusterView, Zones};

/// For how long nobody has served.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outage {
    /// By site; none where somebody serves.
    pub lasts: BTreeMap<String, Duration>,
    /// After this long no take-over is under way any more.
    pub takeover: Duration,
    /// A replica's site may copy another's database for this long before it serves.
    pub copy: Duration,
}

impl Outage {
    /// Nobody serves, and nobody will without help.
    fn stalled(&self, site: &SiteView) -> bool {
        self.over(site) || (!site.serves() && !site.in_handover() && owner_calls(site))
    }

    /// How long it may last at a site until nothing is under way any more.
    fn limit(&self, site: &SiteView) -> Duration {
        match site.primary {
            true => self.takeover,
            false => self.takeover + self.copy,
        }
    }

    /// No take-over is under way any more.
    fn over(&self, site: &SiteView) -> bool {
        let lasts = self.lasts.get(&site.name);
        !site.serves() && lasts.is_some_and(|lasts| *lasts > self.limit(site))
    }
}

fn owner_calls(site: &SiteView) -> bool {
    let pod = site.owner().and_then(|owner| owner.pod.as_ref());
    pod.is_some_and(|pod| pod.needs_operator.is_some())
}

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
    #[error(
        "a handover is under way: nothing is replaced until it is over, for {takeover:?} at most"
    )]
    Handover {
        /// How long one may last.
        takeover: Duration,
    },
    /// Replacing a standby would take away what could bring service back.
    #[error(
        "the active does not serve: nothing is replaced until it does, it calls for an operator, or {takeover:?} \
         have passed, which a take-over may last; to replace a pod at once, delete it, the active's last"
    )]
    NotServing {
        /// How long a take-over may last.
        takeover: Duration,
    },
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
    /// Whether it ends by itself, without a change of anything that is watched.
    pub fn passes(&self) -> bool {
        matches!(self, Self::Handover { .. } | Self::NotServing { .. })
    }

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
            Self::Handover { .. } => "HandoverUnderWay",
            Self::NotServing { .. } => "NotServing",
            Self::StandbyNotReady { .. } => "StandbyNotReady",
            Self::NoReadyStandby => "NoReadyStandby",
        }
    }
}

/// The next step.
pub fn next(view: &ClusterView, paused: bool, outage: &Outage) -> Step {
    let current = |site: &SiteView| {
        let mut members = site.members.iter();
        members.all(|member| member.outdated().is_none())
    };
    if view.sites.iter().all(current) {
        return Step::Current;
    }
    let judged = between_sites(view, paused, outage).and_then(|()| {
        // Where nobody serves nothing is lost, and it may be what the others wait for.
        let stalled = view.sites.iter().filter(|site| outage.stalled(site));
        let mut sites = stalled.chain(view.primary_last());
        sites
            .find(|site| !current(site))
            .map_or(Ok(Step::Current), |site| judge(site, outage))
    });
    judged.unwrap_or_else(Step::Wait)
}

/// Whether all sites together let one pod go.
fn between_sites(view: &ClusterView, paused: bool, outage: &Outage) -> Result<(), Waiting> {
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
    let mut sites = view.sites.iter();
    sites.try_for_each(|site| at_rest(site, outage))
}

/// All pods are there, and ownership rests.
fn at_rest(site: &SiteView, outage: &Outage) -> Result<(), Waiting> {
    for member in &site.members {
        let there = member.pod.as_ref().is_some_and(|pod| !pod.terminating);
        if !there {
            let member = member.name.clone();
            return Err(Waiting::PodMissing { member });
        }
    }
    if site.in_handover() && !outage.over(site) {
        let takeover = outage.limit(site);
        return Err(Waiting::Handover { takeover });
    }
    Ok(())
}

fn judge(site: &SiteView, outage: &Outage) -> Result<Step, Waiting> {
    let owned = match &site.record {
        Record::Unreadable(why) => return Err(Waiting::LeaseUnreadable { why: why.clone() }),
        Record::None => false,
        Record::Known(record) => record.holder.is_some(),
    };
    match (owned, site.owner()) {
        (false, _) => Ok(never_served(site)),
        (true, None) => Err(Waiting::OwnerUnknown),
        (true, Some(owner)) if outage.stalled(site) => Ok(without_service(site, owner)),
        (true, Some(owner)) => with_owner(site, owner, outage),
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

/// Nobody serves, and nobody will: standbys first, so that they are there when the owner ends.
fn without_service(site: &SiteView, owner: &MemberView) -> Step {
    match (worst_outdated(site), owner.outdated()) {
        (Some((member, pod)), _) => replace(member, pod, false),
        (None, Some(pod)) => replace(owner, pod, true),
        (None, None) => Step::Current,
    }
}

/// The pod of a standby to replace. Those that could not take over anyway go first.
fn worst_outdated(site: &SiteView) -> Option<(&MemberView, &PodView)> {
    let outdated = site
        .others()
        .filter(|(member, _)| member.outdated().is_some());
    outdated.min_by_key(|(_, pod)| pod.ready_standby())
}

fn with_owner(site: &SiteView, owner: &MemberView, outage: &Outage) -> Result<Step, Waiting> {
    if !site.serves() {
        let takeover = outage.limit(site);
        return Err(Waiting::NotServing { takeover });
    }
    // A replaced standby must be back first. One that should be replaced itself may be broken: it is
    // replaced rather than waited for.
    for (member, pod) in site.others() {
        if member.outdated().is_none() && !pod.ready_standby() {
            let member = member.name.clone();
            return Err(Waiting::StandbyNotReady { member });
        }
    }
    if let Some((member, pod)) = worst_outdated(site) {
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
