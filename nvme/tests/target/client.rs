//! A host made of the codec alone, so that the target is tested without the initiator.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use nvme::command::{Command, Completion, Sgl, feature};
use nvme::fabrics::{
    ANY_CONTROLLER, CC, CC_ENABLED, CSTS, CSTS_READY, Connect, ConnectData, Fabrics,
};
use nvme::pdu::{
    Data, Digests, InitializeRequest, Pdu, PduReader, PduWriter, ReadError, Receiver, Termination,
};
use nvme::reservation::{Acquire, ChangePersistence, Register, ReservationReport};
use nvme::target::{NamespaceConfig, Target, TargetConfig, default_subsystem};
use nvme::{HostId, HostIdentity, ReservationType, Status, reservation_codec};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use uuid::Uuid;

pub const NSID: u32 = 1;
pub const BLOCK: u32 = 512;
/// No test waits longer for one answer.
const DEADLINE: Duration = Duration::from_secs(20);

/// Host number `n`.
pub fn host(n: u8) -> HostIdentity {
    HostIdentity {
        nqn: format!("nqn.2026-11.dev.baton:host-{n}").parse().unwrap(),
        id: HostId(Uuid::from_u128(0x1000 + u128::from(n))),
    }
}

/// A running target in a directory of its own.
pub struct Lab {
    pub target: Target,
    pub dir: tempfile::TempDir,
}

impl Lab {
    pub async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    pub async fn start_with(adapt: impl FnOnce(&mut TargetConfig)) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), adapt).await
    }

    pub async fn start_in(dir: tempfile::TempDir, adapt: impl FnOnce(&mut TargetConfig)) -> Self {
        let namespace = NamespaceConfig::new(dir.path().join("ns"), Some(16 << 20));
        let mut config = TargetConfig::local(namespace);
        config.state = Some(dir.path().join("state.json"));
        adapt(&mut config);
        let target = Target::start(config).await.unwrap();
        Self { target, dir }
    }

    /// An enabled controller with its I/O queue 1.
    pub async fn host(&self, n: u8) -> Host {
        Host::attach(self.target.address(), host(n), Digests::default(), 0)
            .await
            .unwrap()
    }

    pub async fn control(&self, request: serde_json::Value) -> serde_json::Value {
        let request = serde_json::from_value(request).unwrap();
        let answer = self.target.control(request).await;
        assert_eq!(answer["ok"], true, "{answer}");
        answer
    }
}

/// What ended a connection instead of an answer.
#[derive(Debug)]
pub enum Ended {
    Terminated(Termination),
    Closed,
}

/// One queue.
pub struct Queue {
    pub reader: PduReader<OwnedReadHalf>,
    pub writer: PduWriter<OwnedWriteHalf>,
    next: u16,
    /// Send data of up to this many bytes in the capsule.
    pub in_capsule: usize,
    /// Bytes of each H2CData unit.
    pub unit: usize,
}

impl Queue {
    pub async fn open(address: SocketAddr, digests: Digests) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (read, write) = stream.into_split();
        let mut reader = PduReader::new(read, Receiver::Host, 1 << 20);
        let mut writer = PduWriter::new(write);
        let request = InitializeRequest {
            digests,
            ..InitializeRequest::default()
        };
        writer
            .write(&Pdu::InitializeRequest(request))
            .await
            .unwrap();
        let Pdu::InitializeResponse(response) = reader.read().await.unwrap() else {
            panic!()
        };
        assert_eq!(response.digests, digests);
        assert_eq!(response.data_alignment, 0);
        reader.set_digests(digests);
        writer.set_digests(digests);
        Self {
            reader,
            writer,
            next: 0,
            in_capsule: 8192,
            unit: 128 * 1024,
        }
    }

    pub async fn connect(
        address: SocketAddr,
        digests: Digests,
        data: &ConnectData,
        queue: u16,
        keep_alive_ms: u32,
    ) -> Result<(Self, u16), Status> {
        let mut new = Self::open(address, digests).await;
        let connect = Connect {
            record_format: 0,
            queue,
            size_minus_one: 31,
            attributes: if queue % 2 == 1 { 1 << 2 } else { 0 },
            keep_alive_ms,
        };
        let command = Fabrics::Connect(connect).to_command();
        let (completion, _) = new.execute(command, &data.encode()).await.unwrap();
        if completion.status.is_success() {
            Ok((new, completion.result as u16))
        } else {
            Err(completion.status)
        }
    }

    /// Sends a command; data goes in the capsule if it fits, else the R2T is to be answered.
    pub async fn send(&mut self, mut command: Command, data: &[u8]) -> u16 {
        self.next = self.next.wrapping_add(1);
        command.id = self.next;
        let capsule = if !data.is_empty() && data.len() <= self.in_capsule {
            command.sgl = Sgl::InCapsule {
                offset: 0,
                length: data.len() as u32,
            };
            Bytes::copy_from_slice(data)
        } else {
            Bytes::new()
        };
        self.writer
            .write(&Pdu::Command(command, capsule))
            .await
            .unwrap();
        command.id
    }

    pub async fn next_pdu(&mut self) -> Result<Pdu, Ended> {
        match tokio::time::timeout(DEADLINE, self.reader.read())
            .await
            .expect("no answer")
        {
            Ok(Pdu::ControllerTermination(termination)) => Err(Ended::Terminated(termination)),
            Ok(pdu) => Ok(pdu),
            Err(ReadError::Closed | ReadError::Io(_)) => Err(Ended::Closed),
            Err(other) => panic!("{other}"),
        }
    }

    /// Sends a command and waits for its completion, answering R2Ts.
    pub async fn execute(
        &mut self,
        command: Command,
        data: &[u8],
    ) -> Result<(Completion, Bytes), Ended> {
        let id = self.send(command, data).await;
        self.complete(id, data).await
    }

    pub async fn complete(&mut self, id: u16, data: &[u8]) -> Result<(Completion, Bytes), Ended> {
        let mut received = BytesMut::new();
        loop {
            match self.next_pdu().await? {
                Pdu::Response(completion) => {
                    assert_eq!(completion.id, id);
                    return Ok((completion, received.freeze()));
                }
                Pdu::ControllerData(unit) => {
                    assert_eq!((unit.command, unit.offset as usize), (id, received.len()));
                    received.extend_from_slice(&unit.data);
                    if unit.success {
                        let status = Status::SUCCESS;
                        let completion = Completion {
                            result: 0,
                            sq_head: 0,
                            sq_id: 0,
                            id,
                            status,
                        };
                        return Ok((completion, received.freeze()));
                    }
                }
                Pdu::ReadyToTransfer(wanted) => {
                    let end = (wanted.offset + wanted.length) as usize;
                    let mut at = wanted.offset as usize;
                    while at < end {
                        let until = end.min(at + self.unit);
                        let unit = Pdu::HostData(Data {
                            command: wanted.command,
                            tag: wanted.tag,
                            offset: at as u32,
                            data: Bytes::copy_from_slice(&data[at..until]),
                            last: until == end,
                            success: false,
                        });
                        self.writer.write(&unit).await.unwrap();
                        at = until;
                    }
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

/// A host with an admin queue and one I/O queue.
pub struct Host {
    pub identity: HostIdentity,
    pub controller: u16,
    pub admin: Queue,
    pub io: Queue,
}

impl Host {
    pub async fn attach(
        address: SocketAddr,
        identity: HostIdentity,
        digests: Digests,
        keep_alive_ms: u32,
    ) -> Result<Self, Status> {
        let mut data = ConnectData {
            host: identity.clone(),
            controller: ANY_CONTROLLER,
            subsystem: default_subsystem(),
        };
        let (mut admin, controller) =
            Queue::connect(address, digests, &data, 0, keep_alive_ms).await?;
        enable(&mut admin).await;
        let queues = Command::set_features(feature::NUMBER_OF_QUEUES, 0, 0);
        let (completion, _) = admin.execute(queues, &[]).await.unwrap();
        assert_eq!((completion.status, completion.result), (Status::SUCCESS, 0));
        data.controller = controller;
        let (io, _) = Queue::connect(address, digests, &data, 1, 0).await?;
        Ok(Self {
            identity,
            controller,
            admin,
            io,
        })
    }

    pub fn id(&self) -> HostId {
        self.identity.id
    }

    /// An admin command without data from the host.
    pub async fn ask(&mut self, command: Command) -> (Completion, Bytes) {
        self.admin.execute(command, &[]).await.unwrap()
    }

    pub async fn write(&mut self, lba: u64, data: &[u8]) -> Status {
        self.write_fua(lba, data, false).await
    }

    pub async fn write_fua(&mut self, lba: u64, data: &[u8], fua: bool) -> Status {
        let blocks = data.len() as u32 / BLOCK;
        let command = Command::write(NSID, lba, blocks, BLOCK, fua);
        self.io.execute(command, data).await.unwrap().0.status
    }

    pub async fn read(&mut self, lba: u64, blocks: u32) -> Result<Bytes, Status> {
        let command = Command::read(NSID, lba, blocks, BLOCK);
        let (completion, data) = self.io.execute(command, &[]).await.unwrap();
        if completion.status.is_success() {
            Ok(data)
        } else {
            Err(completion.status)
        }
    }

    pub async fn flush(&mut self) -> Status {
        self.io
            .execute(Command::flush(NSID), &[])
            .await
            .unwrap()
            .0
            .status
    }

    pub async fn register(&mut self, action: Register) -> Status {
        self.register_with(action, false, ChangePersistence::Unchanged)
            .await
    }

    pub async fn register_with(
        &mut self,
        action: Register,
        iekey: bool,
        persistence: ChangePersistence,
    ) -> Status {
        let (command, data) = Command::reservation_register(NSID, action, iekey, persistence);
        self.io.execute(command, &data).await.unwrap().0.status
    }

    pub async fn acquire(&mut self, action: Acquire, key: u64, kind: ReservationType) -> Status {
        let (command, data) = Command::reservation_acquire(NSID, action, key, kind);
        self.io.execute(command, &data).await.unwrap().0.status
    }

    pub async fn report(&mut self) -> ReservationReport {
        let command = Command::reservation_report(NSID, 4096);
        let (completion, data) = self.io.execute(command, &[]).await.unwrap();
        assert_eq!(completion.status, Status::SUCCESS);
        reservation_codec::decode_report(&data).unwrap()
    }
}

pub async fn enable(admin: &mut Queue) {
    let set = Fabrics::PropertySet {
        wide: false,
        offset: CC,
        value: u64::from(CC_ENABLED),
    };
    assert!(
        admin
            .execute(set.to_command(), &[])
            .await
            .unwrap()
            .0
            .status
            .is_success()
    );
    let get = Fabrics::PropertyGet {
        wide: false,
        offset: CSTS,
    };
    let (completion, _) = admin.execute(get.to_command(), &[]).await.unwrap();
    assert_eq!(completion.result as u32 & CSTS_READY, CSTS_READY);
}
