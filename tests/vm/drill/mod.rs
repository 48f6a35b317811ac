//! The machines as a drill's ground: a member on each node, on the kernel's own NVMe/TCP, and the
//! kernel's target, whose trace is the record of who wrote when.

mod audit;
pub mod follow;
mod member;
pub mod trace;
pub mod volume;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use baton::clock::{self, Mono};
use baton::control::{Reply, Request, Status};
use baton::drill::cast::Cast;
use baton::drill::check::Checked;
use baton::drill::ground::Ground;
use baton::drill::stage_error::StageError;
use baton::drill::target::Audit;
use baton::drill::timeline::Done;
use baton::drill::wait::until;

use self::member::Member;
pub use self::member::TIMINGS;
use self::trace::Trace;
use crate::lease;
use crate::machine::Machine;
use crate::machines::Machines;
use crate::network::Network;
use crate::nvmet::Target;

/// How long a member may take to tell how it is, under KVM.
const STATUS_WITHIN: Duration = Duration::from_secs(2);

/// How long a switchover may take, under KVM.
const SWITCHOVER_WITHIN: Duration = Duration::from_secs(60);

/// How long a member may take to stop, and another to notice it, under KVM.
const STOP_WITHIN: Duration = Duration::from_secs(60);

/// How long the members may take to make the database and serve, under KVM.
const SERVES_WITHIN: Duration = Duration::from_secs(120);

/// The names of both members: those of their machines.
const MEMBERS: [&str; 2] = ["node-a", "node-b"];

/// What of a side is frozen; its member always is, so that its kernel's queued writes reach the target
/// before the member hears that it was replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freezes {
    /// The machine's processors, and with them its clocks.
    Machine,
    /// The kernel's path to the target: it queues what it cannot send, for as long as it takes.
    Path,
}

/// How a fault is undone.
enum Undo {
    Thaw(String),
    Link(String),
    /// Boot the machine again, and start its member.
    Boot(String),
    /// Start a member again.
    Start(String),
}

/// The system under drill.
pub struct VmGround<'a> {
    machines: &'a mut Machines,
    trace: Option<Trace>,
    members: [Member; 2],
    /// What [`Ground::freeze`] freezes.
    pub freezes: Freezes,
    undo: Vec<Undo>,
    frozen: Option<Frozen>,
}

/// A machine whose clocks stood still.
struct Frozen {
    name: String,
    /// Since when, by our clock.
    since: Mono,
    /// What its clock lacked before.
    offset_ms: i64,
}

impl<'a> VmGround<'a> {
    /// A blank volume, its target, the lease directory, and both members started.
    pub async fn up(machines: &'a mut Machines) -> Result<Self> {
        volume::blank(&machines.storage).await?;
        Target::up(&machines.storage).await?;
        lease::share(machines).await?;
        machines
            .storage
            .shell(&format!("rm -rf {}/*", lease::DIRECTORY))
            .await?;
        let nodes = [&machines.node_a, &machines.node_b];
        let members = nodes.map(|node| Member::new(node, &nodes));
        let mut ground = Self {
            machines,
            trace: None,
            members,
            freezes: Freezes::Machine,
            undo: Vec::new(),
            frozen: None,
        };
        for name in MEMBERS {
            ground.start(name).await?;
        }
        let within = ground.machines.storage.patience(SERVES_WITHIN);
        match ground.steady(within).await {
            Ok(cast) => {
                let owner = ground.host_id(&cast.active);
                let (storage, agent) = (&ground.machines.storage, &ground.machines.common.agent);
                let agent = agent.display().to_string();
                ground.trace = Some(Trace::begin(storage, &agent, owner).await?);
                Ok(ground)
            }
            Err(error) => {
                let logs = ground.logs().await;
                ground.down().await?;
                Err(anyhow::Error::from(error).context(logs))
            }
        }
    }

    /// Takes the members, their attachments and the target away.
    pub async fn down(mut self) -> Result<()> {
        for name in MEMBERS {
            let (node, member) = (self.node(name)?, self.member(name)?);
            member.kill(node).await?;
            volume::detach(node).await?;
        }
        if let Some(trace) = &self.trace {
            trace.end(&self.machines.storage).await?;
        }
        self.undo.clear();
        volume::stop(&self.machines.storage).await
    }

    /// What went wrong on the machines, for whoever looks for the cause: the members' last lines.
    pub async fn logs(&self) -> String {
        let mut logs = String::new();
        for name in MEMBERS {
            let Ok(node) = self.node(name) else { continue };
            let tail = node.run(&["tail", "-n", "40", member::LOG]).await;
            let tail = tail.map_or_else(|error| format!("{error:#}"), |output| output.stdout);
            logs += &format!("  member on {name}:\n{tail}\n");
        }
        logs
    }

    fn node(&self, name: &str) -> Result<&Machine> {
        self.machines.by_name(name).context("a member's machine")
    }

    fn member(&self, name: &str) -> Result<&Member> {
        let mut members = self.members.iter();
        members
            .find(|member| member.name == name)
            .context("a member")
    }

    async fn start(&mut self, name: &str) -> Result<()> {
        let node = self.machines.by_name(name).context("a member's machine")?;
        let member = self.members.iter_mut().find(|member| member.name == name);
        member.context("a member")?.start(node).await
    }

    /// Ends a freeze for all but the member.
    async fn wake(&self, name: &str) -> Result<()> {
        let node = self.node(name)?;
        match self.freezes {
            Freezes::Machine => node.thaw().await,
            Freezes::Path => node.link(Network::Storage, true).await,
        }
    }

    async fn boot(&mut self, name: &str) -> Result<()> {
        self.machines.boot_missing().await?;
        lease::share(self.machines).await?;
        self.start(name).await
    }

    async fn ask(&self, name: &str, request: Request, within: Duration) -> Result<Reply> {
        let node = self.node(name)?;
        node.member(member::SOCKET, request, node.patience(within))
            .await
    }

    async fn undo_one(&mut self, undo: Undo) -> Result<()> {
        match undo {
            Undo::Thaw(name) => {
                self.wake(&name).await?;
                self.member(&name)?.signal(self.node(&name)?, "CONT").await
            }
            Undo::Link(name) => self.node(&name)?.link(Network::Storage, true).await,
            Undo::Boot(name) => self.boot(&name).await,
            Undo::Start(name) => {
                let (node, member) = (self.node(&name)?, self.member(&name)?);
                member.ended(node, node.patience(STOP_WITHIN)).await?;
                self.start(&name).await
            }
        }
    }

    /// Terminates a member and waits for its end.
    async fn stop(&mut self, name: &str) -> Result<()> {
        let (node, member) = (self.node(name)?, self.member(name)?);
        member.signal(node, "TERM").await?;
        member.ended(node, node.patience(STOP_WITHIN)).await?;
        self.undo.push(Undo::Start(name.to_owned()));
        Ok(())
    }

    /// A moment of a machine's clock by ours; the offset is today's.
    fn by_our_clock(&self, name: &str, there: Mono, offset_ms: i64) -> Mono {
        let ours =
            |offset_ms| Mono::from_millis(there.as_millis().saturating_add_signed(offset_ms));
        let frozen = self.frozen.as_ref().filter(|frozen| frozen.name == name);
        let before = frozen.filter(|frozen| ours(frozen.offset_ms) <= frozen.since);
        ours(before.map_or(offset_ms, |frozen| frozen.offset_ms))
    }

    fn machine_of(&mut self, name: &str) -> Result<&mut Machine> {
        self.machines
            .by_name_mut(name)
            .context("a member's machine")
    }
}

/// A failure in the drill's own words.
fn machine<T>(what: &str, result: Result<T>) -> Result<T, StageError> {
    result.map_err(|error| StageError::Machine {
        what: what.to_owned(),
        why: format!("{error:#}"),
    })
}

fn unsupported(fault: &'static str) -> Result<(), StageError> {
    let ground = "virtual machines: the lab on one machine drills it";
    Err(StageError::Unsupported { fault, ground })
}

impl Ground for VmGround<'_> {
    fn members(&self) -> [&str; 2] {
        MEMBERS
    }

    fn postgres(&self, member: &str) -> SocketAddr {
        let number = self.member(member).map_or(0, |member| member.number);
        (Network::Peer.address(number), member::POSTGRES_PORT).into()
    }

    fn host_id(&self, member: &str) -> String {
        let node = self.node(member);
        node.map_or_else(|_| String::new(), |node| node.host_id().to_string())
    }

    async fn status(&self, member: &str) -> Result<Status, StageError> {
        match machine(
            "ask the member",
            self.ask(member, Request::Status, STATUS_WITHIN).await,
        )? {
            Reply::Status(status) => Ok(*status),
            other => machine("ask the member", Err(anyhow::anyhow!("it says {other:?}"))),
        }
    }

    async fn serves(&self, member: &str) -> Result<bool, StageError> {
        let look = async {
            let node = self.node(member)?;
            anyhow::Ok(node.run(&["pidof", "postgres"]).await?.code == 0)
        };
        machine("look for PostgreSQL", look.await)
    }

    async fn with_volatile_cache(&mut self, _cast: &Cast) -> Result<(), StageError> {
        unsupported("a target's volatile cache")
    }

    async fn switchover(&mut self, member: &str) -> Result<(), StageError> {
        let request = Request::Switchover { to: None };
        let done = self.ask(member, request, SWITCHOVER_WITHIN).await;
        machine("switch over", done).map(drop)
    }

    async fn terminate(&mut self, member: &str) -> Result<(), StageError> {
        self.undo.push(Undo::Start(member.to_owned()));
        let terminate = async {
            self.member(member)?
                .signal(self.node(member)?, "TERM")
                .await
        };
        machine("terminate the member", terminate.await)
    }

    async fn kill_side(&mut self, member: &str) -> Result<(), StageError> {
        self.undo.push(Undo::Boot(member.to_owned()));
        let kill = async { self.machine_of(member)?.kill().await };
        machine("kill the machine", kill.await)
    }

    async fn panic(&mut self, member: &str) -> Result<(), StageError> {
        self.undo.push(Undo::Boot(member.to_owned()));
        let panic = async {
            let node = self.node(member)?;
            let trigger = "echo c >/proc/sysrq-trigger";
            // whoever panics does not answer
            node.start(&["sh", "-c", trigger], "/dev/null").await.ok();
            node.ended(node.patience(STOP_WITHIN)).await
        };
        machine("make the kernel panic", panic.await)
    }

    async fn kill_postmaster(&mut self, _member: &str) -> Result<(), StageError> {
        unsupported("a postmaster's death")
    }

    async fn freeze(&mut self, member: &str) -> Result<(), StageError> {
        self.undo.push(Undo::Thaw(member.to_owned()));
        let freeze = async {
            self.frozen = Some(Frozen {
                name: member.to_owned(),
                offset_ms: self.node(member)?.clock_offset().await?,
                since: clock::now(),
            });
            let node = self.node(member)?;
            self.member(member)?.signal(node, "STOP").await?;
            match self.freezes {
                Freezes::Machine => node.freeze().await,
                Freezes::Path => {
                    volume::queue_without_path(node).await?;
                    node.link(Network::Storage, false).await
                }
            }
        };
        machine("freeze the machine", freeze.await)
    }

    async fn thaw(&mut self, member: &str) -> Result<(), StageError> {
        machine("thaw the machine", self.wake(member).await)
    }

    async fn cut_storage(&mut self, member: &str) -> Result<(), StageError> {
        self.undo.push(Undo::Link(member.to_owned()));
        let cut = async { self.node(member)?.link(Network::Storage, false).await };
        machine("cut the link to the storage", cut.await)
    }

    async fn isolate(&mut self, _member: &str) -> Result<(), StageError> {
        unsupported("isolation")
    }

    async fn lose_lease(&mut self) -> Result<(), StageError> {
        unsupported("a lease store's outage")
    }

    /// The kernel's target has no persistence through power loss.
    fn keeps_reservations(&self) -> bool {
        false
    }

    async fn restart_target(&mut self, keep_reservations: bool) -> Result<(), StageError> {
        if keep_reservations {
            return unsupported("a restart that keeps reservations");
        }
        let restarted = Target::up(&self.machines.storage).await;
        machine("restart the target", restarted).map(drop)
    }

    async fn lose_power(&mut self) -> Result<(), StageError> {
        unsupported("a loss of the target's cache")
    }

    async fn audit(&self) -> Result<Audit, StageError> {
        let audit = async {
            let trace = self.trace.as_ref().context("the target's trace")?;
            trace.audit(&self.machines.storage).await
        };
        machine("read the target's trace", audit.await)
    }

    async fn steps(&self) -> Result<Vec<Done>, StageError> {
        let mut done = Vec::new();
        for name in MEMBERS {
            let read = async {
                let offset = self.node(name)?.clock_offset().await?;
                let history = self.ask(name, Request::History, STATUS_WITHIN).await?;
                anyhow::Ok((offset, history))
            };
            // a member that is not back yet tells nothing, and was not the one that took over
            let Ok((offset, Reply::History(history))) = read.await else {
                continue;
            };
            done.extend(history.steps.into_iter().map(|mut step| {
                step.began = self.by_our_clock(name, step.began, offset);
                (name.to_owned(), step)
            }));
        }
        Ok(done)
    }

    async fn undo(&mut self) -> Result<(), StageError> {
        let mut first = Ok(());
        while let Some(undo) = self.undo.pop() {
            first = first.and(machine("undo a fault", self.undo_one(undo).await));
        }
        first
    }

    async fn quiesce(&mut self, cast: &Cast) -> Result<(), StageError> {
        machine("stop the standby", self.stop(&cast.standby).await)?;
        let within = self.machines.storage.patience(STOP_WITHIN);
        until(
            "the active's notice that the standby left",
            within,
            async || {
                let status = self.status(&cast.active).await?;
                let mut members = status.members.iter();
                Ok(!members.any(|member| member.ready && member.name == cast.standby))
            },
        )
        .await?;
        machine("stop the active", self.stop(&cast.active).await)
    }

    async fn inspect(&mut self) -> Result<[Checked; 2], StageError> {
        machine(
            "check the volume",
            volume::inspect(&self.machines.storage).await,
        )
    }

    fn leave_stopped(&mut self) {
        self.undo.retain(|undo| !matches!(undo, Undo::Start(_)));
    }
}
