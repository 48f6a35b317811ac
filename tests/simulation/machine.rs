//! A simulated member's block device, filesystem and PostgreSQL.

use baton::decide::{Outcome as Ended, StepId, Work};
use fencing::Outcome;

use crate::steps::failed;
use crate::target::{Format, Io, What, is_conflict};
use crate::world::{Broken, Event, MS, Pg, Purpose, Txn, World};

impl World {
    pub fn submit(&mut self, index: usize, io: Io) -> u64 {
        let id = self.fresh();
        let device = &mut self.nodes[index].device;
        device.outstanding.insert(id, io);
        let made = device.made;
        self.send(index, What::Io(io), Purpose::Device { made, io: id });
        id
    }

    /// The device sends again what it still has, after a connection was lost.
    pub fn resend(&mut self, index: usize) {
        let made = self.nodes[index].device.made;
        let on_the_way: Vec<u64> = self
            .commands
            .values()
            .filter(|sent| sent.node == index)
            .filter_map(|sent| match sent.purpose {
                Purpose::Device { made: _, io } => Some(io),
                _ => None,
            })
            .collect();
        let left: Vec<(u64, Io)> = self.nodes[index]
            .device
            .outstanding
            .iter()
            .filter(|(id, _)| !on_the_way.contains(id))
            .map(|(id, io)| (*id, *io))
            .collect();
        for (id, io) in left {
            self.send(index, What::Io(io), Purpose::Device { made, io: id });
        }
    }

    /// Process death: everything of the device that was not yet sent is gone.
    pub fn lose_device(&mut self, index: usize) {
        let device = &mut self.nodes[index].device;
        device.attached = false;
        device.outstanding.clear();
        device.mounted = None;
        device.mounting = None;
        device.shut = false;
    }

    pub fn drop_device(&mut self, index: usize) {
        let device = &mut self.nodes[index].device;
        device.attached = false;
        if self.broken != Broken::KeepDevice {
            device.outstanding.clear();
        }
    }

    pub fn device_replied(
        &mut self,
        index: usize,
        _made: u64,
        io: u64,
        outcome: Outcome,
    ) -> Result<(), String> {
        let Some(kind) = self.nodes[index].device.outstanding.remove(&io) else {
            return Ok(());
        };
        let done = outcome == Outcome::Done;
        if let Io::Mount { session } = kind {
            let device = &mut self.nodes[index].device;
            device.mounting = None;
            if done && !device.shut {
                device.mounted = Some(session);
                self.after(
                    MS,
                    Event::Writeback {
                        node: index,
                        session,
                    },
                );
            }
        }
        if !done && !is_conflict(&outcome) {
            return Err(format!("a device got {outcome:?}"));
        }
        if let Some(run) = self.nodes[index]
            .step
            .as_ref()
            .filter(|run| run.io == Some(io))
        {
            let id = run.step.id;
            return self.step_io(index, id, kind, done);
        }
        let node = &mut self.nodes[index];
        let Some(txn) = node.txn.take_if(|txn| txn.io == io) else {
            return if matches!(kind, Io::Mount { .. }) {
                self.decide(index)
            } else {
                Ok(())
            };
        };
        if !done {
            // A write error: PostgreSQL panics.
            node.pg = Pg::Stopped;
            if txn.proves_start {
                return self.end_starting(index, failed("write refused"));
            }
            return self.decide(index);
        }
        self.go_on(index, kind.session(), txn)
    }

    pub fn step_io(
        &mut self,
        index: usize,
        id: StepId,
        kind: Io,
        done: bool,
    ) -> Result<(), String> {
        match kind {
            Io::Mount { session: _ } if done => self.end_step(index, id, Ended::Done),
            Io::Flush { session: _ } if done => {
                self.nodes[index].device.mounted = None;
                self.nodes[index].mark = false;
                self.target.format = Format::Ours { clean: true };
                self.end_step(index, id, Ended::Unmounted { clean: true })
            }
            _ => self.end_step(index, id, failed("write refused")),
        }
    }

    pub fn go_on(&mut self, index: usize, session: u64, txn: Txn) -> Result<(), String> {
        if !txn.flushing {
            let io = self.submit(index, Io::Flush { session });
            self.nodes[index].txn = Some(Txn {
                io,
                flushing: true,
                ..txn
            });
            return Ok(());
        }
        self.target.acknowledge(txn.slot, session, txn.record);
        let node = &mut self.nodes[index];
        node.next_slot = txn.slot + 1;
        if self.healed.is_some() {
            self.committed_after_heal += 1;
        }
        if txn.proves_start {
            self.nodes[index].pg = Pg::Running;
            self.after(
                MS,
                Event::Client {
                    node: index,
                    session,
                },
            );
            return self.end_starting(index, Ended::Done);
        }
        Ok(())
    }

    pub fn end_starting(&mut self, index: usize, outcome: Ended) -> Result<(), String> {
        let starting = self.nodes[index]
            .step
            .as_ref()
            .filter(|run| matches!(run.step.work, Work::StartPostgres { .. }));
        match starting.map(|run| run.step.id) {
            Some(id) => self.end_step(index, id, outcome),
            None => self.decide(index),
        }
    }

    pub fn begin_txn(&mut self, index: usize, session: u64, proves_start: bool) {
        self.records += 1;
        let record = self.records;
        let slot = self.nodes[index].next_slot;
        let io = self.submit(
            index,
            Io::Record {
                session,
                slot,
                record,
            },
        );
        let txn = Txn {
            slot,
            record,
            io,
            flushing: false,
            proves_start,
        };
        self.nodes[index].txn = Some(txn);
    }

    /// A client commits.
    pub fn client(&mut self, index: usize, session: u64) -> Result<(), String> {
        let node = &self.nodes[index];
        if node.pg != Pg::Running || node.device.mounted != Some(session) {
            return Ok(());
        }
        if node.txn.is_none() {
            self.begin_txn(index, session, false);
        }
        let delay = self.rng.range(20, 200) * MS;
        self.after(
            delay,
            Event::Client {
                node: index,
                session,
            },
        );
        Ok(())
    }

    /// The kernel writes dirty pages back, with or without PostgreSQL.
    pub fn write_back(&mut self, index: usize, session: u64) {
        let device = &self.nodes[index].device;
        if !device.attached || device.shut || device.mounted != Some(session) {
            return;
        }
        if device.outstanding.len() < 8 {
            self.submit(index, Io::Page { session });
        }
        let delay = self.rng.range(30, 300) * MS;
        self.after(
            delay,
            Event::Writeback {
                node: index,
                session,
            },
        );
    }
}
