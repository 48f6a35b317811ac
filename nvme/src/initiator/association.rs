//! One association with a controller: bring-up, queues, keep alive. It never comes back once ended.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval, timeout};

use super::queue::{Queue, Transfer};
use super::slots::Completed;
use super::{ConnectError, Options};
use crate::bridge::Change;
use crate::command::{Command, feature};
use crate::fabrics::{self, ANY_CONTROLLER, Capabilities, Connect, ConnectData, Fabrics};
use crate::identify::{
    CONTROLLER_TYPE_DISCOVERY, Descriptors, IDENTIFY_LEN, IdentifyController, IdentifyNamespace,
    cns,
};
use crate::pdu::ADMIN_IN_CAPSULE_MAX;
use crate::{Error, Identified, Nqn};

/// Entries of the admin queue, as Linux has.
const ADMIN_DEPTH: u16 = 32;
/// Largest transfer of one command, in bytes, where the controller sets no lower limit.
const MAX_TRANSFER: u32 = 1 << 20;
/// MDTS counts in units of the smallest page, which is 4 KiB on fabrics (CAP.MPSMIN 0).
const TRANSFER_UNIT: u32 = 4096;
/// What counts as quiesce time where the controller reports none (NVMe Base 2.3, 9.6.2.1).
const UNKNOWN_QUIESCE_TIME: Duration = Duration::from_secs(10);
/// How often CSTS is read until the controller is ready; fabrics have no notification for it.
const READY_POLL: Duration = Duration::from_millis(10);

/// A live association.
pub(super) struct Association {
    pub(super) controller: u16,
    pub(super) identified: Identified,
    admin: Admin,
    io: Vec<Queue>,
    next_io: AtomicUsize,
}

/// An enabled controller with its admin queue alone, as discovery needs it.
pub(super) struct Admin {
    queue: Queue,
    controller: u16,
    identify: IdentifyController,
    max_entries: u16,
    deadline: Duration,
}

impl Admin {
    /// Connects to `subsystem` and enables the controller.
    pub(super) async fn connect(
        options: &Options,
        subsystem: &Nqn,
        keep_alive: Duration,
    ) -> Result<Self, ConnectError> {
        let deadline = options.connect_deadline;
        let queue = Queue::connect(options, ADMIN_DEPTH - 1, ADMIN_IN_CAPSULE_MAX).await?;
        let connect = Connect {
            record_format: 0,
            queue: 0,
            size_minus_one: ADMIN_DEPTH - 1,
            attributes: 0,
            keep_alive_ms: u32::try_from(keep_alive.as_millis()).unwrap_or(u32::MAX),
        };
        let data = connect_data(options, subsystem, ANY_CONTROLLER);
        let connected = run(&queue, "Connect", connect_command(connect), data, deadline).await?;
        let controller = connected.completion.result as u16;
        if connected.completion.result >> 17 & 3 != 0 {
            return Err(unusable("it wants authentication, which is not supported"));
        }
        let capabilities =
            Capabilities::decode(get_property(&queue, fabrics::CAP, deadline).await?);
        enable(&queue, capabilities, deadline).await?;
        let identify = identify(&queue, cns::CONTROLLER, 0, deadline).await?;
        let identify = IdentifyController::decode(&identify)
            .ok_or_else(|| unusable("its Identify data is too short"))?;
        if identify.controller != controller {
            return Err(unusable("Identify names another controller than Connect"));
        }
        Ok(Self {
            queue,
            controller,
            identify,
            max_entries: capabilities.max_queue_entries_minus_one.saturating_add(1),
            deadline,
        })
    }

    /// Runs an admin command that reads `length` bytes.
    pub(super) async fn read(
        &self,
        name: &'static str,
        command: Command,
        length: usize,
    ) -> Result<bytes::Bytes, ConnectError> {
        let transfer = Transfer::from_controller(length);
        Ok(run(&self.queue, name, command, transfer, self.deadline)
            .await?
            .data)
    }

    /// Number of I/O queues that the controller grants, at most `wanted`.
    async fn grant_queues(&self, wanted: u16) -> Result<u16, ConnectError> {
        let asked = u32::from(wanted.max(1) - 1);
        let command = Command::set_features(feature::NUMBER_OF_QUEUES, 0, asked | asked << 16);
        let name = "Set Features (Number of Queues)";
        let set = run(&self.queue, name, command, Transfer::none(), self.deadline).await?;
        let (submission, completion) = (
            set.completion.result as u16,
            (set.completion.result >> 16) as u16,
        );
        Ok(submission
            .min(completion)
            .saturating_add(1)
            .min(wanted.max(1)))
    }
}

impl Association {
    /// Connects, enables, identifies, within the options' connect deadline.
    pub(super) async fn connect(options: &Options) -> Result<Self, ConnectError> {
        let deadline = options.connect_deadline;
        timeout(deadline, Self::bring_up(options))
            .await
            .map_err(|_| ConnectError::Deadline {
                address: options.address.clone(),
                deadline,
            })?
    }

    async fn bring_up(options: &Options) -> Result<Self, ConnectError> {
        let admin = Admin::connect(options, &options.subsystem, options.keep_alive).await?;
        let identify = &admin.identify;
        if identify.controller_type == CONTROLLER_TYPE_DISCOVERY {
            return Err(unusable("it is a Discovery controller"));
        }
        if identify.keep_alive_granularity == 0 || identify.io_command_capsule_16b < 4 {
            return Err(unusable("no keep alive, or too small capsules"));
        }
        let in_capsule = match identify.in_capsule_offset_16b {
            0 => identify
                .io_command_capsule_16b
                .saturating_sub(4)
                .saturating_mul(16),
            _ => 0,
        };
        let mut entries = options.queue_depth.clamp(2, 1024).min(admin.max_entries);
        if identify.max_commands >= 2 {
            entries = entries.min(identify.max_commands);
        }
        let mut io = Vec::new();
        for number in 1..=admin.grant_queues(options.io_queues).await? {
            // One place stays free: a queue whose head meets its tail counts as empty.
            let queue = Queue::connect(options, entries - 1, in_capsule).await?;
            let connect = Connect {
                record_format: 0,
                queue: number,
                size_minus_one: entries - 1,
                attributes: 0,
                keep_alive_ms: 0,
            };
            let data = connect_data(options, &options.subsystem, admin.controller);
            let command = connect_command(connect);
            run(
                &queue,
                "Connect (I/O queue)",
                command,
                data,
                options.connect_deadline,
            )
            .await?;
            io.push(queue);
        }
        let identified = identify_namespace(&admin, options).await?;
        Ok(Self {
            controller: admin.controller,
            identified,
            admin,
            io,
            next_io: AtomicUsize::new(0),
        })
    }

    /// Runs an I/O command on the next queue in turn.
    pub(super) async fn execute(
        &self,
        name: &'static str,
        command: Command,
        transfer: Transfer,
        deadline: Duration,
    ) -> Result<Completed, Error> {
        let turn = self.next_io.fetch_add(1, Ordering::Relaxed);
        let queue = &self.io[turn % self.io.len()];
        succeed(name, queue.execute(name, command, transfer, deadline).await)
    }

    /// Makes a change on this very association.
    pub(super) async fn make(&self, change: Change, deadline: Duration) -> Result<(), Error> {
        let (nsid, size) = (self.identified.nsid, self.identified.block_size);
        match change {
            Change::Write { lba, data } => {
                let blocks = (data.len() / size as usize) as u32;
                let command = Command::write(nsid, lba, blocks, size, false);
                let transfer = Transfer::to_controller(data);
                self.execute("Write", command, transfer, deadline).await?;
            }
            Change::Zeroes {
                lba,
                blocks,
                deallocate,
            } => {
                let command = Command::write_zeroes(nsid, lba, blocks, deallocate);
                self.execute("Write Zeroes", command, Transfer::none(), deadline)
                    .await?;
            }
        }
        Ok(())
    }

    /// Keeps the association alive until it ends, and says why it did.
    pub(super) async fn watch(&self, keep_alive: Duration) -> String {
        tokio::select! {
            cause = self.admin.queue.ended() => cause,
            cause = any_ended(&self.io) => cause,
            cause = self.keep_alive(keep_alive) => cause,
        }
    }

    async fn keep_alive(&self, timeout: Duration) -> String {
        let half = timeout / 2;
        let mut ticks = interval(half.max(Duration::from_millis(1)));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let (command, none) = (Command::keep_alive(), Transfer::none());
            let answer = self
                .admin
                .queue
                .execute("Keep Alive", command, none, half)
                .await;
            if let Err(error) = succeed("Keep Alive", answer) {
                return error.to_string();
            }
        }
    }

    /// Closes every connection: what is outstanding fails.
    pub(super) fn end(&self, cause: &str) {
        self.admin.queue.end(cause);
        self.io.iter().for_each(|queue| queue.end(cause));
    }
}

/// The cause of the first queue that ends.
async fn any_ended(queues: &[Queue]) -> String {
    let mut ended: Vec<_> = queues.iter().map(|queue| Box::pin(queue.ended())).collect();
    std::future::poll_fn(|context| {
        for queue in &mut ended {
            if let std::task::Poll::Ready(cause) = queue.as_mut().poll(context) {
                return std::task::Poll::Ready(cause);
            }
        }
        std::task::Poll::Pending
    })
    .await
}

fn connect_data(options: &Options, subsystem: &Nqn, controller: u16) -> Transfer {
    let data = ConnectData {
        host: options.host.clone(),
        controller,
        subsystem: subsystem.clone(),
    };
    Transfer::to_controller(data.encode().to_vec())
}

fn connect_command(connect: Connect) -> Command {
    Fabrics::Connect(connect).to_command()
}

/// Turns a status other than success into an error.
fn succeed(name: &'static str, outcome: Result<Completed, Error>) -> Result<Completed, Error> {
    let completed = outcome?;
    if completed.completion.status.is_success() {
        return Ok(completed);
    }
    Err(Error::Status {
        command: name,
        status: completed.completion.status,
    })
}

async fn run(
    queue: &Queue,
    name: &'static str,
    command: Command,
    transfer: Transfer,
    deadline: Duration,
) -> Result<Completed, ConnectError> {
    let outcome = queue.execute(name, command, transfer, deadline).await;
    succeed(name, outcome).map_err(ConnectError::Command)
}

async fn get_property(queue: &Queue, offset: u32, deadline: Duration) -> Result<u64, ConnectError> {
    let wide = offset == fabrics::CAP;
    let command = Fabrics::PropertyGet { wide, offset }.to_command();
    let got = run(queue, "Property Get", command, Transfer::none(), deadline).await?;
    Ok(got.completion.result)
}

/// Sets CC.EN and waits for CSTS.RDY, at most CAP.TO.
async fn enable(
    queue: &Queue,
    capabilities: Capabilities,
    deadline: Duration,
) -> Result<(), ConnectError> {
    let command = Fabrics::PropertySet {
        wide: false,
        offset: fabrics::CC,
        value: u64::from(fabrics::CC_ENABLED),
    }
    .to_command();
    run(
        queue,
        "Property Set (enable)",
        command,
        Transfer::none(),
        deadline,
    )
    .await?;
    let limit = Duration::from_millis(500) * u32::from(capabilities.timeout_500ms.max(1));
    let ready = async {
        let mut polls = interval(READY_POLL);
        loop {
            polls.tick().await;
            let status = get_property(queue, fabrics::CSTS, deadline).await? as u32;
            if status & fabrics::CSTS_FATAL != 0 {
                return Err(unusable("it reports a fatal status"));
            }
            if status & fabrics::CSTS_READY != 0 {
                return Ok(());
            }
        }
    };
    timeout(limit, ready)
        .await
        .unwrap_or_else(|_| Err(unusable("it did not become ready in time")))
}

async fn identify(
    queue: &Queue,
    structure: u8,
    nsid: u32,
    deadline: Duration,
) -> Result<bytes::Bytes, ConnectError> {
    let transfer = Transfer::from_controller(IDENTIFY_LEN);
    let command = Command::identify(structure, nsid);
    Ok(run(queue, "Identify", command, transfer, deadline)
        .await?
        .data)
}

async fn identify_namespace(admin: &Admin, options: &Options) -> Result<Identified, ConnectError> {
    let nsid = options.namespace_id;
    let deadline = options.connect_deadline;
    let bytes = identify(&admin.queue, cns::NAMESPACE, nsid, deadline).await?;
    let namespace = IdentifyNamespace::decode(&bytes)
        .filter(|namespace| namespace.blocks > 0)
        .ok_or_else(|| unusable(&format!("it has no namespace {nsid}")))?;
    let block_size = namespace
        .block_size()
        .ok_or_else(|| unusable("the namespace's block size is out of range"))?;
    // Optional: a controller without descriptors leaves the NGUID of the older structure.
    let descriptors = match identify(&admin.queue, cns::DESCRIPTORS, nsid, deadline).await {
        Ok(bytes) => Descriptors::decode(&bytes),
        Err(ConnectError::Command(Error::Status { .. })) => Descriptors::default(),
        Err(error) => return Err(error),
    };
    let controller = &admin.identify;
    let max_transfer = match controller.max_transfer_exponent {
        0 => MAX_TRANSFER,
        n => TRANSFER_UNIT.saturating_mul(1_u32.checked_shl(n.into()).unwrap_or(u32::MAX)),
    };
    Ok(Identified {
        nsid,
        nguid: namespace.nguid,
        uuid: descriptors.uuid,
        blocks: namespace.blocks,
        block_size,
        reservation_capabilities: namespace.reservations,
        volatile_write_cache: controller.volatile_write_cache & 1 != 0,
        max_transfer: max_transfer.clamp(block_size, MAX_TRANSFER.max(block_size)),
        quiesce_time: match controller.command_quiesce_time_ms {
            0 => UNKNOWN_QUIESCE_TIME,
            ms => Duration::from_millis(ms.into()),
        },
        keep_alive_timeout: options.keep_alive,
        serial: controller.serial.clone(),
        model: controller.model.clone(),
        firmware: controller.firmware.clone(),
    })
}

fn unusable(detail: &str) -> ConnectError {
    ConnectError::Unusable {
        detail: detail.to_owned(),
    }
}
