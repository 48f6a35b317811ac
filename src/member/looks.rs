//! Looks at the volume's reservations and at the lease again and again, and whenever asked to.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;

use super::event::Event;
use crate::attachment::{Attachment, Happening, Look, whole};
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
        attachment: Arc<Attachment>,
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
        let to = events.clone();
        tasks.spawn(async move {
            loop {
                let look = attachment.mailbox().await;
                if to.send(Event::Volume(Happening::Mailbox(look))).is_err() {
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
