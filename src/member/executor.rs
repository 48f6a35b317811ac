//! Carries out what `decide` orders: one step at a time, cheap actions beside it. No policy.

use std::sync::Arc;
use std::time::Duration;

use fencing::{Epoch, KeyFlags, Mono, WritePermit};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tracing::{debug, warn};

use super::event::{Changes, Ended, Event, Look};
use super::looks;
use super::steps::Tools;
use crate::clock;
use crate::decide::{Lease, LeaseRecord, LeaseVersion, Outcome, Step, Timings, Work};
use crate::lease::Written;

/// The executor, with the permit of the newest proven fence.
pub(super) struct Executor {
    tools: Arc<Tools>,
    events: mpsc::UnboundedSender<Event>,
    running: Option<AbortHandle>,
    permit: Option<Arc<WritePermit>>,
    beat: Option<AbortHandle>,
    lease_write: Option<AbortHandle>,
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
        }
    }

    /// What the steps work with.
    pub fn tools(&self) -> &Arc<Tools> {
        &self.tools
    }

    /// The permit in hand.
    pub fn permit(&self) -> Option<&WritePermit> {
        self.permit.as_deref()
    }

    /// A fence was proven: its permit is the one that counts from now on.
    pub fn keep(&mut self, permit: WritePermit) {
        self.permit = Some(Arc::new(permit));
    }

    /// Takes the device away in good order, at the end of the process.
    pub async fn close(&self) {
        if let Some(device) = self.tools.device.lock().await.take() {
            let bound = self.tools.timings.kill;
            // A bridge that does not end is killed with this process, and the node with an armed
            // watchdog: what the bridge still has to send is unknown.
            match tokio::time::timeout(bound, device.close()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return tracing::warn!(%error, "the device is not proven gone"),
                Err(_elapsed) => return,
            }
        }
        let remains = self.tools.remains.try_lock();
        if remains.is_ok_and(|remains| remains.is_empty()) {
            self.tools.self_fence.disarm();
        }
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
        let permit = self.permit.clone();
        let task = tokio::spawn(async move {
            let (outcome, changes) = within_deadline(&tools, &step, permit.as_ref()).await;
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
            let bound = tools.timings.command;
            let said = tokio::time::timeout(bound, tools.say_if_free(epoch, flags)).await;
            match said {
                Ok(Ok(())) => {}
                Ok(Err(error)) => debug!(%error, "the beat was not accepted"),
                Err(_elapsed) => debug!("the beat got no answer"),
            }
            let look = looks::mailbox(&tools.volume, tools.cluster, bound).await;
            let _closed = events.send(Event::Mailbox(look));
        });
        self.beat = Some(task.abort_handle());
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

async fn within_deadline(
    tools: &Arc<Tools>,
    step: &Step,
    permit: Option<&Arc<WritePermit>>,
) -> (Outcome, Changes) {
    let work = tools.perform(&step.work, step.deadline, permit);
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
        Work::Mount { .. } | Work::Unmount | Work::DropMount | Work::Format { .. } => false,
        Work::Register { .. }
        | Work::Unregister
        | Work::ClaimLease { .. }
        | Work::Fence { .. }
        | Work::RebuildDevice
        | Work::PrepareVolume
        | Work::StartPostgres { .. }
        | Work::Checkpoint
        | Work::StopPostgres { .. }
        | Work::AnnounceClean { .. }
        | Work::KillPostgres
        | Work::ShutdownFilesystem => true,
    }
}

/// Whether the permit in hand must not outlive the beginning of this step. SAFETY.md I2
fn ends_ownership(work: &Work) -> bool {
    match work {
        Work::Register { .. }
        | Work::Unregister
        | Work::Fence { .. }
        | Work::RebuildDevice
        | Work::AnnounceClean { .. }
        | Work::ShutdownFilesystem
        | Work::DropMount => true,
        Work::ClaimLease { .. }
        | Work::PrepareVolume
        | Work::Format { .. }
        | Work::Mount { .. }
        | Work::StartPostgres { .. }
        | Work::Checkpoint
        | Work::StopPostgres { .. }
        | Work::Unmount
        | Work::KillPostgres => false,
    }
}
