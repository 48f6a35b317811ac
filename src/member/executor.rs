//! Carries out what `decide` orders: one step at a time, cheap actions beside it. No policy.

use std::sync::Arc;
use std::time::Duration;

use fencing::{Epoch, KeyFlags, Mono};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tracing::warn;

use super::event::{Changes, Ended, Event};
use super::steps::Tools;
use crate::attachment::{Happening, Look, ends_ownership};
use crate::clock;
use crate::decide::zone::ClusterRecord;
use crate::decide::{
    Lease, LeaseRecord, LeaseVersion, Outcome, PermitFacts, RequestId, Step, Timings, Work,
};
use crate::lease::Written;

/// The executor, with the permit of the newest proven fence.
pub(super) struct Executor {
    tools: Arc<Tools>,
    events: mpsc::UnboundedSender<Event>,
    running: Option<AbortHandle>,
    /// What the attachment has in hand, as far as its steps have said.
    permit: Option<PermitFacts>,
    beat: Option<AbortHandle>,
    lease_write: Option<AbortHandle>,
    cluster_write: Option<AbortHandle>,
}

impl Executor {
    pub fn new(tools: Arc<Tools>, events: mpsc::UnboundedSender<Event>) -> Self {
        Self {
            tools,
            events,
            running: None,
            permit: None,
            beat: None,
            lease_write: None,
            cluster_write: None,
        }
    }

    /// What the steps work with.
    pub fn tools(&self) -> &Arc<Tools> {
        &self.tools
    }

    /// The permit in hand.
    pub fn permit(&self) -> Option<PermitFacts> {
        self.permit
    }

    /// A step ended. The permit of a fence that was given up must not be used.
    pub fn ended(&mut self, outcome: &Outcome, counts: bool) {
        match outcome {
            Outcome::Fenced(permit) if counts => self.permit = Some(*permit),
            Outcome::Fenced(_) => self.tools.link.drop_permit(),
            _ => {}
        }
    }

    /// Takes the device away in good order, at the end of the process.
    pub async fn close(&self) {
        self.tools.link.close().await;
    }

    /// Begins a step. An urgent one ends the wait for the step that is running; what the kernel does
    /// not give up goes on beside it.
    pub fn begin(&mut self, step: Step) {
        if let Some(running) = self.running.take() {
            running.abort();
        }
        if ends_ownership(&step.work) {
            self.permit = None;
        }
        let tools = self.tools.clone();
        let events = self.events.clone();
        let task = tokio::spawn(async move {
            let (outcome, changes) = within_deadline(&tools, &step).await;
            let ended = Ended {
                id: step.id,
                outcome,
                changes,
            };
            // The loop may have ended: then nobody decides any more.
            let _closed = events.send(Event::Ended(Box::new(ended)));
        });
        self.running = Some(task.abort_handle());
    }

    /// Replaces the key and reads the mailbox, unless the key is being worked on.
    pub fn beat(&mut self, epoch: Epoch, flags: KeyFlags) {
        if self.beat.as_ref().is_some_and(|beat| !beat.is_finished()) {
            return;
        }
        let tools = self.tools.clone();
        let events = self.events.clone();
        let task = tokio::spawn(async move {
            let look = tools.link.beat(epoch, flags).await;
            let _closed = events.send(Event::Volume(Happening::Mailbox(look)));
        });
        self.beat = Some(task.abort_handle());
    }

    /// Reads PostgreSQL's settings anew, beside any step.
    pub fn reload(&self, request: RequestId) {
        let tools = self.tools.clone();
        let events = self.events.clone();
        tokio::spawn(async move {
            let answer = tools.reload().await;
            let _closed = events.send(Event::Reloaded { request, answer });
        });
    }

    /// Compare-and-set of the lease, unless one is under way.
    pub fn write_lease(
        &mut self,
        expected: Option<LeaseVersion>,
        record: LeaseRecord,
        deadline: Mono,
    ) {
        if self
            .lease_write
            .as_ref()
            .is_some_and(|write| !write.is_finished())
        {
            return;
        }
        let tools = self.tools.clone();
        let events = self.events.clone();
        let task = tokio::spawn(async move {
            let (look, _written) = tools.write_lease(expected, record, deadline).await;
            let _closed = events.send(Event::Lease(look));
        });
        self.lease_write = Some(task.abort_handle());
    }

    /// Compare-and-set of the cluster's record, unless one is under way.
    pub fn write_cluster(
        &mut self,
        expected: Option<LeaseVersion>,
        record: ClusterRecord,
        deadline: Mono,
    ) {
        let busy = |write: &AbortHandle| !write.is_finished();
        if self.cluster_write.as_ref().is_some_and(busy) {
            return;
        }
        let Some(sites) = &self.tools.sites else {
            return;
        };
        let store = sites.store.clone();
        let events = self.events.clone();
        let task = tokio::spawn(async move {
            let look = super::sites::write(&store, expected, record, deadline).await;
            let _closed = events.send(Event::Cluster(look));
        });
        self.cluster_write = Some(task.abort_handle());
    }
}

impl Tools {
    /// One compare-and-set, and what it shows of the lease.
    pub async fn write_lease(
        &self,
        expected: Option<LeaseVersion>,
        record: LeaseRecord,
        deadline: Mono,
    ) -> (Look<Option<Lease>>, Outcome) {
        let began = clock::now();
        match self.lease.write(expected, record.clone(), deadline).await {
            Ok(Written::Done(version)) => (
                Look {
                    result: Ok(Some(Lease { version, record })),
                    began,
                },
                Outcome::Done,
            ),
            Ok(Written::Conflict(found)) => (
                Look {
                    result: Ok(found),
                    began,
                },
                Outcome::ClaimLost,
            ),
            Err(error) => {
                let outcome = if error.may_have_written() {
                    Outcome::Overdue
                } else {
                    Outcome::Failed {
                        cause: error.to_string(),
                    }
                };
                warn!(%error, "the lease was not written");
                (
                    Look {
                        result: Err(error.to_string()),
                        began,
                    },
                    outcome,
                )
            }
        }
    }
}

async fn within_deadline(tools: &Arc<Tools>, step: &Step) -> (Outcome, Changes) {
    let work = tools.perform(&step.work, step.deadline);
    if !can_be_cancelled(&step.work) {
        return work.await;
    }
    let left = clock::now().until(step.deadline) + grace(&step.work, &tools.timings);
    tokio::time::timeout(left, work)
        .await
        .unwrap_or((Outcome::Overdue, Changes::default()))
}

/// A fence ends by itself: it lengthens its own deadline once it holds and waits for old commands.
fn grace(work: &Work, timings: &Timings) -> Duration {
    if matches!(work, Work::Fence { .. }) {
        timings.fence
    } else {
        Duration::ZERO
    }
}

/// Whether a step may be left at its deadline. A system call on the volume goes on in the kernel
/// whatever is decided here, so its step lasts until it returns.
fn can_be_cancelled(work: &Work) -> bool {
    match work {
        Work::Mount { .. }
        | Work::Unmount
        | Work::DropMount
        | Work::Format { .. }
        | Work::Seed { .. } => false,
        Work::Register { .. }
        | Work::Unregister
        | Work::ClaimLease { .. }
        | Work::Fence { .. }
        | Work::RebuildDevice
        | Work::PrepareVolume
        | Work::StartPostgres { .. }
        | Work::Align { .. }
        | Work::Serve { .. }
        | Work::Reconfigure { .. }
        | Work::Promote { .. }
        | Work::KeepSlots { .. }
        | Work::StopToMove
        | Work::Checkpoint
        | Work::Withdraw { .. }
        | Work::StopPostgres { .. }
        | Work::AnnounceClean { .. }
        | Work::KillPostgres
        | Work::ShutdownFilesystem => true,
    }
}
