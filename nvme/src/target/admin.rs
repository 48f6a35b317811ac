//! Commands of the admin queue, Fabrics commands included (except Connect, which makes the queue).

use std::time::Duration;

use bytes::Bytes;

use super::controller::ASYNC_EVENTS_MAX;
use super::io::{Context, SUPPORTED, check_room, is_reservation};
use super::subsystem::{IO_QUEUES_MAX, QUEUE_ENTRIES_MAX};
use super::{Done, IN_CAPSULE_MAX, MAX_TRANSFER, MAX_TRANSFER_EXPONENT};
use crate::Status;
use crate::command::{Command, NSID_ALL, admin as opcode, feature, log};
use crate::fabrics::{CAP, CC, CSTS, Capabilities, Fabrics, VS};
use crate::identify::{
    CONTROLLER_TYPE_DISCOVERY, CONTROLLER_TYPE_IO, Descriptors, IDENTIFY_LEN, IdentifyController,
    IdentifyNamespace, OAES_NAMESPACE_CHANGED, ONCS_COMPARE, ONCS_DATASET_MANAGEMENT,
    ONCS_RESERVATIONS, ONCS_WRITE_ZEROES, RESCAP_ALL_TYPES, RESCAP_IEKEY_1_3, RESCAP_PERSISTENCE,
    cns, encode_namespace_list,
};
use crate::log_page::{DiscoveryEntry, DiscoveryLog};

/// VS: 1.4.0, the last version whose mandatory parts are all here.
const VERSION: u32 = 0x1_0400;
/// CAP.TO: enabling is immediate; the least value is 500 ms.
const READY_TIMEOUT_500MS: u8 = 1;
/// CDW11 bit 0 of Get Features, Host Identifier: the 128-bit format.
const EXTENDED_HOST_ID: u32 = 1;
/// How long after a connection's end its commands have ended, in ms (CQT): the target's commands do
/// not outlive it by more, save injected delays.
const QUIESCE_MS: u16 = 1000;

/// Carries out an admin command. `None`: the completion comes later.
pub fn execute(context: &Context, command: &Command, data: &Bytes) -> Option<Done> {
    let id = command.id;
    if command.opcode == opcode::FABRICS {
        return Some(fabrics(context, command));
    }
    let controller = &context.controller;
    if !controller.is_ready() {
        return Some(Done::status(id, Status::COMMAND_SEQUENCE_ERROR.dnr()));
    }
    let outcome = match command.opcode {
        opcode::KEEP_ALIVE => {
            controller.heard();
            Ok(Done::status(id, Status::SUCCESS))
        }
        opcode::IDENTIFY => identify(context, command),
        opcode::GET_LOG_PAGE => get_log_page(context, command),
        opcode::ASYNC_EVENT_REQUEST => return controller.request_event(id),
        opcode::SET_FEATURES if reservation_persistence(command) => {
            return set_persistence(context, command);
        }
        opcode::SET_FEATURES => set_features(context, command, data),
        opcode::GET_FEATURES => get_features(context, command),
        // Result bit 0: the command was not aborted.
        opcode::ABORT => Ok(Done::result(id, 1)),
        _ => Err(Status::INVALID_OPCODE),
    };
    Some(outcome.unwrap_or_else(|status| Done::status(id, status.dnr())))
}

/// Property Get and Set, on any queue that is connected.
pub fn fabrics(context: &Context, command: &Command) -> Done {
    let controller = &context.controller;
    let (id, invalid) = (command.id, Status::INVALID_FIELD.dnr());
    match Fabrics::from_command(command) {
        Fabrics::PropertyGet { wide, offset } => match (offset, wide) {
            (CAP, true) => Done::result(id, capabilities().encode()),
            (VS, false) => Done::result(id, u64::from(VERSION)),
            (CC, false) => Done::result(id, u64::from(controller.configuration())),
            (CSTS, false) => Done::result(id, u64::from(controller.status())),
            _ => Done::status(id, invalid),
        },
        Fabrics::PropertySet {
            wide: false,
            offset: CC,
            value,
        } => {
            controller.configure(value as u32);
            Done::status(id, Status::SUCCESS)
        }
        Fabrics::PropertySet { .. } => Done::status(id, invalid),
        Fabrics::Connect(_) => Done::status(id, Status::COMMAND_SEQUENCE_ERROR.dnr()),
        // OFCS bit 0 is clear: not supported.
        Fabrics::Disconnect | Fabrics::Other(_) => Done::status(id, Status::INVALID_OPCODE.dnr()),
    }
}

fn capabilities() -> Capabilities {
    Capabilities {
        max_queue_entries_minus_one: QUEUE_ENTRIES_MAX - 1,
        timeout_500ms: READY_TIMEOUT_500MS,
    }
}

fn identify(context: &Context, command: &Command) -> Result<Done, Status> {
    let kind = command.cdw(10) as u8;
    if context.controller.discovery && kind != cns::CONTROLLER {
        return Err(Status::INVALID_FIELD);
    }
    let namespaces = &context.subsystem.namespaces;
    let found = || {
        namespaces
            .get(&command.nsid)
            .ok_or(Status::INVALID_NAMESPACE)
    };
    let bytes = match kind {
        cns::CONTROLLER => identify_controller(context).encode(),
        cns::NAMESPACE => identify_namespace(found()?).encode(),
        cns::DESCRIPTORS => {
            let namespace = found()?;
            let (uuid, nguid) = (namespace.uuid, namespace.nguid);
            Descriptors {
                eui64: 0,
                nguid,
                uuid,
            }
            .encode()
        }
        cns::ACTIVE_NAMESPACES if command.nsid < NSID_ALL - 1 => {
            let after: Vec<u32> = namespaces
                .range(command.nsid + 1..)
                .map(|(n, _)| *n)
                .collect();
            encode_namespace_list(&after)
        }
        cns::ACTIVE_NAMESPACES => return Err(Status::INVALID_NAMESPACE),
        // 6 and 8 too belong to version 2.0: a 1.4 controller calls the CNS invalid.
        _ => return Err(Status::INVALID_FIELD),
    };
    check_room(command, IDENTIFY_LEN)?;
    Ok(Done::data(command.id, bytes.into()))
}

fn identify_controller(context: &Context) -> IdentifyController {
    let controller = &context.controller;
    let discovery = controller.discovery;
    let nqn = &context.subsystem.nqn;
    IdentifyController {
        serial: serial_of(nqn.as_str()),
        model: "Baton NVMe/TCP target".to_owned(),
        firmware: env!("CARGO_PKG_VERSION").chars().take(8).collect(),
        // Several controllers may be in the subsystem.
        multi_path: 1 << 1,
        max_transfer_exponent: MAX_TRANSFER_EXPONENT,
        controller: controller.id,
        version: VERSION,
        async_events: if discovery { 0 } else { OAES_NAMESPACE_CHANGED },
        // 128-bit host identifiers.
        attributes: 1,
        controller_type: if discovery {
            CONTROLLER_TYPE_DISCOVERY
        } else {
            CONTROLLER_TYPE_IO
        },
        admin_commands: 0,
        async_event_limit: ASYNC_EVENTS_MAX as u8 - 1,
        // Effects log; extended data (offsets) for Get Log Page.
        log_page_attributes: 1 << 1 | 1 << 2,
        keep_alive_granularity: 1,
        command_quiesce_time_ms: QUIESCE_MS,
        max_commands: QUEUE_ENTRIES_MAX,
        namespaces: context
            .subsystem
            .namespaces
            .keys()
            .last()
            .copied()
            .unwrap_or(0),
        optional_commands: ONCS_COMPARE
            | ONCS_DATASET_MANAGEMENT
            | ONCS_WRITE_ZEROES
            | if has_reservations(context) {
                ONCS_RESERVATIONS
            } else {
                0
            },
        // Present, with the configured cache and without: the file's page cache is volatile too.
        // Bits 2:1: Flush may address all namespaces.
        volatile_write_cache: 0b111,
        // SGLs; address as offset into the capsule; transport SGL.
        sgl_support: 1 | 1 << 20 | 1 << 21,
        subsystem: Some(nqn.clone()),
        io_command_capsule_16b: (64 + IN_CAPSULE_MAX) / 16,
        io_response_capsule_16b: 1,
        in_capsule_offset_16b: 0,
        max_sgl_descriptors: 1,
    }
}

/// Whether any namespace has reservations.
fn has_reservations(context: &Context) -> bool {
    let mut namespaces = context.subsystem.namespaces.values();
    namespaces.any(|namespace| namespace.has_reservations())
}

/// Twenty hexadecimal digits that stay the same for a subsystem.
fn serial_of(nqn: &str) -> String {
    format!(
        "{:020x}",
        super::stable_hash(nqn.as_bytes()) & ((1 << 80) - 1)
    )
}

fn identify_namespace(namespace: &super::namespace::Shared) -> IdentifyNamespace {
    let reservations = match (namespace.has_reservations(), namespace.can_persist()) {
        (true, true) => RESCAP_ALL_TYPES | RESCAP_IEKEY_1_3 | RESCAP_PERSISTENCE,
        (true, false) => RESCAP_ALL_TYPES | RESCAP_IEKEY_1_3,
        (false, _) => 0,
    };
    IdentifyNamespace {
        blocks: namespace.blocks(),
        used: namespace.blocks(),
        features: 0,
        // May be attached to several controllers.
        multi_path: 1,
        reservations,
        // Deallocated blocks read as zeros; Write Zeroes may deallocate.
        deallocation: 1 | 1 << 3,
        nguid: namespace.nguid,
        eui64: 0,
        block_size_exponent: namespace.block_size.trailing_zeros() as u8,
    }
}

fn get_log_page(context: &Context, command: &Command) -> Result<Done, Status> {
    let dwords = (u64::from(command.cdw(10) >> 16) | u64::from(command.cdw(11) & 0xffff) << 16) + 1;
    let length = dwords * 4;
    let offset = u64::from(command.cdw(12)) | u64::from(command.cdw(13)) << 32;
    if length > u64::from(MAX_TRANSFER) || offset % 4 != 0 {
        return Err(Status::INVALID_FIELD);
    }
    check_room(command, length as usize)?;
    let page = log_page(context, command.cdw(10) as u8)?;
    let start = usize::try_from(offset)
        .ok()
        .filter(|start| *start <= page.len());
    let mut bytes = page[start.ok_or(Status::INVALID_FIELD)?..].to_vec();
    bytes.resize(length as usize, 0);
    Ok(Done::data(command.id, bytes.into()))
}

fn log_page(context: &Context, page: u8) -> Result<Vec<u8>, Status> {
    match (context.controller.discovery, page) {
        (true, log::DISCOVERY) => Ok(discovery_log(context)),
        (_, log::ERROR) => Ok(vec![0; 64]),
        (false, log::SMART) => Ok(health()),
        (false, log::FIRMWARE_SLOT) => Ok(firmware()),
        (false, log::CHANGED_NAMESPACES) => Ok(vec![0; IDENTIFY_LEN]),
        (false, log::EFFECTS) => Ok(effects(has_reservations(context))),
        (false, log::RESERVATION_NOTIFICATION) => {
            Ok(context.controller.next_notification().encode().to_vec())
        }
        _ => Err(Status::INVALID_LOG_PAGE),
    }
}

fn discovery_log(context: &Context) -> Vec<u8> {
    let entry = DiscoveryEntry {
        address: context.subsystem.address,
        subsystem: context.subsystem.nqn.clone(),
        admin_queue_size: QUEUE_ENTRIES_MAX,
    };
    let log = DiscoveryLog {
        generation: 1,
        entries: vec![entry],
    };
    log.encode()
}

/// SMART / Health: nothing critical, 27 °C, all spare, nothing used.
fn health() -> Vec<u8> {
    let mut page = vec![0; 512];
    page[1..3].copy_from_slice(&300u16.to_le_bytes());
    page[3] = 100;
    page[4] = 10;
    page
}

/// Slot 1 is active.
fn firmware() -> Vec<u8> {
    let mut page = vec![0; 512];
    page[0] = 1;
    crate::identify::put_padded(&mut page[8..16], env!("CARGO_PKG_VERSION"));
    page
}

/// Commands Supported and Effects: CSUPP, and LBCC where blocks change.
fn effects(reservations: bool) -> Vec<u8> {
    const IO_AT: usize = 1024;
    let mut page = vec![0; 4096];
    for command in [
        opcode::GET_LOG_PAGE,
        opcode::IDENTIFY,
        opcode::ABORT,
        opcode::SET_FEATURES,
        opcode::GET_FEATURES,
        opcode::ASYNC_EVENT_REQUEST,
        opcode::KEEP_ALIVE,
    ] {
        page[4 * usize::from(command)] = 1;
    }
    for (command, changes_blocks) in SUPPORTED {
        if is_reservation(command) && !reservations {
            continue;
        }
        page[IO_AT + 4 * usize::from(command)] = 1 | u8::from(changes_blocks) << 1;
    }
    page
}

fn set_features(context: &Context, command: &Command, _data: &Bytes) -> Result<Done, Status> {
    let controller = &context.controller;
    let (id, value) = (command.id, command.cdw(11));
    match command.cdw(10) as u8 {
        feature::NUMBER_OF_QUEUES => {
            let (submission, completion) = (value & 0xffff, value >> 16);
            if submission == 0xffff || completion == 0xffff {
                return Err(Status::INVALID_FIELD);
            }
            let most = u32::from(IO_QUEUES_MAX) - 1;
            let granted = submission.min(most) | completion.min(most) << 16;
            Ok(Done::result(id, u64::from(granted)))
        }
        feature::KEEP_ALIVE_TIMER => {
            let timeout = Duration::from_millis(u64::from(value));
            controller.set_keep_alive((!timeout.is_zero()).then_some(timeout));
            Ok(Done::result(id, u64::from(value)))
        }
        feature::ASYNC_EVENT_CONFIGURATION => {
            controller.set_async_configuration(value);
            Ok(Done::status(id, Status::SUCCESS))
        }
        feature::RESERVATION_NOTIFICATION_MASK => {
            for nsid in chosen(context, command)? {
                controller.set_notification_mask(nsid, value);
            }
            Ok(Done::status(id, Status::SUCCESS))
        }
        // On fabrics it comes with Connect and cannot change.
        feature::HOST_IDENTIFIER => Err(Status::COMMAND_SEQUENCE_ERROR),
        feature::VOLATILE_WRITE_CACHE if value & 1 != 0 => Ok(Done::status(id, Status::SUCCESS)),
        feature::VOLATILE_WRITE_CACHE => Err(Status::FEATURE_NOT_CHANGEABLE),
        _ => Err(Status::INVALID_FIELD),
    }
}

/// The namespaces that a feature command means.
fn chosen(context: &Context, command: &Command) -> Result<Vec<u32>, Status> {
    let namespaces = &context.subsystem.namespaces;
    if command.nsid == NSID_ALL {
        Ok(namespaces.keys().copied().collect())
    } else if namespaces.contains_key(&command.nsid) {
        Ok(vec![command.nsid])
    } else {
        Err(Status::INVALID_NAMESPACE)
    }
}

fn reservation_persistence(command: &Command) -> bool {
    command.cdw(10) as u8 == feature::RESERVATION_PERSISTENCE
}

/// Set Features, Reservation Persistence: durable before it completes, so later.
fn set_persistence(context: &Context, command: &Command) -> Option<Done> {
    let (id, persistent) = (command.id, command.cdw(11) & 1 != 0);
    let nsids = match chosen(context, command) {
        Ok(nsids) => nsids,
        Err(status) => return Some(Done::status(id, status.dnr())),
    };
    let subsystem = context.subsystem.clone();
    let host = context.controller.host.id;
    context.reply_later(async move {
        for nsid in nsids {
            let Some(namespace) = subsystem.namespaces.get(&nsid) else {
                continue;
            };
            let change = namespace.change(host, None, |table| table.set_persistent(persistent));
            if let Err(status) = change.await {
                return Done::status(id, status);
            }
        }
        Done::status(id, Status::SUCCESS)
    });
    None
}

fn get_features(context: &Context, command: &Command) -> Result<Done, Status> {
    /// Select 3 asks what the feature can do; bit 2 of the answer: changeable.
    const SUPPORTED_CAPABILITIES: u32 = 3;
    let controller = &context.controller;
    let id = command.id;
    let select = command.cdw(10) >> 8 & 7;
    let value = match command.cdw(10) as u8 {
        feature::NUMBER_OF_QUEUES => u64::from(IO_QUEUES_MAX - 1) * 0x1_0001,
        feature::KEEP_ALIVE_TIMER => controller.keep_alive().map_or(0, |t| t.as_millis() as u64),
        feature::ASYNC_EVENT_CONFIGURATION => u64::from(controller.async_configuration()),
        feature::VOLATILE_WRITE_CACHE => 1,
        feature::RESERVATION_NOTIFICATION_MASK => {
            let [nsid] = chosen(context, command)?[..] else {
                return Err(Status::INVALID_NAMESPACE);
            };
            u64::from(controller.notification_mask(nsid))
        }
        feature::RESERVATION_PERSISTENCE => {
            let namespace = context.subsystem.namespaces.get(&command.nsid);
            let namespace = namespace.ok_or(Status::INVALID_NAMESPACE)?;
            u64::from(namespace.report().persistent)
        }
        feature::HOST_IDENTIFIER if command.cdw(11) & EXTENDED_HOST_ID != 0 => {
            check_room(command, 16)?;
            let bytes = controller.host.id.to_bytes().to_vec();
            return Ok(Done::data(id, bytes.into()));
        }
        feature::HOST_IDENTIFIER => return Err(Status::HOST_ID_INCONSISTENT),
        _ => return Err(Status::INVALID_FIELD),
    };
    Ok(Done::result(
        id,
        if select == SUPPORTED_CAPABILITIES {
            1 << 2
        } else {
            value
        },
    ))
}
