//! One queue against a scripted controller.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::AsyncWriteExt;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use uuid::Uuid;

use crate::command::{Command, Completion, Sgl};
use crate::initiator::Options;
use crate::initiator::queue::{Queue, Transfer};
use crate::initiator::slots::Completed;
use crate::pdu::{
    Data, Digests, InitializeResponse, Pdu, PduReader, PduWriter, ReadyToTransfer, Receiver, codec,
};
use crate::{Error, HostId, HostIdentity, Status};

const BLOCK: u32 = 4096;
const LONG: Duration = Duration::from_secs(20);
const MAX_HOST_DATA: u32 = 8192;

pub(super) struct Peer {
    reader: PduReader<OwnedReadHalf>,
    writer: PduWriter<OwnedWriteHalf>,
    /// The same connection, to write what no [`PduWriter`] writes.
    raw: TcpStream,
}

impl Peer {
    async fn accept(stream: TcpStream) -> Self {
        let stream = stream.into_std().expect("a plain socket");
        let raw = stream.try_clone().expect("clone the socket");
        let stream = TcpStream::from_std(stream).expect("register the socket");
        let (input, output) = stream.into_split();
        let mut peer = Self {
            raw: TcpStream::from_std(raw).expect("register the socket"),
            reader: PduReader::new(input, Receiver::Controller, 1 << 20),
            writer: PduWriter::new(output),
        };
        let Pdu::InitializeRequest(request) = peer.reader.read().await.expect("ICReq") else {
            panic!("the first unit is ICReq");
        };
        let response = InitializeResponse {
            digests: request.digests,
            max_host_data: MAX_HOST_DATA,
            ..InitializeResponse::default()
        };
        peer.send(Pdu::InitializeResponse(response)).await;
        peer.reader.set_digests(request.digests);
        peer.writer.set_digests(request.digests);
        peer
    }

    async fn send(&mut self, unit: Pdu) {
        self.writer.write(&unit).await.expect("send");
    }

    async fn command(&mut self) -> (Command, Bytes) {
        match self.reader.read().await.expect("a command") {
            Pdu::Command(command, data) => (command, data),
            other => panic!("a command, not {other:?}"),
        }
    }

    async fn complete(&mut self, command: &Command, status: Status) {
        self.send(Pdu::Response(completion(command, status))).await;
    }

    async fn data(&mut self, command: &Command, offset: usize, data: Bytes, last: bool) {
        let unit = Data {
            command: command.id,
            tag: 0,
            offset: offset as u32,
            data,
            last,
            success: false,
        };
        self.send(Pdu::ControllerData(unit)).await;
    }
}

fn completion(command: &Command, status: Status) -> Completion {
    Completion {
        result: 0,
        sq_head: 0,
        sq_id: 0,
        id: command.id,
        status,
    }
}

fn options(address: String, digests: Digests) -> Options {
    let host = HostIdentity {
        nqn: "nqn.2026-11.dev.baton:host".parse().expect("an NQN"),
        id: HostId(Uuid::from_u128(7)),
    };
    let subsystem = "nqn.2026-11.dev.baton:test".parse().expect("an NQN");
    let mut options = Options::new(address, subsystem, 1, host);
    options.digests = digests;
    options
}

/// A queue whose controller runs `script`.
async fn queue<F, Fut>(digests: Digests, depth: u16, script: F) -> (Queue, JoinHandle<()>)
where
    F: FnOnce(Peer) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
    let address = listener.local_addr().expect("an address").to_string();
    let peer = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.expect("accept");
        script(Peer::accept(stream).await).await;
    });
    let queue = Queue::connect(&options(address, digests), depth, 4096).await;
    (queue.expect("connect"), peer)
}

async fn read(
    queue: &Queue,
    lba: u64,
    blocks: u32,
    deadline: Duration,
) -> Result<Completed, Error> {
    let command = Command::read(1, lba, blocks, BLOCK);
    let transfer = Transfer::from_controller((blocks * BLOCK) as usize);
    queue.execute("Read", command, transfer, deadline).await
}

/// What the scripted controller holds at this block.
fn content(lba: u64, blocks: u32) -> Bytes {
    let mut bytes = BytesMut::new();
    for at in lba..lba + u64::from(blocks) {
        bytes.extend((0..BLOCK).map(|i| (at as u32 * 31 + i / 7) as u8));
    }
    bytes.freeze()
}

const BOTH: Digests = Digests {
    header: true,
    data: true,
};

#[tokio::test]
async fn answers_in_any_order_and_in_pieces_reach_their_commands() {
    const COMMANDS: u64 = 60;
    for digests in [Digests::default(), BOTH] {
        let (queue, peer) = queue(digests, 64, async |mut peer| {
            let mut waiting = Vec::new();
            for _ in 0..COMMANDS {
                waiting.push(peer.command().await.0);
            }
            // A fixed shuffle: every 37th of a prime-like stride.
            for n in 0..COMMANDS as usize {
                let command = waiting[n * 37 % COMMANDS as usize];
                let all = content(command.lba(), command.blocks());
                let middle = all.len() / 3 / 4 * 4;
                peer.data(&command, 0, all.slice(..middle), false).await;
                peer.data(&command, middle, all.slice(middle..), true).await;
                peer.complete(&command, Status::SUCCESS).await;
            }
        })
        .await;
        let queue = Arc::new(queue);
        let mut reads = JoinSet::new();
        for lba in 0..COMMANDS {
            let queue = Arc::clone(&queue);
            reads.spawn(async move { (lba, read(&queue, lba, 3, LONG).await) });
        }
        while let Some(done) = reads.join_next().await {
            let (lba, completed) = done.expect("join");
            assert_eq!(completed.expect("completed").data, content(lba, 3));
        }
        peer.await.expect("the script ran through");
    }
}

#[tokio::test]
async fn data_goes_in_the_capsule_or_as_the_controller_asks_for_it() {
    let (queue, peer) = queue(BOTH, 4, async |mut peer| {
        let (small, data) = peer.command().await;
        assert!(matches!(
            small.sgl,
            Sgl::InCapsule {
                offset: 0,
                length: 4096
            }
        ));
        assert_eq!(data, content(1, 1));
        peer.complete(&small, Status::SUCCESS).await;
        let (large, data) = peer.command().await;
        assert!(matches!(large.sgl, Sgl::Transport { length: 40960 }) && data.is_empty());
        let mut received = BytesMut::new();
        for (offset, length) in [(0, 12288), (12288, 28672)] {
            let wish = ReadyToTransfer {
                command: large.id,
                tag: 5,
                offset,
                length,
            };
            peer.send(Pdu::ReadyToTransfer(wish)).await;
            loop {
                let Pdu::HostData(unit) = peer.reader.read().await.expect("data") else {
                    panic!("data");
                };
                assert_eq!((unit.command, unit.tag), (large.id, 5));
                assert_eq!(unit.offset as usize, received.len());
                assert!(unit.data.len() <= MAX_HOST_DATA as usize);
                received.extend_from_slice(&unit.data);
                assert_eq!(unit.last, received.len() as u32 == offset + length);
                if unit.last {
                    break;
                }
            }
        }
        assert_eq!(received.freeze(), content(9, 10));
        peer.complete(&large, Status::RESERVATION_CONFLICT.dnr())
            .await;
    })
    .await;
    for (lba, blocks) in [(1, 1), (9, 10)] {
        let command = Command::write(1, lba, blocks, BLOCK, false);
        let transfer = Transfer::to_controller(content(lba, blocks));
        let done = queue
            .execute("Write", command, transfer, LONG)
            .await
            .expect("completed");
        assert_eq!(done.completion.status.is_conflict(), blocks == 10);
    }
    peer.await.expect("the script ran through");
}

#[tokio::test]
async fn a_lost_connection_leaves_sent_commands_unknown_and_others_unsent() {
    let (queue, peer) = queue(Digests::default(), 2, async |mut peer| {
        peer.command().await;
        peer.command().await;
    })
    .await;
    let reads = (
        read(&queue, 0, 1, LONG),
        read(&queue, 1, 1, LONG),
        read(&queue, 2, 1, LONG),
    );
    let (first, second, third) = tokio::join!(reads.0, reads.1, reads.2);
    for sent in [first, second] {
        let error = sent.expect_err("lost");
        assert!(matches!(error, Error::ConnectionLost { .. }) && error.outcome_unknown());
    }
    // It found no place in the queue before the connection broke, and a dead one afterwards.
    let error = third.expect_err("never sent");
    assert!(matches!(error, Error::NoPath { .. }) && !error.outcome_unknown());
    peer.await.expect("the script ran through");
    assert!(!queue.ended().await.is_empty());
}

#[tokio::test]
async fn a_missed_deadline_is_unknown_and_ends_the_connection() {
    let (queue, peer) = queue(Digests::default(), 4, async |mut peer| {
        peer.command().await;
        peer.command().await;
        let end = peer.reader.read().await;
        assert!(end.is_err(), "the host closes: {end:?}");
    })
    .await;
    let short = Duration::from_millis(50);
    let (late, other) = tokio::join!(read(&queue, 0, 1, short), read(&queue, 1, 1, LONG));
    assert!(matches!(late, Err(Error::Deadline { .. })));
    assert!(matches!(other, Err(Error::ConnectionLost { .. })));
    peer.await.expect("the script ran through");
}

#[tokio::test]
async fn a_command_that_was_given_up_keeps_its_place_until_it_is_answered() {
    let (answer_now, wait) = tokio::sync::oneshot::channel::<()>();
    let (queue, peer) = queue(Digests::default(), 1, async |mut peer| {
        let (first, _) = peer.command().await;
        wait.await.expect("told to go on");
        peer.complete(&first, Status::SUCCESS).await;
        let (second, _) = peer.command().await;
        assert_ne!(
            first.id, second.id,
            "a late answer must meet no new command"
        );
        peer.data(&second, 0, content(5, 1), true).await;
        peer.complete(&second, Status::SUCCESS).await;
    })
    .await;
    let short = Duration::from_millis(50);
    let given_up = tokio::time::timeout(short, read(&queue, 0, 1, LONG)).await;
    assert!(given_up.is_err());
    let full = read(&queue, 5, 1, short).await;
    assert!(
        matches!(full, Err(Error::NoPath { .. })),
        "no place, so never sent"
    );
    answer_now.send(()).expect("the script waits");
    assert_eq!(
        read(&queue, 5, 1, LONG).await.expect("read").data,
        content(5, 1)
    );
    peer.await.expect("the script ran through");
}

#[tokio::test]
async fn a_controller_that_breaks_the_protocol_is_told_and_left() {
    type Breach = fn(&Command) -> Pdu;
    let breaches: [(&str, Breach); 6] = [
        ("a completion of nothing", |c| {
            let mut wrong = *c;
            wrong.id = wrong.id.wrapping_add(100);
            Pdu::Response(completion(&wrong, Status::SUCCESS))
        }),
        ("data of nothing", |c| data(c.id.wrapping_add(1), 0, 64)),
        ("too much data", |c| data(c.id, 0, BLOCK as usize + 4)),
        ("a gap in the data", |c| data(c.id, 64, 64)),
        ("R2T for a read", |c| {
            Pdu::ReadyToTransfer(ReadyToTransfer {
                command: c.id,
                tag: 1,
                offset: 0,
                length: 64,
            })
        }),
        ("a second ICResp", |_| {
            Pdu::InitializeResponse(InitializeResponse::default())
        }),
    ];
    for (name, breach) in breaches {
        let (queue, peer) = queue(Digests::default(), 4, async move |mut peer| {
            let (command, _) = peer.command().await;
            peer.send(breach(&command)).await;
            let told = peer.reader.read().await;
            assert!(
                matches!(told, Ok(Pdu::HostTermination(_))),
                "{name}: {told:?}"
            );
        })
        .await;
        let error = read(&queue, 0, 1, LONG).await.expect_err(name);
        assert!(error.outcome_unknown(), "{name}: {error}");
        peer.await.expect(name);
    }
}

fn data(command: u16, offset: u32, length: usize) -> Pdu {
    Pdu::ControllerData(Data {
        command,
        tag: 0,
        offset,
        data: Bytes::from(vec![0; length]),
        last: true,
        success: false,
    })
}

#[tokio::test]
async fn a_wrong_data_digest_fails_its_command_alone() {
    let digests = Digests {
        header: false,
        data: true,
    };
    let (queue, peer) = queue(digests, 4, async move |mut peer| {
        let (first, _) = peer.command().await;
        let unit = data(first.id, 0, BLOCK as usize);
        let mut bytes = BytesMut::new();
        codec::encode_header(&unit, digests, 0, &mut bytes);
        bytes.extend_from_slice(unit.data());
        let digest = codec::data_digest(&unit, digests).expect("a digest") ^ 1;
        bytes.extend_from_slice(&digest.to_le_bytes());
        peer.raw.write_all(&bytes).await.expect("send");
        peer.complete(&first, Status::SUCCESS).await;
        let (second, _) = peer.command().await;
        peer.data(&second, 0, content(1, 1), true).await;
        peer.complete(&second, Status::SUCCESS).await;
    })
    .await;
    let corrupt = read(&queue, 0, 1, LONG).await;
    assert!(matches!(corrupt, Err(Error::Protocol { .. })));
    assert_eq!(
        read(&queue, 1, 1, LONG).await.expect("read").data,
        content(1, 1)
    );
    peer.await.expect("the script ran through");
}
