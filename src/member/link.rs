//! The member's way to its attachment: in this process, or the agent's of this node.

use std::sync::Arc;

use fencing::{Epoch, KeyFlags, Licence, Mailbox, Mono};
use nvme::HostId;

use crate::agent::Client;
use crate::attachment::{Attachment, Changes, Done, Look};
use crate::decide::Work;

/// Where the attachment is. Cheap to clone.
#[derive(Clone)]
pub(super) enum Link {
    /// In this process.
    Here(Arc<Attachment>),
    /// In the agent of this node.
    Agent(Arc<Client>),
}

macro_rules! linked {
    ($link:expr, $end:ident => $call:expr) => {
        match $link {
            Link::Here($end) => $call,
            Link::Agent($end) => $call,
        }
    };
}

impl Link {
    /// See [`Attachment::perform`].
    pub async fn perform(&self, work: &Work, deadline: Mono) -> Done {
        linked!(self, end => end.perform(work, deadline).await)
    }

    /// See [`Attachment::licence`].
    pub async fn licence(&self, epoch: Epoch) -> Result<Licence, Done> {
        match self {
            Self::Here(attachment) => attachment.licence(epoch),
            Self::Agent(client) => client.licence(epoch).await,
        }
    }

    /// See [`Attachment::begin_format`].
    pub async fn begin_format(&self, epoch: Epoch, deadline: Mono) -> Result<Licence, Done> {
        linked!(self, end => end.begin_format(epoch, deadline).await)
    }

    /// See [`Attachment::end_format`].
    pub async fn end_format(&self, epoch: Epoch, system: Option<u64>, deadline: Mono) -> Done {
        linked!(self, end => end.end_format(epoch, system, deadline).await)
    }

    /// See [`Attachment::sync_filesystem`].
    pub async fn sync_filesystem(&self, deadline: Mono) -> Done {
        linked!(self, end => end.sync_filesystem(deadline).await)
    }

    /// See [`Attachment::mount_if_dead`].
    pub async fn mount_if_dead(&self) -> Changes {
        linked!(self, end => end.mount_if_dead().await)
    }

    /// See [`Attachment::condemn_device`].
    pub async fn condemn_device(&self) {
        linked!(self, end => end.condemn_device().await);
    }

    /// See [`Attachment::beat`].
    pub async fn beat(&self, epoch: Epoch, flags: KeyFlags) -> Look<Mailbox> {
        linked!(self, end => end.beat(epoch, flags).await)
    }

    /// See [`Attachment::mailbox`].
    pub async fn mailbox(&self) -> Look<Mailbox> {
        linked!(self, end => end.mailbox().await)
    }

    /// See [`Attachment::drop_permit`].
    pub fn drop_permit(&self) {
        linked!(self, end => end.drop_permit());
    }

    /// See [`Attachment::confirm`]. An agent has no watchdog for one of its members.
    pub fn confirm(&self, mailbox: &Mailbox, began: Mono) {
        if let Self::Here(attachment) = self {
            attachment.confirm(mailbox, began);
        }
    }

    /// See [`Attachment::settled`].
    pub fn settled(&self) {
        if let Self::Here(attachment) = self {
            attachment.settled();
        }
    }

    /// See [`Attachment::close`].
    pub async fn close(&self) {
        linked!(self, end => end.close().await);
    }

    /// See [`Attachment::host`].
    pub fn host(&self) -> HostId {
        linked!(self, end => end.host())
    }

    /// See [`Attachment::former_writer`].
    pub fn former_writer(&self) -> bool {
        linked!(self, end => end.former_writer())
    }
}
