//! The processes of one side of a lab.

use nix::sys::signal::Signal;

use super::LabGround;
use crate::drill::stage_error::StageError;
use crate::lab::process::{self, Process, signal_all};
use crate::lab::protocol::Request;

impl LabGround {
    /// The member's process, as its supervisor started it.
    pub(super) async fn process(&self, member: &str) -> Result<Process, StageError> {
        let state = self.ask(Request::Status).await?;
        let process = state.members.get(member).and_then(|member| member.process);
        process.ok_or_else(|| StageError::missing(member, "process"))
    }

    /// The member's bridge.
    pub(super) async fn bridge(&self, member: &str) -> Result<Process, StageError> {
        let is_bridge = |process: &Process| {
            process::arguments(*process)
                .get(1)
                .is_some_and(|command| command == "bridge")
        };
        let tree = self.process(member).await?.tree();
        tree.into_iter()
            .find(is_bridge)
            .ok_or_else(|| StageError::missing(member, "bridge"))
    }

    /// The member's postmaster: of its PostgreSQL processes the one nearest to it.
    pub(super) async fn postmaster(&self, member: &str) -> Result<Process, StageError> {
        let tree = self.process(member).await?.tree();
        tree.into_iter()
            .find(is_postgres)
            .ok_or_else(|| StageError::missing(member, "postmaster"))
    }

    pub(super) async fn runs_postgres(&self, member: &str) -> Result<bool, StageError> {
        Ok(self.process(member).await?.tree().iter().any(is_postgres))
    }

    /// Sends a signal to processes of a member.
    pub(super) fn signal(
        &self,
        member: &str,
        processes: &[Process],
        signal: Signal,
    ) -> Result<(), StageError> {
        let sent = signal_all(processes, signal);
        let failed = |source| StageError::Signal {
            signal,
            member: member.to_owned(),
            source,
        };
        sent.map(drop).map_err(failed)
    }
}

fn is_postgres(process: &Process) -> bool {
    process::program(*process) == "postgres"
}
