//! A lab's site as a drill's ground: two members, and a target that keeps a record.

mod processes;
mod side;
mod undo;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::Signal;

use self::undo::Undo;
use super::cast::Cast;
use super::check::{self, Checked};
use super::ground::Ground;
use super::stage_error::StageError;
use super::target::{Audit, Target};
use super::timeline::Done;
use super::wait::until;
use crate::control::{self, Reply, Status};
use crate::lab::layout::{Lab, postgres_bin};
use crate::lab::protocol::{Request, State, ask_supervisor};
use crate::lab::site::Site;

/// How long the supervisor may take for anything but stopping a member.
const ASK_WITHIN: Duration = Duration::from_secs(30);

/// How long a member may take to stop cleanly; the supervisor's own bound and some.
const STOP_WITHIN: Duration = Duration::from_secs(60);

/// How long a member may take to tell how it is.
const STATUS_WITHIN: Duration = Duration::from_secs(2);

/// How long an active may take to notice that its standby left: some heartbeats and beats.
const NOTICE_WITHIN: Duration = Duration::from_secs(10);

/// How long a switchover may take.
const SWITCHOVER_WITHIN: Duration = Duration::from_secs(60);

/// How long the lab may take until it is steady again after its target was restarted.
const STEADY_WITHIN: Duration = Duration::from_secs(90);

/// One site of the lab under drill; most labs have no other.
#[derive(Debug)]
pub struct LabGround {
    /// Its paths and ports.
    pub lab: Lab,
    /// The site's name, if there are several.
    site: Option<&'static str>,
    target: Target,
    /// The records of targets that were restarted since.
    gone: Audit,
    undo: Vec<Undo>,
}

impl LabGround {
    /// The only site of a running lab, or its first one.
    pub fn new(lab: Lab) -> Self {
        let site = lab.sites().first().and_then(|site| site.name);
        Self::of_site(lab, site)
    }

    /// One site of a running lab.
    pub fn of_site(lab: Lab, site: Option<&'static str>) -> Self {
        let socket = Site::new(&lab, site).target_socket();
        Self {
            lab,
            site,
            target: Target { socket },
            gone: Audit::default(),
            undo: Vec::new(),
        }
    }

    /// Its paths and addresses.
    pub fn site(&self) -> Site<'_> {
        Site::new(&self.lab, self.site)
    }

    fn site_name(&self) -> Option<String> {
        self.site.map(str::to_owned)
    }

    /// Asks the supervisor.
    pub(in crate::drill) async fn ask(&self, request: Request) -> Result<State, StageError> {
        let within = match request {
            Request::Stop { .. } | Request::StopTarget { .. } | Request::Shutdown => STOP_WITHIN,
            Request::Status
            | Request::Hold { .. }
            | Request::Release { .. }
            | Request::Links { .. }
            | Request::Line { .. }
            | Request::HoldTarget { .. }
            | Request::StartTarget { .. } => ASK_WITHIN,
        };
        Ok(ask_supervisor(&self.lab.supervisor_socket(), &request, within).await?)
    }

    /// Asks a member, and waits for its last reply.
    async fn ask_member(
        &self,
        member: &str,
        request: control::Request,
        within: Duration,
    ) -> Result<Reply, StageError> {
        let socket = self.lab.member(member).socket();
        let ask = move || control::ask(&socket, &request, within);
        let asked = tokio::task::spawn_blocking(ask)
            .await
            .unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
        asked.map_err(|source| StageError::Member {
            member: member.to_owned(),
            source,
        })
    }

    fn lease_directories(&self) -> (PathBuf, PathBuf) {
        let here = self.lab.lease_directory();
        let away = here.with_extension("away");
        (here, away)
    }

    async fn restart(
        &mut self,
        keep_reservations: bool,
        volatile_cache: bool,
    ) -> Result<(), StageError> {
        self.gone = self.audit().await?;
        self.undo.push(Undo::StartTarget);
        let site = self.site_name();
        self.ask(Request::StopTarget { site: site.clone() }).await?;
        self.ask(Request::StartTarget {
            site,
            keep_reservations,
            volatile_cache,
        })
        .await?;
        self.lab.record.volatile_cache = volatile_cache;
        self.undo.pop();
        Ok(())
    }

    /// Stops a member, which is started again by the undoing.
    async fn stop(&mut self, member: &str) -> Result<(), StageError> {
        let member = member.to_owned();
        self.undo.push(Undo::Release(member.clone()));
        self.ask(Request::Stop { member }).await.map(drop)
    }
}

impl Ground for LabGround {
    fn members(&self) -> [&str; 2] {
        self.site().members()
    }

    fn postgres(&self, member: &str) -> SocketAddr {
        self.lab.member(member).postgres()
    }

    fn host_id(&self, member: &str) -> String {
        self.lab.member(member).record().host_id.to_string()
    }

    async fn status(&self, member: &str) -> Result<Status, StageError> {
        match self
            .ask_member(member, control::Request::Status, STATUS_WITHIN)
            .await?
        {
            Reply::Status(status) => Ok(*status),
            Reply::History(_) | Reply::Done | Reply::Refused { .. } => {
                Err(StageError::missing(member, "status"))
            }
        }
    }

    async fn serves(&self, member: &str) -> Result<bool, StageError> {
        self.runs_postgres(member).await
    }

    async fn with_volatile_cache(&mut self, cast: &Cast) -> Result<(), StageError> {
        if self.lab.record.volatile_cache {
            return Ok(());
        }
        self.quiesce(cast).await?;
        self.restart(true, true).await?;
        self.undo().await?;
        self.steady(STEADY_WITHIN).await.map(drop)
    }

    async fn switchover(&mut self, member: &str) -> Result<(), StageError> {
        let request = control::Request::Switchover { to: None };
        self.ask_member(member, request, SWITCHOVER_WITHIN)
            .await
            .map(drop)
    }

    async fn terminate(&mut self, member: &str) -> Result<(), StageError> {
        let process = self.process(member).await?;
        self.signal(member, &[process], Signal::SIGTERM)
    }

    async fn kill_side(&mut self, member: &str) -> Result<(), StageError> {
        self.kill_all_of(member).await
    }

    async fn panic(&mut self, _member: &str) -> Result<(), StageError> {
        Err(StageError::Unsupported {
            fault: "a kernel's panic",
            ground: "a lab, whose members share one kernel",
        })
    }

    async fn kill_postmaster(&mut self, member: &str) -> Result<(), StageError> {
        let postmaster = self.postmaster(member).await?;
        self.signal(member, &[postmaster], Signal::SIGKILL)
    }

    async fn freeze(&mut self, member: &str) -> Result<(), StageError> {
        self.freeze_all_of(member).await
    }

    async fn thaw(&mut self, member: &str) -> Result<(), StageError> {
        self.thaw_all_but(member).await
    }

    async fn cut_storage(&mut self, member: &str) -> Result<(), StageError> {
        let nqn = self.lab.member(member).host_nqn();
        self.undo.push(Undo::HealStorage(nqn.clone()));
        Ok(self.target.blackhole(&nqn).await?)
    }

    async fn isolate(&mut self, member: &str) -> Result<(), StageError> {
        self.undo.push(Undo::HealLinks);
        self.ask(Request::Links { cut: true }).await?;
        self.undo.push(Undo::ReachLease(member.to_owned()));
        Ok(self.lab.member(member).reach_lease(false)?)
    }

    async fn lose_lease(&mut self) -> Result<(), StageError> {
        let (here, away) = self.lease_directories();
        self.undo.push(Undo::RestoreLease);
        undo::rename(&here, &away)
    }

    fn keeps_reservations(&self) -> bool {
        true
    }

    async fn restart_target(&mut self, keep_reservations: bool) -> Result<(), StageError> {
        self.restart(keep_reservations, self.lab.record.volatile_cache)
            .await
    }

    async fn lose_power(&mut self) -> Result<(), StageError> {
        Ok(self.target.power_loss().await?)
    }

    async fn audit(&self) -> Result<Audit, StageError> {
        Ok(self.target.audit().await?.after(self.gone.clone()))
    }

    async fn steps(&self) -> Result<Vec<Done>, StageError> {
        let of = |name: &str| {
            let steps = crate::journal::steps(&self.lab.member(name).journal());
            let name = name.to_owned();
            steps.into_iter().map(move |step| (name.clone(), step))
        };
        Ok(self.site().members().into_iter().flat_map(of).collect())
    }

    async fn undo(&mut self) -> Result<(), StageError> {
        let mut first = Ok(());
        while let Some(undo) = self.undo.pop() {
            first = first.and(self.undo_one(undo).await);
        }
        first
    }

    async fn quiesce(&mut self, cast: &Cast) -> Result<(), StageError> {
        self.stop(&cast.standby).await?;
        let what = "the active's notice that the standby left";
        until(what, NOTICE_WITHIN, async || {
            let status = self.status(&cast.active).await?;
            let mut members = status.members.iter();
            Ok(!members.any(|member| member.ready && member.name == cast.standby))
        })
        .await?;
        self.stop(&cast.active).await
    }

    async fn inspect(&mut self) -> Result<[Checked; 2], StageError> {
        let (image, bin_dir) = (self.site().namespace(), postgres_bin()?);
        let mount_point = check::mount_point(&self.lab.dir).map_err(|source| StageError::Io {
            what: "make the directory for the checks in",
            path: self.lab.dir.clone(),
            source,
        })?;
        let e2fsck = check::e2fsck(&image).await;
        let checksums = check::checksums(&image, &mount_point, &bin_dir).await;
        Ok([e2fsck, checksums])
    }

    fn leave_stopped(&mut self) {
        self.undo.retain(|undo| !matches!(undo, Undo::Release(_)));
    }
}
