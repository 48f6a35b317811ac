//! The Events of a cluster, told from one status to the next. Pure: the earlier status is what the API
//! server has, so a controller that was away tells what it missed, once.

use kube::runtime::events::{Event, EventType};

use super::accept::Problem;
use super::status::{
    ACCEPTED, FENCE_PROVEN, LEAVING, MEMBERS_ABLE, POD_STUCK, READY, RECONCILED, REFUSED,
    REPLICATION_HEALTHY, STANDBY_READY,
};
use crate::cluster::{BatonClusterStatus, Phase};

/// The longest note that an Event may have, in bytes (events.k8s.io/v1).
const NOTE_MAX: usize = 1024;

/// Something that people are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// Whether somebody should look.
    pub warning: bool,
    /// What it is, in one word.
    pub reason: &'static str,
    /// What was being done.
    pub action: &'static str,
    /// What people read.
    pub text: String,
}

impl Note {
    fn normal(reason: &'static str, action: &'static str, text: String) -> Self {
        Self {
            warning: false,
            reason,
            action,
            text,
        }
    }

    /// Of what was done about a pod.
    pub fn of_pod(reason: &'static str, text: String) -> Self {
        Self::normal(reason, "KeepPods", text)
    }

    fn warning(reason: &'static str, action: &'static str, text: String) -> Self {
        Self {
            warning: true,
            ..Self::normal(reason, action, text)
        }
    }

    /// As an Event of the API.
    pub fn event(&self) -> Event {
        let mut text = self.text.clone();
        if text.len() > NOTE_MAX {
            let cut = (0..=NOTE_MAX - 3).rev();
            let cut = cut.into_iter().find(|at| text.is_char_boundary(*at));
            text.truncate(cut.unwrap_or(0));
            text.push('…');
        }
        Event {
            type_: if self.warning {
                EventType::Warning
            } else {
                EventType::Normal
            },
            reason: self.reason.to_owned(),
            note: Some(text),
            action: self.action.to_owned(),
            secondary: None,
        }
    }
}

/// What happened between two statuses, in the order in which it did. `planned`: whether the newest owner
/// took over from one that had said that it was done.
pub fn between(
    before: &BatonClusterStatus,
    after: &BatonClusterStatus,
    problems: &[Problem],
    planned: bool,
) -> Vec<Note> {
    let mut notes = Vec::new();
    reconciling(before, after, &mut notes);
    // What ends is not lost.
    let reason = after.condition(RECONCILED).map(|found| &*found.reason);
    if matches!(reason, Some(LEAVING | POD_STUCK)) {
        return notes;
    }
    refusals(before, after, problems, &mut notes);
    // Epochs of different sites cannot be compared.
    if !moved(before, after, &mut notes) {
        handover(before, after, planned, &mut notes);
    }
    service(before, after, &mut notes);
    standby(before, after, &mut notes);
    replication(before, after, &mut notes);
    members(before, after, &mut notes);
    notes
}

/// The reason of a condition that is as `status` says.
fn is<'s>(of: &'s BatonClusterStatus, type_: &str, status: &str) -> Option<&'s str> {
    let found = of.condition(type_)?;
    (found.status == status).then_some(found.reason.as_str())
}

/// What the API server refuses, and a pod that does not end.
fn reconciling(before: &BatonClusterStatus, after: &BatonClusterStatus, notes: &mut Vec<Note>) {
    let wrong = |of: &BatonClusterStatus| {
        let found = of.condition(RECONCILED)?;
        let mut reasons = [REFUSED, POD_STUCK].into_iter();
        let reason = reasons.find(|reason| found.reason == *reason)?;
        Some((reason, found.message.clone()))
    };
    match (wrong(before), wrong(after)) {
        (was, Some((reason, text))) if was.as_ref().is_none_or(|was| was.1 != text) => {
            notes.push(Note::warning(reason, "Reconcile", text));
        }
        (Some(_), None) if is(after, RECONCILED, "True").is_some() => {
            let text = "all objects are there".to_owned();
            notes.push(Note::normal("Reconciled", "Reconcile", text));
        }
        (Some(_) | None, Some(_) | None) => {}
    }
}

fn refusals(
    before: &BatonClusterStatus,
    after: &BatonClusterStatus,
    problems: &[Problem],
    notes: &mut Vec<Note>,
) {
    let told = before.condition(ACCEPTED).map(|found| &found.message);
    let now = after.condition(ACCEPTED).map(|found| &found.message);
    if told != now {
        let each = problems.iter();
        notes.extend(each.map(|p| Note::warning(p.reason(), "Accept", p.to_string())));
    }
    if is(before, ACCEPTED, "False").is_some() && is(after, ACCEPTED, "True").is_some() {
        let text = "the specification can be acted on".to_owned();
        notes.push(Note::normal("Accepted", "Accept", text));
    }
}

/// Whether the primary came to another site, and that it did.
fn moved(before: &BatonClusterStatus, after: &BatonClusterStatus, notes: &mut Vec<Note>) -> bool {
    match (&before.primary_site, &after.primary_site) {
        (Some(from), Some(to)) if from != to => {
            let text = format!("the primary moved from site {from} to site {to}");
            notes.push(Note::normal("PrimaryMoved", "Promote", text));
            true
        }
        // It is no longer, or was not, known where it is.
        (Some(_), None) | (None, Some(_)) => !before.sites.is_empty(),
        (Some(_), Some(_)) | (None, None) => false,
    }
}

/// A cluster that has just been made has nothing to lose yet.
fn replication(before: &BatonClusterStatus, after: &BatonClusterStatus, notes: &mut Vec<Note>) {
    let healthy = |of| is(of, REPLICATION_HEALTHY, "True").is_some();
    let told = before.condition(REPLICATION_HEALTHY).is_some();
    let Some(now) = after.condition(REPLICATION_HEALTHY) else {
        return;
    };
    match (healthy(before), healthy(after)) {
        (true, false) => {
            let text = now.message.clone();
            notes.push(Note::warning("ReplicationDegraded", "Replicate", text));
        }
        (false, true) if told => {
            let text = now.message.clone();
            notes.push(Note::normal("ReplicationHealthy", "Replicate", text));
        }
        (false, true | false) | (true, true) => {}
    }
}

fn handover(
    before: &BatonClusterStatus,
    after: &BatonClusterStatus,
    planned: bool,
    notes: &mut Vec<Note>,
) {
    let changed = after.epoch > before.epoch && after.active.is_some();
    let passing = |of: &BatonClusterStatus| of.phase == Some(Phase::HandingOver);
    let first = before.active.is_none();
    if !first && !passing(before) && (passing(after) || changed) {
        let from = before.active.as_deref().unwrap_or("nobody");
        let epoch = before.epoch.unwrap_or(0);
        let text = format!("ownership passes on from member {from}, epoch {epoch}");
        notes.push(Note::normal("HandoverStarted", "HandOver", text));
    }
    let (Some(active), Some(epoch)) = (&after.active, after.epoch) else {
        return;
    };
    if changed {
        let how = match (first, planned) {
            (true, _) => "for the first time",
            (false, true) => "planned",
            (false, false) => "unplanned",
        };
        let text = format!("member {active} takes over with epoch {epoch}, {how}");
        notes.push(Note::normal("TakingOver", "HandOver", text));
    }
    let proven = is(after, FENCE_PROVEN, "True").is_some();
    let known = !changed && is(before, FENCE_PROVEN, "True").is_some();
    let pending = is(before, FENCE_PROVEN, "False").is_some() || changed || first;
    if proven && !known && pending {
        let text = format!("the reservation of member {active} was verified, epoch {epoch}");
        notes.push(Note::normal("FenceProven", "HandOver", text));
    }
}

fn service(before: &BatonClusterStatus, after: &BatonClusterStatus, notes: &mut Vec<Note>) {
    let serves = |of| is(of, READY, "True").is_some();
    let changed = after.epoch > before.epoch;
    let active = after.active.as_deref().unwrap_or("nobody");
    if serves(after) && (changed || !serves(before)) {
        let epoch = after.epoch.unwrap_or(0);
        let text = format!("member {active} accepts writes, epoch {epoch}");
        notes.push(Note::normal("ServiceRestored", "Serve", text));
    }
    let passing = after.phase == Some(Phase::HandingOver);
    if serves(before) && !serves(after) && !passing {
        let text = after.condition(READY).map(|found| found.message.clone());
        let text = text.unwrap_or_default();
        notes.push(Note::warning("ServiceInterrupted", "Serve", text));
    }
}

fn standby(before: &BatonClusterStatus, after: &BatonClusterStatus, notes: &mut Vec<Note>) {
    let ready = |of| is(of, STANDBY_READY, "True").is_some();
    match (ready(before), ready(after), &after.standby) {
        (false, true, Some(standby)) => {
            let text = format!("member {standby} could take over");
            notes.push(Note::normal("StandbyReady", "Wait", text));
        }
        (true, false, _) => {
            let text = "no member could take over".to_owned();
            notes.push(Note::warning("StandbyLost", "Wait", text));
        }
        (false | true, true, _) | (false, false, _) => {}
    }
}

fn members(before: &BatonClusterStatus, after: &BatonClusterStatus, notes: &mut Vec<Note>) {
    let need = |of: &BatonClusterStatus| {
        let found = of.condition(MEMBERS_ABLE)?;
        (found.status == "False").then(|| found.message.clone())
    };
    match (need(before), need(after)) {
        (was, Some(text)) if was.as_ref() != Some(&text) => {
            notes.push(Note::warning("OperatorNeeded", "Look", text));
        }
        (Some(_), None) => {
            let text = "no member needs an operator any more".to_owned();
            notes.push(Note::normal("MembersAble", "Look", text));
        }
        (Some(_) | None, Some(_)) | (None, None) => {}
    }
}

#[cfg(test)]
mod tests;
