//! A running lab as a drill handles it: who is active, the processes of a side, and every fault
//! with its undoing.

use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::cast::{self, Cast};
use super::stage_error::StageError;
use super::target::{Audit, Target};
use crate::clock;
use crate::control::{self, Client, Reply, Status};
use crate::lab::fuse::{self, Connection};
use crate::lab::layout::{Lab, MEMBERS};
use crate::lab::process::{self, Process, signal_all};
use crate::lab::protocol::{Request, State, ask_supervisor};

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

/// How often a lab is looked at: processes and members tell of no change by themselves.
const LOOK: Duration = Duration::from_millis(20);

/// How long signals may take to be carried out.
const SIGNALS_WITHIN: Duration = Duration::from_secs(10);

/// How a fault is undone.
#[derive(Clone, Debug)]
pub enum Undo {
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

/// The lab under drill.
#[derive(Debug)]
pub struct Stage {
    /// Its paths and ports.
    pub lab: Lab,
    /// Its target.
    pub target: Target,
    /// The records of targets that were restarted since.
    gone: Audit,
    undo: Vec<Undo>,
}

impl Stage {
    /// The stage of a running lab.
    pub fn new(lab: Lab) -> Self {
        let target = Target {
            socket: lab.target_socket(),
        };
        Self {
            lab,
            target,
            gone: Audit::default(),
            undo: Vec::new(),
        }
    }

    /// Asks the supervisor.
    pub async fn ask(&self, request: Request) -> Result<State, StageError> {
        let within = match request {
            Request::Stop { .. } | Request::StopTarget | Request::Shutdown => STOP_WITHIN,
            Request::Status
            | Request::Hold { .. }
            | Request::Release { .. }
            | Request::Links { .. }
            | Request::StartTarget { .. } => ASK_WITHIN,
        };
        Ok(ask_supervisor(&self.lab.supervisor_socket(), &request, within).await?)
    }

    /// What a member says of itself.
    pub async fn status(&self, member: &str) -> Result<Status, StageError> {
        match self
            .ask_member(member, control::Request::Status, STATUS_WITHIN)
            .await?
        {
            Reply::Status(status) => Ok(*status),
            Reply::History(_) | Reply::Done | Reply::Refused { .. } => {
                Err(self.missing(member, "status"))
            }
        }
    }

    /// Hands over to whoever is ready; returns when the new active serves.
    pub async fn switchover(&self, member: &str) -> Result<(), StageError> {
        let request = control::Request::Switchover { to: None };
        self.ask_member(member, request, SWITCHOVER_WITHIN)
            .await
            .map(drop)
    }

    /// Asks a member, and waits for the last reply: a switchover tells its progress before.
    async fn ask_member(
        &self,
        member: &str,
        request: control::Request,
        within: Duration,
    ) -> Result<Reply, StageError> {
        let socket = self.lab.member(member).socket();
        let asked = tokio::task::spawn_blocking(move || {
            let progresses = matches!(request, control::Request::Switchover { .. });
            let mut client = Client::connect(&socket, within)?;
            client.send(&request)?;
            loop {
                match client.receive()? {
                    Reply::Status(_) if progresses => {}
                    reply => return Ok(reply),
                }
            }
        });
        let asked = asked
            .await
            .unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
        asked.map_err(|source| StageError::Member {
            member: member.to_owned(),
            source,
        })
    }

    /// Waits until one member serves and the other is ready to take over.
    pub async fn steady(&self, within: Duration) -> Result<Cast, StageError> {
        let until = clock::now() + within;
        loop {
            let mut views = Vec::new();
            for name in MEMBERS {
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
    pub async fn moved(&self, before: &Cast, within: Duration) -> Result<(), StageError> {
        let what = format!("a take-over by {}", before.standby);
        self.until(&what, within, async || {
            let Ok(status) = self.status(&before.standby).await else {
                return Ok(false);
            };
            let epoch = status.members.first().and_then(|member| member.epoch);
            Ok(status.serving && epoch.is_some_and(|epoch| epoch > before.epoch))
        })
        .await
    }

    /// Waits until any member serves with a greater epoch.
    pub async fn owned_anew(&self, before: &Cast, within: Duration) -> Result<(), StageError> {
        self.until("service with a new epoch", within, async || {
            for name in MEMBERS {
                let Ok(status) = self.status(name).await else {
                    continue;
                };
                let epoch = status.members.first().and_then(|member| member.epoch);
                if status.serving && epoch.is_some_and(|epoch| epoch > before.epoch) {
                    return Ok(true);
                }
            }
            Ok(false)
        })
        .await
    }

    /// Waits for a condition on the lab's processes or the target.
    pub async fn until(
        &self,
        what: &str,
        within: Duration,
        mut holds: impl AsyncFnMut() -> Result<bool, StageError>,
    ) -> Result<(), StageError> {
        let until = clock::now() + within;
        while !holds().await? {
            if clock::now() >= until {
                let state = "it is as before".to_owned();
                return Err(StageError::Overdue {
                    what: what.to_owned(),
                    within,
                    state,
                });
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// The member's process, as its supervisor started it.
    pub async fn process(&self, member: &str) -> Result<Process, StageError> {
        let state = self.ask(Request::Status).await?;
        let process = state.members.get(member).and_then(|member| member.process);
        process.ok_or_else(|| self.missing(member, "process"))
    }

    fn missing(&self, member: &str, what: &'static str) -> StageError {
        StageError::Missing {
            member: member.to_owned(),
            what,
        }
    }

    /// The member's bridge.
    pub async fn bridge(&self, member: &str) -> Result<Process, StageError> {
        let is_bridge = |process: &Process| {
            process::arguments(*process)
                .get(1)
                .is_some_and(|command| command == "bridge")
        };
        let tree = self.process(member).await?.tree();
        tree.into_iter()
            .find(is_bridge)
            .ok_or_else(|| self.missing(member, "bridge"))
    }

    /// The member's postmaster: of its PostgreSQL processes the one nearest to it.
    pub async fn postmaster(&self, member: &str) -> Result<Process, StageError> {
        let tree = self.process(member).await?.tree();
        tree.into_iter()
            .find(is_postgres)
            .ok_or_else(|| self.missing(member, "postmaster"))
    }

    /// Whether any PostgreSQL of the member runs.
    pub async fn serves(&self, member: &str) -> Result<bool, StageError> {
        Ok(self.process(member).await?.tree().iter().any(is_postgres))
    }

    /// Sends a signal to processes of a member.
    pub fn signal(
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

    /// SIGKILL to everything of a member, which stays down until [`Undo::Release`].
    pub async fn kill_side(&mut self, member: &str) -> Result<(), StageError> {
        let root = self.process(member).await?;
        self.ask(Request::Hold {
            member: member.to_owned(),
        })
        .await?;
        self.undo.push(Undo::Release(member.to_owned()));
        let tree = root.tree();
        self.signal(member, &tree, Signal::SIGKILL)?;
        self.until(
            "the end of everything of the active",
            SIGNALS_WITHIN,
            async || Ok(!tree.iter().any(|process| process.lives())),
        )
        .await
    }

    /// SIGSTOP to everything of a member; the bridge first, so that writes queue in it: those are
    /// what a zombie sends when it wakes up.
    pub async fn freeze(&mut self, member: &str) -> Result<(), StageError> {
        let root = self.process(member).await?;
        let bridge = self.bridge(member).await?;
        self.undo.push(Undo::Thaw(vec![bridge]));
        self.signal(member, &[bridge], Signal::SIGSTOP)?;
        let fuse = |what| {
            move |source| StageError::Io {
                what,
                path: fuse::CONTROL.into(),
                source,
            }
        };
        let queue = Connection::of(bridge).map_err(fuse("find the bridge's connection in"))?;
        self.until(
            "a write queued in the stopped bridge",
            SIGNALS_WITHIN,
            async || queue.waits().map_err(fuse("count the waiting requests in")),
        )
        .await?;
        let mut frozen = vec![bridge];
        // children that were forked while their parents were being stopped are found the next time
        loop {
            let tree = root.tree();
            let fresh: Vec<_> = tree.into_iter().filter(|p| !frozen.contains(p)).collect();
            if fresh.is_empty() {
                break;
            }
            self.signal(member, &fresh, Signal::SIGSTOP)?;
            frozen.extend(fresh);
            self.undo.pop();
            self.undo.push(Undo::Thaw(frozen.clone()));
        }
        Ok(())
    }

    /// SIGCONT to all that was frozen, the bridge and PostgreSQL before the member: so the zombie's
    /// writes really reach the target before the member learns that it was replaced.
    pub async fn thaw(
        &mut self,
        member: &str,
        between: impl AsyncFnOnce(&Self) -> Result<(), StageError>,
    ) -> Result<(), StageError> {
        let root = self.process(member).await?;
        for undo in std::mem::take(&mut self.undo) {
            match undo {
                Undo::Thaw(frozen) => {
                    let (own, others): (Vec<_>, Vec<_>) = frozen.iter().partition(|p| **p == root);
                    self.signal(member, &others, Signal::SIGCONT)?;
                    self.undo.push(Undo::Thaw(own));
                }
                other => self.undo.push(other),
            }
        }
        between(self).await
    }

    /// Cuts a member's path to the target.
    pub async fn cut_storage(&mut self, member: &str) -> Result<(), StageError> {
        let nqn = self.lab.member(member).host_nqn();
        self.undo.push(Undo::HealStorage(nqn.clone()));
        Ok(self.target.blackhole(&nqn).await?)
    }

    /// Cuts a member off from its peers and from the lease store.
    pub async fn isolate(&mut self, member: &str) -> Result<(), StageError> {
        self.undo.push(Undo::HealLinks);
        self.ask(Request::Links { cut: true }).await?;
        self.undo.push(Undo::ReachLease(member.to_owned()));
        Ok(self.lab.member(member).reach_lease(false)?)
    }

    /// Takes the lease store away from all members.
    pub fn lose_lease(&mut self) -> Result<(), StageError> {
        let (here, away) = self.lease_directories();
        self.undo.push(Undo::RestoreLease);
        rename(&here, &away)
    }

    fn lease_directories(&self) -> (PathBuf, PathBuf) {
        let here = self.lab.lease_directory();
        let away = here.with_extension("away");
        (here, away)
    }

    /// The target's own record, also of what ran before a restart by [`Stage::restart_target`].
    pub async fn audit(&self) -> Result<Audit, StageError> {
        Ok(self.target.audit().await?.after(self.gone.clone()))
    }

    /// Restarts the target.
    pub async fn restart_target(
        &mut self,
        keep_reservations: bool,
        volatile_cache: bool,
    ) -> Result<(), StageError> {
        self.gone = self.audit().await?;
        self.undo.push(Undo::StartTarget);
        self.ask(Request::StopTarget).await?;
        self.ask(Request::StartTarget {
            keep_reservations,
            volatile_cache,
        })
        .await?;
        self.lab.record.volatile_cache = volatile_cache;
        self.undo.pop();
        Ok(())
    }

    /// Undoes every fault, the latest first. Goes on after a failure, and returns the first one.
    pub async fn undo(&mut self) -> Result<(), StageError> {
        let mut first = Ok(());
        while let Some(undo) = self.undo.pop() {
            first = first.and(self.undo_one(undo).await);
        }
        first
    }

    async fn undo_one(&self, undo: Undo) -> Result<(), StageError> {
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
                    keep_reservations: true,
                    volatile_cache,
                };
                self.ask(start).await.map(drop)
            }
        }
    }

    /// Stops both members cleanly: the standby first, and the active when it knows that there is
    /// nobody left to hand over to.
    pub async fn quiesce(&mut self, cast: &Cast) -> Result<(), StageError> {
        self.undo.push(Undo::Release(cast.standby.clone()));
        self.ask(Request::Stop {
            member: cast.standby.clone(),
        })
        .await?;
        self.until(
            "the active's notice that the standby left",
            NOTICE_WITHIN,
            async || {
                let status = self.status(&cast.active).await?;
                Ok(!status
                    .members
                    .iter()
                    .any(|member| member.ready && member.name == cast.standby))
            },
        )
        .await?;
        self.undo.push(Undo::Release(cast.active.clone()));
        self.ask(Request::Stop {
            member: cast.active.clone(),
        })
        .await?;
        Ok(())
    }

    /// Leaves the members stopped after [`Stage::quiesce`]: the lab is about to end.
    pub fn leave_stopped(&mut self) {
        self.undo.retain(|undo| !matches!(undo, Undo::Release(_)));
    }
}

fn is_postgres(process: &Process) -> bool {
    process::program(*process) == "postgres"
}

fn rename(from: &std::path::Path, to: &std::path::Path) -> Result<(), StageError> {
    let failed = |source| StageError::Io {
        what: "move",
        path: from.to_owned(),
        source,
    };
    std::fs::rename(from, to).map_err(failed)
}
