use fencing::{Epoch, MemberId};

use super::*;
use crate::decide::zone::{ClusterRecord, Degraded, Moving, SiteName, Sync};
use crate::decide::{Incarnation, LeaseRecord};

const TAKEOVER: Duration = Duration::from_secs(600);

/// A member: name, role, whether its pod is ready, whether it is as it should be.
type Row = (&'static str, &'static str, bool, bool);

fn site(owner: Option<u8>, rows: &[Row]) -> SiteView {
    let members = rows.iter().enumerate();
    let members = members.map(|(place, &(name, role, ready, current))| {
        let number = u8::try_from(place + 1).ok().and_then(MemberId::new);
        MemberView {
            name: name.to_owned(),
            number: number.unwrap(),
            template: "new".to_owned(),
            pod: Some(PodView {
                name: name.to_owned(),
                uid: format!("uid-{name}"),
                role: (!role.is_empty()).then(|| role.to_owned()),
                serving: role == "active",
                ready,
                template: Some(if current { "new" } else { "old" }.to_owned()),
                ..PodView::default()
            }),
        }
    });
    SiteView {
        name: "local".to_owned(),
        primary: true,
        record: owner.map_or(Record::None, |owner| Record::Known(record(owner))),
        members: members.collect(),
    }
}

fn record(owner: u8) -> LeaseRecord {
    LeaseRecord {
        epoch: Epoch::new(3).unwrap(),
        newest: Epoch::new(3).unwrap(),
        holder: MemberId::new(owner),
        incarnation: Incarnation(1),
        sequence: 9,
        clean: false,
        planned: false,
        initialized: true,
        paused: false,
        cluster: None,
    }
}

/// The step in one word: the pod to replace (with `!` if it is the owner's), or the reason to wait.
fn word(site: &SiteView) -> String {
    word_of(&one(site))
}

fn one(site: &SiteView) -> ClusterView {
    ClusterView {
        sites: vec![site.clone()],
        zones: Zones::One,
    }
}

fn word_of(view: &ClusterView) -> String {
    word_after(view, Duration::ZERO)
}

/// The same where nobody has served for this long.
fn word_after(view: &ClusterView, unserved: Duration) -> String {
    let named = view.sites.iter().map(|site| (site.name.clone(), unserved));
    let outage = Outage {
        lasts: named.collect(),
        takeover: TAKEOVER,
        copy: TAKEOVER,
    };
    match next(view, false, &outage) {
        Step::Current => "current".to_owned(),
        Step::Replace { member, owner, .. } => {
            format!("{member}{}", if owner { "!" } else { "" })
        }
        Step::Wait(why) => why.reason().to_owned(),
    }
}

#[test]
fn one_after_the_other_and_the_owner_last() {
    const OLD: bool = false;
    const NEW: bool = true;
    let cases: [(&str, &[Row]); 13] = [
        (
            "current",
            &[("a", "active", true, NEW), ("b", "standby", true, NEW)],
        ),
        (
            "b",
            &[("a", "active", true, OLD), ("b", "standby", true, OLD)],
        ),
        // Replaced, but not back yet: whatever it says, the owner stays.
        (
            "StandbyNotReady",
            &[("a", "active", true, OLD), ("b", "", false, NEW)],
        ),
        (
            "StandbyNotReady",
            &[("a", "active", true, OLD), ("b", "joining", true, NEW)],
        ),
        (
            "StandbyNotReady",
            &[("a", "active", true, OLD), ("b", "standby", false, NEW)],
        ),
        (
            "a!",
            &[("a", "active", true, OLD), ("b", "standby", true, NEW)],
        ),
        // A standby that is broken is replaced rather than waited for.
        ("b", &[("a", "active", true, OLD), ("b", "", false, OLD)]),
        (
            "c",
            &[
                ("a", "active", true, OLD),
                ("b", "standby", true, OLD),
                ("c", "", false, OLD),
            ],
        ),
        (
            "StandbyNotReady",
            &[
                ("a", "active", true, OLD),
                ("b", "returning", true, NEW),
                ("c", "standby", true, OLD),
            ],
        ),
        // Nothing is taken away while nobody serves, or while ownership passes.
        (
            "NotServing",
            &[("a", "active", false, OLD), ("b", "standby", true, OLD)],
        ),
        (
            "NotServing",
            &[("a", "returning", true, OLD), ("b", "standby", true, NEW)],
        ),
        (
            "HandoverUnderWay",
            &[
                ("a", "handing-over", true, OLD),
                ("b", "standby", true, NEW),
            ],
        ),
        (
            "HandoverUnderWay",
            &[("a", "active", true, OLD), ("b", "taking-over", true, NEW)],
        ),
    ];
    for (expected, rows) in cases {
        assert_eq!(word(&site(Some(1), rows)), expected, "{rows:?}");
    }
}

/// There is nothing to interrupt, and the change may be what mends it.
#[test]
fn where_nobody_serves_for_good_standbys_are_replaced_and_then_the_owner() {
    const OLD: bool = false;
    const NEW: bool = true;
    let cases: [(&str, &str, &[Row]); 6] = [
        (
            "NotServing",
            "b",
            &[("a", "active", false, OLD), ("b", "standby", true, OLD)],
        ),
        (
            "NotServing",
            "a!",
            &[("a", "active", false, OLD), ("b", "", false, NEW)],
        ),
        (
            "NotServing",
            "c",
            &[
                ("a", "active", false, OLD),
                ("b", "standby", true, OLD),
                ("c", "", false, OLD),
            ],
        ),
        (
            "HandoverUnderWay",
            "b",
            &[
                ("a", "handing-over", false, OLD),
                ("b", "taking-over", false, OLD),
            ],
        ),
        (
            "current",
            "current",
            &[("a", "active", false, NEW), ("b", "standby", true, NEW)],
        ),
        // Whoever serves is never without the standby, however long somebody saw nothing.
        (
            "StandbyNotReady",
            "StandbyNotReady",
            &[("a", "active", true, OLD), ("b", "", false, NEW)],
        ),
    ];
    for (early, late, rows) in cases {
        let mut site = site(Some(1), rows);
        let view = one(&site);
        assert_eq!(word_after(&view, TAKEOVER), early, "{rows:?}");
        let second = Duration::from_secs(1);
        assert_eq!(word_after(&view, TAKEOVER + second), late, "{rows:?}");
        // What the owner says of itself is known at once; but a handover may still mend it.
        let owner = site.members[0].pod.as_mut().unwrap();
        owner.needs_operator = Some("PostgreSQL does not stay up".to_owned());
        let handover = early == "HandoverUnderWay";
        let expected = if handover { early } else { late };
        assert_eq!(word(&site), expected, "{rows:?}");
    }
}

#[test]
fn a_site_where_nobody_serves_does_not_wait_for_the_others() {
    const OLD: bool = false;
    let primary = [("a1", "active", false, OLD), ("a2", "standby", true, OLD)];
    let replica = [("b1", "active", true, OLD), ("b2", "standby", true, OLD)];
    let mut view = two(&primary, &replica);
    assert_eq!(word_of(&view), "b2");
    let owner = view.sites[0].members[0].pod.as_mut().unwrap();
    owner.needs_operator = Some("PostgreSQL does not stay up".to_owned());
    assert_eq!(word_of(&view), "a2");
    // A replica's site may have a database to copy.
    view = two(&replica, &primary);
    assert_eq!(word_after(&view, TAKEOVER * 2), "NotServing");
    assert_eq!(word_after(&view, TAKEOVER * 3), "a2");
}

#[test]
fn without_a_standby_the_owner_is_not_replaced() {
    let mut alone = site(Some(1), &[("a", "active", true, false)]);
    assert_eq!(word(&alone), "NoReadyStandby");
    alone = site(
        Some(1),
        &[("a", "active", true, false), ("b", "standby", true, true)],
    );
    alone.members[1].pod = None;
    assert_eq!(word(&alone), "PodMissing");
    let mut ending = site(
        Some(1),
        &[("a", "active", true, false), ("b", "standby", true, true)],
    );
    ending.members[1].pod.as_mut().unwrap().terminating = true;
    assert_eq!(word(&ending), "PodMissing");
}

#[test]
fn unknown_ownership_replaces_nothing() {
    let rows: &[Row] = &[("a", "active", true, false), ("b", "standby", true, false)];
    let mut unknown = site(None, rows);
    unknown.record = Record::Unreadable("no JSON".to_owned());
    assert_eq!(word(&unknown), "LeaseUnreadable");
    assert_eq!(word(&site(Some(7), rows)), "OwnerUnknown");
}

#[test]
fn pods_that_never_served_may_be_replaced() {
    let rows: &[Row] = &[("a", "", false, false), ("b", "", false, false)];
    assert_eq!(word(&site(None, rows)), "a");
}

#[test]
fn a_paused_cluster_is_left_as_it_is() {
    let rows: &[Row] = &[("a", "active", true, false), ("b", "standby", true, false)];
    assert_eq!(
        next(&one(&site(Some(1), rows)), true, &Outage::default()),
        Step::Wait(Waiting::Paused)
    );
}

/// Site a with the primary and site b with a replica, all pods as in `rows`.
fn two(rows_a: &[Row], rows_b: &[Row]) -> ClusterView {
    let named = |name: &str, rows| SiteView {
        name: name.to_owned(),
        primary: name == "a",
        ..site(Some(1), rows)
    };
    let record = ClusterRecord::first(SiteName("a".to_owned()), Sync::none(Degraded::NotYet));
    ClusterView {
        sites: vec![named("a", rows_a), named("b", rows_b)],
        zones: Zones::Known(Box::new(record)),
    }
}

#[test]
fn replica_sites_go_first_and_the_primary_s_last() {
    const OLD: bool = false;
    const NEW: bool = true;
    let site = |x, y, first, second| -> [Row; 2] {
        [(x, "active", true, first), (y, "standby", true, second)]
    };
    let cases = [
        ("b2", site("a1", "a2", OLD, OLD), site("b1", "b2", OLD, OLD)),
        (
            "b1!",
            site("a1", "a2", OLD, OLD),
            site("b1", "b2", OLD, NEW),
        ),
        ("a2", site("a1", "a2", OLD, OLD), site("b1", "b2", NEW, NEW)),
        (
            "a1!",
            site("a1", "a2", OLD, NEW),
            site("b1", "b2", NEW, NEW),
        ),
        (
            "current",
            site("a1", "a2", NEW, NEW),
            site("b1", "b2", NEW, NEW),
        ),
        // The replica's site is not as it should be: the primary's waits.
        (
            "NotServing",
            site("a1", "a2", OLD, OLD),
            [("b1", "active", false, OLD), ("b2", "standby", true, OLD)],
        ),
        // Never two pods at once, in whichever sites.
        (
            "HandoverUnderWay",
            site("a1", "a2", OLD, OLD),
            [
                ("b1", "active", true, NEW),
                ("b2", "taking-over", true, NEW),
            ],
        ),
    ];
    for (expected, a, b) in cases {
        let mut view = two(&a, &b);
        for pod in view.sites[1]
            .members
            .iter_mut()
            .filter_map(|m| m.pod.as_mut())
        {
            pod.serving = false;
        }
        assert_eq!(word_of(&view), expected, "{a:?} {b:?}");
    }
}

#[test]
fn nothing_is_replaced_while_it_is_unknown_who_has_the_primary() {
    let rows: [Row; 2] = [("x", "active", true, false), ("y", "standby", true, false)];
    let change = |change: fn(&mut ClusterView)| {
        let mut view = two(&rows, &rows);
        change(&mut view);
        word_of(&view)
    };
    let unreadable = change(|view| view.zones = Zones::Unreadable("no JSON".to_owned()));
    assert_eq!(unreadable, "RecordUnreadable");
    let elsewhere = change(|view| view.sites[0].primary = false);
    assert_eq!(elsewhere, "PrimaryUnknown");
    let moving = change(|view| {
        if let Zones::Known(record) = &mut view.zones {
            record.moving = Some(Moving {
                to: SiteName("b".to_owned()),
                stopped: None,
            });
        }
    });
    assert_eq!(moving, "MoveUnderWay");
}
