use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;

use super::*;

fn condition(type_: &str, holds: bool) -> Condition {
    Condition {
        type_: type_.to_owned(),
        status: if holds { "True" } else { "False" }.to_owned(),
        reason: "Because".to_owned(),
        message: format!("{type_} is {holds}"),
        observed_generation: None,
        last_transition_time: Time(Timestamp::UNIX_EPOCH),
    }
}

fn status(
    active: &str,
    epoch: u32,
    phase: Phase,
    serves: bool,
    standby: bool,
) -> BatonClusterStatus {
    BatonClusterStatus {
        phase: Some(phase),
        active: Some(active.to_owned()),
        standby: standby.then(|| "x".to_owned()),
        epoch: Some(epoch),
        conditions: vec![
            condition(READY, serves),
            condition(STANDBY_READY, standby),
            condition(FENCE_PROVEN, serves),
        ],
        ..BatonClusterStatus::default()
    }
}

fn reasons(before: &BatonClusterStatus, after: &BatonClusterStatus) -> Vec<&'static str> {
    let notes = between(before, after, &[], true);
    notes.iter().map(|note| note.reason).collect()
}

#[test]
fn a_handover_is_told_phase_by_phase() {
    let well = status("a", 4, Phase::Healthy, true, true);
    let begun = status("a", 4, Phase::HandingOver, false, true);
    let taking = status("b", 5, Phase::HandingOver, false, false);
    let serving = status("b", 5, Phase::Degraded, true, false);
    let done = status("b", 5, Phase::Healthy, true, true);
    assert_eq!(reasons(&well, &begun), ["HandoverStarted"]);
    assert_eq!(reasons(&begun, &taking), ["TakingOver", "StandbyLost"]);
    assert_eq!(
        reasons(&taking, &serving),
        ["FenceProven", "ServiceRestored"]
    );
    assert_eq!(reasons(&serving, &done), ["StandbyReady"]);
    assert!(reasons(&done, &done).is_empty());
}

#[test]
fn a_handover_that_was_over_before_anybody_looked_is_told_whole() {
    let before = status("a", 4, Phase::Healthy, true, true);
    let after = status("b", 5, Phase::Healthy, true, true);
    assert_eq!(
        reasons(&before, &after),
        [
            "HandoverStarted",
            "TakingOver",
            "FenceProven",
            "ServiceRestored"
        ]
    );
}

#[test]
fn the_first_owner_hands_nothing_over() {
    let before = BatonClusterStatus::default();
    let after = status("a", 1, Phase::Degraded, true, false);
    assert_eq!(
        reasons(&before, &after),
        ["TakingOver", "FenceProven", "ServiceRestored"]
    );
}

#[test]
fn each_problem_is_told_once() {
    let mut after = BatonClusterStatus::default();
    after.conditions.push(condition(ACCEPTED, false));
    let place = || "spec.volume".to_owned();
    let problems = [
        Problem::VolumeSource { place: place() },
        Problem::TargetIncomplete { place: place() },
    ];
    let told = between(&BatonClusterStatus::default(), &after, &problems, false);
    let words: Vec<_> = told
        .iter()
        .map(|note| (note.reason, note.warning))
        .collect();
    assert_eq!(words, [("VolumeSource", true), ("TargetIncomplete", true)]);
    assert!(between(&after, &after, &problems, false).is_empty());
}

#[test]
fn a_long_note_is_cut_to_what_the_api_takes() {
    let note = Note::of_pod("Long", "ä".repeat(900));
    let text = note.event().note.unwrap();
    assert!(
        text.len() <= NOTE_MAX && text.ends_with('…'),
        "{}",
        text.len()
    );
}

#[test]
fn a_member_that_needs_an_operator_is_told_once_for_each_reason() {
    let told = |holds: bool, text: &str| {
        let mut status = status("a", 4, Phase::Healthy, true, true);
        let mut able = condition(MEMBERS_ABLE, holds);
        able.message = text.to_owned();
        status.conditions.push(able);
        status
    };
    let (well, one) = (told(true, ""), told(false, "member b: this"));
    let other = told(false, "member b: that");
    assert_eq!(reasons(&well, &one), ["OperatorNeeded"]);
    assert!(reasons(&one, &one).is_empty());
    assert_eq!(reasons(&one, &other), ["OperatorNeeded"]);
    assert_eq!(reasons(&other, &well), ["MembersAble"]);
}

#[test]
fn what_happens_between_sites_is_told() {
    let at = |site: &str, active: &str, epoch: u32, healthy: bool| {
        let mut status = status(active, epoch, Phase::Healthy, true, true);
        status.primary_site = Some(site.to_owned());
        status
            .conditions
            .push(condition(REPLICATION_HEALTHY, healthy));
        status
    };
    let (well, alone) = (at("a", "a1", 9, true), at("a", "a1", 9, false));
    assert_eq!(reasons(&well, &alone), ["ReplicationDegraded"]);
    let notes = between(&well, &alone, &[], true);
    assert!(
        notes[0].warning && notes[0].text.contains("is false"),
        "{notes:?}"
    );
    assert_eq!(reasons(&alone, &well), ["ReplicationHealthy"]);
    // The other site's epochs are its own.
    let moved = at("b", "b1", 2, false);
    assert_eq!(reasons(&alone, &moved), ["PrimaryMoved"]);
    assert_eq!(reasons(&moved, &moved), Vec::<&str>::new());
}

#[test]
fn what_the_api_server_refuses_is_told_once_and_taken_back() {
    let told = |reason: &str, text: &str| {
        let mut status = status("a", 4, Phase::Healthy, true, true);
        let mut found = condition(RECONCILED, reason == "Reconciled");
        (found.reason, found.message) = (reason.to_owned(), text.to_owned());
        status.conditions.push(found);
        status
    };
    let (well, refused) = (told("Reconciled", ""), told(REFUSED, "make pod main-a: no"));
    assert_eq!(reasons(&well, &refused), ["Refused"]);
    assert!(between(&well, &refused, &[], false)[0].warning);
    assert!(reasons(&refused, &refused).is_empty());
    assert_eq!(reasons(&refused, &well), ["Reconciled"]);
    // A cluster that is deleted does not lose its service.
    let mut leaving = told(LEAVING, "");
    leaving.conditions.retain(|found| found.type_ != READY);
    assert!(reasons(&well, &leaving).is_empty());
    assert_eq!(
        reasons(&leaving, &told(POD_STUCK, "pod main-b")),
        ["PodStuck"]
    );
}
