//! One queue on its TCP connection: a task that reads and writes, and a handle that sends commands.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};

use super::slots::{Completed, Slot, Slots};
use super::{ConnectError, Options};
use crate::Error;
use crate::command::{Command, Sgl};
use crate::pdu::{
    Digests, InitializeRequest, Pdu, PduReader, PduWriter, ReadError, Receiver, Violation,
};

/// Most data of one unit that a controller may send us, in bytes: more than any transfer we ask for.
const MAX_UNIT_DATA: u32 = 4 << 20;
/// MAXH2CDATA below this breaks the specification (NVMe/TCP 1.1, 3.6.2.3).
const MIN_HOST_DATA: u32 = 4096;
/// How long a termination request may take to leave before the connection closes without it.
const TERMINATION_DEADLINE: Duration = Duration::from_secs(1);

/// Data that a command moves.
pub(super) struct Transfer {
    /// To the controller.
    pub(super) out: Bytes,
    /// Most bytes from the controller.
    pub(super) expected: usize,
}

impl Transfer {
    pub(super) fn none() -> Self {
        Self::from_controller(0)
    }

    pub(super) fn to_controller(out: impl Into<Bytes>) -> Self {
        Self {
            out: out.into(),
            expected: 0,
        }
    }

    pub(super) fn from_controller(expected: usize) -> Self {
        Self {
            out: Bytes::new(),
            expected,
        }
    }
}

/// A queue's sending side. Dropping it closes the connection.
pub(super) struct Queue {
    shared: Arc<Shared>,
    outgoing: mpsc::UnboundedSender<Outgoing>,
    permits: Arc<Semaphore>,
    in_capsule_max: usize,
    driver: JoinHandle<()>,
}

struct Shared {
    slots: Mutex<Slots>,
    /// Why the queue is to end, or ended.
    end: watch::Sender<Option<String>>,
}

enum Outgoing {
    /// The capsule of this command.
    Capsule(u16),
    /// Data for the controller.
    Data(Pdu),
    /// The last unit: the controller broke the protocol.
    Termination(Violation),
}

impl Queue {
    /// Connects and shakes hands. `depth`: commands at once; small data up to `in_capsule_max`
    /// bytes goes with the command.
    pub(super) async fn connect(
        options: &Options,
        depth: u16,
        in_capsule_max: u32,
    ) -> Result<Self, ConnectError> {
        let address = &options.address;
        let tcp = |source| ConnectError::Tcp {
            address: address.clone(),
            source,
        };
        let stream = TcpStream::connect(address.as_str()).await.map_err(tcp)?;
        stream.set_nodelay(true).map_err(tcp)?;
        let (input, output) = stream.into_split();
        let mut reader = PduReader::new(input, Receiver::Host, MAX_UNIT_DATA);
        let mut writer = PduWriter::new(output);
        let max_host_data = shake_hands(&mut reader, &mut writer, options.digests)
            .await
            .map_err(|detail| ConnectError::Handshake {
                address: address.clone(),
                detail,
            })?;
        let shared = Arc::new(Shared {
            slots: Mutex::default(),
            end: watch::Sender::new(None),
        });
        let (outgoing, from_callers) = mpsc::unbounded_channel();
        let driver = tokio::spawn(drive(
            reader,
            writer,
            Arc::clone(&shared),
            outgoing.downgrade(),
            from_callers,
            max_host_data as usize,
        ));
        Ok(Self {
            shared,
            outgoing,
            permits: Arc::new(Semaphore::new(usize::from(depth))),
            in_capsule_max: in_capsule_max as usize,
            driver,
        })
    }

    /// Sends a command and waits for its completion, whatever its status.
    pub(super) async fn execute(
        &self,
        name: &'static str,
        mut command: Command,
        transfer: Transfer,
        deadline: Duration,
    ) -> Result<Completed, Error> {
        let until = Instant::now() + deadline;
        let not_sent = |cause: &str| Error::NoPath {
            command: name,
            cause: cause.to_owned(),
        };
        let permit = timeout_at(until, Arc::clone(&self.permits).acquire_owned())
            .await
            .map_err(|_| not_sent("the queue stayed full"))?
            .map_err(|_| not_sent("the queue is closed"))?;
        let Transfer { out, expected } = transfer;
        let in_capsule = !out.is_empty() && out.len() <= self.in_capsule_max;
        if in_capsule {
            command.sgl = Sgl::InCapsule {
                offset: 0,
                length: out.len() as u32,
            };
        }
        let (reply, answer) = oneshot::channel();
        let slot = Slot::new(name, command, out, in_capsule, expected, reply, permit);
        let id = self.shared.slots().insert(slot).map_err(|c| not_sent(&c))?;
        // A driver that ended meanwhile has failed the slot already.
        let _ = self.outgoing.send(Outgoing::Capsule(id));
        match timeout_at(until, answer).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(Error::ConnectionLost { command: name }),
            Err(_) if self.shared.slots().withdraw(id) => Err(not_sent("the connection is stuck")),
            Err(_) => {
                self.end(&format!("{name} got no answer within {deadline:?}"));
                Err(Error::Deadline {
                    command: name,
                    deadline,
                })
            }
        }
    }

    /// Ends the connection.
    pub(super) fn end(&self, cause: &str) {
        self.shared.end.send_if_modified(|end| {
            let first = end.is_none();
            if first {
                *end = Some(cause.to_owned());
            }
            first
        });
    }

    /// Waits until the connection is over, and says why.
    pub(super) async fn ended(&self) -> String {
        self.shared.ended().await
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.driver.abort();
        self.shared.slots().end("the connection was closed");
    }
}

impl Shared {
    fn slots(&self) -> std::sync::MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn ended(&self) -> String {
        let mut end = self.end.subscribe();
        match end.wait_for(Option::is_some).await {
            Ok(cause) => cause.clone().unwrap_or_default(),
            Err(_) => String::new(),
        }
    }
}

/// ICReq and ICResp. Gives MAXH2CDATA.
async fn shake_hands<R, W>(
    reader: &mut PduReader<R>,
    writer: &mut PduWriter<W>,
    digests: Digests,
) -> Result<u32, String>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let request = InitializeRequest {
        digests,
        ..InitializeRequest::default()
    };
    writer
        .write(&Pdu::InitializeRequest(request))
        .await
        .map_err(|e| e.to_string())?;
    let response = match reader.read().await {
        Ok(Pdu::InitializeResponse(response)) => response,
        Ok(Pdu::ControllerTermination(end)) => {
            return Err(format!(
                "the controller refused, fatal error {}",
                end.status
            ));
        }
        Ok(_) => return Err("the controller's first unit is no ICResp".to_owned()),
        Err(e) => return Err(describe(&e)),
    };
    if response.format != 0 {
        return Err(format!("PDU format version {}", response.format));
    }
    if response.digests != digests {
        return Err("other digests than asked for".to_owned());
    }
    if response.max_host_data < MIN_HOST_DATA || response.max_host_data % 4 != 0 {
        return Err(format!("MAXH2CDATA {}", response.max_host_data));
    }
    reader.set_digests(digests);
    writer.set_digests(digests);
    writer.set_alignment(response.data_alignment);
    Ok(response.max_host_data)
}

/// Reads and writes until one side ends, then fails whatever is outstanding.
async fn drive<R, W>(
    reader: PduReader<R>,
    writer: PduWriter<W>,
    shared: Arc<Shared>,
    outgoing: mpsc::WeakUnboundedSender<Outgoing>,
    from_callers: mpsc::UnboundedReceiver<Outgoing>,
    max_host_data: usize,
) where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let cause = tokio::select! {
        cause = read_all(reader, &shared, outgoing, max_host_data) => cause,
        cause = write_all(writer, &shared, from_callers) => cause,
        cause = shared.ended() => cause,
    };
    shared.slots().end(&cause);
    shared.end.send_if_modified(|end| {
        end.get_or_insert(cause);
        true
    });
}

async fn read_all<R: AsyncRead + Unpin>(
    mut reader: PduReader<R>,
    shared: &Shared,
    outgoing: mpsc::WeakUnboundedSender<Outgoing>,
    max_host_data: usize,
) -> String {
    loop {
        let unit = match reader.read().await {
            Ok(unit) => Ok((unit, true)),
            Err(ReadError::DataDigest(unit)) => Ok((*unit, false)),
            Err(ReadError::Violation(violation)) => Err(violation),
            Err(error @ (ReadError::Closed | ReadError::Io(_))) => return describe(&error),
        };
        if let Ok((Pdu::ControllerTermination(end), _)) = &unit {
            let (status, at) = (end.status, end.information);
            return format!("the controller ended the connection, fatal error {status} ({at:#x})");
        }
        let handled = unit.and_then(|(unit, intact)| {
            let answers = handle(&mut shared.slots(), unit, intact, max_host_data)?;
            Ok(answers)
        });
        // Gone with the queue's handle: then the driver is about to be aborted.
        let Some(writer) = outgoing.upgrade() else {
            return "the connection was closed".to_owned();
        };
        match handled {
            Ok(answers) => {
                for answer in answers {
                    let _ = writer.send(Outgoing::Data(Pdu::HostData(answer)));
                }
            }
            Err(violation) => {
                let _ = writer.send(Outgoing::Termination(violation));
                // The writer ends the driver once the termination request has left.
                std::future::pending::<()>().await;
            }
        }
    }
}

fn handle(
    slots: &mut Slots,
    unit: Pdu,
    intact: bool,
    max_host_data: usize,
) -> Result<Vec<crate::pdu::Data>, Violation> {
    match unit {
        Pdu::Response(completion) => slots.complete(completion).map(|()| Vec::new()),
        Pdu::ControllerData(unit) => slots.receive(unit, intact).map(|()| Vec::new()),
        Pdu::ReadyToTransfer(wish) => slots.answer(wish, max_host_data),
        Pdu::InitializeRequest(_)
        | Pdu::InitializeResponse(_)
        | Pdu::HostTermination(_)
        | Pdu::ControllerTermination(_)
        | Pdu::Command(..)
        | Pdu::HostData(_) => Err(Violation::new(
            crate::pdu::FatalStatus::SequenceError,
            0,
            "a unit that must not come now",
        )),
    }
}

async fn write_all<W: AsyncWrite + Unpin>(
    mut writer: PduWriter<W>,
    shared: &Shared,
    mut from_callers: mpsc::UnboundedReceiver<Outgoing>,
) -> String {
    let failed = |e: std::io::Error| format!("writing to the connection failed: {e}");
    while let Some(first) = from_callers.recv().await {
        let mut next = Some(first);
        while let Some(outgoing) = next {
            let fed = match outgoing {
                Outgoing::Capsule(id) => {
                    let capsule = shared.slots().capsule(id);
                    match capsule {
                        Some(unit) => writer.feed(&unit).await,
                        None => Ok(()),
                    }
                }
                Outgoing::Data(unit) => writer.feed(&unit).await,
                Outgoing::Termination(violation) => {
                    let unit = Pdu::HostTermination(violation.termination());
                    // Best effort: the connection ends either way.
                    let _ = timeout(TERMINATION_DEADLINE, writer.write(&unit)).await;
                    return format!("the controller broke the protocol: {violation}");
                }
            };
            if let Err(e) = fed {
                return failed(e);
            }
            next = from_callers.try_recv().ok();
        }
        if let Err(e) = writer.flush().await {
            return failed(e);
        }
    }
    "the connection was closed".to_owned()
}

fn describe(error: &ReadError) -> String {
    match error {
        ReadError::Io(source) => format!("{error}: {source}"),
        ReadError::Closed | ReadError::Violation(_) | ReadError::DataDigest(_) => error.to_string(),
    }
}
