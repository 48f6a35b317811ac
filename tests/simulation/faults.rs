//! What goes wrong in a run: planned from the seed, then all of it is healed.

use baton::decide::Ask;
use fencing::MemberId;

use crate::target::What;
use crate::world::{Event, MS, Path, Pg, SECOND, World};

/// One thing that goes wrong, or that an operator does.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// The whole process tree dies and starts again later.
    Crash { node: usize },
    /// It dies at the nth step from now.
    CrashAtStep { node: usize, steps: u64 },
    /// The machine stands still.
    Freeze { node: usize, millis: u64 },
    /// The way to the volume is cut.
    CutPath {
        node: usize,
        path: Path,
        millis: u64,
    },
    /// Messages of one member do not reach another.
    CutLink { from: usize, to: usize, millis: u64 },
    /// No member hears or is heard by this one.
    CutPeers { node: usize, millis: u64 },
    /// The lease store is unreachable for one member, or for all.
    CutLease { node: Option<usize>, millis: u64 },
    /// Neither store nor peers: the volume's mailbox is all there is.
    Isolate { node: usize, millis: u64 },
    /// The target restarts; registrations survive if it is persistent.
    TargetRestart { millis: u64, power: bool },
    /// PostgreSQL dies and fails to start a few times.
    PostgresFails { node: usize, starts: u32 },
    /// Local steps fail or hang.
    StepsFail { node: usize, count: u32 },
    /// Messages and commands are lost.
    Lossy { percent: u64 },
    /// Writes take long at the target.
    Slow { percent: u64 },
    /// Heartbeats come late.
    Late { percent: u64 },
    /// SIGTERM.
    Terminate { node: usize },
    /// An operator asks something.
    Operator { node: usize, ask: Ask },
}

impl World {
    pub fn plan_faults(&mut self) {
        let quiet = self.rng.range(3, 6) * SECOND;
        let count = self.rng.range(2, 10);
        let span = self.rng.range(4, 14) * SECOND;
        for _ in 0..count {
            // Faults come in crowds as well as alone.
            let at = match self.faults.last() {
                Some((at, _)) if self.rng.chance(40) => *at + self.rng.range(0, 600) * MS,
                Some(_) | None => quiet + self.rng.range(0, span),
            };
            let fault = self.some_fault();
            self.faults.push((at, fault));
        }
        for (index, (at, _)) in self.faults.clone().into_iter().enumerate() {
            self.at(at, Event::Fault { index });
        }
        self.at(quiet + span + 2 * SECOND, Event::HealAll);
    }

    fn some_fault(&mut self) -> Fault {
        let nodes = self.nodes.len();
        let node = self.rng.index(nodes);
        let other = (node + 1 + self.rng.index(nodes - 1)) % nodes;
        let millis = [self.rng.range(50, 1500), self.rng.range(1500, 9000)][self.rng.index(2)];
        let path = if self.rng.chance(50) {
            Path::Refused
        } else {
            Path::Blackhole
        };
        let member = self.nodes[other].config.member;
        match self.rng.index(24) {
            0 | 1 => Fault::Crash { node },
            2..=4 => Fault::CrashAtStep {
                node,
                steps: self.rng.range(0, 12),
            },
            5..=7 => Fault::Freeze { node, millis },
            8 | 9 => Fault::CutPath { node, path, millis },
            10 => Fault::CutLink {
                from: node,
                to: other,
                millis,
            },
            11 => Fault::CutPeers { node, millis },
            12 => Fault::CutLease {
                node: Some(node),
                millis,
            },
            13 => Fault::CutLease { node: None, millis },
            14 => Fault::Isolate {
                node,
                millis: millis + 4000,
            },
            15 => Fault::TargetRestart {
                millis: millis.min(4000),
                power: self.rng.chance(40),
            },
            16 => Fault::PostgresFails {
                node,
                starts: self.rng.range(0, 5) as u32,
            },
            17 => Fault::StepsFail {
                node,
                count: self.rng.range(1, 4) as u32,
            },
            18 => Fault::Lossy {
                percent: self.rng.range(5, 60),
            },
            19 => Fault::Slow {
                percent: self.rng.range(5, 60),
            },
            20 => Fault::Late {
                percent: self.rng.range(5, 60),
            },
            21 => Fault::Terminate { node },
            22 => Fault::Operator {
                node,
                ask: self.some_request(member),
            },
            _ => Fault::Operator {
                node,
                ask: Ask::Switchover { to: None },
            },
        }
    }

    fn some_request(&mut self, member: MemberId) -> Ask {
        match self.rng.index(6) {
            0 => Ask::Pause,
            1 => Ask::Resume,
            2 => Ask::Restart,
            3 => Ask::Reload,
            _ => Ask::Switchover { to: Some(member) },
        }
    }

    /// Half of the faults hit whoever serves at that moment: there they hurt.
    fn aim(&mut self, fault: Fault) -> Fault {
        let serving = self.nodes.iter().position(|node| node.pg == Pg::Running);
        let Some(owner) = serving.filter(|_| self.rng.chance(50)) else {
            return fault;
        };
        match fault {
            Fault::Crash { node: _ } => Fault::Crash { node: owner },
            Fault::CrashAtStep { node: _, steps } => Fault::CrashAtStep { node: owner, steps },
            Fault::Freeze { node: _, millis } => Fault::Freeze {
                node: owner,
                millis,
            },
            Fault::CutPath {
                node: _,
                path,
                millis,
            } => Fault::CutPath {
                node: owner,
                path,
                millis,
            },
            Fault::CutPeers { node: _, millis } => Fault::CutPeers {
                node: owner,
                millis,
            },
            Fault::Isolate { node: _, millis } => Fault::Isolate {
                node: owner,
                millis,
            },
            Fault::PostgresFails { node: _, starts } => Fault::PostgresFails {
                node: owner,
                starts,
            },
            Fault::Terminate { node: _ } => Fault::Terminate { node: owner },
            Fault::Operator { node: _, ask } => Fault::Operator { node: owner, ask },
            Fault::CutLink { .. }
            | Fault::CutLease { .. }
            | Fault::TargetRestart { .. }
            | Fault::StepsFail { .. }
            | Fault::Lossy { .. }
            | Fault::Slow { .. }
            | Fault::Late { .. } => fault,
        }
    }

    pub fn strike(&mut self, index: usize) -> Result<(), String> {
        if self.healed.is_some() {
            return Ok(());
        }
        let fault = self.aim(self.faults[index].1);
        self.note(|| format!("fault: {fault:?}"));
        match fault {
            Fault::Crash { node } => {
                self.crash(node);
                let delay = self.rng.range(50, 6_000) * MS;
                self.after(delay, Event::Start { node });
            }
            Fault::CrashAtStep { node, steps } => self.nodes[node].crash_in_steps = Some(steps),
            Fault::Freeze { node, millis } => {
                let until = self.now + millis * MS;
                if self.nodes[node]
                    .frozen_until
                    .is_none_or(|then| then < until)
                {
                    self.nodes[node].frozen_until = Some(until);
                    self.at(until, Event::Thaw { node, until });
                }
            }
            Fault::CutPath { node, path, millis } => {
                self.nodes[node].path = path;
                self.after(millis * MS, Event::HealPath { node });
            }
            Fault::CutLink { from, to, millis } => self.cut_link(from, to, millis),
            Fault::CutPeers { node, millis } => self.cut_peers(node, millis),
            Fault::CutLease { node, millis } => {
                for each in 0..self.nodes.len() {
                    if node.is_none_or(|node| node == each) {
                        self.nodes[each].lease_up = false;
                        self.after(millis * MS, Event::HealLease { node: each });
                    }
                }
            }
            Fault::Isolate { node, millis } => {
                self.cut_peers(node, millis);
                self.nodes[node].lease_up = false;
                self.after(millis * MS, Event::HealLease { node });
            }
            Fault::TargetRestart { millis, power } => return self.target_down(millis, power),
            Fault::PostgresFails { node, starts } => {
                self.nodes[node].bad_starts = starts;
                if let Pg::Running = self.nodes[node].pg {
                    self.nodes[node].pg = Pg::Stopped;
                    self.nodes[node].txn = None;
                    return self.decide(node);
                }
            }
            Fault::StepsFail { node, count } => self.nodes[node].bad_steps = count,
            Fault::Lossy { percent } => self.lossy = percent,
            Fault::Slow { percent } => self.slow = percent,
            Fault::Late { percent } => self.late = percent,
            Fault::Terminate { node } => {
                if self.nodes[node].running {
                    self.nodes[node].seen.stopping = true;
                    return self.wake_now(node);
                }
            }
            Fault::Operator { node, ask } => self.ask(node, ask),
        }
        Ok(())
    }

    fn wake_now(&mut self, node: usize) -> Result<(), String> {
        self.nodes[node].wake = self.now;
        let process = self.nodes[node].process;
        self.after(0, Event::Wake { node, process });
        Ok(())
    }

    fn cut_link(&mut self, from: usize, to: usize, millis: u64) {
        self.cut.insert((from, to));
        self.after(millis * MS, Event::HealLink { from, to });
    }

    fn cut_peers(&mut self, node: usize, millis: u64) {
        for other in 0..self.nodes.len() {
            if other != node {
                self.cut_link(node, other, millis);
                self.cut_link(other, node, millis);
            }
        }
    }

    fn target_down(&mut self, millis: u64, power: bool) -> Result<(), String> {
        if !self.target.up {
            return Ok(());
        }
        // What this system promises without persistence has a limit: while nobody holds, a zombie's
        // queue can write. Such a restart is not simulated; SAFETY.md says so.
        let zombies = self.nodes.iter().any(|node| {
            let device = &node.device;
            let old = device
                .outstanding
                .values()
                .any(|io| io.session() != self.target.newest);
            let mounted = device
                .mounted
                .is_some_and(|mine| mine != self.target.newest);
            (old || mounted) && !self.target.persistent
        });
        let on_the_wire = self.commands.values().any(|sent| match &sent.what {
            What::Io(io) => io.session() != self.target.newest && !self.target.persistent,
            What::Reservation(_) | What::Unregister(_) => false,
        });
        if zombies || on_the_wire {
            return Ok(());
        }
        self.target.up = false;
        self.target.restart();
        self.draining.clear();
        if power && self.target.volatile {
            self.target.lose_power();
            // A bridge that finds its target restarted with an empty cache fails its device.
            for node in 0..self.nodes.len() {
                if self.nodes[node].device.attached {
                    self.lose_device(node);
                    self.nodes[node].pg = Pg::Stopped;
                    self.nodes[node].txn = None;
                    self.fail_waiting_step(node)?;
                }
            }
        }
        self.after(millis * MS, Event::TargetUp);
        Ok(())
    }

    /// A step that waited for the device ends with it.
    fn fail_waiting_step(&mut self, node: usize) -> Result<(), String> {
        let run = self.nodes[node]
            .step
            .as_ref()
            .filter(|run| run.io.is_some());
        match run.map(|run| run.step.id) {
            Some(id) => self.end_step(node, id, crate::steps::failed("the device is gone")),
            None => self.decide(node),
        }
    }

    pub fn target_up(&mut self) {
        self.target.up = true;
        let lost: Vec<u64> = self
            .commands
            .iter()
            .filter(|(_, sent)| matches!(sent.what, What::Io(_)))
            .map(|(id, _)| *id)
            .collect();
        for id in lost {
            self.commands.remove(&id);
        }
        for node in 0..self.nodes.len() {
            if self.nodes[node].path == Path::Up {
                self.resend(node);
            }
        }
    }

    pub fn heal_path(&mut self, node: usize) {
        self.nodes[node].path = Path::Up;
        let bound = self.nodes[node].config.timings.keep_alive.as_micros() as u64 * 3 * 95 / 100;
        let parked = std::mem::take(&mut self.parked);
        for id in parked {
            let Some(sent) = self.commands.get(&id) else {
                continue;
            };
            if sent.node != node {
                self.parked.push(id);
                continue;
            }
            let age = self.now - sent.at;
            if age < bound && self.rng.chance(50) {
                let delay = self.rng.range(0, bound - age);
                self.after(delay, Event::Arrive { command: id });
            } else if matches!(sent.what, What::Io(_)) {
                self.commands.remove(&id);
            }
        }
        let process = self.nodes[node].process;
        let most = if self.rng.chance(70) { 3_000 } else { 20_000 };
        let delay = self.rng.range(0, most) * MS;
        self.after(delay, Event::Reconnect { node, process });
    }

    /// The end of all faults; then, every second, an operator who looks.
    pub fn heal_all(&mut self) -> Result<(), String> {
        if self.healed.is_some() {
            self.operator_round();
            return Ok(());
        }
        self.note(|| "everything is healed".to_owned());
        self.healed = Some(self.now);
        self.lossy = 0;
        self.slow = 0;
        self.late = 0;
        self.cut.clear();
        if !self.target.up {
            self.target_up();
        }
        for node in 0..self.nodes.len() {
            self.nodes[node].lease_up = true;
            self.nodes[node].bad_starts = 0;
            self.nodes[node].bad_steps = 0;
            self.nodes[node].crash_in_steps = None;
            self.heal_path(node);
            if let Some(until) = self.nodes[node].frozen_until {
                self.thaw(node, until);
            }
            if !self.nodes[node].running {
                self.start(node);
            }
            self.ask(node, Ask::Resume);
        }
        self.after(SECOND, Event::HealAll);
        self.after(40 * SECOND, Event::Judge);
        Ok(())
    }
}
