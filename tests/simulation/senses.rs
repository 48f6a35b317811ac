//! How a simulated member reads the volume's mailbox and the lease store, and beats.

use baton::decide::Seen;
use fencing::{Command, KeyFlags, Mailbox, Outcome};
use nvme::ReservationReport;
use nvme::reservation::ChangePersistence;

use crate::store::{StoreAnswer, StoreAsk};
use crate::target::What;
use crate::world::{Event, Purpose, Running, StorePurpose, World, cluster};

impl World {
    pub fn report(&mut self, index: usize) {
        if self.nodes[index].reporting {
            self.nodes[index].report_again = true;
            return;
        }
        self.nodes[index].reporting = true;
        let began = self.clock(index);
        self.send(
            index,
            What::Reservation(Command::Report),
            Purpose::Report { began },
        );
    }

    pub fn reported(
        &mut self,
        index: usize,
        outcome: Outcome,
        began: fencing::Mono,
    ) -> Result<(), String> {
        self.nodes[index].reporting = false;
        match outcome {
            Outcome::Report(report) => self.read_report(index, &report, began),
            Outcome::Done | Outcome::Refused(_) | Outcome::NotSent | Outcome::Unknown => {
                let seen = &mut self.nodes[index].seen.mailbox;
                if let Seen::Known { .. } = seen {
                    *seen = Seen::Unknown {
                        since: began,
                        cause: "no report".to_owned(),
                    };
                }
            }
        }
        if std::mem::take(&mut self.nodes[index].report_again) {
            self.report(index);
        }
        self.decide(index)
    }

    pub fn read_report(&mut self, index: usize, report: &ReservationReport, began: fencing::Mono) {
        let node = &mut self.nodes[index];
        let mailbox = Mailbox::read(report, cluster());
        let fencing = node
            .step
            .as_ref()
            .is_some_and(|run| !matches!(run.running, Running::Plain));
        if !node.beating && !fencing {
            node.key = mailbox.of_host(node.host).map(|entry| entry.key);
        }
        node.seen.mailbox = Seen::Known {
            value: mailbox,
            at: began,
        };
    }

    pub fn beat(&mut self, index: usize, epoch: fencing::Epoch, flags: KeyFlags) {
        let node = &mut self.nodes[index];
        let Some(current) = node.key.filter(|_| !node.beating) else {
            return;
        };
        let new = current.saying(epoch, flags);
        node.beating = true;
        let persistence = ChangePersistence::Unchanged;
        let command = Command::Replace {
            current,
            new,
            persistence,
        };
        self.send(index, What::Reservation(command), Purpose::Beat { new });
    }

    pub fn beaten(&mut self, index: usize, new: fencing::ReservationKey, outcome: &Outcome) {
        let node = &mut self.nodes[index];
        node.beating = false;
        if *outcome == Outcome::Done {
            node.key = Some(new);
        }
        self.report(index);
    }

    // The lease store.

    pub fn read_lease(&mut self, index: usize) {
        if !self.nodes[index].lease_polling {
            self.nodes[index].lease_polling = true;
            self.ask_store(index, StoreAsk::Read, StorePurpose::Poll);
        }
    }

    pub fn ask_store(&mut self, index: usize, ask: StoreAsk, purpose: StorePurpose) {
        let began = self.clock(index);
        let node = &self.nodes[index];
        let process = node.process;
        let deadline = node.config.timings.lease_deadline.as_micros() as u64;
        let lost = !node.lease_up || self.rng.chance(self.lossy / 2);
        if lost {
            // Sometimes only the answer is lost.
            if self.rng.chance(30) && self.nodes[index].lease_up {
                let _ = self.store.ask(&ask);
            }
            let reply = Event::StoreReply {
                node: index,
                process,
                answer: None,
                purpose,
                began,
            };
            self.after(deadline, reply);
            return;
        }
        let delay = self.rng.range(200, 4_000);
        self.after(
            delay,
            Event::StoreArrive {
                node: index,
                process,
                ask,
                purpose,
                began,
            },
        );
    }

    pub fn store_arrive(
        &mut self,
        node: usize,
        process: u64,
        ask: &StoreAsk,
        purpose: StorePurpose,
        began: fencing::Mono,
    ) {
        let answer = Some(self.store.ask(ask));
        let delay = self.rng.range(200, 4_000);
        self.after(
            delay,
            Event::StoreReply {
                node,
                process,
                answer,
                purpose,
                began,
            },
        );
    }

    pub fn store_replied(
        &mut self,
        index: usize,
        answer: Option<StoreAnswer>,
        purpose: StorePurpose,
        began: fencing::Mono,
    ) -> Result<(), String> {
        let node = &mut self.nodes[index];
        let newer = node.seen.lease.known_at().is_none_or(|(_, at)| began >= at);
        match &answer {
            Some(answer) if newer => {
                let value = crate::world::lease_of(answer);
                node.seen.lease = Seen::Known { value, at: began };
            }
            Some(_) => {}
            None => {
                if let Seen::Known { .. } = node.seen.lease {
                    let cause = "no answer".to_owned();
                    node.seen.lease = Seen::Unknown {
                        since: began,
                        cause,
                    };
                }
            }
        }
        match purpose {
            StorePurpose::Poll => node.lease_polling = false,
            StorePurpose::Write => node.lease_writing = false,
            StorePurpose::Claim(id) => {
                use baton::decide::Outcome as Ended;
                let outcome = match answer {
                    Some(answer) if answer.done => Ended::Done,
                    Some(_) => Ended::ClaimLost,
                    None => Ended::Overdue,
                };
                return self.end_step(index, id, outcome);
            }
        }
        self.decide(index)
    }
}
