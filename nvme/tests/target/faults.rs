//! Injected faults: each does what it says to the host it names, and to nobody else.

use std::time::Duration;

use crate::client::{Ended, Host, Lab, Queue, host};
use nvme::Status;
use nvme::command::Command;
use nvme::pdu::{Digests, Pdu};
use nvme::target::control::Request;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

/// Long enough to see that something does not come.
const A_WHILE: Duration = Duration::from_millis(150);

#[tokio::test]
async fn power_loss_loses_exactly_the_unflushed_writes() {
    let lab = Lab::start_with(|config| {
        config.namespaces[0].volatile_cache = Some(1 << 20);
    })
    .await;
    let mut a = lab.host(1).await;
    a.write(0, &[1; 512]).await;
    assert_eq!(a.flush().await, Status::SUCCESS);
    a.write(0, &[2; 512]).await;
    a.write(1, &[2; 512]).await;
    assert_eq!(a.write_fua(2, &[3; 512], true).await, Status::SUCCESS);
    a.write(3, &[4; 512]).await;
    assert_eq!(a.read(3, 1).await.unwrap()[..], [4; 512]);
    lab.control(json!({"do": "power_loss"})).await;
    assert!(matches!(a.io.next_pdu().await, Err(Ended::Closed)));

    let mut a = lab.host(1).await;
    let read = a.read(0, 4).await.unwrap();
    let blocks: Vec<u8> = read.chunks(512).map(|block| block[0]).collect();
    // Forced unit access takes earlier writes along; the last one came after it.
    assert_eq!(blocks, [2, 2, 3, 0]);
}

#[tokio::test]
async fn a_flush_that_began_before_the_power_loss_is_not_acknowledged_after_it() {
    let lab = Lab::start_with(|config| {
        config.namespaces[0].volatile_cache = Some(1 << 20);
    })
    .await;
    let mut a = lab.host(1).await;
    lab.control(json!({"do": "delay", "ms": 5000, "operation": "flush"}))
        .await;
    a.write(0, &[1; 512]).await;
    a.io.send(Command::flush(1), &[]).await;
    tokio::time::sleep(A_WHILE / 3).await;
    lab.control(json!({"do": "power_loss"})).await;
    assert!(matches!(a.io.next_pdu().await, Err(Ended::Closed)));
    lab.control(json!({"do": "heal"})).await;
    let mut a = lab.host(1).await;
    assert_eq!(a.read(0, 1).await.unwrap()[..], [0; 512]);
}

#[tokio::test]
async fn a_blackhole_holds_everything_back_until_it_is_healed() {
    let lab = Lab::start().await;
    let (mut a, mut b) = (lab.host(1).await, lab.host(2).await);
    let name = a.identity.nqn.to_string();
    lab.control(json!({"do": "blackhole", "host": name})).await;
    let command = Command::write(1, 0, 1, 512, false);
    let id = a.io.send(command, &[5; 512]).await;
    assert!(
        tokio::time::timeout(A_WHILE, a.io.next_pdu())
            .await
            .is_err()
    );
    let attach = Host::attach(lab.target.address(), host(1), Digests::default(), 0);
    assert!(tokio::time::timeout(A_WHILE, attach).await.is_err());
    // The other host is not touched, and sees that nothing came through.
    assert_eq!(b.read(0, 1).await.unwrap()[..], [0; 512]);
    lab.control(json!({"do": "heal", "host": name})).await;
    assert_eq!(
        a.io.complete(id, &[5; 512]).await.unwrap().0.status,
        Status::SUCCESS
    );
    assert_eq!(b.read(0, 1).await.unwrap()[..], [5; 512]);
}

#[tokio::test]
async fn a_host_cut_off_for_its_keep_alive_time_out_loses_its_controller_but_sees_it_later() {
    let lab = Lab::start().await;
    let address = lab.target.address();
    let mut a = Host::attach(address, host(1), Digests::default(), 200)
        .await
        .unwrap();
    lab.control(json!({"do": "blackhole", "host": "*"})).await;
    let controllers = async || {
        lab.control(json!({"do": "status"})).await["controllers"]
            .as_array()
            .unwrap()
            .len()
    };
    while controllers().await > 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(
        tokio::time::timeout(A_WHILE, a.admin.next_pdu())
            .await
            .is_err()
    );
    lab.control(json!({"do": "heal"})).await;
    assert!(matches!(a.admin.next_pdu().await, Err(Ended::Closed)));
    assert!(matches!(a.io.next_pdu().await, Err(Ended::Closed)));
}

#[tokio::test]
async fn disconnect_and_refuse_are_for_the_host_they_name() {
    let lab = Lab::start().await;
    let (mut a, mut b) = (lab.host(1).await, lab.host(2).await);
    let name = a.identity.nqn.to_string();
    lab.control(json!({"do": "refuse", "host": name})).await;
    let answer = lab.control(json!({"do": "disconnect", "host": name})).await;
    assert_eq!(answer["controllers"], 1);
    assert!(matches!(a.io.next_pdu().await, Err(Ended::Closed)));
    assert!(matches!(a.admin.next_pdu().await, Err(Ended::Closed)));
    assert_eq!(b.flush().await, Status::SUCCESS);
    let mut queue = Queue::open(lab.target.address(), Digests::default()).await;
    let connect = nvme::fabrics::Fabrics::Connect(nvme::fabrics::Connect {
        record_format: 0,
        queue: 0,
        size_minus_one: 31,
        attributes: 0,
        keep_alive_ms: 0,
    });
    let data = nvme::fabrics::ConnectData {
        host: host(1),
        controller: nvme::fabrics::ANY_CONTROLLER,
        subsystem: nvme::target::default_subsystem(),
    };
    let refused = queue.execute(connect.to_command(), &data.encode()).await;
    assert!(matches!(refused, Err(Ended::Closed)));
    lab.control(json!({"do": "heal", "host": name})).await;
    lab.host(1).await;
}

#[tokio::test]
async fn media_errors_hit_their_blocks_alone() {
    let lab = Lab::start().await;
    let mut a = lab.host(1).await;
    lab.control(json!({"do": "fail", "range": [8, 4]})).await;
    assert_eq!(a.write(0, &[1; 4096]).await, Status::SUCCESS);
    assert_eq!(a.write(11, &[1; 512]).await.code(), Status::WRITE_FAULT);
    assert_eq!(
        a.read(0, 9).await.unwrap_err().code(),
        Status::UNRECOVERED_READ
    );
    assert!(a.read(12, 1).await.is_ok());
    lab.control(json!({"do": "heal"})).await;
    assert_eq!(a.read(8, 4).await.unwrap()[..], [0; 2048]);
}

#[tokio::test]
async fn commands_overtake_a_delayed_one() {
    let lab = Lab::start().await;
    let mut a = lab.host(1).await;
    lab.control(json!({"do": "delay", "ms": 100, "operation": "write"}))
        .await;
    let slow =
        a.io.send(Command::write(1, 0, 1, 512, false), &[1; 512])
            .await;
    let quick = a.io.send(Command::read(1, 0, 1, 512), &[]).await;
    let mut order = Vec::new();
    while order.len() < 2 {
        match a.io.next_pdu().await.unwrap() {
            Pdu::Response(completion) => order.push(completion.id),
            Pdu::ControllerData(data) if data.success => order.push(data.command),
            _ => {}
        }
    }
    assert_eq!(order, [quick, slow]);
}

#[tokio::test]
async fn the_control_socket_answers_each_line_and_survives_nonsense() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("control");
    let lab = Lab::start_with(|config| config.control = Some(socket.clone())).await;
    let stream = tokio::net::UnixStream::connect(&socket).await.unwrap();
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read).lines();
    let mut ask = async |request: &str| -> serde_json::Value {
        write
            .write_all(format!("{request}\n").as_bytes())
            .await
            .unwrap();
        serde_json::from_str(&lines.next_line().await.unwrap().unwrap()).unwrap()
    };
    assert_eq!(
        ask(r#"{"do":"status"}"#).await["namespaces"][0]["blocks"],
        32768
    );
    for nonsense in [
        "",
        "{",
        r#"{"do":"fly"}"#,
        r#"{"do":"blackhole","host":"nobody"}"#,
    ] {
        let answer = ask(nonsense).await;
        assert_eq!(answer["ok"], false, "{nonsense}");
        assert!(answer["error"].is_string());
    }
    assert_eq!(ask(r#"{"do":"delay","ms":5}"#).await["ok"], true);
    let status = lab.target.control(Request::Status).await;
    assert_eq!(status["faults"]["delays"][0]["host"], "*");
}
