//! How each fault is done: struck under load, then, once the writers are back, ended.

use std::time::Duration;

use super::cast::Cast;
use super::ground::Ground;
use super::scenario::Fault;
use super::stage_error::StageError;
use super::wait::until;

/// How long a member that was cut off, or a zombie that woke up, may take to stop its PostgreSQL:
/// the path's time-out, the deadlines of a stuck step, and some.
const SELF_STOP_WITHIN: Duration = Duration::from_secs(60);

/// How long a woken zombie's queued writes may take to reach the target.
const ZOMBIE_WRITES_WITHIN: Duration = Duration::from_secs(20);

/// How long all is to be back to one active and a ready standby, between two faults of one drill.
const STEADY_WITHIN: Duration = Duration::from_secs(90);

/// What a fault needs beside its ground.
pub struct Struck<'a> {
    /// The fault.
    pub fault: Fault,
    /// Who played what before it.
    pub cast: &'a Cast,
    /// How long an outage lasts that has no end of its own.
    pub lasts: Duration,
}

impl Struck<'_> {
    /// Injects the fault.
    pub async fn strike(&self, ground: &mut impl Ground) -> Result<(), StageError> {
        let active = &self.cast.active;
        match self.fault {
            Fault::Switchover => ground.switchover(active).await,
            Fault::Terminate => ground.terminate(active).await,
            Fault::KillSide => ground.kill_side(active).await,
            Fault::Panic => ground.panic(active).await,
            Fault::KillPostmaster => ground.kill_postmaster(active).await,
            Fault::Freeze => ground.freeze(active).await,
            Fault::CutStorage => ground.cut_storage(active).await,
            Fault::Isolate => ground.isolate(active).await,
            Fault::LoseLease => {
                ground.lose_lease().await?;
                tokio::time::sleep(self.lasts).await;
                Ok(())
            }
            Fault::RestartTarget => ground.restart_target(ground.keeps_reservations()).await,
            // The host first: a host that lives on would trust what the cache has lost.
            Fault::LosePower => {
                ground.kill_side(active).await?;
                ground.lose_power().await
            }
        }
    }

    /// What else belongs to the fault once all connections write again; then every trace of it is
    /// undone.
    pub async fn end(&self, ground: &mut impl Ground) -> Result<(), StageError> {
        let active = &self.cast.active;
        match self.fault {
            Fault::Switchover
            | Fault::Terminate
            | Fault::KillSide
            | Fault::Panic
            | Fault::KillPostmaster
            | Fault::Isolate
            | Fault::LoseLease
            | Fault::LosePower => {}
            Fault::Freeze => {
                ground.thaw(active).await?;
                refused(ground, active).await?;
            }
            Fault::CutStorage => {
                let what = "the end of PostgreSQL on the side without storage";
                until(what, SELF_STOP_WITHIN, async || {
                    Ok(!ground.serves(active).await?)
                })
                .await?;
            }
            Fault::RestartTarget if ground.keeps_reservations() => {
                let before = ground.steady(STEADY_WITHIN).await?;
                ground.restart_target(false).await?;
                // Until the owner notices, it goes on writing: only a new epoch is the service's
                // return.
                ground.owned_anew(&before, STEADY_WITHIN).await?;
            }
            Fault::RestartTarget => ground.owned_anew(self.cast, STEADY_WITHIN).await?,
        }
        ground.undo().await
    }
}

/// Waits until the target has refused a write of a fenced member.
async fn refused(ground: &impl Ground, member: &str) -> Result<(), StageError> {
    let host = ground.host_id(member);
    let refused = async || {
        let audit = ground.audit().await?;
        let fences = audit.fences.iter().filter(|fence| fence.victim == host);
        Ok(fences.map(|fence| fence.refused_writes).sum::<u64>() > 0)
    };
    let what = "a refused write of the zombie";
    until(what, ZOMBIE_WRITES_WITHIN, refused).await
}
