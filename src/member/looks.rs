//! Looks at the volume's reservations and at the lease again and again, and whenever asked to.

use std::sync::Arc;
use std::time::Duration;

use fencing::{ClusterTag, Mailbox};
use nvme::Namespace;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;

use super::carrier::Carrier;
use super::event::{Event, Look};
use super::steps::whole;
use crate::clock;
use crate::decide::Timings;
use crate::lease::LeaseStore;

/// The tasks that look. Dropping it ends them.
pub(super) struct Looks {
    mailbox: Arc<Notify>,
    lease: Arc<Notify>,
    _tasks: JoinSet<()>,
}

impl Looks {
    /// Begins to look, every `observe`.
    pub fn start(
        volume: Arc<Carrier>,
        cluster: ClusterTag,
        lease: LeaseStore,
        timings: &Timings,
        events: mpsc::UnboundedSender<Event>,
    ) -> Self {
        let mut tasks = JoinSet::new();
        let (mailbox_asked, lease_asked) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let pace = Pace {
            interval: timings.observe,
            asked: mailbox_asked.clone(),
        };
        let bound = timings.command;
        let to = events.clone();
        tasks.spawn(async move {
            loop {
                let look = mailbox(&volume, cluster, bound).await;
                if to.send(Event::Mailbox(look)).is_err() {
                    return;
                }
                pace.next().await;
            }
        });
        let pace = Pace {
            interval: timings.observe,
            asked: lease_asked.clone(),
        };
        let bound = timings.lease_deadline;
        tasks.spawn(async move {
            let mut changed = lease.watch();
            loop {
                let look = read_lease(&lease, bound).await;
                if events.send(Event::Lease(look)).is_err() {
                    return;
                }
                tokio::select! {
                    () = pace.next() => {}
                    () = changed.changed() => {}
                }
            }
        });
        Self {
            mailbox: mailbox_asked,
            lease: lease_asked,
            _tasks: tasks,
        }
    }

    /// Looks now instead of at the next interval.
    pub fn refresh(&self, mailbox: bool, lease: bool) {
        if mailbox {
            self.mailbox.notify_one();
        }
        if lease {
            self.lease.notify_one();
        }
    }
}

/// Reads the reservation report once.
pub(super) async fn mailbox(
    volume: &Carrier,
    cluster: ClusterTag,
    bound: Duration,
) -> Look<Mailbox> {
    let began = clock::now();
    let result = match tokio::time::timeout(bound, volume.report()).await {
        Ok(Ok(report)) => Ok(Mailbox::read(&report, cluster)),
        Ok(Err(error)) => Err(with_paths(whole(error), volume)),
        Err(_elapsed) => {
            let cause = format!("no reservation report within {bound:?}");
            Err(with_paths(cause, volume))
        }
    };
    Look { result, began }
}

/// Why not, and what the kernel says of its paths.
fn with_paths(cause: String, volume: &Carrier) -> String {
    let paths = volume.paths();
    if paths.is_empty() {
        cause
    } else {
        format!("{cause}; {paths}")
    }
}

/// Reads the lease once.
pub(super) async fn read_lease(
    lease: &LeaseStore,
    bound: Duration,
) -> Look<Option<crate::decide::Lease>> {
    let began = clock::now();
    let result = lease.read(began + bound).await.map_err(whole);
    Look { result, began }
}

struct Pace {
    interval: Duration,
    asked: Arc<Notify>,
}

impl Pace {
    async fn next(&self) {
        // The interval's end and an early request mean the same: look.
        let _elapsed = tokio::time::timeout(self.interval, self.asked.notified()).await;
    }
}
