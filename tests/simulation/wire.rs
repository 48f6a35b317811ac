//! The way from a simulated host to the target and back: delays, losses, commands that arrive late.

use fencing::Outcome;

use crate::target::{Accepted, What};
use crate::world::{Event, MS, Path, Purpose, Sent, World};

impl World {
    pub fn send(&mut self, index: usize, what: What, purpose: Purpose) -> u64 {
        let id = self.fresh();
        let node = &self.nodes[index];
        let sent = Sent {
            node: index,
            process: node.process,
            what,
            purpose,
            at: self.now,
            serving: false,
        };
        let io = matches!(sent.what, What::Io(_));
        let timeout = node.config.timings.command.as_micros() as u64;
        let path = node.path;
        self.commands.insert(id, sent);
        let latency = self.rng.range(30, 400);
        match path {
            Path::Up if self.target.up => {
                if !io && self.lossy > 0 && self.rng.chance(self.lossy / 3) {
                    self.parked.push(id); // Lost for now, perhaps for ever.
                } else {
                    self.after(latency, Event::Arrive { command: id });
                }
            }
            Path::Up | Path::Refused if io => {
                self.commands.remove(&id); // It stays in the device's queue.
            }
            Path::Up | Path::Refused => {
                self.after(
                    latency,
                    Event::Reply {
                        command: id,
                        outcome: Outcome::NotSent,
                    },
                );
            }
            Path::Blackhole => self.parked.push(id),
        }
        if !io {
            self.after(timeout, Event::TimeOut { command: id });
        }
        id
    }

    pub fn arrive(&mut self, id: u64) -> Result<(), String> {
        if !self.target.up {
            return Ok(());
        }
        let Some(sent) = self.commands.get_mut(&id) else {
            return Ok(());
        };
        let host = self.nodes[sent.node].host;
        sent.serving = true;
        let what = sent.what.clone();
        match self.target.accept(host, &what, self.now) {
            Accepted::Answer(outcome) => self.answer(id, outcome),
            Accepted::Draining(drain) => self.draining.push((drain, id)),
            Accepted::Began(began) => {
                let mut service = self.rng.range(20, 300);
                if self.slow > 0 && self.rng.chance(self.slow) {
                    service = self.rng.range(1, 950) * MS;
                }
                self.after(
                    service,
                    Event::Finish {
                        command: id,
                        id: began,
                    },
                );
            }
        }
        Ok(())
    }

    /// A write takes effect.
    pub fn finish(&mut self, id: u64, began: fencing::model::CommandId) -> Result<(), String> {
        let mut alive = self.target.model.in_flight().any(|(id, ..)| id == began);
        alive &= self.target.up;
        if !alive {
            return Ok(()); // The target went down under it.
        }
        let io = match self.commands.get(&id).map(|sent| &sent.what) {
            Some(What::Io(io)) => *io,
            Some(_) | None => return Ok(()),
        };
        self.target.apply(&io)?;
        let drained = self.target.model.finish(began);
        self.answer(id, Outcome::Done);
        for drain in drained {
            let waiting = self
                .draining
                .iter()
                .position(|(waiting, _)| *waiting == drain);
            if let Some(at) = waiting {
                let (_, command) = self.draining.remove(at);
                self.answer(command, Outcome::Done);
            }
        }
        Ok(())
    }

    pub fn answer(&mut self, id: u64, outcome: Outcome) {
        let Some(sent) = self.commands.get_mut(&id) else {
            return;
        };
        sent.serving = false;
        let io = matches!(sent.what, What::Io(_));
        let path = self.nodes[sent.node].path;
        let lost = path != Path::Up || (!io && self.lossy > 0 && self.rng.chance(self.lossy / 3));
        if lost {
            if io {
                self.commands.remove(&id);
            }
            return;
        }
        let latency = self.rng.range(30, 400);
        self.after(
            latency,
            Event::Reply {
                command: id,
                outcome,
            },
        );
    }

    pub fn timed_out(&mut self, id: u64) -> Result<(), String> {
        let Some(sent) = self.commands.get(&id) else {
            return Ok(());
        };
        // It may still arrive and be carried out; only nobody waits for it.
        let (node, purpose) = (sent.node, sent.purpose.clone());
        self.conclude(node, purpose, Outcome::Unknown, id)
    }

    pub fn replied(&mut self, id: u64, outcome: Outcome) -> Result<(), String> {
        let Some(sent) = self.commands.remove(&id) else {
            return Ok(());
        };
        self.conclude(sent.node, sent.purpose, outcome, id)
    }

    pub fn conclude(
        &mut self,
        node: usize,
        purpose: Purpose,
        outcome: Outcome,
        id: u64,
    ) -> Result<(), String> {
        if outcome == Outcome::Unknown
            && let Some(sent) = self.commands.get_mut(&id)
        {
            sent.process = 0; // The answer, should it come, is nobody's.
        }
        match purpose {
            Purpose::Report { began } => self.reported(node, outcome, began),
            Purpose::Beat { new } => {
                self.beaten(node, new, &outcome);
                Ok(())
            }
            Purpose::Sequence(step) => self.drive(node, step, Some(outcome)),
            Purpose::Announce { id, new } => self.announced(node, id, new, &outcome),
            Purpose::Unregister(step) => {
                use baton::decide::Outcome as Ended;
                let ended = match outcome {
                    Outcome::Done => Ended::Done,
                    _ => Ended::Failed {
                        cause: String::new(),
                    },
                };
                self.end_step(node, step, ended)
            }
            Purpose::Confirm(step) => self.confirmed(node, step, outcome),
            Purpose::Device { made, io } => self.device_replied(node, made, io, outcome),
        }
    }
}
