use fencing::{Epoch, MemberId};
use k8s_openapi::jiff::Timestamp;

use super::super::view::MemberView;
use super::*;
use crate::decide::zone::{SiteName, Sync};
use crate::decide::{Incarnation, LeaseRecord};

const FINE: Judged<'_> = Judged {
    problems: Some(&[]),
    step: &Step::Current,
    progress: &Progress::Made,
};

fn at(second: i64) -> Time {
    Time(Timestamp::from_second(second).unwrap())
}

fn member(number: u8, name: &str, role: &str, ready: bool) -> MemberView {
    MemberView {
        name: name.to_owned(),
        number: MemberId::new(number).unwrap(),
        template: String::new(),
        pod: Some(PodView {
            name: format!("main-{name}"),
            role: Some(role.to_owned()),
            serving: role == "active",
            ready,
            ..PodView::default()
        }),
    }
}

fn owned_by(owner: Option<u8>, members: Vec<MemberView>) -> SiteView {
    let record = owner.map(|owner| LeaseRecord {
        epoch: Epoch::new(4).unwrap(),
        newest: Epoch::new(4).unwrap(),
        holder: MemberId::new(owner),
        incarnation: Incarnation(1),
        sequence: 1,
        clean: false,
        planned: true,
        initialized: true,
        paused: false,
        cluster: None,
    });
    SiteView {
        name: "local".to_owned(),
        primary: true,
        record: record.map_or(Record::None, Record::Known),
        members,
    }
}

fn one(site: &SiteView) -> ClusterView {
    ClusterView {
        sites: vec![site.clone()],
        zones: Zones::One,
    }
}

fn of(site: &SiteView) -> BatonClusterStatus {
    let before = BatonClusterStatus::default();
    status(&one(site), &FINE, Some(1), &before, &at(1))
}

#[test]
fn phases() {
    let a = |role, ready| member(1, "a", role, ready);
    let b = |role, ready| member(2, "b", role, ready);
    let cases = [
        (
            None,
            vec![a("joining", false), b("joining", false)],
            Phase::Provisioning,
        ),
        (
            Some(1),
            vec![a("active", true), b("standby", true)],
            Phase::Healthy,
        ),
        (
            Some(1),
            vec![a("active", true), b("returning", true)],
            Phase::Degraded,
        ),
        (
            Some(1),
            vec![a("active", true), b("standby", false)],
            Phase::Degraded,
        ),
        (
            Some(1),
            vec![a("handing-over", false), b("standby", true)],
            Phase::HandingOver,
        ),
        (
            Some(2),
            vec![a("handing-over", false), b("taking-over", false)],
            Phase::HandingOver,
        ),
        (
            Some(1),
            vec![a("active", false), b("standby", true)],
            Phase::Failed,
        ),
    ];
    for (owner, members, expected) in cases {
        let site = owned_by(owner, members);
        assert_eq!(of(&site).phase, Some(expected), "{site:?}");
    }
}

#[test]
fn a_refused_cluster_without_an_owner_is_pending() {
    let site = owned_by(None, Vec::new());
    let problems = [
        Problem::TooFewMembers {
            place: "spec.members".to_owned(),
            count: 1,
        },
        Problem::VolumeSource {
            place: "spec.volume".to_owned(),
        },
    ];
    let before = BatonClusterStatus::default();
    let after = status(
        &one(&site),
        &Judged::not_accepted(&problems),
        Some(2),
        &before,
        &at(1),
    );
    assert_eq!(after.phase, Some(Phase::Pending));
    let accepted = after.condition(ACCEPTED).unwrap();
    assert_eq!(
        (accepted.status.as_str(), accepted.reason.as_str()),
        ("False", "TooFewMembers")
    );
    assert!(accepted.message.contains("at least two"), "{accepted:?}");
    assert!(
        accepted.message.contains("claimName or"),
        "all problems are told: {accepted:?}"
    );
}

#[test]
fn what_is_not_known_is_said_as_unknown() {
    let mut site = owned_by(Some(1), vec![member(1, "a", "active", true)]);
    assert_eq!(of(&site).condition(FENCE_PROVEN).unwrap().status, "True");
    site.members[0].pod = None;
    assert_eq!(of(&site).condition(FENCE_PROVEN).unwrap().status, "Unknown");
    site.record = Record::Unreadable("no JSON".to_owned());
    assert_eq!(of(&site).condition(READY).unwrap().status, "Unknown");
    assert_eq!(of(&site).epoch, None);
}

#[test]
fn a_condition_keeps_its_time_until_its_status_changes() {
    let well = owned_by(
        Some(1),
        vec![
            member(1, "a", "active", true),
            member(2, "b", "standby", true),
        ],
    );
    let first = of(&well);
    let same = status(&one(&well), &FINE, Some(1), &first, &at(9));
    assert_eq!(same, first);
    let ill = owned_by(
        Some(1),
        vec![
            member(1, "a", "active", true),
            member(2, "b", "joining", true),
        ],
    );
    let second = status(&one(&ill), &FINE, Some(1), &first, &at(9));
    assert_eq!(
        second
            .condition(STANDBY_READY)
            .unwrap()
            .last_transition_time,
        at(9)
    );
    assert_eq!(second.condition(READY).unwrap().last_transition_time, at(1));
}

#[test]
fn who_needs_an_operator_is_told_with_the_reason() {
    let mut site = owned_by(None, vec![member(1, "a", "standby", false)]);
    let able = |site: &SiteView| of(site).condition(MEMBERS_ABLE).unwrap().clone();
    assert_eq!(able(&site).status, "True");
    let pod = site.members[0].pod.as_mut().unwrap();
    pod.needs_operator = Some("the volume holds something that is not ours".to_owned());
    let told = able(&site);
    assert_eq!(
        (told.status.as_str(), told.reason.as_str()),
        ("False", "OperatorNeeded")
    );
    assert_eq!(
        told.message,
        "member a: the volume holds something that is not ours"
    );
    // A member that was refused its volume has no role yet.
    site.members[0].pod.as_mut().unwrap().role = None;
    assert_eq!(able(&site).status, "False");
    site.members[0].pod = None;
    assert_eq!(able(&site).status, "Unknown");
}

/// Site a with the primary, site b with a replica; both serve and have a standby.
fn two(sync: Sync) -> ClusterView {
    let named = |name: &str| SiteView {
        name: name.to_owned(),
        primary: name == "a",
        ..owned_by(
            Some(1),
            vec![
                member(1, &format!("{name}1"), "active", true),
                member(2, &format!("{name}2"), "standby", true),
            ],
        )
    };
    let mut sites = vec![named("a"), named("b")];
    for member in &mut sites[1].members {
        member.pod.as_mut().unwrap().serving = false;
    }
    let record = ClusterRecord::first(SiteName("a".to_owned()), sync);
    ClusterView {
        sites,
        zones: Zones::Known(Box::new(record)),
    }
}

fn of_all(view: &ClusterView) -> BatonClusterStatus {
    let before = BatonClusterStatus::default();
    status(view, &FINE, Some(1), &before, &at(1))
}

#[test]
fn replication_is_healthy_where_the_record_promises_it_and_it_is_confirmed() {
    let site = |name: &str| SiteName(name.to_owned());
    let sync = |need, confirmed| Sync {
        need,
        sites: [site("b")].into(),
        confirmed,
        why: None,
    };
    let behind = Sync::none(Degraded::Behind([site("b")].into()));
    for (sync, expected, phase) in [
        (sync(1, true), ("True", "Synchronous"), Phase::Healthy),
        (sync(1, false), ("False", "Unconfirmed"), Phase::Degraded),
        (behind, ("False", "SitesBehind"), Phase::Degraded),
        (Sync::none(Degraded::Off), ("False", "Off"), Phase::Degraded),
    ] {
        let status = of_all(&two(sync));
        let found = status.condition(REPLICATION_HEALTHY).unwrap();
        assert_eq!((found.status.as_str(), found.reason.as_str()), expected);
        assert_eq!(status.phase, Some(phase), "{found:?}");
    }
    let mut view = two(sync(1, true));
    view.zones = Zones::Unreadable("no JSON".to_owned());
    for site in &mut view.sites {
        site.primary = false;
    }
    let status = of_all(&view);
    for type_ in [REPLICATION_HEALTHY, READY] {
        let found = status.condition(type_).unwrap();
        assert_eq!(found.status, "Unknown", "{found:?}");
    }
    assert_eq!((&status.active, &status.primary_site), (&None, &None));
    assert!(status.sites.iter().all(|site| site.role.is_none()));
}

#[test]
fn the_primary_s_active_is_the_cluster_s_and_each_site_has_its_own() {
    let mut view = two(Sync::none(Degraded::NotYet));
    view.sites.reverse();
    let status = of_all(&view);
    assert_eq!(status.primary_site.as_deref(), Some("a"));
    assert_eq!(status.active.as_deref(), Some("a1"));
    let sites: Vec<_> = status
        .sites
        .iter()
        .map(|site| (site.role.as_deref(), site.active.as_deref(), site.ready))
        .collect();
    assert_eq!(
        sites,
        [
            (Some("replica"), Some("b1"), true),
            (Some("primary"), Some("a1"), true)
        ]
    );
    let of: Vec<_> = status
        .members
        .iter()
        .map(|member| member.site.as_deref())
        .collect();
    assert_eq!(of, [Some("b"), Some("b"), Some("a"), Some("a")]);
}
