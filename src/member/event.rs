//! What happens to a member: the one queue through which everything reaches its loop.

use crate::attachment::{self, Happening, Look};
use crate::decide::zone::{ClusterLease, PostgresFacts, ProbeFacts, SiteName};
use crate::decide::{Answer, Device, Lease, Mount, Outcome, Postgres, RequestId, StepId};

/// What a step changed on this machine. Fields that it did not touch are `None`.
#[derive(Default)]
pub(super) struct Changes {
    /// The block device.
    pub device: Option<Device>,
    /// The mount.
    pub mount: Option<Mount>,
    /// PostgreSQL.
    pub postgres: Option<Postgres>,
}

impl From<attachment::Changes> for Changes {
    fn from(attachment::Changes { device, mount }: attachment::Changes) -> Self {
        Self {
            device,
            mount,
            postgres: None,
        }
    }
}

/// A step that came to its end.
pub(super) struct Ended {
    /// Which.
    pub id: StepId,
    /// How.
    pub outcome: Outcome,
    /// What it changed.
    pub changes: Changes,
}

/// One event.
pub(super) enum Event {
    /// Something on the volume's side.
    Volume(Happening),
    /// The lease was read or written, or could not be.
    Lease(Look<Option<Lease>>),
    /// The cluster's record was read or written, or could not be.
    Cluster(Look<Option<ClusterLease>>),
    /// Another site's lease was read, or could not be.
    Site(SiteName, Look<Option<Lease>>),
    /// This member's PostgreSQL was looked at.
    Replication(Look<PostgresFacts>),
    /// The primary's PostgreSQL at another site was looked at.
    Probe(Look<ProbeFacts>),
    /// A step began to change something that others must know before it ends.
    Changed(Changes),
    /// A step ended.
    Ended(Box<Ended>),
    /// Every process of the PostgreSQL that was started as number `run` is gone.
    PostgresGone {
        /// Which start.
        run: u64,
        /// How the postmaster ended, for people.
        how: String,
    },
    /// The PostgreSQL that was started as number `run` has not answered for long.
    PostgresHangs {
        /// Which start.
        run: u64,
    },
    /// An operator's reload came to its end.
    Reloaded {
        /// Which request.
        request: RequestId,
        /// How.
        answer: Answer,
    },
    /// SIGTERM or SIGINT.
    Terminate,
}
