//! What must hold whatever happens. Each is checked after the event that could break it.

use baton::decide::{
    Action, Config, Decision, Evidence, Memory, Observation, Reason, Role, decide,
};
use fencing::Mono;

use crate::world::{Broken, Event, MS, Node, Pg, SECOND, World};

/// The same input gives the same decision, also after a journey through the journal's JSON.
pub fn invariant_replay(
    config: &Config,
    memory: &Memory,
    seen: &Observation,
    now: Mono,
    decision: &Decision,
) -> Result<(), String> {
    let line = serde_json::to_string(&(config, memory, seen, now)).map_err(|e| e.to_string())?;
    let read: (Config, Memory, Observation, Mono) =
        serde_json::from_str(&line).map_err(|e| format!("invariant_replay: {e}"))?;
    let again = decide(&read.0, &read.1, &read.2, read.3);
    if again == *decision {
        return Ok(());
    }
    Err(format!(
        "invariant_replay: {again:?} instead of {decision:?}"
    ))
}

/// At most one step begins, and none beside another unless it is urgent.
pub fn invariant_one_hazard(decision: &Decision, busy: bool) -> Result<(), String> {
    let mut begun = 0;
    for action in &decision.actions {
        if let Action::Begin(step) = action {
            begun += 1;
            if busy && !step.work.is_urgent() {
                return Err(format!(
                    "invariant_one_hazard: {:?} beside another",
                    step.work
                ));
            }
        }
    }
    match begun {
        0 | 1 => Ok(()),
        _ => Err(format!("invariant_one_hazard: {begun} steps at once")),
    }
}

/// A device is destroyed only when nothing uses it.
pub fn invariant_nothing_left(node: &Node) -> Result<(), String> {
    if node.pg == Pg::Stopped && node.device.mounted.is_none() && node.device.mounting.is_none() {
        return Ok(());
    }
    Err("invariant_nothing_left: the device is in use and is to be rebuilt".to_owned())
}

/// No fence for silence while the owner's key moves on the volume.
pub fn invariant_no_false_takeover(world: &World, index: usize) -> Result<(), String> {
    let node = &world.nodes[index];
    let Role::TakingOver(takeover) = &node.memory.role else {
        return Ok(());
    };
    let Evidence::Silence { owner, last: _ } = takeover.evidence else {
        return Ok(());
    };
    if !node.config.timings.storage_beats {
        return Ok(());
    }
    let Some(victim) = world
        .nodes
        .iter()
        .find(|other| other.config.member == owner)
    else {
        return Ok(());
    };
    let Some(moved) = world.target.key_moved.get(&victim.host) else {
        return Ok(());
    };
    // What moved since the newest read cannot be known: an interval, and a read that is lost or slow.
    let timings = &node.config.timings;
    let unread = (timings.observe + timings.command).as_micros() as u64 + 50 * MS;
    let detection = timings.detection.as_micros() as u64 * 98 / 100;
    let silent = world.now.saturating_sub(*moved);
    if silent >= detection || (silent <= unread && world.broken == Broken::Nothing) {
        return Ok(());
    }
    Err(format!(
        "invariant_no_false_takeover: member {owner} moved its key {} ms ago",
        silent / MS
    ))
}

impl World {
    /// Some time after the last fault: one member serves, commits, and nobody takes over any more.
    pub fn judge(&mut self) -> Result<(), String> {
        self.stop = true;
        let healed = self.healed.unwrap_or(self.now);
        let serving: Vec<usize> = (0..self.nodes.len())
            .filter(|i| self.nodes[*i].running && self.nodes[*i].pg == Pg::Running)
            .collect();
        if serving.len() != 1 || self.committed_after_heal == 0 {
            return Err(format!(
                "invariant_progress: {} members serve, {} commits since the end of faults; {}",
                serving.len(),
                self.committed_after_heal,
                self.reasons()
            ));
        }
        let quiet = self.now - 10 * SECOND;
        let late = self
            .owners
            .iter()
            .filter(|(at, _)| *at > quiet.max(healed))
            .count();
        if late > 0 {
            return Err(format!(
                "invariant_no_duel: {late} changes of ownership long after the last fault; {}",
                self.reasons()
            ));
        }
        for (index, node) in self.nodes.iter().enumerate() {
            let standby = matches!(node.memory.role, Role::Standby);
            if !serving.contains(&index) && !standby {
                return Err(format!(
                    "invariant_progress: no standby; {}",
                    self.reasons()
                ));
            }
        }
        Ok(())
    }

    fn reasons(&self) -> String {
        let reason = |(index, node): (usize, &Node)| {
            format!(
                "member {}: {} ({:?})",
                index + 1,
                node.reason,
                node.memory.role.name()
            )
        };
        self.nodes
            .iter()
            .enumerate()
            .map(reason)
            .collect::<Vec<_>>()
            .join("; ")
    }

    /// The operator looks after members that say they need one, and tells the truth.
    pub fn operator_looks(&mut self) {
        for index in 0..self.nodes.len() {
            let paused = self.nodes[index].memory.paused;
            if paused && self.nodes[index].requests.is_empty() {
                self.ask(index, baton::decide::Ask::Resume);
            }
            let absent = matches!(self.nodes[index].reason, Reason::ReservationAbsent { .. });
            let safe = (0..self.nodes.len()).all(|other| {
                let device = &self.nodes[other].device;
                device.mounted.is_none() && device.outstanding.is_empty()
            });
            if absent && safe && self.nodes[index].requests.is_empty() {
                self.ask(index, baton::decide::Ask::OwnersStopped);
                return;
            }
        }
    }

    pub fn operator_round(&mut self) {
        self.operator_looks();
        self.after(SECOND, Event::HealAll);
    }
}
