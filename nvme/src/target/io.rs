//! Commands of the I/O queues: NVM commands and reservations.
//!
//! Short ones run where they are, on the connection's task; those that wait for a disk's flush, for
//! an injected delay or for other commands run apart and reply later.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::audit::{FenceKind, Operation};
use super::controller::Controller;
use super::namespace::{InFlight, Shared};
use super::reservation::{Effects, ReservationTable};
use super::subsystem::Subsystem;
use super::{Done, MAX_TRANSFER};
use crate::command::{Command, NSID_ALL, Sgl, decode_ranges, io as opcode};
use crate::reservation_codec::{AcquireRequest, RegisterRequest, ReleaseRequest, encode_report};
use crate::{HostId, Status};

/// CDW11 bit 2 of Dataset Management: deallocate.
const ATTRIBUTE_DEALLOCATE: u32 = 1 << 2;

/// Where a command came from and goes to.
#[derive(Clone)]
pub struct Context {
    /// The subsystem.
    pub subsystem: Arc<Subsystem>,
    /// The controller.
    pub controller: Arc<Controller>,
    /// Completions of commands that run apart.
    pub replies: mpsc::UnboundedSender<Done>,
}

impl Context {
    fn host(&self) -> HostId {
        self.controller.host.id
    }

    /// Runs `work` apart; its completion goes to the queue. A closed queue does not stop the work.
    pub fn reply_later(&self, work: impl Future<Output = Done> + Send + 'static) {
        let replies = self.replies.clone();
        tokio::spawn(async move {
            let done = work.await;
            let _ = replies.send(done);
        });
    }
}

/// What an NVM command does, checked against the namespace's size. Offsets and lengths in bytes.
enum Work {
    Read { offset: u64, length: usize },
    Compare { offset: u64, expected: Bytes },
    Write { offset: u64, data: Bytes, fua: bool },
    Zeros { ranges: Vec<(u64, u64)>, fua: bool },
    Flush,
}

impl Work {
    fn operation(&self) -> Operation {
        match self {
            Self::Read { .. } | Self::Compare { .. } => Operation::Read,
            Self::Write { .. } | Self::Zeros { .. } => Operation::Write,
            Self::Flush => Operation::Flush,
        }
    }

    /// Whether it may wait for the disk.
    fn is_slow(&self) -> bool {
        match self {
            Self::Read { .. } | Self::Compare { .. } => false,
            Self::Write { fua, .. } => *fua,
            Self::Zeros { .. } | Self::Flush => true,
        }
    }

    fn extents(&self) -> Vec<(u64, u64)> {
        match self {
            Self::Read { offset, length } => vec![(*offset, *length as u64)],
            Self::Compare {
                offset,
                expected: data,
            }
            | Self::Write { offset, data, .. } => {
                vec![(*offset, data.len() as u64)]
            }
            Self::Zeros { ranges, .. } => ranges.clone(),
            Self::Flush => Vec::new(),
        }
    }
}

/// Carries out an I/O command whose data, if any, is here. `None`: the completion comes later.
pub fn execute(context: &Context, command: &Command, data: Bytes) -> Option<Done> {
    let outcome = match command.opcode {
        opcode::RESERVATION_REGISTER
        | opcode::RESERVATION_ACQUIRE
        | opcode::RESERVATION_RELEASE => reserve(context, command, &data),
        opcode::RESERVATION_REPORT => report(context, command).map(Some),
        opcode::FLUSH if command.nsid == NSID_ALL => {
            let all = context.subsystem.namespaces.values();
            let begun: Result<Vec<_>, _> = all.map(|ns| begin(context, ns, &Work::Flush)).collect();
            begun.map(|in_flight| start(context, command.id, in_flight, Work::Flush))
        }
        _ => nvm(context, command, data),
    };
    match outcome {
        Ok(done) => done,
        Err(status) => Some(Done::status(command.id, status)),
    }
}

fn namespace<'a>(context: &'a Context, command: &Command) -> Result<&'a Arc<Shared>, Status> {
    let found = context.subsystem.namespaces.get(&command.nsid);
    found.ok_or(Status::INVALID_NAMESPACE.dnr())
}

/// The namespace of a reservation command.
fn reservable<'a>(context: &'a Context, command: &Command) -> Result<&'a Arc<Shared>, Status> {
    let found = namespace(context, command)?;
    if found.has_reservations() {
        Ok(found)
    } else {
        Err(Status::INVALID_OPCODE.dnr())
    }
}

fn nvm(context: &Context, command: &Command, data: Bytes) -> Result<Option<Done>, Status> {
    let namespace = namespace(context, command)?;
    let work = parse(namespace, command, data)?;
    let in_flight = begin(context, namespace, &work)?;
    Ok(start(context, command.id, vec![in_flight], work))
}

fn parse(namespace: &Shared, command: &Command, data: Bytes) -> Result<Work, Status> {
    let block = u64::from(namespace.block_size);
    match command.opcode {
        opcode::FLUSH => return Ok(Work::Flush),
        opcode::DATASET_MANAGEMENT => return parse_dataset(namespace, command, &data),
        opcode::READ | opcode::WRITE | opcode::COMPARE | opcode::WRITE_ZEROES => {}
        _ => return Err(Status::INVALID_OPCODE.dnr()),
    }
    let blocks = u64::from(command.blocks());
    let (offset, length) = extent(namespace, command.lba(), blocks)?;
    let fua = command.fua();
    if command.opcode == opcode::WRITE_ZEROES {
        let ranges = vec![(offset, length)];
        return Ok(Work::Zeros { ranges, fua });
    }
    if length > u64::from(MAX_TRANSFER) {
        return Err(Status::INVALID_FIELD.dnr());
    }
    if command.opcode == opcode::READ {
        let length = blocks as usize * block as usize;
        return check_room(command, length).map(|()| Work::Read { offset, length });
    }
    if data.len() as u64 != length {
        return Err(Status::DATA_SGL_LENGTH_INVALID.dnr());
    }
    Ok(if command.opcode == opcode::WRITE {
        Work::Write { offset, data, fua }
    } else {
        Work::Compare {
            offset,
            expected: data,
        }
    })
}

fn parse_dataset(namespace: &Shared, command: &Command, data: &[u8]) -> Result<Work, Status> {
    let count = (command.cdw(10) & 0xff) as usize + 1;
    if data.len() < 16 * count {
        return Err(Status::DATA_SGL_LENGTH_INVALID.dnr());
    }
    let mut ranges = Vec::new();
    for range in decode_ranges(&data[..16 * count]) {
        let checked = extent(namespace, range.lba, u64::from(range.blocks))?;
        // The other attributes are hints only.
        if command.cdw(11) & ATTRIBUTE_DEALLOCATE != 0 && checked.1 > 0 {
            ranges.push(checked);
        }
    }
    Ok(Work::Zeros { ranges, fua: false })
}

/// Offset and length in bytes, inside the namespace.
fn extent(namespace: &Shared, lba: u64, blocks: u64) -> Result<(u64, u64), Status> {
    let end = lba
        .checked_add(blocks)
        .filter(|end| *end <= namespace.blocks());
    end.ok_or(Status::LBA_OUT_OF_RANGE.dnr())?;
    let block = u64::from(namespace.block_size);
    Ok((lba * block, blocks * block))
}

/// The host's buffer must have exactly the length that comes back.
pub fn check_room(command: &Command, length: usize) -> Result<(), Status> {
    match command.sgl {
        Sgl::Transport { length: room } if room as usize == length => Ok(()),
        Sgl::Transport { .. } | Sgl::None => Err(Status::DATA_SGL_LENGTH_INVALID.dnr()),
        Sgl::InCapsule { .. } | Sgl::Other(_) => Err(Status::SGL_DESCRIPTOR_TYPE_INVALID.dnr()),
    }
}

/// The reservation check, then the injected media errors.
fn begin(context: &Context, namespace: &Arc<Shared>, work: &Work) -> Result<InFlight, Status> {
    let in_flight = namespace.begin(context.host(), work.operation())?;
    // Again, after the command noted how many power losses there were: a controller from before one
    // must not flush, successfully, what the loss has taken.
    if !context.controller.is_ready() {
        return Err(Status::COMMAND_SEQUENCE_ERROR.dnr());
    }
    let faults = context.subsystem.faults.borrow();
    let block = u64::from(namespace.block_size);
    for (offset, length) in work.extents() {
        let host = &context.controller.host.nqn;
        let (lba, blocks) = (offset / block, length / block);
        if let Some(status) = faults.failure(host, work.operation(), lba, blocks) {
            return Err(status);
        }
    }
    Ok(in_flight)
}

fn start(context: &Context, id: u16, in_flight: Vec<InFlight>, work: Work) -> Option<Done> {
    let host = &context.controller.host.nqn;
    let delay = context
        .subsystem
        .faults
        .borrow()
        .delay(host, work.operation());
    if delay.is_none() && !work.is_slow() {
        return Some(finish(id, &in_flight, work));
    }
    context.reply_later(async move {
        if let Some(delay) = delay {
            tokio::time::sleep(delay).await;
        }
        let finished = tokio::task::spawn_blocking(move || finish(id, &in_flight, work)).await;
        finished.unwrap_or_else(|_| Done::status(id, Status::INTERNAL_ERROR))
    });
    None
}

/// Does the work; the commands end, for a waiting preempt-and-abort too, when `in_flight` is dropped.
fn finish(id: u16, in_flight: &[InFlight], work: Work) -> Done {
    let mut done = Done::status(id, Status::SUCCESS);
    for command in in_flight {
        match run(command, &work) {
            Ok(data) => done.data = data,
            Err(status) => done.status = status,
        }
    }
    done
}

fn run(command: &InFlight, work: &Work) -> Result<Bytes, Status> {
    let failed = |status: Status| {
        move |error: io::Error| {
            tracing::warn!(%error, %status, "input or output on the namespace's file failed");
            status
        }
    };
    match work {
        Work::Read { offset, length } => {
            let read = command.read(*offset, *length);
            return read.map_err(failed(Status::UNRECOVERED_READ));
        }
        Work::Compare { offset, expected } => {
            let read = command.read(*offset, expected.len());
            if read.map_err(failed(Status::UNRECOVERED_READ))? != expected {
                return Err(Status::COMPARE_FAILURE.dnr());
            }
        }
        Work::Write { offset, data, fua } => command
            .write(*offset, data.clone(), *fua)
            .map_err(failed(Status::WRITE_FAULT))?,
        Work::Zeros { ranges, fua } => command
            .write_zeros(ranges, *fua)
            .map_err(failed(Status::WRITE_FAULT))?,
        Work::Flush => command.flush().map_err(failed(Status::WRITE_FAULT))?,
    }
    Ok(Bytes::new())
}

/// A reservation command with data, as a change of the table.
type Change = Box<dyn FnOnce(&mut ReservationTable) -> Result<Effects, Status> + Send>;

/// Starts a reservation command; the completion always comes later, and the change goes on even if
/// the connection ends.
fn reserve(context: &Context, command: &Command, data: &[u8]) -> Result<Option<Done>, Status> {
    let namespace = Arc::clone(reservable(context, command)?);
    let (kind, change) = parse_change(context.host(), command, data)?;
    let (host, id) = (context.host(), command.id);
    let subsystem = Arc::clone(&context.subsystem);
    context.reply_later(async move {
        match namespace.change(host, kind, change).await {
            Ok(notifications) => {
                subsystem.notify(namespace.nsid, &notifications);
                Done::status(id, Status::SUCCESS)
            }
            Err(status) => Done::status(id, status),
        }
    });
    Ok(None)
}

fn parse_change(
    host: HostId,
    command: &Command,
    data: &[u8],
) -> Result<(Option<FenceKind>, Change), Status> {
    let cdw10 = command.cdw(10);
    Ok(match command.opcode {
        opcode::RESERVATION_REGISTER => {
            let request = RegisterRequest::decode(cdw10, data)?;
            (None, Box::new(move |table| table.register(host, &request)))
        }
        opcode::RESERVATION_ACQUIRE => {
            let request = AcquireRequest::decode(cdw10, data)?;
            let kind = match request.action {
                1 => Some(FenceKind::Preempt),
                2 => Some(FenceKind::PreemptAndAbort),
                _ => None,
            };
            (kind, Box::new(move |table| table.acquire(host, &request)))
        }
        _ => {
            let request = ReleaseRequest::decode(cdw10, data)?;
            let kind = (request.action == 1).then_some(FenceKind::Clear);
            (kind, Box::new(move |table| table.release(host, &request)))
        }
    })
}

fn report(context: &Context, command: &Command) -> Result<Done, Status> {
    let namespace = reservable(context, command)?;
    // Host identifiers have 128 bits here, which only the extended structure can show. Without DNR:
    // Linux tries again with the other structure.
    if command.cdw(11) & 1 == 0 {
        return Err(Status::HOST_ID_INCONSISTENT);
    }
    let length = (u64::from(command.cdw(10)) + 1) * 4;
    if length > u64::from(MAX_TRANSFER) {
        return Err(Status::INVALID_FIELD.dnr());
    }
    check_room(command, length as usize)?;
    let mut bytes = encode_report(&namespace.report());
    bytes.resize(length as usize, 0);
    Ok(Done::data(command.id, bytes.into()))
}

/// Opcodes of this file with their effects, for log page 0x05: whether each changes blocks.
pub const SUPPORTED: [(u8, bool); 10] = [
    (opcode::FLUSH, false),
    (opcode::WRITE, true),
    (opcode::READ, false),
    (opcode::COMPARE, false),
    (opcode::WRITE_ZEROES, true),
    (opcode::DATASET_MANAGEMENT, true),
    (opcode::RESERVATION_REGISTER, false),
    (opcode::RESERVATION_REPORT, false),
    (opcode::RESERVATION_ACQUIRE, false),
    (opcode::RESERVATION_RELEASE, false),
];

/// Whether a namespace without reservations does not know this opcode.
pub fn is_reservation(command: u8) -> bool {
    matches!(
        command,
        opcode::RESERVATION_REGISTER
            | opcode::RESERVATION_REPORT
            | opcode::RESERVATION_ACQUIRE
            | opcode::RESERVATION_RELEASE
    )
}
