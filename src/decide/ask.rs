//! What an operator asks for, and what is answered.

use fencing::MemberId;
use serde::{Deserialize, Serialize};

use super::reason::Reason;
use super::zone::SiteNumber;

/// Number of an operator's request, unique within one process, growing.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct RequestId(pub u64);

/// What an operator asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ask {
    /// Hand over; to this member, or to whoever is ready.
    Switchover {
        /// To whom.
        to: Option<MemberId>,
    },
    /// Stop PostgreSQL and start it again, in place, under the same hold.
    Restart,
    /// Read PostgreSQL's settings anew, and let it take up what it can while it runs.
    Reload,
    /// No automatic take-over from now on.
    Pause,
    /// Automatic take-overs again.
    Resume,
    /// Move the primary to another site, with nothing lost. For the primary's active.
    SwitchoverSite {
        /// To which.
        site: SiteNumber,
    },
    /// Make this site the primary's, whose site is silent. For this site's active.
    Failover {
        /// Also where acknowledged writes may be lost.
        allow_data_loss: bool,
    },
    /// Copy the primary's database anew. For the active of a replica's site.
    Reinit,
    /// The operator's word that every earlier owner of the volume is stopped; needed where the
    /// reservation is gone and nothing else proves it. Binds the moment it is given, no later one.
    OwnersStopped,
}

/// An operator's request. The executor keeps it in the observation until an `Answer` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Which.
    pub id: RequestId,
    /// What for.
    pub ask: Ask,
}

/// The answer to a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// Done.
    Done,
    /// Not done, and why.
    Refused(Box<Reason>),
}
