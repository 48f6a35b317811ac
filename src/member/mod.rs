//! One member: events in, decisions by [`decide`](crate::decide::decide()), steps out.
//!
//! ```text
//! volume, lease, peers, steps, operator, signals ─► Event ─► Senses ─► decide ─► Executor
//! ```
//!
//! The loop owns everything that decisions read; whatever takes time runs beside it and comes back
//! as an event. Nothing here judges: that is `decide`.

mod event;
mod executor;
mod link;
mod looks;
mod pulse;
mod reload;
mod senses;
mod sites;
mod start;
mod steps;
mod strangers;
mod warm;

use std::mem::discriminant;
use std::process::ExitCode;

use fencing::Mono;
use tokio::sync::mpsc;
use tracing::{error, info, warn};

use crate::api::Api;
use crate::attachment::Happening;
use crate::clock;
use crate::config::Config;
use crate::control::status::{Facts, failure};
use crate::control::{Requests, Server, Status, Tally};
use crate::decide::{
    self, Action, Decision, Device, Memory, Observation, Postgres, Reason, Role, decide,
};
use crate::journal::Journal;
use crate::kubernetes::{Call, Need};
use crate::peer::{PeerChannel, PeerEvent};
use crate::routing::Wanted;
use event::{Changes, Event};
use executor::Executor;
use looks::Looks;
use senses::{Senses, update};

pub use start::{StartError, run};

/// The loop of one member, with everything it owns.
struct Member {
    core: decide::Config,
    memory: Memory,
    senses: Senses,
    executor: Executor,
    looks: Looks,
    peers: PeerChannel,
    control: Server,
    /// Ends with the member.
    _api: Option<Api>,
    requests: Requests,
    tally: Tally,
    journal: Journal,
    reason: Option<Reason>,
    call: Call,
    /// The newest reason for which an operator must look, with what was found then.
    trouble: Option<(Reason, String)>,
    /// The newest start of PostgreSQL that has ended.
    gone_run: u64,
    /// The newest device that is gone.
    gone_device: u64,
    config: Config,
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
                // The executor has a sender: the queue does not end.
                Some(event) = events.recv() => self.take(event),
                event = self.peers.next() => self.heard(event),
                request = self.control.next() => self.requests.take_local(request),
                () = tokio::time::sleep(clock::now().until(wake)) => {}
            }
            while let Ok(event) = events.try_recv() {
                self.take(event);
            }
        }
    }

    /// One decision and what it orders. It is in the journal before anything of it is begun.
    fn decide(&mut self, now: Mono) -> Next {
        let observation = self
            .senses
            .observation(self.peers.observation(), self.requests.oldest());
        let decision = decide(&self.core, &self.memory, &observation, now);
        self.journal
            .record(&self.memory, &observation, now, &decision);
        self.tell(&decision.memory, &decision.reason);
        self.count(&observation, &decision, now);
        self.call_operator(&observation, &decision.reason);
        self.memory = decision.memory;
        // Whoever is standby has proven that nothing of the volume is in use here (SAFETY.md I6).
        if matches!(self.memory.role, Role::Standby) {
            self.executor.tools().link.settled();
        }
        self.publish(&observation, &decision.reason, now);
        for action in decision.actions {
            if matches!(action, Action::Exit) {
                return Next::Exit;
            }
            self.perform(action, now);
        }
        Next::Wait(decision.wake)
    }

    fn publish(&self, observation: &Observation, reason: &Reason, now: Mono) {
        self.control.publish(Status::of(&Facts {
            config: &self.config,
            memory: &self.memory,
            observation,
            reason,
            peers: &self.peers,
            tally: &self.tally,
            route: self.executor.tools().router.state(),
            copying: self.executor.tools().copying(),
            now,
        }));
    }

    fn count(&mut self, observation: &Observation, decision: &Decision, now: Mono) {
        let finished = observation.finished.as_ref();
        let (from, to) = (self.memory.role.name(), decision.memory.role.name());
        self.tally
            .follow(finished, &decision.actions, now, clock::wall());
        self.tally.hear(observation.peers.values());
        self.tally.turn(from, to, now);
    }

    /// Says on the pod why an operator must look. What was found is told by the step that found it: the
    /// decisions after it are the same in what they need.
    fn call_operator(&mut self, observation: &Observation, reason: &Reason) {
        if !reason.needs_operator() {
            self.call.member(Need::None);
            return;
        }
        let same = self.trouble.as_ref().filter(|(known, _)| known == reason);
        let text = match same {
            Some((_, text)) => text.clone(),
            None => match failure(observation) {
                Some(what) => format!("{reason} ({what})"),
                None => reason.to_string(),
            },
        };
        self.trouble = Some((reason.clone(), text.clone()));
        self.call.member(Need::Certain(text));
    }

    /// Logs why, when it is another reason than before; its details are in the journal.
    fn tell(&mut self, memory: &Memory, reason: &Reason) {
        let role = memory.role.name();
        let same = self.reason.as_ref().map(discriminant) == Some(discriminant(reason));
        if role != self.memory.role.name() || !same {
            info!(?role, epoch = memory.newest.number(), %reason, "decided");
        }
        self.reason = Some(reason.clone());
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
            Action::WriteCluster {
                expected,
                record,
                deadline,
            } => {
                info!(term = record.term, primary = %record.primary, sync = ?record.sync, "record");
                self.executor.write_cluster(expected, *record, deadline);
            }
            Action::RefreshCluster => self.looks.refresh_cluster(),
            Action::Publish(heartbeat) => self.peers.publish(heartbeat),
            Action::Refresh { mailbox, lease } => self.looks.refresh(mailbox, lease),
            Action::PublishRole {
                role,
                epoch,
                term,
                serving,
                follows,
            } => {
                info!(
                    ?role,
                    epoch = epoch.number(),
                    term,
                    serving,
                    follows,
                    "role"
                );
                self.executor.tools().router.want(Wanted {
                    role,
                    epoch,
                    term,
                    serving,
                    follows,
                });
            }
            Action::Reload { request } => self.executor.reload(request),
            Action::Answer { request, answer } => {
                self.requests.answer(request, answer, &self.peers);
            }
            Action::Exit => {}
        }
    }

    /// Takes one event into the senses.
    fn take(&mut self, event: Event) {
        match event {
            Event::Volume(happening) => self.happened(happening),
            Event::Lease(look) => self.senses.lease(look),
            Event::Cluster(look) => self.senses.zone(|zone| update(&mut zone.record, look)),
            Event::Site(site, look) => self.senses.zone(|zone| {
                if let Some(seen) = zone.leases.get_mut(&site) {
                    update(seen, look);
                }
            }),
            Event::Replication(look) => self.senses.zone(|zone| update(&mut zone.postgres, look)),
            Event::Probe(look) => self.senses.zone(|zone| update(&mut zone.probe, look)),
            Event::Changed(changes) => self.changed(changes),
            Event::Ended(ended) => {
                info!(outcome = ?ended.outcome, "end");
                let outcome = ended.outcome.clone();
                let counts = self.senses.ended(*ended, clock::now());
                self.executor.ended(&outcome, counts);
                self.senses.permit(self.executor.permit());
            }
            Event::PostgresGone { run, how } => {
                warn!(how, "PostgreSQL ended");
                self.gone_run = self.gone_run.max(run);
            }
            Event::PostgresHangs { run } => {
                let current = run == self.executor.tools().database.run();
                if current && self.senses.local().postgres == Postgres::Running {
                    error!("PostgreSQL hangs: it is killed and started again");
                    let postgres = Some(Postgres::Unknown);
                    self.changed(Changes {
                        postgres,
                        ..Changes::default()
                    });
                }
            }
            Event::Reloaded { request, answer } => {
                self.requests.answer(request, answer, &self.peers);
            }
            Event::Terminate => self.senses.terminate(),
        }
        self.correct();
    }

    /// An end may be seen before the step that began it says that it began.
    fn correct(&mut self) {
        let local = self.senses.local();
        let ended = self.gone_run == self.executor.tools().database.run();
        let postgres = (ended && local.postgres != Postgres::Stopped).then_some(Postgres::Stopped);
        let device = match local.device {
            Device::Attached { made } if made <= self.gone_device => Some(Device::Absent),
            Device::Attached { .. } | Device::Absent => None,
        };
        if postgres.is_some() || device.is_some() {
            self.changed(Changes {
                postgres,
                device,
                ..Changes::default()
            });
        }
    }

    fn changed(&mut self, changes: Changes) {
        self.senses.changed(changes);
    }

    /// Takes what the attachment says.
    fn happened(&mut self, happening: Happening) {
        match happening {
            Happening::Mailbox(look) => {
                if let Ok(mailbox) = &look.result {
                    let link = &self.executor.tools().link;
                    link.confirm(mailbox, look.began);
                }
                self.senses.mailbox(look);
            }
            Happening::Changed(changes) => self.changed(changes.into()),
            Happening::AgentAway { since } => self.senses.agent_away(since),
            Happening::DeviceGone { made } => {
                info!(made, "the block device is gone");
                self.gone_device = self.gone_device.max(made);
            }
        }
    }

    /// Takes what came from a peer. Heartbeats are in the observation already.
    fn heard(&mut self, event: PeerEvent) {
        match event {
            PeerEvent::Changed => {}
            PeerEvent::Message {
                from,
                message,
                incarnation: _,
                at: _,
            } => {
                self.requests.take_message(from, message);
            }
        }
    }
}
