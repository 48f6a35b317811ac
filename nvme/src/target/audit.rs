//! The target's own record of who wrote when: would show a write of a fenced host that was applied
//! after its fence had completed, had the target ever let one through.
//!
//! Every applied write takes the next sequence number *after* its data is in the medium, whatever
//! the reservation check said before; a fence takes one when its command completes. The record
//! lives in memory and is bounded; it is lost with the target's process.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use crate::HostId;

/// Fences and runs remembered; older ones are forgotten first.
const REMEMBERED: usize = 4096;

/// How a host lost its registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FenceKind {
    /// Preempt: the victim's commands that had begun may still land after it.
    Preempt,
    /// Preempt and Abort: completes after the victim's commands.
    PreemptAndAbort,
    /// Clear.
    Clear,
}

/// Why a fenced host may write again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LiftReason {
    /// A reservation command allowed it: it holds, or nobody does.
    Allowed,
    /// The target lost its reservations.
    Forgotten,
}

/// One host that was fenced.
#[derive(Clone, Debug, Serialize)]
pub struct Fence {
    /// Namespace.
    pub namespace_id: u32,
    /// Sequence number of the fence's completion.
    pub sequence: u64,
    /// Who was fenced.
    pub victim: HostId,
    /// The key it had.
    pub victim_key: u64,
    /// Who fenced.
    pub by: HostId,
    /// By which command.
    pub kind: FenceKind,
    /// Write commands of the victim that were refused since.
    pub refused_writes: u64,
    /// Writes of the victim that were applied although it was fenced: must be 0.
    pub violations: u64,
    /// When and why the victim could write again; `None` while it is fenced.
    pub lifted: Option<(u64, LiftReason)>,
}

/// Consecutive writes of one host.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    /// Namespace.
    pub namespace_id: u32,
    /// Who wrote.
    pub host: HostId,
    /// Sequence number of the first write.
    pub first: u64,
    /// Sequence number of the last write.
    pub last: u64,
    /// How many.
    pub writes: u64,
}

/// Commands of one host since the target started.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Counters {
    /// Reads carried out.
    pub reads: u64,
    /// Writes, Write Zeroes and deallocations applied.
    pub writes: u64,
    /// Flushes carried out.
    pub flushes: u64,
    /// Write commands refused by a reservation, flushes not counted.
    pub refused_writes: u64,
    /// Flushes refused by a reservation.
    pub refused_flushes: u64,
    /// Reads refused by a reservation.
    pub refused_reads: u64,
    /// Sequence number of the last applied write; 0 for none.
    pub last_write: u64,
}

/// What kind of I/O command is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// Read and Compare.
    Read,
    /// Write, Write Zeroes, Dataset Management.
    Write,
    /// Flush.
    Flush,
}

/// The record of one namespace.
#[derive(Debug)]
pub struct Audit {
    namespace_id: u32,
    sequence: u64,
    hosts: BTreeMap<HostId, Counters>,
    fences: VecDeque<Fence>,
    runs: VecDeque<Run>,
}

/// The record as it is shown.
#[derive(Clone, Debug, Serialize)]
pub struct AuditView {
    /// The last sequence number given.
    pub sequence: u64,
    /// Every fence, in order.
    pub fences: Vec<Fence>,
    /// Sum of the fences' violations.
    pub violations: u64,
    /// Who wrote in turn.
    pub runs: Vec<Run>,
    /// Commands of each host.
    #[serde(skip)]
    pub hosts: BTreeMap<HostId, Counters>,
}

impl Audit {
    /// An empty record.
    pub fn new(namespace_id: u32) -> Self {
        Self {
            namespace_id,
            sequence: 0,
            hosts: BTreeMap::new(),
            fences: VecDeque::new(),
            runs: VecDeque::new(),
        }
    }

    /// A command of the host took effect, just now.
    pub fn applied(&mut self, host: HostId, operation: Operation) {
        let counters = self.hosts.entry(host).or_default();
        match operation {
            Operation::Read => counters.reads += 1,
            Operation::Flush => counters.flushes += 1,
            Operation::Write => {
                self.sequence += 1;
                counters.writes += 1;
                counters.last_write = self.sequence;
                self.wrote(host);
            }
        }
    }

    fn wrote(&mut self, host: HostId) {
        for fence in self.open_fences(host) {
            fence.violations += 1;
        }
        let sequence = self.sequence;
        match self.runs.back_mut() {
            Some(run) if run.host == host => {
                run.last = sequence;
                run.writes += 1;
            }
            _ => self.runs.push_back(Run {
                namespace_id: self.namespace_id,
                host,
                first: sequence,
                last: sequence,
                writes: 1,
            }),
        }
        if self.runs.len() > REMEMBERED {
            self.runs.pop_front();
        }
    }

    /// A reservation refused a command of the host.
    pub fn refused(&mut self, host: HostId, operation: Operation) {
        let counters = self.hosts.entry(host).or_default();
        match operation {
            Operation::Read => counters.refused_reads += 1,
            Operation::Flush => counters.refused_flushes += 1,
            Operation::Write => {
                counters.refused_writes += 1;
                for fence in self.open_fences(host) {
                    fence.refused_writes += 1;
                }
            }
        }
    }

    /// The command that fenced the victim is about to complete.
    pub fn fenced(&mut self, victim: (HostId, u64), by: HostId, kind: FenceKind) {
        self.sequence += 1;
        self.fences.push_back(Fence {
            namespace_id: self.namespace_id,
            sequence: self.sequence,
            victim: victim.0,
            victim_key: victim.1,
            by,
            kind,
            refused_writes: 0,
            violations: 0,
            lifted: None,
        });
        if self.fences.len() > REMEMBERED {
            self.fences.pop_front();
        }
    }

    /// The reservation changed: ends the fences of all hosts that `may_write` now.
    pub fn lift(&mut self, may_write: impl Fn(HostId) -> bool, reason: LiftReason) {
        let sequence = self.sequence;
        let fences = self.fences.iter_mut();
        for fence in fences.filter(|f| f.lifted.is_none() && may_write(f.victim)) {
            fence.lifted = Some((sequence, reason));
        }
    }

    fn open_fences(&mut self, host: HostId) -> impl Iterator<Item = &mut Fence> {
        self.fences
            .iter_mut()
            .filter(move |f| f.victim == host && f.lifted.is_none())
    }

    /// The record as it is now.
    pub fn view(&self) -> AuditView {
        AuditView {
            sequence: self.sequence,
            violations: self.fences.iter().map(|f| f.violations).sum(),
            fences: self.fences.iter().cloned().collect(),
            runs: self.runs.iter().cloned().collect(),
            hosts: self.hosts.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    #[test]
    fn a_write_after_the_fence_is_a_violation_until_it_is_lifted() {
        let (a, b) = (HostId(Uuid::from_u128(1)), HostId(Uuid::from_u128(2)));
        let mut audit = Audit::new(1);
        audit.applied(a, Operation::Write);
        audit.fenced((a, 7), b, FenceKind::PreemptAndAbort);
        audit.refused(a, Operation::Write);
        audit.applied(b, Operation::Write);
        assert_eq!(audit.view().violations, 0);
        audit.applied(a, Operation::Write);
        assert_eq!(audit.view().violations, 1);
        audit.lift(|host| host == a, LiftReason::Allowed);
        audit.applied(a, Operation::Write);
        let view = audit.view();
        assert_eq!((view.violations, view.fences[0].refused_writes), (1, 1));
        assert_eq!(view.runs.len(), 3);
    }
}
