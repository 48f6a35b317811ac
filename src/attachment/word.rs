//! What an attachment says: to the member's loop in the same process, or to a session's other end.

use std::sync::Arc;

use fencing::{Mailbox, Mono};
use serde::{Deserialize, Serialize};

use crate::decide::{Device, Mount, Outcome};

/// One look at a channel: what was read, or why it could not be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Look<T> {
    /// What was read; for people, why not.
    pub result: Result<T, String>,
    /// When the look began.
    pub began: Mono,
}

/// What a step changed on this machine. Fields that it did not touch are `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changes {
    /// The block device.
    pub device: Option<Device>,
    /// The mount.
    pub mount: Option<Mount>,
}

/// A step's end.
pub type Done = (Outcome, Changes);

/// Something that must be known before the step that brought it about has ended, or without any step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Happening {
    /// The reservation report was read, or could not be.
    Mailbox(Look<Mailbox>),
    /// A step began to change something.
    Changed(Changes),
    /// The agent of this node went away. Said by a member's end of a session.
    AgentAway {
        /// When.
        since: Mono,
    },
    /// The device that was made as number `made` is gone.
    DeviceGone {
        /// Which making.
        made: u64,
    },
}

/// Where an attachment says what happens. What is told before a step ends is heard before its end.
#[derive(Clone)]
pub struct Tell(Arc<dyn Fn(Happening) + Send + Sync>);

impl Tell {
    /// To this listener, which must not block.
    pub fn to(listener: impl Fn(Happening) + Send + Sync + 'static) -> Self {
        Self(Arc::new(listener))
    }

    /// Says it.
    pub fn say(&self, happening: Happening) {
        (self.0)(happening);
    }
}

/// An error with all its causes, for people.
pub fn whole(error: impl std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
