//! What each step does. One action, an outcome; no policy.

mod data;
mod lease;
mod postgres;
mod route;
mod sites;

use std::sync::Arc;

use fencing::Mono;
use tokio::sync::mpsc;

use super::event::{Changes, Event};
use super::link::Link;
use super::reload::MemberFile;
use super::sites::Sites;
use crate::attachment;
use crate::decide::{Outcome, StopMode, Timings, Work};
use crate::lease::LeaseStore;
use crate::postgres::replication::Progress;
use crate::routing::Router;

use data::At;
pub(super) use postgres::Database;
use sites::Begins;

/// What the steps work with.
pub(super) struct Tools {
    pub timings: Timings,
    pub link: Link,
    pub lease: LeaseStore,
    pub router: Router,
    pub database: Database,
    /// The other sites, where the cluster has several.
    pub sites: Option<Arc<Sites>>,
    pub file: MemberFile,
    pub events: mpsc::UnboundedSender<Event>,
}

/// A step's end.
type Done = (Outcome, Changes);

impl Tools {
    /// How far a copy of the primary's database is, while one is under way.
    pub fn copying(&self) -> Option<Progress> {
        self.sites.as_ref()?.progress.borrow().clone()
    }

    /// Does one step, to its end. `deadline` bounds what can be bounded.
    pub async fn perform(self: &Arc<Self>, work: &Work, deadline: Mono) -> Done {
        match work {
            Work::ClaimLease { expected, record } => {
                self.claim_lease(expected.clone(), record.clone(), deadline)
                    .await
            }
            Work::Format { epoch } => self.format(*epoch, deadline).await,
            Work::Seed { epoch, from, term } => self.seed(*epoch, from, *term, deadline).await,
            Work::Align {
                epoch,
                term,
                writes,
                primary,
                reseed,
            } => {
                let at = At {
                    term: *term,
                    writes: *writes,
                };
                self.align(*epoch, at, primary, *reseed).await
            }
            Work::Serve { epoch, serve } => self.serve(*epoch, serve, deadline).await,
            Work::Reconfigure { epoch: _, serve } => self.reconfigure(serve, deadline).await,
            Work::Promote {
                epoch,
                term,
                writes,
                above,
                serve,
            } => {
                let begins = Begins {
                    at: At {
                        term: *term,
                        writes: *writes,
                    },
                    above: *above,
                };
                self.promote(*epoch, begins, serve, deadline).await
            }
            Work::KeepSlots { epoch: _ } => self.keep_slots(deadline).await,
            Work::StopToMove => self.stop_to_move().await,
            Work::StartPostgres { epoch } => self.start_postgres(*epoch, deadline).await,
            Work::Checkpoint => self.checkpoint(deadline).await,
            Work::Withdraw { epoch } => self.withdraw(*epoch, deadline).await,
            Work::StopPostgres {
                mode: StopMode::Fast,
            } => self.stop_postgres(false).await,
            Work::StopPostgres {
                mode: StopMode::Immediate,
            } => self.stop_postgres(true).await,
            Work::KillPostgres => self.kill_postgres().await,
            Work::Unmount | Work::DropMount => {
                // An open session of this member's own would keep the mount busy.
                self.database.forget_session().await;
                volume(self.link.perform(work, deadline).await)
            }
            Work::Register { .. }
            | Work::Unregister
            | Work::Fence { .. }
            | Work::AnnounceClean { .. }
            | Work::RebuildDevice
            | Work::PrepareVolume
            | Work::Mount { .. }
            | Work::ShutdownFilesystem => volume(self.link.perform(work, deadline).await),
        }
    }
}

/// The end of a step of the attachment.
fn volume((outcome, changes): attachment::Done) -> Done {
    (outcome, changes.into())
}

fn failed(cause: impl std::fmt::Display) -> Done {
    volume(attachment::failed(cause))
}
