//! What the controller sees of a site: the record in its Lease and the members' pods, as plain facts.
//! Pure: it reads objects that others have fetched.

use fencing::MemberId;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use super::zones::Zones;
use crate::cluster::{Site, names};
use crate::decide::LeaseRecord;

/// The record in a site's Lease.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// There is no Lease: no member has owned the volume yet.
    None,
    /// This is it.
    Known(LeaseRecord),
    /// There is a Lease, and it makes no sense. That is never "nobody owns it".
    Unreadable(String),
}

impl Record {
    /// From the Lease, if there is one.
    pub fn of(lease: Option<&Lease>) -> Self {
        let Some(lease) = lease else {
            return Self::None;
        };
        let Some(text) = lease.annotations().get(names::RECORD) else {
            return Self::Unreadable(format!("it has no annotation {}", names::RECORD));
        };
        match serde_json::from_str(text) {
            Ok(record) => Self::Known(record),
            Err(error) => Self::Unreadable(error.to_string()),
        }
    }

    /// The record, where it is known.
    pub fn known(&self) -> Option<&LeaseRecord> {
        match self {
            Self::Known(record) => Some(record),
            Self::None | Self::Unreadable(_) => None,
        }
    }
}

/// A member's pod.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PodView {
    /// Its name.
    pub name: String,
    /// Which of that name.
    pub uid: String,
    /// Which version of it was seen.
    pub version: String,
    /// The node that it is on.
    pub node: Option<String>,
    /// The role that the member has written on it.
    pub role: Option<String>,
    /// Why the member says that it cannot get on without an operator.
    pub needs_operator: Option<String>,
    /// The member says that PostgreSQL accepts writes here.
    pub serving: bool,
    /// Kubernetes says that it is ready: it serves, or could take over.
    pub ready: bool,
    /// It is being deleted.
    pub terminating: bool,
    /// By when it should have ended, where it is being deleted.
    pub end: Option<Timestamp>,
    /// All its containers have ended for good.
    pub finished: bool,
    /// What it was made from.
    pub template: Option<String>,
    /// The number that it was made with.
    pub number: Option<u8>,
}

impl PodView {
    /// From the pod.
    pub fn of(pod: &Pod) -> Self {
        let label = |name: &str| pod.labels().get(name).cloned();
        let status = pod.status.as_ref();
        let conditions = status.and_then(|status| status.conditions.as_ref());
        let ready = conditions.is_some_and(|conditions| {
            let mut conditions = conditions.iter();
            conditions.any(|found| found.type_ == "Ready" && found.status == "True")
        });
        let phase = status.and_then(|status| status.phase.as_deref());
        let end = pod.metadata.deletion_timestamp.as_ref().map(|end| end.0);
        let terminating = end.is_some();
        Self {
            name: pod.name_any(),
            uid: pod.uid().unwrap_or_default(),
            version: pod.resource_version().unwrap_or_default(),
            node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
            role: label(names::ROLE),
            needs_operator: pod.annotations().get(names::NEEDS_OPERATOR).cloned(),
            serving: label(names::SERVING).as_deref() == Some("true"),
            ready: ready && !terminating,
            terminating,
            end,
            finished: matches!(phase, Some("Failed" | "Succeeded")),
            template: pod.annotations().get(names::TEMPLATE).cloned(),
            number: label(names::MEMBER_NUMBER).and_then(|number| number.parse().ok()),
        }
    }

    /// Whether the member says that it waits, and could take over.
    pub fn ready_standby(&self) -> bool {
        self.ready && self.role.as_deref() == Some("standby")
    }

    /// Whether the member says that it serves, and Kubernetes found so.
    pub fn ready_active(&self) -> bool {
        self.ready && self.serving && self.role.as_deref() == Some("active")
    }

    /// Whether the member says that it owns its volume, and Kubernetes found that it can be read there.
    pub fn ready_replica(&self) -> bool {
        self.ready && self.role.as_deref() == Some("active")
    }

    /// Whether ownership is passing from or to it.
    pub fn in_handover(&self) -> bool {
        matches!(self.role.as_deref(), Some("handing-over" | "taking-over"))
    }
}

/// A member and its pod.
#[derive(Clone, Debug, PartialEq)]
pub struct MemberView {
    /// Its name.
    pub name: String,
    /// Its number.
    pub number: MemberId,
    /// What its pod should be made from.
    pub template: String,
    /// Its pod, if there is one.
    pub pod: Option<PodView>,
}

impl MemberView {
    /// Its pod, if that was made from something else than it should be.
    pub fn outdated(&self) -> Option<&PodView> {
        let pod = self.pod.as_ref()?;
        (pod.template.as_ref() != Some(&self.template)).then_some(pod)
    }
}

/// A site.
#[derive(Clone, Debug, PartialEq)]
pub struct SiteView {
    /// Its name.
    pub name: String,
    /// Its active runs the primary. With one site it always does.
    pub primary: bool,
    /// Who owns the volume, as the Lease says.
    pub record: Record,
    /// The members, in the order of the specification.
    pub members: Vec<MemberView>,
}

impl SiteView {
    /// From what was fetched. `templates` has one entry for each member.
    pub fn of(
        site: &Site<'_>,
        zones: &Zones,
        templates: Vec<String>,
        lease: Option<&Lease>,
        pods: &[impl AsRef<Pod>],
    ) -> Self {
        let numbered = site.numbered().into_iter().zip(templates);
        let members = numbered.map(|((number, member), template)| {
            let name = names::pod(site.cluster.cluster(), &member.name);
            let pod = pods.iter().map(AsRef::as_ref);
            let pod = pod.into_iter().find(|pod| pod.name_any() == name);
            MemberView {
                name: member.name.clone(),
                number,
                template,
                pod: pod.map(PodView::of),
            }
        });
        Self {
            name: site.name.to_owned(),
            primary: zones.is_primary(site.name),
            record: Record::of(lease),
            members: members.collect(),
        }
    }

    /// The member that owns the volume by the Lease.
    pub fn owner(&self) -> Option<&MemberView> {
        let record = self.record.known()?;
        let holder = record.holder.filter(|_| record.epoch.number() > 0)?;
        self.members.iter().find(|member| member.number == holder)
    }

    /// The pods of all members but the owner, with their members.
    pub fn others(&self) -> impl Iterator<Item = (&MemberView, &PodView)> {
        let owner = self.owner().map(|owner| owner.number);
        let others = self.members.iter();
        let others = others.filter(move |member| Some(member.number) != owner);
        others.filter_map(|member| Some((member, member.pod.as_ref()?)))
    }

    /// A member that could take over.
    pub fn standby(&self) -> Option<&MemberView> {
        let mut others = self.others();
        others
            .find(|(_, pod)| pod.ready_standby())
            .map(|(member, _)| member)
    }

    /// Whether the owner serves what it should, and Kubernetes found so: the primary, or a replica.
    pub fn serves(&self) -> bool {
        let pod = self.owner().and_then(|owner| owner.pod.as_ref());
        pod.is_some_and(|pod| match self.primary {
            true => pod.ready_active(),
            false => pod.ready_replica(),
        })
    }

    /// Whether ownership is passing.
    pub fn in_handover(&self) -> bool {
        let pods = self.members.iter();
        let mut pods = pods.filter_map(|member| member.pod.as_ref());
        pods.any(PodView::in_handover)
    }
}
