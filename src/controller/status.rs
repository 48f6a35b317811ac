//! The status of a cluster from what is seen of it. Pure. Unknown is said as Unknown.

use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::accept::Problem;
use super::progress::Progress;
use super::rollout::{Step, Waiting};
use super::view::{PodView, Record, SiteView};
use super::zones::{ClusterView, Zones};
use crate::cluster::{BatonClusterStatus, MemberState, Phase, SiteState};
use crate::decide::zone::{ClusterRecord, Degraded};

/// The specification can be acted on.
pub const ACCEPTED: &str = "Accepted";
/// The active serves.
pub const READY: &str = "Ready";
/// A standby could take over.
pub const STANDBY_READY: &str = "StandbyReady";
/// The active holds the volume by a verified fence.
pub const FENCE_PROVEN: &str = "FenceProven";
/// Other sites follow.
pub const REPLICATION_HEALTHY: &str = "ReplicationHealthy";
/// No member needs an operator.
pub const MEMBERS_ABLE: &str = "MembersAble";
/// All pods are made from what the specification says now.
pub const UP_TO_DATE: &str = "UpToDate";
/// All objects are there: the API server refuses nothing that the controller asks for.
pub const RECONCILED: &str = "Reconciled";

/// What a look found beside the members.
#[derive(Clone, Copy, Debug)]
pub struct Judged<'a> {
    /// Why nothing is done; `None` where that is not known in this look: what was known stays.
    pub problems: Option<&'a [Problem]>,
    /// The next step of a rolling update.
    pub step: &'a Step,
    /// How far the look came.
    pub progress: &'a Progress,
}

impl<'a> Judged<'a> {
    /// Nothing is done.
    pub fn not_accepted(problems: &'a [Problem]) -> Self {
        Self {
            problems: Some(problems),
            step: &Step::Wait(Waiting::NotAccepted),
            progress: &Progress::NotAccepted,
        }
    }
}

/// Reasons of `Reconciled`: the API server refuses something.
pub const REFUSED: &str = "Refused";
/// The cluster is deleted.
pub const LEAVING: &str = "Leaving";
/// It is deleted, and a pod does not end.
pub const POD_STUCK: &str = "PodStuck";

/// A condition without its times.
struct Verdict {
    type_: &'static str,
    status: &'static str,
    reason: &'static str,
    message: String,
}

fn verdict(
    type_: &'static str,
    status: &'static str,
    reason: &'static str,
    message: impl Into<String>,
) -> Verdict {
    Verdict {
        type_,
        status,
        reason,
        message: message.into(),
    }
}

/// The status that follows `before`.
pub fn status(
    view: &ClusterView,
    judged: &Judged<'_>,
    generation: Option<i64>,
    before: &BatonClusterStatus,
    now: &Time,
) -> BatonClusterStatus {
    let unknown = nowhere(view);
    let site = view.primary().unwrap_or(&unknown);
    let replication = replication_healthy(&view.zones);
    let phase = phase(site, judged.problems.unwrap_or_default(), &replication);
    let verdicts = [
        judged
            .problems
            .map_or_else(|| accepted_before(before), accepted),
        ready(site),
        standby_ready(site),
        fence_proven(site),
        replication,
        members_able(view),
        up_to_date(judged.step),
        reconciled(judged.progress),
    ];
    let conditions = verdicts
        .into_iter()
        .map(|verdict| condition(verdict, generation, before, now));
    let record = site.record.known();
    let mut names = BTreeSet::new();
    BatonClusterStatus {
        observed_generation: generation,
        phase: Some(phase),
        primary_site: several(view)
            .then(|| site.name.clone())
            .filter(|name| !name.is_empty()),
        active: site.owner().map(|owner| owner.name.clone()),
        standby: site.standby().map(|standby| standby.name.clone()),
        epoch: record.map(|record| record.epoch.number()),
        conditions: conditions.collect(),
        sites: match several(view) {
            true => view.sites.iter().map(|site| of_site(view, site)).collect(),
            false => Vec::new(),
        },
        members: view
            .members()
            // The API server takes no list with one name twice; that there is one is told in Accepted.
            .filter(|(_, member)| names.insert(&member.name))
            .map(|(site, member)| {
                let pod = member.pod.clone().unwrap_or_default();
                MemberState {
                    name: member.name.clone(),
                    site: several(view).then(|| site.name.clone()),
                    node: pod.node,
                    pod_uid: Some(pod.uid).filter(|uid| !uid.is_empty()),
                    role: pod.role,
                    ready: pod.ready,
                }
            })
            .collect(),
    }
}

fn several(view: &ClusterView) -> bool {
    view.zones != Zones::One
}

/// In the place of the primary's site where nobody knows which that is.
fn nowhere(view: &ClusterView) -> SiteView {
    let record = match &view.zones {
        Zones::One | Zones::Unmade(_) => Record::None,
        Zones::Known(record) => Record::Unreadable(format!(
            "the primary is at site {}, which spec.sites does not name",
            record.primary
        )),
        Zones::Unreadable(why) => Record::Unreadable(format!("that of all sites: {why}")),
    };
    SiteView {
        name: String::new(),
        primary: false,
        record,
        members: Vec::new(),
    }
}

fn of_site(view: &ClusterView, site: &SiteView) -> SiteState {
    let role = match (&view.zones, site.primary) {
        (Zones::Unreadable(_), _) => None,
        (Zones::One | Zones::Unmade(_) | Zones::Known(_), true) => Some("primary"),
        (Zones::One | Zones::Unmade(_) | Zones::Known(_), false) => Some("replica"),
    };
    let record = site.record.known();
    SiteState {
        name: site.name.clone(),
        role: role.map(str::to_owned),
        active: site.owner().map(|owner| owner.name.clone()),
        standby: site.standby().map(|standby| standby.name.clone()),
        epoch: record.map(|record| record.epoch.number()),
        ready: site.serves(),
    }
}

fn condition(
    verdict: Verdict,
    generation: Option<i64>,
    before: &BatonClusterStatus,
    now: &Time,
) -> Condition {
    let Verdict {
        type_,
        status,
        reason,
        message,
    } = verdict;
    let same = before.condition(type_);
    let same = same.filter(|found| found.status == status);
    Condition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message,
        observed_generation: generation,
        last_transition_time: same
            .map_or(now, |found| &found.last_transition_time)
            .clone(),
    }
}

fn phase(site: &SiteView, problems: &[Problem], replication: &Verdict) -> Phase {
    let served = site.record.known().is_some_and(|record| record.initialized);
    if !problems.is_empty() && site.record == Record::None {
        Phase::Pending
    } else if site.serves() && site.in_handover() {
        Phase::HandingOver
    } else if site.serves() && site.standby().is_some() && replication.status == "True" {
        Phase::Healthy
    } else if site.serves() {
        Phase::Degraded
    } else if !served {
        Phase::Provisioning
    } else if site.in_handover() {
        Phase::HandingOver
    } else {
        Phase::Failed
    }
}

fn accepted(problems: &[Problem]) -> Verdict {
    let Some(first) = problems.first() else {
        return verdict(
            ACCEPTED,
            "True",
            "Accepted",
            "the specification can be acted on",
        );
    };
    let texts: Vec<_> = problems.iter().map(ToString::to_string).collect();
    verdict(ACCEPTED, "False", first.reason(), texts.join("; "))
}

/// Nobody could look: what was accepted stays so, all else is unknown.
fn accepted_before(before: &BatonClusterStatus) -> Verdict {
    let word = |found: &Condition| match found.reason.as_str() {
        "Accepted" if found.status == "True" => Some(accepted(&[])),
        _ => None,
    };
    let known = before.condition(ACCEPTED).and_then(word);
    known.unwrap_or_else(|| {
        let text = "what the specification rests on could not be looked at";
        verdict(ACCEPTED, "Unknown", "NotLooked", text)
    })
}

fn ready(site: &SiteView) -> Verdict {
    let owner = match (&site.record, site.owner()) {
        (Record::Unreadable(why), _) => {
            let text = format!("the site's Lease cannot be understood: {why}");
            return verdict(READY, "Unknown", "LeaseUnreadable", text);
        }
        (Record::None | Record::Known(_), None) => {
            return verdict(READY, "False", "NoOwner", "no member owns the volume");
        }
        (Record::None | Record::Known(_), Some(owner)) => owner,
    };
    let name = &owner.name;
    match &owner.pod {
        Some(pod) if pod.ready_active() => verdict(
            READY,
            "True",
            "Serving",
            format!("member {name} accepts writes"),
        ),
        Some(_) if site.in_handover() => {
            let text = format!("ownership is passing; by the Lease it is with member {name}");
            verdict(READY, "False", "HandingOver", text)
        }
        Some(_) => {
            let text = format!("member {name} owns the volume and does not serve");
            verdict(READY, "False", "NotServing", text)
        }
        None => {
            let text = format!("member {name} owns the volume and has no pod");
            verdict(READY, "False", "PodMissing", text)
        }
    }
}

fn standby_ready(site: &SiteView) -> Verdict {
    match site.standby() {
        Some(standby) => {
            let text = format!("member {} could take over", standby.name);
            verdict(STANDBY_READY, "True", "StandbyReady", text)
        }
        None => verdict(
            STANDBY_READY,
            "False",
            "NoReadyStandby",
            "no member could take over; see the members' roles, and their pods' logs",
        ),
    }
}

/// Only a verified fence makes a member active (SAFETY.md), so its word that it is proves the fence.
fn fence_proven(site: &SiteView) -> Verdict {
    let epoch = site.record.known().map(|record| record.epoch.number());
    let pod = site.owner().and_then(|owner| owner.pod.as_ref());
    let (Some(epoch), Some(pod)) = (epoch, pod) else {
        let text = "no member owns the volume, or its pod is gone";
        return verdict(FENCE_PROVEN, "Unknown", "NoOwner", text);
    };
    match pod.role.as_deref() {
        Some("active") => {
            let text = format!("the reservation of epoch {epoch} was verified");
            verdict(FENCE_PROVEN, "True", "ReservationVerified", text)
        }
        Some("taking-over") => {
            let text = format!("the fence of epoch {epoch} is under way");
            verdict(FENCE_PROVEN, "False", "FenceUnderWay", text)
        }
        Some(_) | None => {
            let text = format!("the owner of epoch {epoch} does not say that it is active");
            verdict(FENCE_PROVEN, "Unknown", "OwnerNotActive", text)
        }
    }
}

/// What the record of all sites promises: what of it is not known for sure is not promised.
fn replication_healthy(zones: &Zones) -> Verdict {
    let say = |status, reason, text: String| verdict(REPLICATION_HEALTHY, status, reason, text);
    let record: &ClusterRecord = match zones {
        Zones::One => {
            let text = "the cluster has one site: nothing is replicated";
            return verdict(REPLICATION_HEALTHY, "True", "OneSite", text);
        }
        Zones::Unmade(_) => {
            let text = "no site has made the database yet".to_owned();
            return say("False", "NotYet", text);
        }
        Zones::Unreadable(why) => {
            let text = format!("the record of all sites cannot be understood: {why}");
            return say("Unknown", "RecordUnreadable", text);
        }
        Zones::Known(record) => record,
    };
    let sync = &record.sync;
    if sync.need == 0 {
        let why = sync.why.as_ref();
        let reason = match why {
            Some(Degraded::NotYet) | None => "NotYet",
            Some(Degraded::Behind(_)) => "SitesBehind",
            Some(Degraded::Off) => "Off",
        };
        let why = why.map_or_else(|| "no reason is given".to_owned(), ToString::to_string);
        let text = format!("commits wait for no other site: {why}");
        return say("False", reason, text);
    }
    let sites: Vec<_> = sync.sites.iter().map(ToString::to_string).collect();
    let promise = format!("{} of {}", sync.need, sites.join(", "));
    if sync.confirmed {
        let text = format!(
            "every acknowledged commit is on {promise}, beside site {}",
            record.primary
        );
        say("True", "Synchronous", text)
    } else {
        let text = format!(
            "commits wait for {promise}, which have yet to catch up with what was there before"
        );
        say("False", "Unconfirmed", text)
    }
}

/// By the members' own word: why one is refused its volume, or refuses it, and what to do.
fn members_able(view: &ClusterView) -> Verdict {
    let pods = || {
        let members = view.members();
        members.filter_map(|(_, member)| Some((&member.name, member.pod.as_ref()?)))
    };
    let needs = pods().filter_map(|(name, pod)| {
        let text = pod.needs_operator.as_ref()?;
        Some(format!("member {name}: {text}"))
    });
    let needs: Vec<_> = needs.collect();
    if !needs.is_empty() {
        verdict(MEMBERS_ABLE, "False", "OperatorNeeded", needs.join("; "))
    } else if pods().all(|(_, pod)| pod.role.is_none()) {
        let text = "no member has said anything yet";
        verdict(MEMBERS_ABLE, "Unknown", "NothingSaid", text)
    } else {
        let text = "no member says that an operator must look";
        verdict(MEMBERS_ABLE, "True", "NoneNeedsOperator", text)
    }
}

fn up_to_date(rollout: &Step) -> Verdict {
    match rollout {
        Step::Current => verdict(UP_TO_DATE, "True", "Current", "all pods are as specified"),
        Step::Replace {
            pod: PodView { name, .. },
            member: _,
            owner,
        } => {
            let how = if *owner {
                "it hands over"
            } else {
                "it is a standby"
            };
            verdict(
                UP_TO_DATE,
                "False",
                "Replacing",
                format!("pod {name} is replaced; {how}"),
            )
        }
        Step::Wait(why) => verdict(UP_TO_DATE, "False", why.reason(), why.to_string()),
    }
}

fn reconciled(progress: &Progress) -> Verdict {
    let (status, reason, text) = match progress {
        Progress::Made => ("True", "Reconciled", "all objects are there".to_owned()),
        Progress::NotAccepted => {
            let text = "the specification is not accepted: nothing is made or changed";
            ("False", "NotAccepted", text.to_owned())
        }
        Progress::Refused(troubles) => ("False", REFUSED, joined(troubles)),
        Progress::Leaving(stuck) if stuck.is_empty() => {
            let text = "the cluster is deleted: its pods end, the owner's last";
            ("False", LEAVING, text.to_owned())
        }
        Progress::Leaving(stuck) => ("False", POD_STUCK, joined(stuck)),
    };
    verdict(RECONCILED, status, reason, text)
}

fn joined(texts: &[impl ToString]) -> String {
    let texts: Vec<_> = texts.iter().map(ToString::to_string).collect();
    texts.join("; ")
}

#[cfg(test)]
mod tests;
