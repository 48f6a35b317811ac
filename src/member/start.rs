//! Brings a member up: everything that must be there before its first decision.

use std::io::ErrorKind;
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tracing::info;

use super::Member;
use super::event::Event;
use super::executor::Executor;
use super::link::Link;
use super::looks::Looks;
use super::reload::MemberFile;
use super::senses::Senses;
use super::sites::Sites;
use super::steps::{Database, Tools};
use super::warm;
use crate::agent::{self, ClientError, Hello, Opened};
use crate::api::Api;
use crate::attachment::{Attachment, OpenError, Settings, Tell};
use crate::clock;
use crate::config::{Attached, Config, Postgres};
use crate::control::{Requests, Server, Tally};
use crate::decide::zone::Synchronous;
use crate::decide::{Incarnation, Memory};
use crate::journal::Journal;
use crate::kubernetes::{Access, Call, PodFactsError};
use crate::lease::LeaseStore;
use crate::node_lock::NodeLock;
use crate::peer::PeerChannel;
use crate::postgres::{Instance, Isolation, OsUser, Programs};
use crate::routing::Router;

/// Why a member did not come up. Nothing was changed on the volume.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// PostgreSQL's programs cannot be used.
    #[error("find PostgreSQL")]
    Programs(#[from] crate::postgres::ProgramsError),
    /// Its user cannot be used.
    #[error("find PostgreSQL's user")]
    User(#[from] crate::postgres::OsUserError),
    /// The volume cannot be used.
    #[error(transparent)]
    Attachment(#[from] OpenError),
    /// The node's agent gives no session.
    #[error(transparent)]
    Agent(#[from] ClientError),
    /// A member that attaches by itself came without its lock.
    #[error("the node's lock was not taken")]
    NoLock,
    /// PostgreSQL could not serve when this member takes over.
    #[error(
        "another program listens on port {port}, on which PostgreSQL shall serve: stop that one, \
         or set another postgres.port"
    )]
    PostgresPort {
        /// The port.
        port: u16,
    },
    /// Which pod this is, is not known.
    #[error(transparent)]
    Pod(#[from] PodFactsError),
    /// The channel to the peers did not start.
    #[error("start the channel to the peers")]
    Peers(#[from] crate::peer::StartError),
    /// The control socket cannot be served.
    #[error(transparent)]
    Control(#[from] crate::control::ServerError),
    /// The HTTP API cannot be served.
    #[error("start the HTTP API")]
    Api(#[from] crate::api::ApiError),
    /// The journal cannot be written.
    #[error(transparent)]
    Journal(#[from] crate::journal::JournalError),
    /// A part of the system refused.
    #[error("{attempted}")]
    System {
        /// What was attempted.
        attempted: &'static str,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

fn system(attempted: &'static str) -> impl FnOnce(std::io::Error) -> StartError {
    move |source| StartError::System { attempted, source }
}

/// Runs a member until it has left. `config` was read from `path`; `node_lock` is held by every process of its PostgreSQL; an agent's
/// member is given one by the agent.
///
/// # Errors
/// [`StartError`] before anything was changed.
pub async fn run(
    path: &Path,
    config: Config,
    node_lock: Option<&NodeLock>,
) -> Result<ExitCode, StartError> {
    let began = clock::now();
    let incarnation = Incarnation(rand::random());
    let core = config.for_decisions();
    let instance = instance(&config)?;
    warm::load_ext4().await;
    refuse_taken_port(&config)?;
    let (events, queue) = mpsc::unbounded_channel();
    let access = Access::infer();
    let call = Call::start(&config, &access)?;
    let major = instance.programs.major;
    listen_for_signals(&events).map_err(system("listen for signals"))?;
    let (link, lock) = tokio::select! {
        attached = attach(&config, node_lock, major, &events, &call) => attached?,
        stop = told_to_stop() => {
            stop.map_err(system("listen for signals"))?;
            info!("told to stop before it had its volume: there is nothing to hand over");
            return Ok(ExitCode::SUCCESS);
        }
    };
    let lease = LeaseStore::open_by(&config, incarnation, access.clone())
        .map_err(system("open the lease store"))?;
    let router = Router::start(&config, &access)?;
    let peers = PeerChannel::start(&config, incarnation).await?;
    let control = Server::start(&config, lease.clone()).await?;
    let api = config.api.as_ref();
    let api = api
        .map(|settings| Api::start(settings, control.desk()))
        .transpose()?;
    let journal = Journal::open(&config, incarnation)?;
    let sites = Sites::open(&config, &instance, incarnation, &access);
    let sites = sites
        .map_err(system("open the cluster's record"))?
        .map(Arc::new);
    let mut looks = Looks::start(link.clone(), lease.clone(), &core.timings, events.clone());
    let (host, former_writer) = (link.host(), link.former_writer());
    let isolation = isolation(&config);
    let mut senses = Senses::new(incarnation, host, former_writer, began);
    if let Some(sites) = &sites {
        senses.expect_sites(sites.others(), began);
        looks.at_sites(sites, &core.timings, &events);
    }
    let tools = Arc::new(Tools {
        timings: core.timings.clone(),
        link,
        lease,
        router,
        database: Database::new(instance, lock, isolation),
        file: MemberFile::new(path, config.clone()),
        events: events.clone(),
        sites,
    });
    let member = Member {
        core,
        memory: Memory::default(),
        senses,
        executor: Executor::new(tools, events),
        looks,
        peers,
        control,
        _api: api,
        requests: Requests::default(),
        tally: Tally::default(),
        journal,
        reason: None,
        call,
        trouble: None,
        gone_run: 0,
        gone_device: 0,
        config,
    };
    Ok(member.run(queue).await)
}

/// The way to the volume, and the lock that PostgreSQL shall hold.
async fn attach(
    config: &Config,
    node_lock: Option<&NodeLock>,
    major: u32,
    events: &mpsc::UnboundedSender<Event>,
    call: &Call,
) -> Result<(Link, OwnedFd), StartError> {
    match &config.attached {
        Attached::Volume(volume) => {
            let lock = node_lock.ok_or(StartError::NoLock)?.as_fd();
            let lock = lock.try_clone_to_owned();
            let lock = lock.map_err(system("share the node's lock"))?;
            let settings = Settings::of(config, volume, major);
            let attachment = Attachment::open(settings, tell(events)).await?;
            Ok((Link::Here(Arc::new(attachment)), lock))
        }
        Attached::Agent(agent) => {
            let hello = Hello {
                protocol: agent::PROTOCOL,
                cluster: config.cluster.clone(),
                site: config.site.clone(),
                member: config.member.clone(),
                number: config.number,
                major,
                data_directory: config.postgres.data_directory.clone(),
                timings: config.timings.clone(),
                resume: false,
            };
            let opened = agent::Client::open(&agent.socket, hello, tell(events), call).await?;
            let Opened { client, lock } = opened;
            Ok((Link::Agent(Arc::new(client)), lock))
        }
    }
}

/// A member without privilege has no PID namespace to give: it is the first process of its container's.
fn isolation(config: &Config) -> Isolation {
    match &config.attached {
        Attached::Volume(_) => Isolation::Namespace,
        Attached::Agent(_) => Isolation::Container,
    }
}

/// A standby whose PostgreSQL could not listen would be none. Nothing of this member listens yet: its
/// earlier PostgreSQL had the node's lock. What cannot be listened at for another reason, such as an
/// address that moves with the service, is left to PostgreSQL.
fn refuse_taken_port(config: &Config) -> Result<(), StartError> {
    let Postgres {
        port,
        listen_addresses,
        ..
    } = &config.postgres;
    let taken = |host: &str| {
        TcpListener::bind((host, *port)).is_err_and(|error| error.kind() == ErrorKind::AddrInUse)
    };
    let any = listen_addresses
        .split(',')
        .map(|host| match host.trim() {
            "*" => "0.0.0.0",
            host => host,
        })
        .filter(|host| !host.is_empty())
        .any(taken);
    if any {
        return Err(StartError::PostgresPort { port: *port });
    }
    Ok(())
}

fn instance(config: &Config) -> Result<Instance, StartError> {
    let postgres = &config.postgres;
    Ok(Instance {
        cluster: config.cluster.clone(),
        member: config.member.clone(),
        programs: Programs::in_directory(&postgres.bin_dir)?,
        user: OsUser::look_up(&postgres.os_user)?,
        volume_root: config.mount_point().to_owned(),
        data_directory: config.mount_point().join(&postgres.data_directory),
        runtime_directory: config.runtime_dir.clone(),
        socket_directory: postgres.socket_directory.clone(),
        port: postgres.port,
        listen_addresses: postgres.listen_addresses.clone(),
        parameters: postgres.parameters.clone(),
        hba: postgres.hba.clone(),
        synchronous: config
            .replication
            .as_ref()
            .is_some_and(|replication| replication.synchronous != Synchronous::Off),
    })
}

/// What the attachment says becomes an event of the loop.
fn tell(events: &mpsc::UnboundedSender<Event>) -> Tell {
    let events = events.clone();
    Tell::to(move |happening| {
        // The loop may have ended: then nobody decides any more.
        let _closed = events.send(Event::Volume(happening));
    })
}

/// SIGTERM or SIGINT. The first process of a container is not ended by them unless it listens.
async fn told_to_stop() -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
}

/// SIGTERM and SIGINT mean: hand over and go.
fn listen_for_signals(events: &mpsc::UnboundedSender<Event>) -> std::io::Result<()> {
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        let mut signals = signal(kind)?;
        let events = events.clone();
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                let _closed = events.send(Event::Terminate);
            }
        });
    }
    Ok(())
}
