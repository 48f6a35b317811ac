//! What goes over the control socket: one JSON object a line, a request and then its replies.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::status::Status;
use crate::journal::Step;
use crate::lease::Ownership;

/// A longer line is none of ours.
pub const LINE_MAX_BYTES: usize = 1 << 20;

/// What an operator asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// One [`Reply::Status`].
    Status,
    /// A [`Reply::Status`] now and at every change, until the client goes.
    Watch,
    /// Hand over: [`Reply::Status`] at every change, at the end [`Reply::Done`] or an error.
    Switchover {
        /// To the member with this name; `None`: to whoever is ready.
        to: Option<String>,
    },
    /// Move the primary to another site; replies as for [`Request::Switchover`].
    SwitchoverSite {
        /// To this one.
        site: String,
    },
    /// Make this member's site the primary's; replies as for [`Request::Switchover`].
    Failover {
        /// Also where acknowledged writes may be lost.
        allow_data_loss: bool,
    },
    /// Copy the primary's database anew to this member's site.
    Reinit,
    /// Stop PostgreSQL and start it again on the active, which this member must be.
    Restart,
    /// Read PostgreSQL's settings anew.
    Reload,
    /// No automatic take-over from now on.
    Pause,
    /// Automatic take-overs again.
    Resume,
    /// The operator's word that every earlier owner of the volume is stopped.
    OwnersStopped,
    /// One [`Reply::History`].
    History,
}

/// What the member answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// How the member and its site are.
    Status(Box<Status>),
    /// Who owned the site.
    History(Ownerships),
    /// It is done.
    Done,
    /// The member refused; nothing was changed, unless the text says otherwise.
    Refused {
        /// Why, for people.
        why: String,
        /// Why, for programs: a `Reason`, or null.
        reason: serde_json::Value,
    },
}

/// Who owned the site, and what the changes took.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Ownerships {
    /// From the lease store, oldest first.
    pub changes: Vec<Ownership>,
    /// Why there are none, where the store gave no answer.
    pub lease_error: Option<String>,
    /// Steps of this member, from its journal, oldest first.
    pub steps: Vec<Step>,
    /// The journal they are from.
    pub journal: PathBuf,
}
