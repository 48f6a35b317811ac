//! One TCP connection: the handshake, then one queue's commands until it ends.
//!
//! ```text
//! accept ─► ICReq/ICResp ─► Connect ─► commands ─► end: TermReq on a violation, close
//! ```
//!
//! A task reads, carries out what is quick, and writes; what waits elsewhere comes back through a
//! channel. What a peer does wrong ends its own connection and touches no other.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use super::faults::Faults;
use super::io::Context;
use super::subsystem::{Connected, Refused, Subsystem, invalid_data};
use super::transfer::{Arrived, Transfers};
use super::{Done, IN_CAPSULE_MAX, MAX_TRANSFER, admin, io};
use crate::Status;
use crate::command::{Command, Completion, Sgl, admin as opcode};
use crate::fabrics::{self, ConnectData, Fabrics};
use crate::pdu::{
    ADMIN_IN_CAPSULE_MAX, Data, FatalStatus, InitializeResponse, Pdu, PduReader, PduWriter,
    ReadError, Receiver, Violation,
};

/// For ICReq and Connect: who is silent after connecting does not hold a place for long.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// For the termination request to a peer that may not be reading.
const TERMINATION_TIMEOUT: Duration = Duration::from_secs(1);
/// Largest HPDA that the specification allows.
const DATA_ALIGNMENT_MAX: u8 = 31;

type Reader = PduReader<OwnedReadHalf>;
type Writer = PduWriter<OwnedWriteHalf>;

/// Why a connection ends.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("writing to the connection failed")]
    Write(#[source] std::io::Error),
    #[error("the host asked to terminate: fatal error status {0}")]
    HostTerminated(u16),
    #[error("Connect was refused: {0}")]
    Refused(Status),
    #[error("no handshake in time")]
    Silent,
    #[error("the keep-alive time-out passed")]
    KeepAliveExpired,
    #[error("the controller was ended")]
    Killed,
    #[error("a fault refuses this host")]
    InjectedRefusal,
}

impl From<Violation> for End {
    fn from(violation: Violation) -> Self {
        Self::Read(ReadError::Violation(violation))
    }
}

/// Serves a connection until it ends.
pub async fn serve(stream: TcpStream, subsystem: Arc<Subsystem>) {
    let faults = subsystem.faults.subscribe();
    // Requests and replies are small and are waited for.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY not set");
    }
    let (read, write) = stream.into_split();
    let mut reader = PduReader::new(read, Receiver::Controller, ADMIN_IN_CAPSULE_MAX);
    let mut writer = PduWriter::new(write);
    let (replies, completions) = mpsc::unbounded_channel();
    let connected = match handshake(&mut reader, &mut writer, &subsystem, &replies).await {
        Ok(connected) => connected,
        Err(end) => return finish(&mut writer, end).await,
    };
    let controller = Arc::clone(&connected.controller);
    let context = Context {
        subsystem: Arc::clone(&subsystem),
        controller: Arc::clone(&controller),
        replies,
    };
    let mut queue = Queue::new(connected, context, completions, faults);
    let is_admin = queue.connected.queue == 0;
    reader.set_max_data(queue.max_from_host());
    let end = tokio::select! {
        // First, so that nothing is acknowledged once a power loss has ended the controller.
        biased;
        () = controller.wait_killed() => End::Killed,
        () = controller.keep_alive_expired(), if is_admin => End::KeepAliveExpired,
        end = queue.run(&mut reader, &mut writer) => end,
    };
    subsystem.disconnected(&queue.connected);
    tracing::debug!(host = %controller.host.nqn, controller = controller.id,
        queue = queue.connected.queue, reason = %end, "connection ended");
    // A host that is cut off does not learn of the end before the path is healed.
    queue.wait_while_blackholed().await;
    finish(&mut writer, end).await;
}

/// Tells the peer of its violation, if that is why; then the connection closes by being dropped.
async fn finish(writer: &mut Writer, end: End) {
    let End::Read(ReadError::Violation(violation)) = end else {
        return;
    };
    tracing::info!(%violation, "a peer broke the protocol");
    let termination = Pdu::ControllerTermination(violation.termination());
    let sent = timeout(TERMINATION_TIMEOUT, async {
        writer.write(&termination).await?;
        writer.shutdown().await
    });
    // It may be gone already.
    let _ = sent.await;
}

/// ICReq, ICResp, Connect.
async fn handshake(
    reader: &mut Reader,
    writer: &mut Writer,
    subsystem: &Arc<Subsystem>,
    replies: &mpsc::UnboundedSender<Done>,
) -> Result<Connected, End> {
    let introduction = timeout(HANDSHAKE_TIMEOUT, introduce(reader, writer)).await;
    let (command, capsule) = introduction.map_err(|_| End::Silent)??;
    let answer = answer_connect(subsystem, &command, &capsule, replies).await?;
    let head = match &answer {
        Ok(connected) if connected.flow_control_off => u16::MAX,
        Ok(_) | Err(_) => 1,
    };
    let done = match &answer {
        Ok(connected) => Done::result(command.id, u64::from(connected.controller.id)),
        Err((status, result)) => Done {
            result: *result,
            ..Done::status(command.id, *status)
        },
    };
    let response = Pdu::Response(done.completion(head));
    let written = timeout(HANDSHAKE_TIMEOUT, writer.write(&response)).await;
    match (answer, written) {
        (Ok(connected), Ok(Ok(()))) => Ok(connected),
        (Ok(connected), failed) => {
            subsystem.disconnected(&connected);
            Err(failed.map_or(End::Silent, |w| w.map_or_else(End::Write, |()| End::Silent)))
        }
        (Err((status, _)), _) => Err(End::Refused(status)),
    }
}

/// ICReq, ICResp, and the first command.
async fn introduce(reader: &mut Reader, writer: &mut Writer) -> Result<(Command, Bytes), End> {
    initialize(reader, writer).await?;
    // A wrong data digest ends the connection here: nothing is known of the host yet.
    match reader.read().await? {
        Pdu::Command(command, capsule) => Ok((command, capsule)),
        _ => Err(sequence_error("Connect must come first").into()),
    }
}

async fn answer_connect(
    subsystem: &Arc<Subsystem>,
    command: &Command,
    capsule: &Bytes,
    replies: &mpsc::UnboundedSender<Done>,
) -> Result<Result<Connected, Refused>, End> {
    let Fabrics::Connect(request) = fabrics_of(command) else {
        return Ok(Err((Status::COMMAND_SEQUENCE_ERROR.dnr(), 0)));
    };
    let data = match command.sgl {
        Sgl::InCapsule { offset: 0, .. } => ConnectData::decode(capsule),
        _ => Err(fabrics::InvalidConnectData { offset: 0 }),
    };
    let data = match data {
        Ok(data) => data,
        Err(invalid) => return Ok(Err(invalid_data(invalid.offset))),
    };
    let host = &data.host.nqn;
    // A host that is cut off gets no answer, and no end either.
    let mut faults = subsystem.faults.subscribe();
    let _ = faults.wait_for(|faults| !faults.is_blackholed(host)).await;
    if subsystem.faults.borrow().is_refused(host) {
        return Err(End::InjectedRefusal);
    }
    Ok(subsystem.connect(&request, &data, replies))
}

async fn initialize(reader: &mut Reader, writer: &mut Writer) -> Result<(), End> {
    let request = match reader.read().await? {
        Pdu::InitializeRequest(request) => request,
        _ => return Err(sequence_error("ICReq must come first").into()),
    };
    if request.format != 0 {
        let violation = Violation::new(FatalStatus::Unsupported, 8, "an unknown PDU format");
        return Err(violation.into());
    }
    if request.data_alignment > DATA_ALIGNMENT_MAX {
        let violation = Violation::new(FatalStatus::InvalidHeaderField, 10, "HPDA is too large");
        return Err(violation.into());
    }
    let response = InitializeResponse {
        format: 0,
        data_alignment: 0,
        digests: request.digests,
        max_host_data: MAX_TRANSFER,
    };
    writer
        .write(&Pdu::InitializeResponse(response))
        .await
        .map_err(End::Write)?;
    reader.set_digests(request.digests);
    writer.set_digests(request.digests);
    writer.set_alignment(request.data_alignment);
    Ok(())
}

fn fabrics_of(command: &Command) -> Fabrics {
    if command.opcode == opcode::FABRICS {
        Fabrics::from_command(command)
    } else {
        Fabrics::Other(u8::MAX)
    }
}

fn sequence_error(what: &'static str) -> Violation {
    Violation::new(FatalStatus::SequenceError, 0, what)
}

/// A connected queue.
struct Queue {
    connected: Connected,
    context: Context,
    completions: mpsc::UnboundedReceiver<Done>,
    faults: watch::Receiver<Faults>,
    transfers: Transfers,
    /// Identifiers of the commands that have no completion yet.
    outstanding: HashSet<u16>,
    head: u16,
}

impl Queue {
    fn new(
        connected: Connected,
        context: Context,
        completions: mpsc::UnboundedReceiver<Done>,
        faults: watch::Receiver<Faults>,
    ) -> Self {
        Self {
            connected,
            context,
            completions,
            faults,
            transfers: Transfers::default(),
            outstanding: HashSet::new(),
            // Connect was the first entry.
            head: 1,
        }
    }

    /// Reads, executes, replies, until the connection ends.
    async fn run(&mut self, reader: &mut Reader, writer: &mut Writer) -> End {
        loop {
            self.wait_while_blackholed().await;
            if let Err(end) = self.step(reader, writer).await {
                return end;
            }
        }
    }

    async fn step(&mut self, reader: &mut Reader, writer: &mut Writer) -> Result<(), End> {
        if !reader.has_unit() && self.completions.is_empty() {
            writer.flush().await.map_err(End::Write)?;
        }
        tokio::select! {
            biased;
            // A change of faults is looked at by the caller before anything else happens.
            _ = self.faults.changed() => Ok(()),
            Some(done) = self.completions.recv() => self.reply(writer, done).await,
            unit = reader.read() => self.receive(writer, unit).await,
        }
    }

    async fn wait_while_blackholed(&mut self) {
        let host = self.context.controller.host.nqn.clone();
        // The sender lives in the subsystem, which this connection holds.
        let _ = self
            .faults
            .wait_for(|faults| !faults.is_blackholed(&host))
            .await;
    }

    async fn receive(
        &mut self,
        writer: &mut Writer,
        unit: Result<Pdu, ReadError>,
    ) -> Result<(), End> {
        let (unit, intact) = match unit {
            Ok(unit) => (unit, true),
            Err(ReadError::DataDigest(unit)) => (*unit, false),
            Err(other) => return Err(other.into()),
        };
        match unit {
            Pdu::Command(command, capsule) => self.command(writer, command, capsule, intact).await,
            Pdu::HostData(data) => match self.transfers.receive(data, intact)? {
                Some(arrived) => {
                    self.grant(writer).await?;
                    self.execute(writer, arrived).await
                }
                None => Ok(()),
            },
            Pdu::HostTermination(termination) => Err(End::HostTerminated(termination.status)),
            Pdu::InitializeRequest(_)
            | Pdu::InitializeResponse(_)
            | Pdu::ControllerTermination(_)
            | Pdu::Response(_)
            | Pdu::ControllerData(_)
            | Pdu::ReadyToTransfer(_) => Err(sequence_error("a unit out of sequence").into()),
        }
    }

    async fn command(
        &mut self,
        writer: &mut Writer,
        command: Command,
        capsule: Bytes,
        intact: bool,
    ) -> Result<(), End> {
        self.head = (self.head + 1) % self.connected.entries;
        if self.outstanding.len() >= usize::from(self.connected.entries) {
            let what = "more commands outstanding than the queue has entries";
            return Err(Violation::new(FatalStatus::LimitExceeded, 0, what).into());
        }
        if !self.outstanding.insert(command.id) {
            let what = "the identifier of a command that is outstanding";
            return Err(Violation::new(FatalStatus::InvalidHeaderField, 10, what).into());
        }
        match self.place_of_data(&command, &capsule) {
            Ok(Place::Here(data)) => {
                let arrived = Arrived {
                    command,
                    data,
                    intact,
                };
                self.execute(writer, arrived).await
            }
            Ok(Place::ToAskFor(length)) => {
                self.transfers.wait_for(command, length);
                self.grant(writer).await
            }
            Err(status) => self.reply(writer, Done::status(command.id, status)).await,
        }
    }

    /// Most bytes that one command takes from the host: admin commands take little.
    fn max_from_host(&self) -> u32 {
        match self.connected.queue {
            0 => ADMIN_IN_CAPSULE_MAX,
            _ => MAX_TRANSFER,
        }
    }

    /// Where the data is that the command takes from the host, if it does.
    fn place_of_data(&self, command: &Command, capsule: &Bytes) -> Result<Place, Status> {
        // Opcode bits 1:0 with value 01b: host to controller.
        let takes_data = command.opcode & 3 == 1;
        if !takes_data {
            return Ok(Place::Here(Bytes::new()));
        }
        let in_capsule_max = self.max_from_host().min(IN_CAPSULE_MAX);
        match command.sgl {
            Sgl::None | Sgl::Transport { length: 0 } => Ok(Place::Here(Bytes::new())),
            Sgl::InCapsule { offset, length } => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX);
                let end = start.saturating_add(length as usize);
                if end > capsule.len() || length > in_capsule_max {
                    return Err(Status::DATA_SGL_LENGTH_INVALID.dnr());
                }
                Ok(Place::Here(capsule.slice(start..end)))
            }
            Sgl::Transport { length } if length <= self.max_from_host() => {
                Ok(Place::ToAskFor(length as usize))
            }
            Sgl::Transport { .. } => Err(Status::DATA_SGL_LENGTH_INVALID.dnr()),
            Sgl::Other(_) => Err(Status::SGL_DESCRIPTOR_TYPE_INVALID.dnr()),
        }
    }

    async fn grant(&mut self, writer: &mut Writer) -> Result<(), End> {
        while let Some(grant) = self.transfers.grant() {
            let unit = Pdu::ReadyToTransfer(grant);
            writer.feed(&unit).await.map_err(End::Write)?;
        }
        Ok(())
    }

    async fn execute(&mut self, writer: &mut Writer, arrived: Arrived) -> Result<(), End> {
        // The connection is about to close: an answer would tell the host that it failed for good,
        // while a broken connection tells it to try again on a new one.
        if self.context.controller.is_killed() {
            return Err(End::Killed);
        }
        let Arrived {
            command,
            data,
            intact,
        } = arrived;
        let done = if !intact {
            Some(Done::status(command.id, Status::TRANSIENT_TRANSPORT_ERROR))
        } else if self.connected.queue == 0 {
            admin::execute(&self.context, &command, &data)
        } else if command.opcode == opcode::FABRICS {
            Some(admin::fabrics(&self.context, &command))
        } else if !self.context.controller.is_ready() {
            Some(Done::status(
                command.id,
                Status::COMMAND_SEQUENCE_ERROR.dnr(),
            ))
        } else {
            io::execute(&self.context, &command, data)
        };
        match done {
            Some(done) => self.reply(writer, done).await,
            None => Ok(()),
        }
    }

    /// Sends the data and the completion; both stay in the writer's buffer if they are small.
    async fn reply(&mut self, writer: &mut Writer, done: Done) -> Result<(), End> {
        self.outstanding.remove(&done.id);
        let head = if self.connected.flow_control_off {
            u16::MAX
        } else {
            self.head
        };
        let has_data = !done.data.is_empty() && done.status.is_success();
        // Without flow control the completion says nothing that the flag does not.
        let success = has_data && self.connected.flow_control_off && done.result == 0;
        if has_data {
            let unit = Pdu::ControllerData(Data {
                command: done.id,
                tag: 0,
                offset: 0,
                data: done.data.clone(),
                last: true,
                success,
            });
            writer.feed(&unit).await.map_err(End::Write)?;
        }
        if success {
            return Ok(());
        }
        let response = Pdu::Response(done.completion(head));
        writer.feed(&response).await.map_err(End::Write)
    }
}

/// Where a command's data is.
enum Place {
    Here(Bytes),
    ToAskFor(usize),
}

impl Done {
    fn completion(&self, sq_head: u16) -> Completion {
        Completion {
            result: self.result,
            sq_head,
            sq_id: 0,
            id: self.id,
            status: self.status,
        }
    }
}
