//! One member: events in, decisions by [`decide`](crate::decide::decide()), steps out.
//!
//! ```text
//! volume, lease, peers, steps, operator, signals ─► Event ─► Senses ─► decide ─► Executor
//! ```
//!
//! The loop owns everything that decisions read; whatever takes time runs beside it and comes back
//! as an event. Nothing here judges: that is `decide`.

mod carrier;
mod device;
mod event;
mod executor;
mod keeper;
mod looks;
mod marks;
mod senses;
mod setup;
mod start;
mod steps;

use std::mem::discriminant;
use std::process::ExitCode;

use fencing::Mono;
use tokio::sync::{mpsc, oneshot};
use tracing::{info, warn};

use crate::clock;
use crate::decide::{self, Action, Decision, Device, Memory, Postgres, Reason, decide};
use crate::peer::{Message, PeerChannel, PeerEvent};
use event::{Changes, Event};
use executor::Executor;
use looks::Looks;
use senses::Senses;

pub use setup::{SetupError, enter_own_mount_namespace};
pub use start::{StartError, run};

/// The loop of one member, with everything it owns.
struct Member {
    core: decide::Config,
    memory: Memory,
    senses: Senses,
    executor: Executor,
    looks: Looks,
    peers: PeerChannel,
    events: mpsc::UnboundedSender<Event>,
    reason: Option<Reason>,
}

/// Whether the loop goes on.
enum Next {
    Wait(Mono),
    Exit,
}

impl Member {
    /// Runs until `decide` orders the exit.
    async fn run(mut self, mut events: mpsc::UnboundedReceiver<Event>) -> ExitCode {
        loop {
            let now = clock::now();
            let Next::Wait(wake) = self.decide(now) else {
                self.executor.close().await;
                return ExitCode::SUCCESS;
            };
            tokio::select! {
                // A sender lives in `self`: the queue does not end.
                Some(event) = events.recv() => self.take(event),
                event = self.peers.next() => self.heard(event),
                () = tokio::time::sleep(clock::now().until(wake)) => {}
            }
            while let Ok(event) = events.try_recv() {
                self.take(event);
            }
        }
    }

    /// One decision and what it orders.
    fn decide(&mut self, now: Mono) -> Next {
        let observation = self.senses.observation(self.peers.observation());
        let Decision {
            memory,
            actions,
            reason,
            wake,
        } = decide(&self.core, &self.memory, &observation, now);
        self.tell(&memory, reason);
        self.memory = memory;
        for action in actions {
            if matches!(action, Action::Exit) {
                return Next::Exit;
            }
            self.perform(action, now);
        }
        Next::Wait(wake)
    }

    /// Logs why, when it is another reason than before; its details are in the journal.
    fn tell(&mut self, memory: &Memory, reason: Reason) {
        let role = memory.role.name();
        let same = self.reason.as_ref().map(discriminant) == Some(discriminant(&reason));
        if role != self.memory.role.name() || !same {
            info!(?role, epoch = memory.newest.number(), %reason, "decided");
        }
        self.reason = Some(reason);
    }

    fn perform(&mut self, action: Action, now: Mono) {
        match action {
            Action::Begin(step) => {
                info!(step = step.work.name(), "begin");
                self.senses.begun(step.id, now);
                self.executor.begin(step);
                self.senses.permit(self.executor.permit());
            }
            Action::Beat { epoch, flags } => self.executor.beat(epoch, flags),
            Action::WriteLease {
                expected,
                record,
                deadline,
            } => {
                self.executor.write_lease(expected, record, deadline);
            }
            Action::Publish(heartbeat) => self.peers.publish(heartbeat),
            Action::Refresh { mailbox, lease } => self.looks.refresh(mailbox, lease),
            Action::PublishRole {
                role,
                epoch,
                serving,
            } => {
                info!(?role, epoch = epoch.number(), serving, "role");
            }
            Action::Answer { request, answer } => self.senses.answered(request, answer),
            Action::Exit => {}
        }
    }

    /// Takes one event into the senses.
    fn take(&mut self, event: Event) {
        match event {
            Event::Mailbox(look) => self.senses.mailbox(look),
            Event::Lease(look) => self.senses.lease(look),
            Event::Changed(changes) => self.changed(changes),
            Event::Ended(ended) => {
                info!(outcome = ?ended.outcome, "end");
                let permit = self.senses.ended(*ended, clock::now());
                self.keep(permit);
            }
            Event::PostgresGone { run, how } => {
                let current = run == self.executor.tools().database.run();
                if current && self.senses.local().postgres != Postgres::Stopped {
                    warn!(how, "PostgreSQL ended");
                    self.changed(Changes {
                        postgres: Some(Postgres::Stopped),
                        ..Changes::default()
                    });
                }
            }
            Event::DeviceGone { made } => {
                if self.senses.local().device == (Device::Attached { made }) {
                    warn!(made, "the bridge ended: the block device is gone");
                    self.changed(Changes {
                        device: Some(Device::Absent),
                        ..Changes::default()
                    });
                }
            }
            Event::Asked { ask, reply } => self.senses.asked(ask, reply),
            Event::Answered { to, id, answer } => {
                // A peer that is gone asks again elsewhere.
                let _lost = self.peers.send(to, Message::Answer { id, answer });
            }
            Event::Terminate => self.senses.terminate(),
        }
    }

    fn changed(&mut self, changes: Changes) {
        let permit = self.senses.changed(changes);
        self.keep(permit);
    }

    fn keep(&mut self, permit: Option<fencing::WritePermit>) {
        if let Some(permit) = permit {
            self.executor.keep(permit);
        }
        self.senses.permit(self.executor.permit());
    }

    /// Takes what came from a peer. Heartbeats are in the observation already.
    fn heard(&mut self, event: PeerEvent) {
        match event {
            PeerEvent::Changed => {}
            PeerEvent::Message {
                message: Message::Ask { id, ask },
                from,
                ..
            } => {
                let (reply, answer) = oneshot::channel();
                self.senses.asked(ask, reply);
                let events = self.events.clone();
                tokio::spawn(async move {
                    if let Ok(answer) = answer.await {
                        let _closed = events.send(Event::Answered {
                            to: from,
                            id,
                            answer,
                        });
                    }
                });
            }
            PeerEvent::Message {
                message: Message::Heartbeat(_) | Message::Answer { .. },
                ..
            } => {}
        }
    }
}
