//! Brings a member up: everything that must be there before its first decision.

use std::io::ErrorKind;
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use fencing::ClusterTag;
use fencing::reservation::drain_wait;
use nvme::kernel::Identifier;
use nvme::{Identified, Namespace, Nqn};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Mutex, mpsc};
use uuid::Uuid;

use super::Member;
use super::carrier::{Carrier, ConnectError};
use super::device::Remains;
use super::event::Event;
use super::executor::Executor;
use super::further::Further;
use super::keeper::Keeper;
use super::looks::Looks;
use super::marks::Marks;
use super::self_fence::SelfFence;
use super::senses::Senses;
use super::steps::{Database, Tools};
use super::warm;
use crate::api::Api;
use crate::clock;
use crate::config::{Config, Endpoint, Postgres, Volume};
use crate::control::{Requests, Server, Tally};
use crate::decide::{Incarnation, Memory, Timings};
use crate::journal::Journal;
use crate::lease::LeaseStore;
use crate::node_lock::NodeLock;
use crate::peer::PeerChannel;
use crate::postgres::{Instance, OsUser, Programs};

/// Why a member did not come up. Nothing was changed on the volume.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// PostgreSQL's programs cannot be used.
    #[error("find PostgreSQL")]
    Programs(#[from] crate::postgres::ProgramsError),
    /// Its user cannot be used.
    #[error("find PostgreSQL's user")]
    User(#[from] crate::postgres::OsUserError),
    /// The volume cannot be reached.
    #[error(
        "connect to namespace {namespace_id} of {subsystem} at {address}: start the target, or \
         correct volume.address, volume.subsystem and volume.namespace_id"
    )]
    Connect {
        /// Where.
        address: Endpoint,
        /// What serves it.
        subsystem: Nqn,
        /// Which.
        namespace_id: u32,
        /// Why not.
        #[source]
        source: Box<ConnectError>,
    },
    /// The volume did not say what it is.
    #[error("identify the volume")]
    Identify(#[from] nvme::Error),
    /// Another volume answers.
    #[error(
        "the volume has UUID {uuid} and NGUID {nguid}, not volume.identifier {wanted}: correct volume.address, volume.subsystem or volume.namespace_id"
    )]
    AnotherVolume {
        /// The setting.
        wanted: Uuid,
        /// As Identify says.
        uuid: Uuid,
        /// As Identify says.
        nguid: Uuid,
    },
    /// The volume cannot be fenced.
    #[error(
        "the volume has no reservations (RESCAP {rescap:#04x}): it cannot be fenced; use a target and namespace that support Write Exclusive reservations"
    )]
    NoReservations {
        /// RESCAP.
        rescap: u8,
    },
    /// The settings promise an earlier end of old commands than the controller does.
    #[error(
        "timings.quiesce is {quiesce:?}, and this volume's controller may need longer to end the commands of a lost host: set it to at least {needed:?}"
    )]
    QuiesceTooShort {
        /// The setting.
        quiesce: Duration,
        /// What the setting must be.
        needed: Duration,
    },
    /// Nothing says when the commands of a lost host are over.
    #[error(
        "the association has no keep-alive time-out: nothing says when the commands of a lost host are over; set timings.keep_alive"
    )]
    NoKeepAlive,
    /// Its fences would be forgotten.
    #[error(
        "the volume's reservations do not survive a power loss of the target (RESCAP \
         {rescap:#04x}): enable their persistence on the target, or allow volatile ones with \
         volume.require_persistence = false"
    )]
    NotPersistent {
        /// RESCAP.
        rescap: u8,
    },
    /// PostgreSQL could not serve when this member takes over.
    #[error(
        "another program listens on port {port}, on which PostgreSQL shall serve: stop that one, \
         or set another postgres.port"
    )]
    PostgresPort {
        /// The port.
        port: u16,
    },
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

/// RESCAP bit 0: reservations can persist through a power loss.
const RESCAP_PERSISTENCE: u8 = 1 << 0;

/// RESCAP bit 1: Write Exclusive reservations.
const RESCAP_WRITE_EXCLUSIVE: u8 = 1 << 1;

fn system(attempted: &'static str) -> impl FnOnce(std::io::Error) -> StartError {
    move |source| StartError::System { attempted, source }
}

/// Runs a member until it has left. `node_lock` is held by every process of its PostgreSQL.
///
/// # Errors
/// [`StartError`] before anything was changed.
pub async fn run(config: Config, node_lock: &NodeLock) -> Result<ExitCode, StartError> {
    let incarnation = Incarnation(rand::random());
    let core = config.for_decisions();
    let cluster = ClusterTag::of(&config.cluster);
    let host = config.volume.host_id;
    let instance = instance(&config)?;
    warm::load_ext4().await;
    refuse_taken_port(&config)?;
    let volume = Arc::new(connect(&config.volume, &core.timings).await?);
    let identified = volume.identify().await?;
    refuse_another(&config.volume, &identified)?;
    refuse_unfenceable(&config.volume, identified.reservation_capabilities)?;
    let lease = LeaseStore::open(&config, incarnation).map_err(system("open the lease store"))?;
    let peers = PeerChannel::start(&config, incarnation).await?;
    let control = Server::start(&config, lease.clone()).await?;
    let api = config.api.as_ref();
    let api = api
        .map(|settings| Api::start(settings, control.desk()))
        .transpose()?;
    let journal = Journal::open(&config, incarnation)?;
    let lock = node_lock
        .as_fd()
        .try_clone_to_owned()
        .map_err(system("share the node's lock"))?;
    let (events, queue) = mpsc::unbounded_channel();
    listen_for_signals(&events).map_err(system("listen for signals"))?;
    let looks = Looks::start(
        volume.clone(),
        cluster,
        lease.clone(),
        &core.timings,
        events.clone(),
    );
    let drain_wait = drain_wait(&identified);
    check_quiesce(&core.timings, drain_wait)?;
    let keeper = Keeper::new(
        volume.clone(),
        identified,
        &core,
        host,
        cluster,
        config.volume.require_persistence,
    );
    let marks = Marks::new(&config.runtime_dir, &config.volume);
    let former_writer = marks.stands();
    let tools = Tools {
        remains: Mutex::new(Remains::of_earlier(&volume, &config.volume, &core.timings)),
        former_drain: std::sync::Mutex::new(drain_wait.filter(|_| former_writer)),
        timings: core.timings.clone(),
        cluster,
        volume,
        keeper: Mutex::new(keeper),
        further: Further::new(&config),
        self_fence: SelfFence::new(&config),
        lease,
        device: Mutex::new(None),
        made: AtomicU64::new(0),
        mounted: Arc::new(Mutex::new(None)),
        database: Database::new(instance, lock),
        marks,
        events: events.clone(),
        config: config.clone(),
    };
    let tools = Arc::new(tools);
    let member = Member {
        core,
        memory: Memory::default(),
        senses: Senses::new(incarnation, host, former_writer, clock::now()),
        executor: Executor::new(tools, events),
        looks,
        peers,
        control,
        _api: api,
        requests: Requests::default(),
        tally: Tally::default(),
        journal,
        reason: None,
        gone_run: 0,
        gone_device: 0,
        config,
    };
    Ok(member.run(queue).await)
}

/// The wait for a former owner's commands is computed from the settings: it must not be shorter than
/// what the controller itself says. That the fence's deadline holds it, the settings prove themselves.
fn check_quiesce(timings: &Timings, drain: Option<Duration>) -> Result<(), StartError> {
    let drain = drain.ok_or(StartError::NoKeepAlive)?;
    let settings = 3 * timings.keep_alive + timings.quiesce;
    if drain <= settings {
        return Ok(());
    }
    Err(StartError::QuiesceTooShort {
        quiesce: timings.quiesce,
        needed: timings.quiesce + (drain - settings),
    })
}

async fn connect(volume: &Volume, timings: &Timings) -> Result<Carrier, StartError> {
    Carrier::connect(volume, timings)
        .await
        .map_err(|source| StartError::Connect {
            address: volume.address.clone(),
            subsystem: volume.subsystem.clone(),
            namespace_id: volume.namespace_id,
            source: Box::new(source),
        })
}

/// Whether it is the volume that is meant, where the settings name it.
fn refuse_another(volume: &Volume, identified: &Identified) -> Result<(), StartError> {
    let Identified { uuid, nguid, .. } = identified;
    match volume.identifier {
        Some(Identifier::Long(wanted)) if ![*uuid, *nguid].contains(&wanted) => {
            Err(StartError::AnotherVolume {
                wanted,
                uuid: *uuid,
                nguid: *nguid,
            })
        }
        // By its EUI-64 the kernel's device was chosen; nothing else may be configured.
        Some(Identifier::Long(_) | Identifier::Eui64(_)) | None => Ok(()),
    }
}

/// What the volume lacks for a fence is known before anything is registered there.
fn refuse_unfenceable(volume: &Volume, rescap: u8) -> Result<(), StartError> {
    if rescap & RESCAP_WRITE_EXCLUSIVE == 0 {
        return Err(StartError::NoReservations { rescap });
    }
    if volume.require_persistence && rescap & RESCAP_PERSISTENCE == 0 {
        return Err(StartError::NotPersistent { rescap });
    }
    Ok(())
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
        volume_root: config.volume.mount_point.clone(),
        data_directory: config.volume.mount_point.join(&postgres.data_directory),
        runtime_directory: config.runtime_dir.clone(),
        socket_directory: postgres.socket_directory.clone(),
        port: postgres.port,
        listen_addresses: postgres.listen_addresses.clone(),
        parameters: postgres.parameters.clone(),
        hba: postgres.hba.clone(),
    })
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
