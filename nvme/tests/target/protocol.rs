//! What breaks the protocol ends its own connection with the right termination request, and harms
//! nobody else.

use std::time::Duration;

use crate::client::{Ended, Host, Lab, NSID, Queue, host};
use bytes::{Bytes, BytesMut};
use nvme::Status;
use nvme::command::{Command, Sgl};
use nvme::pdu::{
    Data, Digests, FatalStatus, Pdu, PduReader, PduWriter, ReadError, Receiver, codec,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Sends bytes on a fresh connection and reads until the target ends it.
async fn send_raw(lab: &Lab, bytes: &[u8]) -> Option<(u16, u32)> {
    let mut stream = TcpStream::connect(lab.target.address()).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    tokio::time::timeout(Duration::from_secs(20), read)
        .await
        .unwrap()
        .ok()?;
    let mut reader = PduReader::new(&answer[..], Receiver::Host, 1 << 20);
    loop {
        match reader.read().await {
            Ok(Pdu::ControllerTermination(t)) => return Some((t.status, t.information)),
            Ok(_) => {}
            Err(_) => return None,
        }
    }
}

fn encoded(pdu: &Pdu, digests: Digests) -> Vec<u8> {
    let mut bytes = BytesMut::new();
    codec::encode_header(pdu, digests, 0, &mut bytes);
    bytes.extend_from_slice(pdu.data());
    bytes.to_vec()
}

fn icreq() -> Vec<u8> {
    encoded(
        &Pdu::InitializeRequest(Default::default()),
        Digests::default(),
    )
}

#[tokio::test]
async fn malformed_units_are_answered_with_the_field_that_is_wrong() {
    let lab = Lab::start().await;
    let mut bystander = lab.host(1).await;
    let header = FatalStatus::InvalidHeaderField as u16;
    let icreq_with = |at: usize, value: u8| {
        let mut bytes = icreq();
        bytes[at] = value;
        bytes
    };
    let after = |more: &[u8]| [&icreq()[..], more].concat();
    let command = encoded(
        &Pdu::Command(Command::flush(1), Bytes::new()),
        Digests::default(),
    );
    let command_with = |at: usize, value: u8| {
        let mut bytes = command.clone();
        bytes[at] = value;
        after(&bytes)
    };
    let cases: Vec<(&str, Vec<u8>, (u16, u32))> = vec![
        ("unknown type", icreq_with(0, 0x33), (header, 0)),
        ("a type for hosts", icreq_with(0, 0x05), (header, 0)),
        ("HLEN", icreq_with(2, 64), (header, 2)),
        ("PLEN too long", icreq_with(4, 129), (header, 4)),
        ("PLEN huge", icreq_with(7, 0xff), (header, 4)),
        (
            "PFV",
            icreq_with(8, 1),
            (FatalStatus::Unsupported as u16, 8),
        ),
        ("HPDA", icreq_with(10, 32), (header, 10)),
        (
            "command first",
            command.clone(),
            (FatalStatus::SequenceError as u16, 0),
        ),
        (
            "ICReq twice",
            after(&icreq()),
            (FatalStatus::SequenceError as u16, 0),
        ),
        ("digest flag", command_with(1, 1), (header, 1)),
        ("PLEN short", command_with(4, 16), (header, 4)),
        ("PDO", command_with(4, 80), (header, 3)),
        (
            "too much data",
            {
                let mut bytes = command.clone();
                bytes[3] = 72;
                bytes[7] = 0x7f;
                after(&bytes)
            },
            (FatalStatus::LimitExceeded as u16, 4),
        ),
    ];
    for (name, bytes, expected) in cases {
        assert_eq!(send_raw(&lab, &bytes).await, Some(expected), "{name}");
    }
    assert_eq!(bystander.flush().await, Status::SUCCESS);
}

#[tokio::test]
async fn noise_ends_its_own_connection() {
    let lab = Lab::start().await;
    let mut bystander = lab.host(1).await;
    let mut seed = 1u32;
    for length in [1, 7, 8, 127, 128, 4096] {
        let noise: Vec<u8> = (0..length)
            .map(|_| {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (seed >> 24) as u8
            })
            .collect();
        let mut stream = TcpStream::connect(lab.target.address()).await.unwrap();
        let _ = stream.write_all(&noise).await;
        drop(stream);
    }
    assert_eq!(bystander.write(0, &[1; 512]).await, Status::SUCCESS);
}

/// What ends a connected queue, and with which status.
async fn ends_with(queue: &mut Queue, expected: FatalStatus) {
    loop {
        match queue.next_pdu().await {
            Err(Ended::Terminated(termination)) => {
                assert_eq!(termination.status, expected as u16);
                return;
            }
            Err(Ended::Closed) => panic!("closed without a termination request"),
            Ok(_) => {}
        }
    }
}

fn data(command: u16, tag: u16, offset: u32, length: usize, last: bool) -> Pdu {
    let data = Bytes::from(vec![0; length]);
    Pdu::HostData(Data {
        command,
        tag,
        offset,
        data,
        last,
        success: false,
    })
}

#[tokio::test]
async fn data_that_was_not_asked_for_ends_the_connection() {
    let lab = Lab::start().await;
    let mut a = lab.host(1).await;
    a.io.writer.write(&data(1, 0, 0, 512, true)).await.unwrap();
    ends_with(&mut a.io, FatalStatus::InvalidHeaderField).await;

    for (offset, length, last) in [(0, 1024, true), (512, 512, true), (0, 256, true)] {
        let mut a = lab.host(1).await;
        a.io.in_capsule = 0;
        let id =
            a.io.send(Command::write(NSID, 0, 1, 512, false), &[0; 512])
                .await;
        let Pdu::ReadyToTransfer(wanted) = a.io.next_pdu().await.unwrap() else {
            panic!()
        };
        assert_eq!((wanted.command, wanted.length), (id, 512));
        a.io.writer
            .write(&data(id, wanted.tag, offset, length, last))
            .await
            .unwrap();
        ends_with(&mut a.io, FatalStatus::DataOutOfRange).await;
    }
}

#[tokio::test]
async fn more_commands_than_entries_or_an_identifier_twice_end_the_connection() {
    let lab = Lab::start().await;
    let mut a = lab.host(1).await;
    a.io.in_capsule = 0;
    let mut write = Command::write(NSID, 0, 1, 512, false);
    write.id = 5;
    for _ in 0..2 {
        a.io.writer
            .write(&Pdu::Command(write, Bytes::new()))
            .await
            .unwrap();
    }
    ends_with(&mut a.io, FatalStatus::InvalidHeaderField).await;

    let mut a = lab.host(1).await;
    for id in 0..40 {
        write.id = id;
        // The target may have closed already.
        let _ = a.io.writer.write(&Pdu::Command(write, Bytes::new())).await;
    }
    ends_with(&mut a.io, FatalStatus::LimitExceeded).await;
}

#[tokio::test]
async fn a_wrong_header_digest_ends_the_connection_a_wrong_data_digest_only_the_command() {
    let lab = Lab::start().await;
    let digests = Digests {
        header: true,
        data: true,
    };
    let mut a = Host::attach(lab.target.address(), host(1), digests, 0)
        .await
        .unwrap();
    let mut write = Command::write(NSID, 0, 1, 512, false);
    write.sgl = Sgl::InCapsule {
        offset: 0,
        length: 512,
    };
    write.id = 900;
    // The digests are computed over other data than what is sent: flip a bit on the way.
    let unit = Pdu::Command(write, Bytes::from(vec![1; 512]));
    raw(&mut a.io, &unit, 100).await;
    let (completion, _) = a.io.complete(900, &[]).await.unwrap();
    assert_eq!(completion.status, Status::TRANSIENT_TRANSPORT_ERROR);
    assert_eq!(a.read(0, 1).await.unwrap()[..], [0; 512]);

    raw(&mut a.io, &unit, 20).await;
    ends_with(&mut a.io, FatalStatus::HeaderDigest).await;
}

/// Writes a unit with both digests, one bit of the byte at `flip` turned.
async fn raw(queue: &mut Queue, unit: &Pdu, flip: usize) {
    let digests = Digests {
        header: true,
        data: true,
    };
    let mut bytes = BytesMut::new();
    codec::encode_header(unit, digests, 0, &mut bytes);
    bytes.extend_from_slice(unit.data());
    bytes.extend_from_slice(&codec::data_digest(unit, digests).unwrap().to_le_bytes());
    bytes[flip] ^= 1;
    queue.writer.write_bytes(&bytes).await.unwrap();
}

#[tokio::test]
async fn units_cut_anywhere_are_read_whole() {
    let units = [
        Pdu::Command(Command::flush(1), Bytes::from_static(b"abc")),
        data(1, 2, 3, 10_000, true),
    ];
    let (client, server) = tokio::io::duplex(7);
    let mut reader = PduReader::new(server, Receiver::Controller, 1 << 20);
    let digests = Digests {
        header: true,
        data: true,
    };
    reader.set_digests(digests);
    let sent = units.clone();
    let writing = tokio::spawn(async move {
        let mut writer = PduWriter::new(client);
        writer.set_digests(digests);
        writer.set_alignment(7);
        for unit in &sent {
            writer.write(unit).await.unwrap();
        }
    });
    for unit in units {
        assert_eq!(reader.read().await.unwrap(), unit);
    }
    writing.await.unwrap();
    assert!(matches!(reader.read().await, Err(ReadError::Closed)));
}
