//! Undoing what a drill did to a lab.

use nix::sys::signal::Signal;

use super::LabGround;
use crate::drill::stage_error::StageError;
use crate::lab::process::Process;
use crate::lab::protocol::Request;

/// How a fault is undone.
#[derive(Clone, Debug)]
pub(super) enum Undo {
    /// SIGCONT.
    Thaw(Vec<Process>),
    /// Give a host its path to the target back.
    HealStorage(String),
    /// Give the members their links back.
    HealLinks,
    /// Give one member its way to the lease store back.
    ReachLease(String),
    /// Put the lease directory back.
    RestoreLease,
    /// Start a member again.
    Release(String),
    /// Start the target again.
    StartTarget,
}

impl LabGround {
    pub(super) async fn undo_one(&self, undo: Undo) -> Result<(), StageError> {
        match undo {
            Undo::Thaw(frozen) => self.signal("frozen", &frozen, Signal::SIGCONT),
            Undo::HealStorage(nqn) => Ok(self.target.heal(&nqn).await?),
            Undo::HealLinks => self.ask(Request::Links { cut: false }).await.map(drop),
            Undo::ReachLease(member) => Ok(self.lab.member(&member).reach_lease(true)?),
            Undo::RestoreLease => {
                let (here, away) = self.lease_directories();
                rename(&away, &here)
            }
            Undo::Release(member) => self.ask(Request::Release { member }).await.map(drop),
            Undo::StartTarget => {
                let volatile_cache = self.lab.record.volatile_cache;
                let start = Request::StartTarget {
                    site: self.site_name(),
                    keep_reservations: true,
                    volatile_cache,
                };
                self.ask(start).await.map(drop)
            }
        }
    }
}

pub(super) fn rename(from: &std::path::Path, to: &std::path::Path) -> Result<(), StageError> {
    let failed = |source| StageError::Io {
        what: "move",
        path: from.to_owned(),
        source,
    };
    std::fs::rename(from, to).map_err(failed)
}
