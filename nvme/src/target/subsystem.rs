//! The subsystem: its namespaces, its controllers, the faults in force.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use super::Done;
use super::controller::Controller;
use super::faults::{Faults, HostSelector};
use super::namespace::{Notifications, Shared};
use crate::fabrics::{ANY_CONTROLLER, CONNECT_DATA_LEN, Connect, ConnectData};
use crate::identity::DISCOVERY_NQN;
use crate::{HostId, HostIdentity, Nqn, Status};

/// I/O queues of one controller.
pub const IO_QUEUES_MAX: u16 = 16;
/// Entries of a queue.
pub const QUEUE_ENTRIES_MAX: u16 = 128;
/// Controllers at once: bounds what connecting hosts can take.
const CONTROLLERS_MAX: usize = 512;
/// Identifiers from here on are reserved.
const CONTROLLER_ID_END: u16 = 0xfff0;
/// Host names remembered for the record.
const HOSTS_MAX: usize = 4096;
/// The time-out of Discovery controllers that ask for none.
const DISCOVERY_KEEP_ALIVE: Duration = Duration::from_secs(120);

/// A subsystem and everything its connections share.
pub struct Subsystem {
    /// Its name.
    pub nqn: Nqn,
    /// Where it listens.
    pub address: SocketAddr,
    /// By namespace identifier.
    pub namespaces: BTreeMap<u32, Arc<Shared>>,
    /// The faults in force.
    pub faults: watch::Sender<Faults>,
    registry: Mutex<Registry>,
}

#[derive(Default)]
struct Registry {
    controllers: BTreeMap<u16, Arc<Controller>>,
    last_id: u16,
    hosts: BTreeMap<HostId, Nqn>,
}

/// A queue that a Connect has made.
pub struct Connected {
    /// Its controller.
    pub controller: Arc<Controller>,
    /// 0 for the admin queue.
    pub queue: u16,
    /// Number of entries.
    pub entries: u16,
    /// Whether submission queue flow control is off.
    pub flow_control_off: bool,
}

/// A Connect that was refused: the completion's status and result.
pub type Refused = (Status, u64);

impl Subsystem {
    /// A subsystem without controllers.
    pub fn new(nqn: Nqn, address: SocketAddr, namespaces: BTreeMap<u32, Arc<Shared>>) -> Self {
        Self {
            nqn,
            address,
            namespaces,
            faults: watch::Sender::new(Faults::default()),
            registry: Mutex::default(),
        }
    }

    /// Connect (NVMe Base 2.3, 6.3): a new controller, or a further queue of one.
    pub fn connect(
        &self,
        request: &Connect,
        data: &ConnectData,
        replies: &mpsc::UnboundedSender<Done>,
    ) -> Result<Connected, Refused> {
        if request.record_format != 0 {
            return Err((Status::CONNECT_INCOMPATIBLE_FORMAT.dnr(), 0));
        }
        let discovery = data.subsystem.as_str() == DISCOVERY_NQN;
        if !discovery && data.subsystem != self.nqn {
            return Err(invalid_data(256));
        }
        if request.size_minus_one == 0 || request.size_minus_one >= QUEUE_ENTRIES_MAX {
            return Err(invalid_command(44));
        }
        let controller = if request.queue == 0 {
            if data.controller != ANY_CONTROLLER {
                return Err(invalid_data(16));
            }
            self.new_controller(request, data, discovery, replies)?
        } else {
            self.join_controller(request, data)?
        };
        Ok(Connected {
            controller,
            queue: request.queue,
            entries: request.size_minus_one + 1,
            flow_control_off: request.attributes & 1 << 2 != 0,
        })
    }

    fn new_controller(
        &self,
        request: &Connect,
        data: &ConnectData,
        discovery: bool,
        replies: &mpsc::UnboundedSender<Done>,
    ) -> Result<Arc<Controller>, Refused> {
        let mut registry = self.registry();
        if registry.controllers.len() >= CONTROLLERS_MAX {
            return Err((Status::CONNECT_CONTROLLER_BUSY, 0));
        }
        let keep_alive = match request.keep_alive_ms {
            0 => discovery.then_some(DISCOVERY_KEEP_ALIVE),
            ms => Some(Duration::from_millis(u64::from(ms))),
        };
        let id = registry.free_id();
        let host = data.host.clone();
        if registry.hosts.len() < HOSTS_MAX {
            registry.hosts.insert(host.id, host.nqn.clone());
        }
        let controller = Arc::new(Controller::new(
            id,
            host,
            discovery,
            keep_alive,
            replies.clone(),
        ));
        registry.controllers.insert(id, Arc::clone(&controller));
        Ok(controller)
    }

    fn join_controller(
        &self,
        request: &Connect,
        data: &ConnectData,
    ) -> Result<Arc<Controller>, Refused> {
        let controller = self.registry().controllers.get(&data.controller).cloned();
        let controller = controller
            .filter(|c| c.host == data.host && !c.discovery)
            .ok_or(invalid_data(16))?;
        if request.queue > IO_QUEUES_MAX || !controller.is_ready() {
            return Err(invalid_command(42));
        }
        if !controller.add_queue(request.queue) {
            return Err((Status::COMMAND_SEQUENCE_ERROR.dnr(), 0));
        }
        Ok(controller)
    }

    /// The connection of this queue ended. Without its admin queue a controller ends.
    pub fn disconnected(&self, connected: &Connected) {
        if connected.queue == 0 {
            connected.controller.kill();
            self.registry().controllers.remove(&connected.controller.id);
        } else {
            connected.controller.remove_queue(connected.queue);
        }
    }

    /// All controllers.
    pub fn controllers(&self) -> Vec<Arc<Controller>> {
        self.registry().controllers.values().cloned().collect()
    }

    /// Every host that has connected since the start.
    pub fn hosts(&self) -> Vec<HostIdentity> {
        let registry = self.registry();
        let hosts = registry.hosts.iter();
        hosts
            .map(|(id, nqn)| HostIdentity {
                nqn: nqn.clone(),
                id: *id,
            })
            .collect()
    }

    /// Ends the connections of these hosts; returns how many controllers.
    pub fn disconnect(&self, selector: &HostSelector) -> usize {
        let controllers = self.controllers();
        let chosen = controllers.iter().filter(|c| selector.selects(&c.host.nqn));
        chosen.map(|controller| controller.kill()).count()
    }

    /// Tells hosts of a change of a namespace's reservation.
    pub fn notify(&self, nsid: u32, notifications: &Notifications) {
        if notifications.is_empty() {
            return;
        }
        for controller in self.controllers() {
            for (host, kind) in notifications {
                if controller.host.id == *host && !controller.discovery {
                    controller.notify(*kind, nsid);
                }
            }
        }
    }

    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Registry {
    /// The next unused identifier: a fresh one, so that a late I/O queue of an old association does
    /// not join a new one. There are fewer controllers than identifiers.
    fn free_id(&mut self) -> u16 {
        loop {
            self.last_id = self.last_id % (CONTROLLER_ID_END - 1) + 1;
            if !self.controllers.contains_key(&self.last_id) {
                return self.last_id;
            }
        }
    }
}

/// Connect Invalid Parameters: the field at this offset of the data.
pub fn invalid_data(offset: u16) -> Refused {
    debug_assert!(usize::from(offset) <= CONNECT_DATA_LEN);
    let in_data = 1 << 16;
    (
        Status::CONNECT_INVALID_PARAMETERS.dnr(),
        in_data | u64::from(offset),
    )
}

/// Connect Invalid Parameters: the field at this offset of the command.
fn invalid_command(offset: u16) -> Refused {
    (Status::CONNECT_INVALID_PARAMETERS.dnr(), u64::from(offset))
}
