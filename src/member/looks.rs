//! Looks at the volume's reservations and at the lease again and again, and whenever asked to.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;

use super::event::Event;
use super::link::Link;
use super::sites::{self, Sites};
use crate::attachment::{Happening, Look, whole};
use crate::clock;
use crate::decide::Timings;
use crate::lease::{LeaseStore, Reading};

/// The tasks that look. Dropping it ends them.
pub(super) struct Looks {
    mailbox: Arc<Notify>,
    lease: Arc<Notify>,
    cluster: Arc<Notify>,
    tasks: JoinSet<()>,
}

impl Looks {
    /// Begins to look, every `observe`.
    pub fn start(
        link: Link,
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
                let look = link.mailbox().await;
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
        tasks.spawn(watch_lease(lease, pace, bound, events, Event::Lease));
        Self {
            mailbox: mailbox_asked,
            lease: lease_asked,
            cluster: Arc::default(),
            tasks,
        }
    }

    /// Begins to look at the other sites as well.
    pub fn at_sites(
        &mut self,
        sites: &Arc<Sites>,
        timings: &Timings,
        events: &mpsc::UnboundedSender<Event>,
    ) {
        self.cluster = sites::look(sites, &mut self.tasks, timings, events);
    }

    /// Looks at the cluster's record now instead of at the next interval.
    pub fn refresh_cluster(&self) {
        self.cluster.notify_one();
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

/// Looks at a lease again and again, and when it may have changed.
pub(super) async fn watch_lease(
    lease: LeaseStore,
    pace: Pace,
    bound: Duration,
    events: mpsc::UnboundedSender<Event>,
    seen: impl Fn(Look<Option<crate::decide::Lease>>) -> Event,
) {
    let mut changed = lease.watch();
    let mut asked = false;
    loop {
        let look = read_lease(&lease, asked, bound).await;
        if events.send(seen(look)).is_err() {
            return;
        }
        tokio::select! {
            early = pace.next() => asked = early,
            () = changed.changed() => asked = false,
        }
    }
}

/// Reads the lease once: as it is `now`, or as it is known.
async fn read_lease(
    lease: &LeaseStore,
    now: bool,
    bound: Duration,
) -> Look<Option<crate::decide::Lease>> {
    let began = clock::now();
    let reading = if now {
        lease.read(began + bound).await
    } else {
        lease.known(began + bound).await
    };
    match reading {
        Ok(Reading { lease, at }) => Look {
            result: Ok(lease),
            began: at,
        },
        Err(error) => Look {
            result: Err(whole(error)),
            began,
        },
    }
}

pub(super) struct Pace {
    pub interval: Duration,
    pub asked: Arc<Notify>,
}

impl Pace {
    /// Waits for the next look; whether somebody asked for it before its time.
    pub async fn next(&self) -> bool {
        let asked = tokio::time::timeout(self.interval, self.asked.notified()).await;
        asked.is_ok()
    }
}
