//! Keeps the newest of everything that was seen and hands it to `decide` as one observation.

use std::collections::BTreeMap;

use fencing::{MemberId, Mono};
use nvme::HostId;

use super::event::{Changes, Ended};
use crate::attachment::Look;
use crate::decide::zone::{SiteName, ZoneSeen};
use crate::decide::{
    Device, Finished, Heartbeat, Incarnation, Lease, Local, Mount, Observation, PermitFacts,
    Postgres, Request, Running, Seen, StepId,
};

/// The observation in the making.
pub(super) struct Senses {
    mailbox: Seen<fencing::Mailbox>,
    lease: Seen<Option<Lease>>,
    local: Local,
    running: Option<Running>,
    finished: Option<Finished>,
    stopping: bool,
    zone: Option<Box<ZoneSeen>>,
}

impl Senses {
    /// Nothing seen yet. `former_writer`: see [`Local::former_writer`].
    pub fn new(incarnation: Incarnation, host: HostId, former_writer: bool, now: Mono) -> Self {
        Self {
            mailbox: unseen(now),
            lease: unseen(now),
            local: Local {
                incarnation,
                host,
                device: Device::Absent,
                mount: Mount::Unmounted,
                postgres: Postgres::Stopped,
                former_writer,
                permit: None,
                agent_away: None,
            },
            running: None,
            finished: None,
            stopping: false,
            zone: None,
        }
    }

    /// Everything that one decision rests on; `peers` as their channel has it, `request` the oldest
    /// that waits.
    pub fn observation(
        &self,
        peers: BTreeMap<MemberId, Seen<Heartbeat>>,
        request: Option<Request>,
    ) -> Observation {
        Observation {
            mailbox: self.mailbox.clone(),
            lease: self.lease.clone(),
            peers,
            platform: BTreeMap::new(),
            local: self.local.clone(),
            running: self.running,
            finished: self.finished.clone(),
            request,
            stopping: self.stopping,
            zone: self.zone.clone(),
        }
    }

    /// This machine's facts.
    pub fn local(&self) -> &Local {
        &self.local
    }

    /// The mailbox was looked at.
    pub fn mailbox(&mut self, look: Look<fencing::Mailbox>) {
        if look.result.is_ok() {
            self.local.agent_away = None;
        }
        update(&mut self.mailbox, look);
    }

    /// The lease was looked at or written.
    pub fn lease(&mut self, look: Look<Option<Lease>>) {
        update(&mut self.lease, look);
    }

    /// There are other sites; nothing of them is seen yet.
    pub fn expect_sites(&mut self, others: impl Iterator<Item = SiteName>, now: Mono) {
        self.zone = Some(Box::new(ZoneSeen {
            record: unseen(now),
            leases: others.map(|site| (site, unseen(now))).collect(),
            postgres: unseen(now),
            probe: unseen(now),
        }));
    }

    /// Something of the other sites was looked at.
    pub fn zone(&mut self, seen: impl FnOnce(&mut ZoneSeen)) {
        if let Some(zone) = &mut self.zone {
            seen(zone);
        }
    }

    /// A step began; an urgent one replaces the one that was running.
    pub fn begun(&mut self, id: StepId, now: Mono) {
        self.running = Some(Running { id, since: now });
    }

    /// A step ended. Whether it was the one that counts: one that was given up for an urgent one changes
    /// facts but is not "finished".
    pub fn ended(&mut self, ended: Ended, now: Mono) -> bool {
        let Ended {
            id,
            outcome,
            changes,
        } = ended;
        self.changed(changes);
        let counts = self.running.is_some_and(|running| running.id == id);
        if counts {
            self.running = None;
            self.finished = Some(Finished {
                id,
                at: now,
                outcome,
            });
        }
        counts
    }

    /// Facts of this machine changed.
    pub fn changed(&mut self, changes: Changes) {
        let Changes {
            device,
            mount,
            postgres,
        } = changes;
        self.local.device = device.unwrap_or(self.local.device);
        self.local.mount = mount.unwrap_or(self.local.mount);
        self.local.postgres = postgres.unwrap_or(self.local.postgres);
    }

    /// The permit in hand, or that it was dropped.
    pub fn permit(&mut self, permit: Option<PermitFacts>) {
        self.local.permit = permit;
    }

    /// The agent of this node went away. That it is back shows the first report that it brings.
    pub fn agent_away(&mut self, since: Mono) {
        self.local.agent_away = Some(since);
    }

    /// SIGTERM came.
    pub fn terminate(&mut self) {
        self.stopping = true;
    }
}

fn unseen<T>(now: Mono) -> Seen<T> {
    Seen::Unknown {
        since: now,
        cause: "not looked at yet".to_owned(),
    }
}

/// A failed look makes the channel Unknown since the first failure; a look that began before the
/// newest successful one, or before that failure, is late and says nothing.
pub(super) fn update<T>(seen: &mut Seen<T>, look: Look<T>) {
    let late = match seen {
        Seen::Known { at, value: _ } => look.began < *at,
        // A reading from before the failure does not say that the channel is back.
        Seen::Unknown { since, cause: _ } => look.result.is_ok() && look.began < *since,
    };
    match (look.result, &mut *seen) {
        _ if late => {}
        (Ok(value), _) => {
            *seen = Seen::Known {
                value,
                at: look.began,
            }
        }
        (Err(cause), Seen::Unknown { cause: known, .. }) => *known = cause,
        (Err(cause), Seen::Known { .. }) => {
            *seen = Seen::Unknown {
                since: look.began,
                cause,
            }
        }
    }
}
