//! Both sites of a lab as a drill's ground, and the line between them.

use std::net::SocketAddr;
use std::time::Duration;

use super::cast::{SITES, ZoneCast, describe_all, serves_as};
use crate::clock;
use crate::control::Status;
use crate::control::zone::ServingAs;
use crate::drill::cast::View;
use crate::drill::check::{self, Checked};
use crate::drill::ground::Ground;
use crate::drill::lab::LabGround;
use crate::drill::stage_error::StageError;
use crate::drill::timeline::Done;
use crate::drill::wait::until;
use crate::lab::layout::{Lab, LayoutError, SITES as NAMES};
use crate::lab::protocol::Request;
use crate::lab::wan::shape::Shape;

/// How often the members are looked at: they tell of no change by themselves.
const LOOK: Duration = Duration::from_millis(50);

/// Two sites under drill.
#[derive(Debug)]
pub struct Zones {
    lab: Lab,
    /// Each with the faults of its own members and target.
    sites: [LabGround; SITES],
    /// The line is not as it was.
    line_changed: bool,
    /// Sites whose members do not reach the lease store.
    cut_off: Vec<usize>,
}

impl Zones {
    /// The sites of a running lab.
    ///
    /// # Errors
    /// The lab has one site.
    pub fn new(lab: Lab) -> Result<Self, LayoutError> {
        if lab.record.wide.is_none() {
            return Err(LayoutError::Sites {
                dir: lab.dir,
                has: 1,
            });
        }
        let sites = NAMES.map(|name| LabGround::of_site(lab.clone(), Some(name)));
        Ok(Self {
            lab,
            sites,
            line_changed: false,
            cut_off: Vec::new(),
        })
    }

    /// Its paths and addresses.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// One site as a ground of its own.
    pub fn site(&mut self, site: usize) -> &mut LabGround {
        &mut self.sites[site]
    }

    /// A site's name.
    pub fn name(site: usize) -> &'static str {
        NAMES[site]
    }

    /// Where clients reach PostgreSQL of all members.
    pub fn servers(&self) -> Vec<SocketAddr> {
        let sites = self.sites.iter();
        sites
            .flat_map(|site| site.members().map(|member| site.postgres(member)))
            .collect()
    }

    /// What a member of a site says of itself.
    pub async fn status(&self, site: usize, member: &str) -> Result<Status, StageError> {
        self.sites[site].status(member).await
    }

    /// What all members say of themselves.
    async fn views(&self) -> [Vec<View<'_>>; SITES] {
        let mut all = [Vec::new(), Vec::new()];
        for (site, views) in self.sites.iter().zip(&mut all) {
            for member in site.members() {
                views.push((member, site.status(member).await));
            }
        }
        all
    }

    /// Waits until one site serves as primary, the other follows, both have a ready standby, and
    /// every commit is confirmed on both.
    pub async fn steady(&self, within: Duration) -> Result<ZoneCast, StageError> {
        let until = clock::now() + within;
        loop {
            let views = self.views().await;
            if let Some(cast) = ZoneCast::of(&views) {
                return Ok(cast);
            }
            if clock::now() >= until {
                let what = "a primary at one site, its confirmed replica at the other, a ready \
                            standby at each";
                return Err(StageError::Overdue {
                    what: what.to_owned(),
                    within,
                    state: describe_all(&views),
                });
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Waits until a member of the site serves in this role, with a greater epoch than `epoch` if
    /// one is given.
    pub async fn serves(
        &self,
        site: usize,
        wanted: ServingAs,
        epoch: Option<u32>,
        within: Duration,
    ) -> Result<(), StageError> {
        let what = format!("service as {wanted:?} by site {}", Self::name(site));
        let ground = &self.sites[site];
        until(&what, within, async || {
            for member in ground.members() {
                let Ok(status) = ground.status(member).await else {
                    continue;
                };
                let own = status.members.first().and_then(|member| member.epoch);
                if serves_as(&status, wanted) && epoch.is_none_or(|epoch| own > Some(epoch)) {
                    return Ok(true);
                }
            }
            Ok(false)
        })
        .await
    }

    /// The member that serves at a site.
    pub async fn active(&self, site: usize) -> Result<String, StageError> {
        let ground = &self.sites[site];
        for member in ground.members() {
            let status = ground.status(member).await?;
            let serves = |wanted| serves_as(&status, wanted);
            if serves(ServingAs::Primary) || serves(ServingAs::Replica) {
                return Ok(member.to_owned());
            }
        }
        Err(StageError::missing(Self::name(site), "active"))
    }

    /// What the line between the sites does from now on.
    pub async fn line(&mut self, shape: Shape) -> Result<(), StageError> {
        self.line_changed = true;
        self.sites[0].ask(Request::Line { shape }).await.map(drop)
    }

    /// Cuts a site off from the lease store and from the other site. Clients still reach it.
    pub async fn cut_off(&mut self, site: usize) -> Result<(), StageError> {
        self.cut_off.push(site);
        self.reach_lease(site, false)?;
        self.line(Shape::CUT).await
    }

    fn reach_lease(&self, site: usize, reachable: bool) -> Result<(), StageError> {
        for member in self.sites[site].members() {
            self.lab.member(member).reach_lease(reachable)?;
        }
        Ok(())
    }

    /// Undoes every fault. Goes on after a failure, and returns the first one.
    pub async fn undo(&mut self) -> Result<(), StageError> {
        let mut first = Ok(());
        if std::mem::take(&mut self.line_changed) {
            first = first.and(self.line(Shape::default()).await);
            self.line_changed = first.is_err();
        }
        for site in std::mem::take(&mut self.cut_off) {
            first = first.and(self.reach_lease(site, true));
        }
        for site in &mut self.sites {
            first = first.and(site.undo().await);
        }
        first
    }

    /// Every step that the journals of all members tell of.
    pub async fn steps(&self) -> Result<Vec<Done>, StageError> {
        let mut steps = Vec::new();
        for site in &self.sites {
            steps.extend(site.steps().await?);
        }
        Ok(steps)
    }

    /// Stops everything cleanly: the replica's site first, in each the standby first.
    pub async fn quiesce(&mut self, cast: &ZoneCast) -> Result<(), StageError> {
        for site in [cast.replica(), cast.primary] {
            self.sites[site].quiesce(&cast.sites[site]).await?;
        }
        Ok(())
    }

    /// `e2fsck` and `pg_checksums` on each site's volume at rest.
    pub async fn inspect(&mut self) -> Result<[[Checked; 2]; SITES], StageError> {
        let [a, b] = &mut self.sites;
        Ok([a.inspect().await?, b.inspect().await?])
    }

    /// Leaves everything stopped after [`Zones::quiesce`]: all this is about to end.
    pub fn leave_stopped(&mut self) {
        self.sites.iter_mut().for_each(Ground::leave_stopped);
    }

    /// Takes the log away from the data directory of a site that was killed, so that it is no use for
    /// rewinding.
    pub async fn lose_log(&self, site: usize) -> Result<(), StageError> {
        let image = self.sites[site].site().namespace();
        let mount_point = check::mount_point(&self.lab.dir).map_err(|source| StageError::Io {
            what: "make the directory to mount on in",
            path: self.lab.dir.clone(),
            source,
        })?;
        let lost = check::without_log(&image, &mount_point).await;
        lost.finding.map_or(Ok(()), |why| {
            Err(StageError::Machine {
                what: format!("take the log away at site {}", Self::name(site)),
                why,
            })
        })
    }
}
