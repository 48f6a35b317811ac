//! Where a drill plays: the system under drill, its faults, and what its target and its members
//! recorded. The drills know nothing else of it, so that the same drill, ledger and checks judge a
//! lab on one machine and clusters of machines.

use std::time::Duration;

use super::cast::{self, Cast};
use super::check::Checked;
use super::stage_error::StageError;
use super::target::Audit;
use super::timeline::Done;
use super::wait::until;
use crate::clock;
use crate::control::Status;

/// How often the members are looked at: they tell of no change by themselves.
const LOOK: Duration = Duration::from_millis(20);

/// A system of two members that a drill may break.
///
/// Every fault remembers how it is undone, for [`Ground::undo`]. One that this ground cannot do is
/// [`StageError::Unsupported`].
#[allow(
    async_fn_in_trait,
    reason = "a drill is one task: nobody needs to know whether its futures are Send"
)]
pub trait Ground {
    /// The names of both members.
    fn members(&self) -> [&str; 2];

    /// Where clients reach a member's PostgreSQL, as superuser `postgres`.
    fn postgres(&self, member: &str) -> std::net::SocketAddr;

    /// The host identifier of a member, as the target's record names it.
    fn host_id(&self, member: &str) -> String;

    /// What a member says of itself.
    async fn status(&self, member: &str) -> Result<Status, StageError>;

    /// Whether any PostgreSQL of the member runs.
    async fn serves(&self, member: &str) -> Result<bool, StageError>;

    /// Makes ready for a scenario that needs a volatile write cache, if it is not there.
    async fn with_volatile_cache(&mut self, cast: &Cast) -> Result<(), StageError>;

    /// Hands over to whoever is ready; returns when the new active serves.
    async fn switchover(&mut self, member: &str) -> Result<(), StageError>;

    /// SIGTERM to a member.
    async fn terminate(&mut self, member: &str) -> Result<(), StageError>;

    /// Kills a whole side at once; it stays down until [`Ground::undo`].
    async fn kill_side(&mut self, member: &str) -> Result<(), StageError>;

    /// Makes the kernel of a member's machine panic.
    async fn panic(&mut self, member: &str) -> Result<(), StageError>;

    /// SIGKILL to a member's postmaster.
    async fn kill_postmaster(&mut self, member: &str) -> Result<(), StageError>;

    /// Freezes a whole side, with writes queued in it.
    async fn freeze(&mut self, member: &str) -> Result<(), StageError>;

    /// Wakes what sends a frozen side's queued writes; [`Ground::undo`] wakes the rest. So the
    /// zombie's writes really reach the target before its member learns that it was replaced.
    async fn thaw(&mut self, member: &str) -> Result<(), StageError>;

    /// Cuts a member's path to the target.
    async fn cut_storage(&mut self, member: &str) -> Result<(), StageError>;

    /// Cuts a member off from its peers and from the lease store.
    async fn isolate(&mut self, member: &str) -> Result<(), StageError>;

    /// Takes the lease store away from all members.
    async fn lose_lease(&mut self) -> Result<(), StageError>;

    /// Whether the target's reservations can survive its restart.
    fn keeps_reservations(&self) -> bool;

    /// Restarts the target, with its reservations or without.
    async fn restart_target(&mut self, keep_reservations: bool) -> Result<(), StageError>;

    /// Loses the target's volatile cache.
    async fn lose_power(&mut self) -> Result<(), StageError>;

    /// The target's own record since the beginning, through its restarts.
    async fn audit(&self) -> Result<Audit, StageError>;

    /// Every step that the members' journals tell of, by the drill's own clock.
    async fn steps(&self) -> Result<Vec<Done>, StageError>;

    /// Undoes every fault, the latest first. Goes on after a failure, and returns the first one.
    async fn undo(&mut self) -> Result<(), StageError>;

    /// Stops both members cleanly: the standby first, and the active when it knows that there is
    /// nobody left to hand over to.
    async fn quiesce(&mut self, cast: &Cast) -> Result<(), StageError>;

    /// `e2fsck` and `pg_checksums` on the volume at rest, in this order.
    async fn inspect(&mut self) -> Result<[Checked; 2], StageError>;

    /// Leaves the members stopped after [`Ground::quiesce`]: all this is about to end.
    fn leave_stopped(&mut self);

    /// Waits until one member serves and the other is ready to take over.
    async fn steady(&self, within: Duration) -> Result<Cast, StageError> {
        let until = clock::now() + within;
        loop {
            let mut views = Vec::new();
            for name in self.members() {
                views.push((name, self.status(name).await));
            }
            if let Some(cast) = Cast::of(&views) {
                return Ok(cast);
            }
            if clock::now() >= until {
                let state: Vec<_> = views
                    .iter()
                    .map(|(name, status)| cast::describe(name, status))
                    .collect();
                let what = "one member active and serving, the other standby and ready".to_owned();
                return Err(StageError::Overdue {
                    what,
                    within,
                    state: state.join("; "),
                });
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Waits until another member than before serves, with a greater epoch.
    async fn moved(&self, before: &Cast, within: Duration) -> Result<(), StageError> {
        let what = format!("a take-over by {}", before.standby);
        until(&what, within, async || {
            Ok(self.serves_anew(&before.standby, before.epoch).await)
        })
        .await
    }

    /// Waits until any member serves with a greater epoch.
    async fn owned_anew(&self, before: &Cast, within: Duration) -> Result<(), StageError> {
        until("service with a new epoch", within, async || {
            for name in self.members() {
                if self.serves_anew(name, before.epoch).await {
                    return Ok(true);
                }
            }
            Ok(false)
        })
        .await
    }

    /// Whether a member serves with an epoch greater than this one.
    async fn serves_anew(&self, member: &str, epoch: u32) -> bool {
        self.status(member).await.is_ok_and(|status| {
            let own = status.members.first().and_then(|member| member.epoch);
            status.serving && own.is_some_and(|own| own > epoch)
        })
    }
}
