//! How each fault is done: struck under load, then, once the writers are back, ended.

use std::time::Duration;

use nix::sys::signal::Signal;

use super::cast::Cast;
use super::scenario::Fault;
use super::stage::Stage;
use super::stage_error::StageError;
use super::writer::Writer;

/// How long a member that was cut off, or a zombie that woke up, may take to stop its PostgreSQL:
/// the path's time-out, the deadlines of a stuck step, and some.
const SELF_STOP_WITHIN: Duration = Duration::from_secs(60);

/// How long a woken zombie's queued writes may take to reach the target.
const ZOMBIE_WRITES_WITHIN: Duration = Duration::from_secs(20);

/// How long all is to be back to one active and a ready standby, between two faults of one drill.
const STEADY_WITHIN: Duration = Duration::from_secs(90);

/// What a fault needs beside the stage.
pub struct Struck<'a> {
    /// The fault.
    pub fault: Fault,
    /// Who played what before it.
    pub cast: &'a Cast,
    /// Who writes.
    pub writer: &'a Writer,
    /// How long an outage lasts that has no end of its own.
    pub lasts: Duration,
    /// The longest time until all write again.
    pub within: Duration,
}

impl Struck<'_> {
    /// Injects the fault.
    pub async fn strike(&self, stage: &mut Stage) -> Result<(), StageError> {
        let active = &self.cast.active;
        match self.fault {
            Fault::Switchover => stage.switchover(active).await,
            Fault::Terminate => {
                let process = stage.process(active).await?;
                stage.signal(active, &[process], Signal::SIGTERM)
            }
            Fault::KillSide => stage.kill_side(active).await,
            Fault::KillPostmaster => {
                let postmaster = stage.postmaster(active).await?;
                stage.signal(active, &[postmaster], Signal::SIGKILL)
            }
            Fault::Freeze => stage.freeze(active).await,
            Fault::CutStorage => stage.cut_storage(active).await,
            Fault::Isolate => stage.isolate(active).await,
            Fault::LoseLease => {
                stage.lose_lease()?;
                tokio::time::sleep(self.lasts).await;
                Ok(())
            }
            Fault::RestartTarget => {
                let volatile = stage.lab.record.volatile_cache;
                stage.restart_target(true, volatile).await
            }
            // The host first: a host that lives on would trust what the cache has lost.
            Fault::LosePower => {
                stage.kill_side(active).await?;
                Ok(stage.target.power_loss().await?)
            }
        }
    }

    /// What else belongs to the fault once all connections write again; then every trace of it is
    /// undone.
    pub async fn end(&self, stage: &mut Stage) -> Result<(), StageError> {
        let active = &self.cast.active;
        match self.fault {
            Fault::Switchover
            | Fault::Terminate
            | Fault::KillSide
            | Fault::KillPostmaster
            | Fault::Isolate
            | Fault::LoseLease
            | Fault::LosePower => {}
            Fault::Freeze => {
                let host = stage.lab.member(active).record().host_id.to_string();
                stage
                    .thaw(active, async |stage| refused(stage, &host).await)
                    .await?;
            }
            Fault::CutStorage => {
                let what = "the end of PostgreSQL on the side without storage";
                stage
                    .until(what, SELF_STOP_WITHIN, async || {
                        Ok(!stage.serves(active).await?)
                    })
                    .await?;
            }
            Fault::RestartTarget => {
                let before = stage.steady(STEADY_WITHIN).await?;
                let volatile = stage.lab.record.volatile_cache;
                stage.restart_target(false, volatile).await?;
                // Until the owner notices, it goes on writing: only a new epoch is the service's
                // return.
                stage.owned_anew(&before, STEADY_WITHIN).await?;
            }
        }
        stage.undo().await
    }
}

/// Waits until the target has refused a write of a fenced host.
async fn refused(stage: &Stage, host: &str) -> Result<(), StageError> {
    let refused = async || {
        let audit = stage.audit().await?;
        let fences = audit.fences.iter().filter(|fence| fence.victim == host);
        Ok(fences.map(|fence| fence.refused_writes).sum::<u64>() > 0)
    };
    stage
        .until(
            "a refused write of the zombie",
            ZOMBIE_WRITES_WITHIN,
            refused,
        )
        .await
}
