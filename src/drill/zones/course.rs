//! What happens in each drill of two sites while the writers write.

use std::net::SocketAddr;
use std::time::Duration;

use super::cast::{ZoneCast, promises};
use super::ground::Zones;
use super::origin::{Label, Way};
use super::samples::sample;
use super::scenario::ZoneFault;
use super::slots;
use crate::clock::{self, Mono};
use crate::control::zone::ServingAs;
use crate::drill::ground::Ground;
use crate::drill::progress::Progress;
use crate::drill::stage_error::StageError;
use crate::drill::wait::until;
use crate::drill::writer::{ON_THE_WAY, Writer};
use crate::lab::wan::shape::Shape;

/// How long everything may take to be back: a base backup may be among it.
pub(super) const BACK_WITHIN: Duration = Duration::from_secs(180);

/// How long a slow line may take to be kept up with again.
const SAFE_WITHIN: Duration = Duration::from_secs(90);

/// The slow line, and the one that is slower and loses frames. In each direction.
const SLOW: (Duration, f64) = (Duration::from_millis(300), 0.0);
const BAD: (Duration, f64) = (Duration::from_secs(2), 0.05);

/// How long a line stays slow, at least: an answer over the bad one takes 4 s.
const SLOW_FOR: Duration = Duration::from_secs(12);

/// How long the line is worse before the site is lost: less than what makes the primary give up the
/// promise.
const WORSE_FOR: Duration = Duration::from_secs(1);

/// A drill on its way.
pub(super) struct Scene<'a> {
    /// The sites.
    pub zones: &'a mut Zones,
    /// The writers.
    pub writer: &'a Writer,
    /// What a person sees of it.
    pub progress: &'a Progress,
    /// Who plays what before the fault.
    pub before: &'a ZoneCast,
    /// How long service may take to return.
    pub max_gap: Duration,
    /// How long writers write between two steps.
    pub seconds: Duration,
    /// When the first fault began that stops writers.
    pub fault: Option<Mono>,
    /// What must not be so, in words.
    pub failures: Vec<String>,
    /// What else was found, in words.
    pub notes: Vec<String>,
}

impl Scene<'_> {
    /// Breaks the sites, and waits until both are back.
    pub(super) async fn play(&mut self, fault: ZoneFault) -> Result<(), StageError> {
        let primary = self.before.primary;
        match fault {
            ZoneFault::Loss => self.lose(primary).await?,
            ZoneFault::Latency => self.slow().await?,
            ZoneFault::Partition => self.part(primary).await?,
            ZoneFault::Rejoin => return self.rejoin(primary).await,
            ZoneFault::ReplicaHandover => self.kill_replica().await?,
            ZoneFault::SlotOverflow => return self.overflow().await,
        }
        self.back().await?;
        if fault == ZoneFault::ReplicaHandover {
            self.slot_keeps().await?;
        }
        Ok(())
    }

    /// The way back of both sites: one that can be rewound, and one that cannot.
    async fn rejoin(&mut self, site: usize) -> Result<(), StageError> {
        let other = 1 - site;
        let labels = [self.label(site).await?, self.label(other).await?];
        self.part(site).await?;
        self.back().await?;
        self.came_back(site, Way::Rewound, &labels[0]).await?;
        self.lose(other).await?;
        self.zones.lose_log(other).await?;
        self.back().await?;
        self.came_back(other, Way::Copied, &labels[1]).await
    }

    /// The label of the data directory at a site that serves.
    async fn label(&mut self, site: usize) -> Result<Label, StageError> {
        let active = self.zones.active(site).await?;
        Label::of(self.zones.site(site).postgres(&active)).await
    }

    async fn came_back(&mut self, site: usize, way: Way, before: &Label) -> Result<(), StageError> {
        let label = self.label(site).await?;
        self.notes
            .push(format!("site {} came back {way}", Zones::name(site)));
        self.failures.extend(label.wrong(way, before));
        Ok(())
    }

    /// Every fault undone; then both sites as they are to be.
    async fn back(&mut self) -> Result<ZoneCast, StageError> {
        self.progress.step("waiting until both sites are back");
        self.zones.undo().await?;
        let cast = self.zones.steady(BACK_WITHIN).await?;
        self.progress.watch(self.writer, self.seconds).await;
        Ok(cast)
    }

    /// The other site serves as primary, and every connection writes.
    async fn moved_from(&mut self, site: usize) -> Result<(), StageError> {
        self.progress.step("waiting for the other site's promotion");
        self.zones
            .serves(1 - site, ServingAs::Primary, None, self.max_gap)
            .await?;
        self.writers_are_back().await;
        Ok(())
    }

    async fn writers_are_back(&mut self) {
        if !self
            .writer
            .all_write(clock::now() + ON_THE_WAY, self.max_gap)
            .await
        {
            let within = self.max_gap;
            self.failures
                .push(format!("not all connections wrote again within {within:?}"));
        }
    }

    async fn lose(&mut self, site: usize) -> Result<(), StageError> {
        self.progress.step("killing the primary's site");
        self.fault.get_or_insert_with(clock::now);
        self.zones.site(site).kill_site().await?;
        self.moved_from(site).await
    }

    async fn part(&mut self, site: usize) -> Result<(), StageError> {
        self.progress.step("cutting the primary's site off");
        self.fault.get_or_insert_with(clock::now);
        self.zones.cut_off(site).await?;
        self.moved_from(site).await
    }

    async fn slow(&mut self) -> Result<(), StageError> {
        let lasts = SLOW_FOR.max(self.seconds);
        for (delay, loss) in [SLOW, BAD] {
            let share = loss * 100.0;
            self.progress
                .step(&format!("a line with {delay:?} and {share} % loss"));
            self.zones.line(Shape::slow(delay, loss)).await?;
            let (before, _) = self.writer.progress();
            let members = self.actives();
            let members: Vec<_> = members
                .iter()
                .map(|(site, name)| (*site, name.as_str()))
                .collect();
            let primary = self.primary();
            let samples = sample(self.zones, &members, primary, lasts).await;
            let (after, _) = self.writer.progress();
            let line = format!("line with {delay:?} and {share} % loss");
            self.notes
                .push(format!("{line}: {} writes; {samples}", after - before));
            self.failures.extend(samples.wrong());
            if after == before {
                self.failures
                    .push(format!("{line}: no write was acknowledged in {lasts:?}"));
            }
        }
        self.progress
            .step("waiting until a failover is safe over the slow line");
        self.zones.line(Shape::slow(SLOW.0, SLOW.1)).await?;
        let site = self.before.primary;
        until("a failover that is safe", SAFE_WITHIN, async || {
            self.safe().await
        })
        .await?;
        // the worst moment: much is under way that is lost, and it is still said to be safe
        self.zones.line(Shape::slow(BAD.0, BAD.1)).await?;
        self.progress.watch(self.writer, WORSE_FOR).await;
        if !self.safe().await? {
            let text = "a failover was no longer safe right after the line got worse";
            self.failures.push(text.to_owned());
        }
        self.lose(site).await
    }

    /// Whether the primary's site says that a failover is safe.
    async fn safe(&self) -> Result<bool, StageError> {
        let site = self.before.primary;
        let active = &self.before.sites[site].active;
        let status = self.zones.status(site, active).await?;
        Ok(status
            .zone
            .is_some_and(|zone| promises(&zone) && zone.failover.safe))
    }

    /// Each site's active before the fault.
    fn actives(&self) -> Vec<(usize, String)> {
        let casts = self.before.sites.iter().enumerate();
        casts
            .map(|(site, cast)| (site, cast.active.clone()))
            .collect()
    }

    async fn kill_replica(&mut self) -> Result<(), StageError> {
        let site = self.before.replica();
        let cast = &self.before.sites[site];
        self.progress.step("killing the replica site's active");
        self.fault.get_or_insert_with(clock::now);
        self.zones.site(site).kill_side(&cast.active).await?;
        let newer = Some(cast.epoch);
        self.zones
            .serves(site, ServingAs::Replica, newer, self.max_gap)
            .await?;
        self.writers_are_back().await;
        Ok(())
    }

    async fn overflow(&mut self) -> Result<(), StageError> {
        let site = self.before.replica();
        let label = self.label(site).await?;
        self.progress.step("killing the replica's site");
        self.fault.get_or_insert_with(clock::now);
        self.zones.site(site).kill_site().await?;
        self.writers_are_back().await;
        self.progress
            .step("writing more log than its slot may keep, and than the volume holds");
        let (volume, primary) = (self.zones.lab().record.size, self.primary());
        let most = slots::overflow(primary, Zones::name(site), volume).await?;
        self.notes.push(format!(
            "the primary kept {} MiB of log at most",
            most >> 20
        ));
        if most >= volume {
            self.failures
                .push(format!("{most} bytes of log fill a volume of {volume}"));
        }
        self.back().await?;
        self.came_back(site, Way::Copied, &label).await?;
        self.slot_keeps().await
    }

    /// The replica's slot is there and keeps what it needs.
    async fn slot_keeps(&mut self) -> Result<(), StageError> {
        let site = Zones::name(self.before.replica());
        let status = slots::wal_status(self.primary(), site).await?;
        if !matches!(status.as_deref(), Some("reserved" | "extended")) {
            self.failures
                .push(format!("the slot of site {site} is {status:?}"));
        }
        Ok(())
    }

    /// The primary before the fault.
    fn primary(&mut self) -> SocketAddr {
        let site = self.before.primary;
        let active = &self.before.sites[site].active;
        self.zones.site(site).postgres(active)
    }
}
