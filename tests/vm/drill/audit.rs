//! Who wrote when, from what the target's trace told: fences, refused writes, and writes that were
//! applied although their host was fenced. Pure.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use baton::drill::target::{Audit, FenceRecord};

use super::follow::{CONFLICT, Ended, What};

/// The trace may be stamped a little before the log's line on the same controller.
const SKEW: f64 = 0.001;

/// The controllers that the target made, by its kernel's log. It uses their numbers again.
pub struct Controllers(Vec<Controller>);

struct Controller {
    at: f64,
    number: u32,
    host: String,
}

impl Controllers {
    /// From `dmesg`: `[   12.345678] nvmet: Created nvm controller 1 for subsystem … for NQN ….`
    pub fn of(log: &str) -> Self {
        Self(log.lines().filter_map(controller).collect())
    }

    /// The host identifier behind a controller's number at a moment.
    fn host(&self, number: u32, at: f64) -> Option<&str> {
        let made = |c: &&Controller| c.number == number && c.at <= at + SKEW;
        self.0.iter().rfind(made).map(|c| c.host.as_str())
    }
}

fn controller(line: &str) -> Option<Controller> {
    let at = line.strip_prefix('[')?.split(']').next()?.trim();
    let (_, after) = line.split_once("controller ")?;
    let number = after.split(' ').next()?;
    let (_, nqn) = after.split_once("for NQN ")?;
    let (_, host) = nqn.split_once("uuid:")?;
    let host = host.get(..36)?;
    Some(Controller {
        at: at.parse().ok()?,
        number: number.parse().ok()?,
        host: host.to_owned(),
    })
}

/// Follows what the trace tells.
pub struct Auditor {
    /// Who held last, even if the target has forgotten.
    owner: String,
    /// Hosts that were fenced and did not hold since, with their fence's place.
    fenced: BTreeMap<String, usize>,
    audit: Audit,
    sequence: u64,
}

impl Auditor {
    /// From a moment on at which this host held.
    pub fn new(owner: String) -> Self {
        Self {
            owner,
            fenced: BTreeMap::new(),
            audit: Audit::default(),
            sequence: 0,
        }
    }

    /// The record up to the last command.
    pub fn audit(&self) -> Audit {
        self.audit.clone()
    }

    /// Takes a command that ended.
    pub fn ended(&mut self, ended: &Ended, controllers: &Controllers) -> Result<()> {
        self.sequence += 1;
        let host = controllers.host(ended.controller, ended.at);
        let host = host.with_context(|| format!("nobody made the controller of {ended:?}"))?;
        match (ended.what, ended.status) {
            (What::Write, 0) => self.audit.violations += u64::from(self.fenced.contains_key(host)),
            (What::Write, CONFLICT) => {
                if let Some(fence) = self.fenced.get(host) {
                    self.audit.fences[*fence].refused_writes += 1;
                }
            }
            (What::Acquire(action), 0) => self.holds(host, action),
            (What::Write | What::Acquire(_), _) => {}
        }
        Ok(())
    }

    fn holds(&mut self, host: &str, action: u8) {
        self.fenced.remove(host);
        let victim = std::mem::replace(&mut self.owner, host.to_owned());
        if victim == host {
            return;
        }
        let kind = match action {
            0 => "acquire",
            1 => "preempt",
            _ => "preempt_and_abort",
        };
        self.fenced.insert(victim.clone(), self.audit.fences.len());
        self.audit.fences.push(FenceRecord {
            sequence: self.sequence,
            victim,
            // it is in the command's data, which the trace does not show
            victim_key: None,
            by: host.to_owned(),
            kind: kind.to_owned(),
            refused_writes: 0,
        });
    }
}
