//! The process that keeps a lab running: targets, members, links. It decides nothing about the
//! database: it starts what ended, as a kubelet would, unless a drill holds it down.
//!
//! One task owns everything and takes one event after the other.

mod asking;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::process::Child;
use tokio::sync::{mpsc, oneshot};

use self::asking::{listen, terminate_on_signals};
use super::configure::{self, SUBSYSTEM};
use super::layout::{Lab, LayoutError, write_json};
use super::links::Links;
use super::network::NetworkError;
use super::process::Process;
use super::protocol::{Answer, Request, State};
use super::service::{Output, Service, ready};
use super::site::Site;
use super::wan::Line;
use super::wan::shape::Shape;

/// How long a service may take to stop cleanly until its whole tree is killed.
const STOP_WITHIN: Duration = Duration::from_secs(40);

/// The supervisor could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    /// The lab's files.
    #[error("prepare the lab")]
    Layout(#[from] LayoutError),
    /// The sites' networks.
    #[error("make the sites' networks")]
    Network(#[from] NetworkError),
    /// The operating system refused something.
    #[error("{what}")]
    Io {
        /// What was attempted.
        what: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// Another supervisor runs in this directory.
    #[error("a supervisor runs in {} already", dir.display())]
    Running {
        /// The directory.
        dir: PathBuf,
    },
}

fn io_error(what: impl Into<String>) -> impl FnOnce(io::Error) -> SupervisorError {
    let what = what.into();
    move |source| SupervisorError::Io { what, source }
}

/// Which service.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Who {
    /// Of this site; none for the only one.
    Target(Option<&'static str>),
    Member(String),
}

enum Event {
    Asked(Request, oneshot::Sender<Answer>),
    Ended(Who, io::Result<ExitStatus>),
    Restart(Who),
    /// A stop has taken too long.
    Overdue(Who, Process),
    /// SIGTERM or SIGINT.
    Terminated,
}

struct Supervisor {
    lab: Lab,
    /// By their sites' names.
    targets: BTreeMap<Option<&'static str>, Service>,
    members: BTreeMap<String, Service>,
    links: Vec<Links>,
    links_cut: bool,
    /// The line between the sites, and what it does.
    line: Option<(Line, Shape)>,
    /// Who waits for the end of which service.
    waiting: Vec<(Who, oneshot::Sender<Answer>)>,
    events: mpsc::UnboundedSender<Event>,
}

/// Runs a lab until it is told to shut down. `started` is called once the target listens, the
/// members are started and requests are answered. Must be called on the process's main thread, with
/// a runtime that stays there: the kernel ends the children when the thread that made them ends.
pub async fn run(lab: Lab, started: impl FnOnce()) -> Result<(), SupervisorError> {
    let lock = std::fs::File::create(lab.dir.join("supervisor.lock"))
        .map_err(io_error("make the lock"))?;
    if fs2::FileExt::try_lock_exclusive(&lock).is_err() {
        return Err(SupervisorError::Running { dir: lab.dir });
    }
    configure::write(&lab)?;
    let (events, mut queue) = mpsc::unbounded_channel();
    listen(&lab, events.clone())?;
    terminate_on_signals(events.clone())?;
    if let Some(wide) = &lab.record.wide {
        wide.network.make(&lab.dir).await?;
    }
    let mut supervisor = Supervisor::new(lab, events).await?;
    supervisor.start().await?;
    started();
    while let Some(event) = queue.recv().await {
        match supervisor.handle(event).await {
            Next::GoOn => {}
            Next::End(asked) => {
                supervisor.end(&mut queue).await;
                if let Some(asked) = asked {
                    drop(asked.send(Answer::Done(supervisor.state())));
                }
                break;
            }
        }
    }
    let Supervisor { lab, line, .. } = supervisor;
    drop(line);
    if let Some(wide) = &lab.record.wide {
        wide.network.remove().await?;
    }
    drop(std::fs::remove_file(lab.supervisor_socket()));
    drop(std::fs::remove_file(lab.processes()));
    Ok(())
}

enum Next {
    GoOn,
    End(Option<oneshot::Sender<Answer>>),
}

impl Supervisor {
    async fn new(lab: Lab, events: mpsc::UnboundedSender<Event>) -> Result<Self, SupervisorError> {
        let program = std::env::current_exe().map_err(io_error("find this program"))?;
        let service = |site: &Site<'_>, arguments, log: PathBuf| {
            let network = site.network().map(|network| network.namespace);
            Service::new(program.clone(), arguments, log, lab.dir.clone(), network)
        };
        let (mut targets, mut members, mut links) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
        for site in lab.sites() {
            let target = service(&site, Vec::new(), site.target().join("target.log"));
            targets.insert(site.name, target);
            let mut ports = Vec::new();
            for name in site.members() {
                let member = lab.member(name);
                let config = member.config().display().to_string();
                let arguments = vec!["run".into(), "--config".into(), config];
                let member_service = service(&site, arguments, member.dir.join("member.log"));
                members.insert(name.to_owned(), member_service);
                ports.push((member.record().link_port, member.record().peer_port));
            }
            let started = Links::start(&site, ports).await;
            links.push(started.map_err(io_error("open the links between members"))?);
        }
        let line = match &lab.record.wide {
            Some(wide) => Some((wide.network.join()?, Shape::default())),
            None => None,
        };
        let waiting = Vec::new();
        Ok(Self {
            lab,
            targets,
            members,
            links,
            links_cut: false,
            line,
            waiting,
            events,
        })
    }

    /// Starts all targets, then all members.
    async fn start(&mut self) -> Result<(), SupervisorError> {
        let targets: Vec<_> = self.targets.keys().copied().collect();
        for site in targets {
            let started = self.start_target(site, true).await;
            started.map_err(io_error("start the target"))?;
        }
        let members: Vec<_> = self.members.keys().cloned().collect();
        for name in members {
            let started = self.start_member(&name);
            started.map_err(io_error(format!("start member {name}")))?;
        }
        Ok(())
    }

    fn state(&self) -> State {
        let own = i32::try_from(std::process::id())
            .ok()
            .and_then(Process::now);
        let members = self
            .members
            .iter()
            .map(|(name, member)| (name.clone(), member.state.clone()));
        let targets = self.lab.sites().into_iter().filter_map(|site| {
            let name = site.target().file_name()?.display().to_string();
            Some((name, self.targets.get(&site.name)?.state.clone()))
        });
        State {
            supervisor: own.unwrap_or(Process { pid: 0, started: 0 }),
            targets: targets.collect(),
            members: members.collect(),
            links_cut: self.links_cut,
            line: self.line.as_ref().map(|(_, shape)| *shape),
        }
    }

    /// A target's arguments: a port of 0 is never used, members must find it again.
    fn target_arguments(&self, site: &Site<'_>) -> Vec<String> {
        let record = &self.lab.record;
        let mut arguments = vec![
            "target".to_owned(),
            format!("--listen=127.0.0.1:{}", record.target_port),
            format!("--subsystem={SUBSYSTEM}"),
            format!(
                "--namespace={},size={}",
                site.namespace().display(),
                record.size
            ),
            format!("--state={}", site.reservations().display()),
            format!("--control={}", site.target_socket().display()),
        ];
        if record.volatile_cache {
            arguments.push("--volatile-cache".to_owned());
        }
        arguments
    }

    async fn start_target(
        &mut self,
        name: Option<&'static str>,
        keep_reservations: bool,
    ) -> io::Result<()> {
        let site = self.lab.site(name).ok_or_else(no_such_site)?;
        if !keep_reservations {
            match std::fs::remove_file(site.reservations()) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
        }
        let arguments = self.target_arguments(&site);
        let target = self.targets.get_mut(&name).ok_or_else(no_such_site)?;
        target.set_arguments(arguments);
        let mut child = target.start(Output::Read)?;
        let line = ready(&mut child).await;
        self.watch(Who::Target(name), child);
        tracing::info!(ready = line?.trim_end(), "target");
        self.record_processes()
    }

    fn start_member(&mut self, name: &str) -> io::Result<()> {
        let Some(member) = self.members.get_mut(name) else {
            return Err(io::Error::other("there is no such member"));
        };
        let child = member.start(Output::Logged)?;
        tracing::info!(member = name, pid = child.id(), "started");
        self.watch(Who::Member(name.to_owned()), child);
        self.record_processes()
    }

    /// Waits for its end in a task of its own, which holds its standard input open till then.
    fn watch(&self, who: Who, mut child: Child) {
        let events = self.events.clone();
        tokio::spawn(async move {
            let stdin = child.stdin.take();
            let ended = child.wait().await;
            drop(stdin);
            drop(events.send(Event::Ended(who, ended)));
        });
    }

    /// Before anything else is done with a new process: `down` must find it if we are killed.
    fn record_processes(&self) -> io::Result<()> {
        write_json(&self.lab.processes(), &self.state())
    }

    fn service(&mut self, who: &Who) -> Option<&mut Service> {
        match who {
            Who::Target(site) => self.targets.get_mut(site),
            Who::Member(name) => self.members.get_mut(name),
        }
    }

    async fn handle(&mut self, event: Event) -> Next {
        match event {
            Event::Asked(Request::Shutdown, asked) => return Next::End(Some(asked)),
            Event::Terminated => return Next::End(None),
            Event::Asked(request, asked) => self.asked(request, asked).await,
            Event::Ended(who, how) => self.ended(&who, how),
            Event::Restart(who) => self.restart(&who).await,
            Event::Overdue(who, process) => {
                if let Some(service) = self.service(&who)
                    && service.state.process == Some(process)
                {
                    tracing::warn!(?who, "does not stop: killed");
                    service.kill();
                }
            }
        }
        Next::GoOn
    }

    async fn asked(&mut self, request: Request, asked: oneshot::Sender<Answer>) {
        let done = match request {
            Request::Status | Request::Shutdown => Ok(()),
            Request::Hold { member } => self.hold(&member, true),
            Request::Release { member } => self.release(&member),
            Request::Stop { member } => match self.hold(&member, true) {
                Ok(()) => return self.stop(Who::Member(member), asked),
                Err(error) => Err(error),
            },
            Request::Links { cut } => {
                self.links_cut = cut;
                self.links.iter().for_each(|link| link.set_cut(cut));
                Ok(())
            }
            Request::Line { shape } => match &mut self.line {
                Some((line, current)) => {
                    line.set(shape);
                    *current = shape;
                    Ok(())
                }
                None => Err(io::Error::other("there is one site only")),
            },
            Request::HoldTarget { site } => self.hold_target(site.as_deref()).map(drop),
            Request::StopTarget { site } => match self.hold_target(site.as_deref()) {
                Ok(site) => return self.stop(Who::Target(site), asked),
                Err(error) => Err(error),
            },
            Request::StartTarget {
                site,
                keep_reservations,
                volatile_cache,
            } => {
                self.lab.record.volatile_cache = volatile_cache;
                self.release_target(site.as_deref(), keep_reservations)
                    .await
            }
        };
        let answer = match done {
            Ok(()) => Answer::Done(self.state()),
            Err(error) => Answer::Failed(error.to_string()),
        };
        drop(asked.send(answer));
    }

    fn hold_target(&mut self, site: Option<&str>) -> io::Result<Option<&'static str>> {
        let name = self.lab.site(site).ok_or_else(no_such_site)?.name;
        let target = self.targets.get_mut(&name).ok_or_else(no_such_site)?;
        target.state.held = true;
        Ok(name)
    }

    async fn release_target(
        &mut self,
        site: Option<&str>,
        keep_reservations: bool,
    ) -> io::Result<()> {
        let name = self.hold_target(site)?;
        let target = self.targets.get_mut(&name).ok_or_else(no_such_site)?;
        target.state.held = false;
        match target.state.process {
            Some(_) => Err(io::Error::other("the target runs already")),
            None => self.start_target(name, keep_reservations).await,
        }
    }

    fn hold(&mut self, name: &str, held: bool) -> io::Result<()> {
        let member = self.members.get_mut(name);
        let member =
            member.ok_or_else(|| io::Error::other(format!("there is no member {name:?}")))?;
        member.state.held = held;
        Ok(())
    }

    fn release(&mut self, name: &str) -> io::Result<()> {
        self.hold(name, false)?;
        match self.members[name].state.process {
            Some(_) => Ok(()),
            None => self.start_member(name),
        }
    }

    /// SIGTERM; SIGKILL to the whole tree if that does not help. Answers when it has ended.
    fn stop(&mut self, who: Who, asked: oneshot::Sender<Answer>) {
        let state = self.state();
        let Some(service) = self.service(&who) else {
            return;
        };
        let Some(process) = service.state.process else {
            drop(asked.send(Answer::Done(state)));
            return;
        };
        service.signal(Signal::SIGTERM);
        let (events, overdue) = (self.events.clone(), Event::Overdue(who.clone(), process));
        tokio::spawn(async move {
            tokio::time::sleep(STOP_WITHIN).await;
            drop(events.send(overdue));
        });
        self.waiting.push((who, asked));
    }

    fn ended(&mut self, who: &Who, how: io::Result<ExitStatus>) {
        let how = how.map_or_else(|error| error.to_string(), |status| status.to_string());
        tracing::info!(?who, how, "ended");
        let pause = self.service(who).and_then(|service| service.ended(how));
        if let Some(pause) = pause {
            self.restart_after(who.clone(), pause);
        }
        let state = self.state();
        for (_, asked) in self
            .waiting
            .extract_if(.., |(waits_for, _)| waits_for == who)
        {
            drop(asked.send(Answer::Done(state.clone())));
        }
    }

    fn restart_after(&self, who: Who, pause: Duration) {
        let events = self.events.clone();
        tokio::spawn(async move {
            tokio::time::sleep(pause).await;
            drop(events.send(Event::Restart(who)));
        });
    }

    async fn restart(&mut self, who: &Who) {
        let Some(service) = self.service(who) else {
            return;
        };
        // held, or released and started, in the meantime
        if service.state.held || service.state.process.is_some() {
            return;
        }
        service.state.restarts += 1;
        let started = match who {
            Who::Target(site) => self.start_target(*site, true).await,
            Who::Member(name) => self.start_member(name),
        };
        if let Err(error) = started {
            tracing::error!(?who, %error, "cannot be started again");
            if let Some(pause) = self
                .service(who)
                .and_then(|service| service.ended(error.to_string()))
            {
                self.restart_after(who.clone(), pause);
            }
        }
    }

    /// Ends the members, then the targets, each cleanly if it can.
    async fn end(&mut self, queue: &mut mpsc::UnboundedReceiver<Event>) {
        let members = self.members.keys().cloned().map(Who::Member).collect();
        let targets = self.targets.keys().copied().map(Who::Target).collect();
        for group in [members, targets] {
            let group: Vec<Who> = group;
            for who in &group {
                if let Some(service) = self.service(who) {
                    service.state.held = true;
                }
                let (asked, _) = oneshot::channel();
                self.stop(who.clone(), asked);
            }
            while group
                .iter()
                .any(|who| self.service(who).is_some_and(|s| s.state.process.is_some()))
            {
                match queue.recv().await {
                    Some(Event::Asked(_, asked)) => {
                        drop(asked.send(Answer::Failed("the lab is shutting down".into())));
                    }
                    Some(event @ (Event::Ended(..) | Event::Restart(_) | Event::Overdue(..))) => {
                        self.handle(event).await;
                    }
                    Some(Event::Terminated) => {}
                    None => return,
                }
            }
        }
    }
}

fn no_such_site() -> io::Error {
    io::Error::other("there is no such site")
}
