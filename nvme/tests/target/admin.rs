//! What a host asks while it attaches, in the order in which Linux asks it, and the timers.

use std::time::Duration;

use crate::client::{Ended, Host, Lab, NSID, Queue, host};
use nvme::command::{Command, NSID_ALL, admin, feature, log};
use nvme::fabrics::{
    ANY_CONTROLLER, CAP, CC, CC_ENABLED, CC_SHUTDOWN, CSTS, CSTS_SHUTDOWN_COMPLETE, Capabilities,
    ConnectData, Fabrics, VS,
};
use nvme::identify::{
    Descriptors, IdentifyController, IdentifyNamespace, ONCS_RESERVATIONS, RESCAP_PERSISTENCE, cns,
    decode_namespace_list,
};
use nvme::identity::DISCOVERY_NQN;
use nvme::log_page::DiscoveryLog;
use nvme::pdu::Digests;
use nvme::reservation::Register;
use nvme::target::default_subsystem;
use nvme::{HostId, Status};
use uuid::Uuid;

fn connect_data() -> ConnectData {
    ConnectData {
        host: host(1),
        controller: ANY_CONTROLLER,
        subsystem: default_subsystem(),
    }
}

async fn get(queue: &mut Queue, wide: bool, offset: u32) -> u64 {
    let command = Fabrics::PropertyGet { wide, offset }.to_command();
    let (completion, _) = queue.execute(command, &[]).await.unwrap();
    assert_eq!(completion.status, Status::SUCCESS);
    completion.result
}

#[tokio::test]
async fn a_host_finds_what_linux_requires() {
    let lab = Lab::start().await;
    let mut a = lab.host(1).await;
    let capabilities = Capabilities::decode(get(&mut a.admin, true, CAP).await);
    assert_eq!(capabilities.max_queue_entries_minus_one, 127);
    assert_eq!(get(&mut a.admin, false, VS).await, 0x1_0400);

    let (_, data) = a.ask(Command::identify(cns::CONTROLLER, 0)).await;
    let controller = IdentifyController::decode(&data).unwrap();
    assert_eq!(controller.controller, a.controller);
    assert_eq!(controller.subsystem, Some(default_subsystem()));
    assert_ne!(controller.keep_alive_granularity, 0);
    assert!(controller.io_command_capsule_16b >= 4 && controller.io_response_capsule_16b >= 1);
    assert_eq!(
        (controller.sgl_support & 3, controller.in_capsule_offset_16b),
        (1, 0)
    );
    assert_eq!(controller.volatile_write_cache & 1, 1);
    assert_eq!(
        (controller.attributes & 1, controller.multi_path & 2),
        (1, 2)
    );
    assert_ne!(controller.max_commands, 0);

    let (_, data) = a.ask(Command::identify(cns::ACTIVE_NAMESPACES, 0)).await;
    assert_eq!(decode_namespace_list(&data), [NSID]);
    let (_, data) = a.ask(Command::identify(cns::DESCRIPTORS, NSID)).await;
    let descriptors = Descriptors::decode(&data);
    let (_, data) = a.ask(Command::identify(cns::NAMESPACE, NSID)).await;
    let namespace = IdentifyNamespace::decode(&data).unwrap();
    assert_eq!(
        (namespace.blocks, namespace.block_size()),
        (32768, Some(512))
    );
    assert_eq!(namespace.nguid, descriptors.nguid);
    assert_ne!(descriptors.uuid, Uuid::nil());
    assert_eq!(namespace.reservations, 0xfe | RESCAP_PERSISTENCE);
    for kind in [
        cns::CONTROLLER_COMMAND_SET,
        cns::NAMESPACE_INDEPENDENT,
        0x1f,
    ] {
        let (completion, _) = a.ask(Command::identify(kind, NSID)).await;
        assert_eq!(completion.status, Status::INVALID_FIELD.dnr());
    }
    let (completion, _) = a.ask(Command::identify(cns::NAMESPACE, 7)).await;
    assert_eq!(completion.status.code(), Status::INVALID_NAMESPACE);

    for (page, length) in [
        (log::ERROR, 64),
        (log::SMART, 512),
        (log::FIRMWARE_SLOT, 512),
    ] {
        let (completion, data) = a
            .ask(Command::get_log_page(page, NSID_ALL, 0, length))
            .await;
        assert_eq!(
            (completion.status, data.len()),
            (Status::SUCCESS, length as usize)
        );
    }
    let (_, effects) = a.ask(Command::get_log_page(log::EFFECTS, 0, 0, 4096)).await;
    assert_eq!(
        effects[1024 + 4],
        3,
        "Write is supported and changes blocks"
    );
    let (_, part) = a
        .ask(Command::get_log_page(log::EFFECTS, 0, 1024, 64))
        .await;
    assert_eq!(part[4], 3);
    let (completion, _) = a.ask(Command::get_log_page(0x55, 0, 0, 64)).await;
    assert_eq!(completion.status.code(), Status::INVALID_LOG_PAGE);
}

#[tokio::test]
async fn a_target_without_reservations_says_so_everywhere() {
    let lab = Lab::start_with(|config| config.namespaces[0].reservations = false).await;
    let mut a = lab.host(1).await;
    let (_, data) = a.ask(Command::identify(cns::CONTROLLER, 0)).await;
    let controller = IdentifyController::decode(&data).unwrap();
    assert_eq!(controller.optional_commands & ONCS_RESERVATIONS, 0);
    let (_, data) = a.ask(Command::identify(cns::NAMESPACE, NSID)).await;
    let namespace = IdentifyNamespace::decode(&data).unwrap();
    assert_eq!(namespace.reservations, 0);
    let (_, effects) = a.ask(Command::get_log_page(log::EFFECTS, 0, 0, 4096)).await;
    for opcode in [0x0d, 0x0e, 0x11, 0x15] {
        assert_eq!(effects[1024 + 4 * opcode], 0, "{opcode:#x}");
    }
    let refused = a.register(Register::Register { key: 7 }).await;
    assert_eq!(refused.code(), Status::INVALID_OPCODE);
    let report = Command::reservation_report(NSID, 4096);
    let (completion, _) = a.io.execute(report, &[]).await.unwrap();
    assert_eq!(completion.status.code(), Status::INVALID_OPCODE);
    assert_eq!(a.write(0, &[1; 512]).await, Status::SUCCESS);
}

#[tokio::test]
async fn features_are_kept_or_refused() {
    let lab = Lab::start().await;
    let mut a = lab.host(1).await;
    let many = Command::set_features(feature::NUMBER_OF_QUEUES, 0, 0x00ff_00ff);
    assert_eq!(a.ask(many).await.0.result, 0x000f_000f);
    let identity = Command::get_features(feature::HOST_IDENTIFIER, 0)
        .with_cdw(11, 1)
        .transfer(16);
    assert_eq!(a.ask(identity).await.1[..], a.id().to_bytes());
    let change = Command::set_features(feature::HOST_IDENTIFIER, 0, 1);
    assert_eq!(
        a.ask(change).await.0.status.code(),
        Status::COMMAND_SEQUENCE_ERROR
    );
    let persist = Command::set_features(feature::RESERVATION_PERSISTENCE, NSID, 1);
    assert_eq!(a.ask(persist).await.0.status, Status::SUCCESS);
    assert!(a.report().await.persistent);
    let no_cache = Command::set_features(feature::VOLATILE_WRITE_CACHE, 0, 0);
    assert_eq!(
        a.ask(no_cache).await.0.status.code(),
        Status::FEATURE_NOT_CHANGEABLE
    );
    let events = Command::set_features(feature::ASYNC_EVENT_CONFIGURATION, 0, 0x100);
    a.ask(events).await;
    let events = Command::get_features(feature::ASYNC_EVENT_CONFIGURATION, 0);
    assert_eq!(a.ask(events).await.0.result, 0x100);
    let unknown = Command::set_features(0x7f, 0, 0);
    assert_eq!(a.ask(unknown).await.0.status.code(), Status::INVALID_FIELD);
}

#[tokio::test]
async fn connects_that_do_not_fit_are_refused() {
    let lab = Lab::start().await;
    let address = lab.target.address();
    let refusal = async |data: ConnectData, queue| {
        Queue::connect(address, Digests::default(), &data, queue, 0)
            .await
            .err()
            .unwrap()
    };
    let invalid = Status::CONNECT_INVALID_PARAMETERS.dnr();
    let other = ConnectData {
        subsystem: "nqn.other".parse().unwrap(),
        ..connect_data()
    };
    assert_eq!(refusal(other, 0).await, invalid);
    let fixed = ConnectData {
        controller: 3,
        ..connect_data()
    };
    assert_eq!(refusal(fixed.clone(), 0).await, invalid);
    assert_eq!(refusal(fixed, 1).await, invalid);
    let nobody = nvme::HostIdentity {
        id: HostId(Uuid::nil()),
        ..host(1)
    };
    assert_eq!(
        refusal(
            ConnectData {
                host: nobody,
                ..connect_data()
            },
            0
        )
        .await,
        invalid
    );

    let a = lab.host(1).await;
    let joining = ConnectData {
        controller: a.controller,
        ..connect_data()
    };
    let twice = refusal(joining.clone(), 1).await;
    assert_eq!(twice.code(), Status::COMMAND_SEQUENCE_ERROR);
    let stranger = ConnectData {
        host: host(2),
        ..joining.clone()
    };
    assert_eq!(refusal(stranger, 2).await, invalid);
    assert_eq!(refusal(joining.clone(), 17).await, invalid);
    assert!(
        Queue::connect(address, Digests::default(), &joining, 2, 0)
            .await
            .is_ok()
    );

    // Before Connect there is nothing else.
    let mut queue = Queue::open(address, Digests::default()).await;
    let (completion, _) = queue.execute(Command::keep_alive(), &[]).await.unwrap();
    assert_eq!(completion.status.code(), Status::COMMAND_SEQUENCE_ERROR);
}

#[tokio::test]
async fn commands_before_enabling_and_after_reset_are_refused_and_shutdown_completes() {
    let lab = Lab::start().await;
    let address = lab.target.address();
    let (mut queue, _) = Queue::connect(address, Digests::default(), &connect_data(), 0, 0)
        .await
        .unwrap();
    let (completion, _) = queue.execute(Command::keep_alive(), &[]).await.unwrap();
    assert_eq!(completion.status.code(), Status::COMMAND_SEQUENCE_ERROR);
    for (value, alive) in [(CC_ENABLED, true), (0, false), (CC_ENABLED, true)] {
        let set = Fabrics::PropertySet {
            wide: false,
            offset: CC,
            value: u64::from(value),
        };
        queue.execute(set.to_command(), &[]).await.unwrap();
        let (completion, _) = queue.execute(Command::keep_alive(), &[]).await.unwrap();
        assert_eq!(completion.status.is_success(), alive);
    }
    let set = Fabrics::PropertySet {
        wide: false,
        offset: CC,
        value: u64::from(CC_SHUTDOWN),
    };
    queue.execute(set.to_command(), &[]).await.unwrap();
    let status = get(&mut queue, false, CSTS).await as u32;
    assert_eq!(status & CSTS_SHUTDOWN_COMPLETE, CSTS_SHUTDOWN_COMPLETE);
}

#[tokio::test]
async fn a_silent_host_loses_its_connections_and_one_that_keeps_alive_does_not() {
    let lab = Lab::start().await;
    let address = lab.target.address();
    let mut silent = Host::attach(address, host(1), Digests::default(), 1000)
        .await
        .unwrap();
    let mut alive = Host::attach(address, host(2), Digests::default(), 1000)
        .await
        .unwrap();
    for _ in 0..15 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(alive.ask(Command::keep_alive()).await.0.status.is_success());
    }
    assert!(matches!(silent.admin.next_pdu().await, Err(Ended::Closed)));
    assert!(matches!(silent.io.next_pdu().await, Err(Ended::Closed)));
    assert_eq!(alive.flush().await, Status::SUCCESS);
}

#[tokio::test]
async fn without_its_admin_queue_a_controller_ends() {
    let lab = Lab::start().await;
    let Host { admin, mut io, .. } = lab.host(1).await;
    drop(admin);
    assert!(matches!(io.next_pdu().await, Err(Ended::Closed)));
}

#[tokio::test]
async fn event_requests_are_limited() {
    let lab = Lab::start().await;
    let mut a = lab.host(1).await;
    for _ in 0..4 {
        a.admin
            .send(Command::new(admin::ASYNC_EVENT_REQUEST, 0), &[])
            .await;
    }
    let (completion, _) = a.ask(Command::new(admin::ASYNC_EVENT_REQUEST, 0)).await;
    assert_eq!(completion.status.code(), Status::ASYNC_EVENT_LIMIT);
    assert_eq!(a.ask(Command::new(admin::ABORT, 0)).await.0.result & 1, 1);
}

#[tokio::test]
async fn discovery_names_the_subsystem_and_its_address() {
    let lab = Lab::start().await;
    let address = lab.target.address();
    let data = ConnectData {
        subsystem: DISCOVERY_NQN.parse().unwrap(),
        ..connect_data()
    };
    let (mut queue, _) = Queue::connect(address, Digests::default(), &data, 0, 0)
        .await
        .unwrap();
    crate::client::enable(&mut queue).await;
    let (_, data) = queue
        .execute(Command::identify(cns::CONTROLLER, 0), &[])
        .await
        .unwrap();
    assert_eq!(
        IdentifyController::decode(&data).unwrap().controller_type,
        2
    );
    let command = Command::get_log_page(log::DISCOVERY, 0, 0, 2048);
    let (_, data) = queue.execute(command, &[]).await.unwrap();
    let log = DiscoveryLog::decode(&data).unwrap();
    assert_eq!(log.entries.len(), 1);
    assert_eq!(
        (log.entries[0].address, &log.entries[0].subsystem),
        (address, &default_subsystem())
    );
    let (completion, _) = queue
        .execute(Command::identify(cns::NAMESPACE, 1), &[])
        .await
        .unwrap();
    assert_eq!(completion.status.code(), Status::INVALID_FIELD);
}
