//! Reservations over the wire: the fence and its proof, persistence, notifications.

use std::time::Duration;

use crate::client::{Host, Lab, NSID};
use nvme::command::{Command, NSID_ALL, feature, log};
use nvme::log_page::{NotificationKind, ReservationNotification};
use nvme::reservation::{Acquire, ChangePersistence, Register, Release};
use nvme::{ReservationType, Status};
use serde_json::json;

const KEY_A: u64 = 0xa;
const KEY_B: u64 = 0xb;
const WE: ReservationType = ReservationType::WriteExclusive;

/// A holds Write Exclusive, B is registered.
async fn holder_and_standby(lab: &Lab) -> (Host, Host) {
    let (mut a, mut b) = (lab.host(1).await, lab.host(2).await);
    assert_eq!(
        a.register(Register::Register { key: KEY_A }).await,
        Status::SUCCESS
    );
    assert_eq!(
        b.register(Register::Register { key: KEY_B }).await,
        Status::SUCCESS
    );
    assert_eq!(
        a.acquire(Acquire::Acquire, KEY_A, WE).await,
        Status::SUCCESS
    );
    (a, b)
}

#[tokio::test]
async fn write_exclusive_refuses_writes_and_flushes_of_others_with_do_not_retry() {
    let lab = Lab::start().await;
    let (mut a, mut b) = holder_and_standby(&lab).await;
    let conflict = Status::RESERVATION_CONFLICT.dnr();
    assert_eq!(a.write(0, &[1; 512]).await, Status::SUCCESS);
    assert_eq!(b.write(0, &[2; 512]).await, conflict);
    assert_eq!(b.flush().await, conflict);
    let zeroes = Command::write_zeroes(NSID, 0, 1, false);
    assert_eq!(b.io.execute(zeroes, &[]).await.unwrap().0.status, conflict);
    assert_eq!(b.read(0, 1).await.unwrap()[..], [1; 512]);
    // By R2T too: the data is asked for, and refused when it has come.
    b.io.in_capsule = 0;
    assert_eq!(b.write(0, &[2; 512]).await, conflict);
    assert_eq!(b.acquire(Acquire::Acquire, KEY_B, WE).await, conflict);
    let audit = lab.control(json!({"do": "audit"})).await;
    let counters = &audit["hosts"][1]["namespaces"][0]["counters"];
    assert_eq!(
        (&counters["refused_writes"], &counters["refused_flushes"]),
        (&json!(3), &json!(1))
    );
}

#[tokio::test]
async fn preempt_and_abort_takes_over_and_the_report_shows_it() {
    let lab = Lab::start().await;
    let (mut a, mut b) = holder_and_standby(&lab).await;
    let generation = b.report().await.generation;
    let preempt = Acquire::PreemptAndAbort { victim: KEY_A };
    assert_eq!(b.acquire(preempt, KEY_B, WE).await, Status::SUCCESS);
    let report = b.report().await;
    assert_eq!(report.generation, generation + 1);
    assert_eq!(report.reservation, Some(WE));
    assert_eq!(report.holder().unwrap().host, b.id());
    assert_eq!(report.registrants.len(), 1);
    assert_eq!(
        a.write(0, &[1; 512]).await,
        Status::RESERVATION_CONFLICT.dnr()
    );
    // Registering afresh gives no right to write.
    assert_eq!(
        a.register(Register::Register { key: KEY_A }).await,
        Status::SUCCESS
    );
    assert_eq!(
        a.write(0, &[1; 512]).await,
        Status::RESERVATION_CONFLICT.dnr()
    );
    assert_eq!(b.write(0, &[2; 512]).await, Status::SUCCESS);

    let audit = lab.control(json!({"do": "audit"})).await;
    assert_eq!(audit["violations"], 0);
    let fence = &audit["fences"][0];
    assert_eq!(fence["victim"], json!(a.id()));
    assert_eq!(
        (&fence["victim_key"], &fence["refused_writes"]),
        (&json!(KEY_A), &json!(2))
    );
    assert_eq!(fence["kind"], "preempt_and_abort");
}

#[tokio::test]
async fn preempt_and_abort_waits_for_a_write_in_flight_and_plain_preempt_does_not() {
    let lab = Lab::start().await;
    let (mut a, mut b) = holder_and_standby(&lab).await;
    let mut observer = lab.host(3).await;
    lab.control(json!({"do": "delay", "ms": 1500, "operation": "write"}))
        .await;
    let write = Command::write(NSID, 0, 1, 512, false);
    let id = a.io.send(write, &[7; 512]).await;
    wait_in_flight(&lab, &a).await;

    let (command, data) =
        Command::reservation_acquire(NSID, Acquire::PreemptAndAbort { victim: KEY_A }, KEY_B, WE);
    let preempt = b.io.send(command, &data).await;
    // The state changes at once, for those who look; the write is not there yet.
    while observer.report().await.holder().map(|h| h.host) != Some(b.id()) {
        tokio::task::yield_now().await;
    }
    assert_eq!(observer.read(0, 1).await.unwrap()[..], [0; 512]);
    // When the preempt has completed, the write has landed: never after it.
    let (completion, _) = b.io.complete(preempt, &data).await.unwrap();
    assert_eq!(completion.status, Status::SUCCESS);
    assert_eq!(observer.read(0, 1).await.unwrap()[..], [7; 512]);
    assert_eq!(
        a.io.complete(id, &[7; 512]).await.unwrap().0.status,
        Status::SUCCESS
    );
    assert_eq!(lab.control(json!({"do": "audit"})).await["violations"], 0);

    // The same with a plain preempt: the write lands after it, and the record says so.
    let id = b.io.send(write, &[8; 512]).await;
    wait_in_flight(&lab, &b).await;
    assert_eq!(
        a.register(Register::Register { key: KEY_A }).await,
        Status::SUCCESS
    );
    let preempt = Acquire::Preempt { victim: KEY_B };
    assert_eq!(a.acquire(preempt, KEY_A, WE).await, Status::SUCCESS);
    assert_eq!(observer.read(0, 1).await.unwrap()[..], [7; 512]);
    assert_eq!(
        b.io.complete(id, &[8; 512]).await.unwrap().0.status,
        Status::SUCCESS
    );
    assert_eq!(lab.control(json!({"do": "audit"})).await["violations"], 1);
}

/// Waits until a command of this host has passed the reservation check and is held back.
async fn wait_in_flight(lab: &Lab, host: &Host) {
    loop {
        let status = lab.control(json!({"do": "status"})).await;
        let in_flight = status["namespaces"][0]["in_flight"].as_array().unwrap();
        if in_flight.contains(&json!(host.id())) {
            return;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn reservations_survive_disconnects_and_with_ptpl_a_restart() {
    let lab = Lab::start().await;
    let (mut a, b) = holder_and_standby(&lab).await;
    let replace = Register::Replace {
        current: KEY_A,
        new: u64::MAX,
    };
    let persist = ChangePersistence::Persistent;
    assert_eq!(
        a.register_with(replace, false, persist).await,
        Status::SUCCESS
    );
    drop((a, b));
    let mut b = lab.host(2).await;
    let before = b.report().await;
    assert!(before.persistent);
    assert_eq!(
        (before.reservation, before.registrants.len()),
        (Some(WE), 2)
    );
    assert_eq!(
        b.write(0, &[1; 512]).await,
        Status::RESERVATION_CONFLICT.dnr()
    );

    let Lab { target, dir } = lab;
    drop(target);
    let lab = restart(dir).await;
    let mut b = lab.host(2).await;
    assert_eq!(b.report().await, before);
    assert_eq!(
        b.write(0, &[1; 512]).await,
        Status::RESERVATION_CONFLICT.dnr()
    );

    lab.control(json!({"do": "forget_reservations"})).await;
    assert_eq!(b.report().await.registrants, []);
    assert_eq!(b.write(0, &[1; 512]).await, Status::SUCCESS);
    drop(lab.target);
    let lab = restart(lab.dir).await;
    assert_eq!(lab.host(2).await.report().await.registrants, []);
}

/// Waits for the dropped target to let go of its file.
async fn restart(dir: tempfile::TempDir) -> Lab {
    let file = std::fs::File::open(dir.path().join("ns")).unwrap();
    while file.try_lock().is_err() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(file);
    Lab::start_in(dir, |_| {}).await
}

#[tokio::test]
async fn without_ptpl_a_power_loss_takes_the_reservations() {
    let lab = Lab::start_with(|config| config.state = None).await;
    let (mut a, _b) = holder_and_standby(&lab).await;
    let persist = ChangePersistence::Persistent;
    let replace = Register::Replace {
        current: KEY_A,
        new: 9,
    };
    let refused = a.register_with(replace, false, persist).await;
    assert_eq!(refused, Status::INVALID_FIELD.dnr());
    lab.control(json!({"do": "power_loss"})).await;
    let mut a = lab.host(1).await;
    let report = a.report().await;
    assert_eq!((report.reservation, report.registrants.len()), (None, 0));
}

#[tokio::test]
async fn the_preempted_host_is_notified() {
    let lab = Lab::start().await;
    let (mut a, mut b) = holder_and_standby(&lab).await;
    let event = a.admin.send(Command::new(0x0c, 0), &[]).await;
    let preempt = Acquire::PreemptAndAbort { victim: KEY_A };
    assert_eq!(b.acquire(preempt, KEY_B, WE).await, Status::SUCCESS);
    let (completion, _) = a.admin.complete(event, &[]).await.unwrap();
    // Type 6, information 0, log page 0x80.
    assert_eq!(completion.result, 6 | 0x80 << 16);
    let get = Command::get_log_page(log::RESERVATION_NOTIFICATION, NSID_ALL, 0, 64);
    let page = |data: &[u8]| ReservationNotification::decode(data.try_into().unwrap());
    let expected = ReservationNotification {
        count: 1,
        kind: Some(NotificationKind::RegistrationPreempted),
        available: 0,
        nsid: NSID,
    };
    assert_eq!(page(&a.ask(get).await.1), expected);
    assert_eq!(page(&a.ask(get).await.1), ReservationNotification::EMPTY);

    // Masked, nothing comes.
    let mask = Command::set_features(feature::RESERVATION_NOTIFICATION_MASK, NSID, 0b1110);
    assert_eq!(a.ask(mask).await.0.status, Status::SUCCESS);
    let get_mask = Command::get_features(feature::RESERVATION_NOTIFICATION_MASK, NSID);
    assert_eq!(a.ask(get_mask).await.0.result, 0b1110);
    a.register(Register::Register { key: KEY_A }).await;
    let (command, data) = Command::reservation_release(NSID, Release::Clear, KEY_B);
    assert_eq!(
        b.io.execute(command, &data).await.unwrap().0.status,
        Status::SUCCESS
    );
    assert_eq!(page(&a.ask(get).await.1), ReservationNotification::EMPTY);
}

#[tokio::test]
async fn the_report_needs_the_extended_structure_and_may_be_cut() {
    let lab = Lab::start().await;
    let (mut a, _b) = holder_and_standby(&lab).await;
    let plain = Command::reservation_report(NSID, 4096).with_cdw(11, 0);
    let status = a.io.execute(plain, &[]).await.unwrap().0.status;
    assert_eq!(status, Status::HOST_ID_INCONSISTENT);
    let short = Command::reservation_report(NSID, 64);
    let (completion, data) = a.io.execute(short, &[]).await.unwrap();
    assert_eq!(completion.status, Status::SUCCESS);
    let needed = match nvme::reservation_codec::decode_report(&data) {
        Err(nvme::reservation_codec::ReportError::Truncated { needed, .. }) => needed,
        other => panic!("{other:?}"),
    };
    assert_eq!(needed, 64 + 2 * 64);
}
