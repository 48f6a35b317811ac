//! Every wire format decodes to what was encoded, and bytes of any kind decode without a panic.

use std::net::SocketAddr;

use bytes::{Bytes, BytesMut};
use nvme::command::{Command, Completion, Range, Sgl, decode_ranges, encode_ranges};
use nvme::fabrics::{Capabilities, Connect, ConnectData, Fabrics};
use nvme::identify::{
    Descriptors, IdentifyController, IdentifyNamespace, decode_namespace_list,
    encode_namespace_list,
};
use nvme::log_page::{DiscoveryEntry, DiscoveryLog, NotificationKind, ReservationNotification};
use nvme::pdu::{
    Data, Digests, InitializeRequest, InitializeResponse, Pdu, PduReader, PduWriter,
    ReadyToTransfer, Receiver, Termination, codec,
};
use nvme::reservation::{Registrant, ReservationReport};
use nvme::reservation_codec::{
    AcquireRequest, RegisterRequest, ReleaseRequest, decode_report, encode_report,
};
use nvme::{HostId, HostIdentity, Nqn, ReservationType, Status};
use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, any, prop_assert_eq, prop_oneof, proptest};
use uuid::Uuid;

fn sgl() -> impl Strategy<Value = Sgl> {
    prop_oneof![
        Just(Sgl::None),
        (any::<u64>(), any::<u32>()).prop_map(|(offset, length)| Sgl::InCapsule { offset, length }),
        any::<u32>().prop_map(|length| Sgl::Transport { length }),
    ]
}

fn command() -> impl Strategy<Value = Command> {
    let words = (any::<u32>(), any::<[u32; 2]>(), any::<[u32; 6]>());
    (any::<u8>(), any::<u8>(), any::<u16>(), words, sgl()).prop_map(
        |(opcode, flags, id, (nsid, cdw2_3, cdw10_15), sgl)| Command {
            opcode,
            flags,
            id,
            nsid,
            cdw2_3,
            sgl,
            cdw10_15,
        },
    )
}

fn completion() -> impl Strategy<Value = Completion> {
    (
        any::<u64>(),
        any::<u16>(),
        any::<u16>(),
        any::<u16>(),
        0..0x8000u16,
    )
        .prop_map(|(result, sq_head, sq_id, id, status)| Completion {
            result,
            sq_head,
            sq_id,
            id,
            status: Status(status),
        })
}

fn bytes(lengths: std::ops::Range<usize>) -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), lengths).prop_map(Bytes::from)
}

fn digests() -> impl Strategy<Value = Digests> {
    any::<(bool, bool)>().prop_map(|(header, data)| Digests { header, data })
}

fn data(success: bool) -> impl Strategy<Value = Data> {
    (
        any::<u16>(),
        any::<u16>(),
        any::<u32>(),
        bytes(1..9000),
        any::<bool>(),
    )
        .prop_map(move |(command, tag, offset, data, last)| Data {
            command,
            tag,
            offset,
            data,
            last,
            success: success && last,
        })
}

fn termination() -> impl Strategy<Value = Termination> {
    (any::<u16>(), any::<u32>(), bytes(0..128)).prop_map(|(status, information, offending)| {
        Termination {
            status,
            information,
            offending,
        }
    })
}

fn initialize() -> impl Strategy<Value = (u16, u8, Digests, u32)> {
    (any::<u16>(), any::<u8>(), digests(), any::<u32>())
}

fn to_controller() -> impl Strategy<Value = Pdu> {
    prop_oneof![
        initialize().prop_map(|(format, data_alignment, digests, max_r2t_minus_one)| {
            Pdu::InitializeRequest(InitializeRequest {
                format,
                data_alignment,
                digests,
                max_r2t_minus_one,
            })
        }),
        termination().prop_map(Pdu::HostTermination),
        (command(), bytes(0..9000)).prop_map(|(command, data)| Pdu::Command(command, data)),
        data(false).prop_map(Pdu::HostData),
    ]
}

fn to_host() -> impl Strategy<Value = Pdu> {
    prop_oneof![
        initialize().prop_map(|(format, data_alignment, digests, max_host_data)| {
            Pdu::InitializeResponse(InitializeResponse {
                format,
                data_alignment,
                digests,
                max_host_data,
            })
        }),
        termination().prop_map(Pdu::ControllerTermination),
        completion().prop_map(Pdu::Response),
        data(true).prop_map(Pdu::ControllerData),
        any::<(u16, u16, u32, u32)>().prop_map(|(command, tag, offset, length)| {
            Pdu::ReadyToTransfer(ReadyToTransfer {
                command,
                tag,
                offset,
                length,
            })
        }),
    ]
}

fn round_trip(pdus: Vec<Pdu>, receiver: Receiver, digests: Digests, alignment: u8) -> Vec<Pdu> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut writer = PduWriter::new(Vec::new());
        writer.set_digests(digests);
        writer.set_alignment(alignment);
        for pdu in &pdus {
            writer.feed(pdu).await.unwrap();
        }
        writer.flush().await.unwrap();
        let sent = writer.into_inner();
        let mut reader = PduReader::new(&sent[..], receiver, 1 << 20);
        reader.set_digests(digests);
        let mut read = Vec::new();
        for _ in &pdus {
            read.push(reader.read().await.unwrap());
        }
        read
    })
}

fn nqn() -> impl Strategy<Value = Nqn> {
    "nqn\\.[a-z0-9:.-]{1,200}".prop_map(|text| text.parse().unwrap())
}

fn host_id() -> impl Strategy<Value = HostId> {
    (1..u128::MAX).prop_map(|n| HostId(Uuid::from_u128(n)))
}

fn uuid() -> impl Strategy<Value = Uuid> {
    any::<u128>().prop_map(Uuid::from_u128)
}

fn report() -> impl Strategy<Value = ReservationReport> {
    let registrant = (any::<u16>(), any::<bool>(), host_id(), any::<u64>()).prop_map(
        |(controller, holder, host, key)| Registrant {
            controller,
            holder,
            host,
            key,
        },
    );
    let kind = proptest::option::of(proptest::sample::select(&ReservationType::ALL[..]));
    (any::<u32>(), kind, any::<bool>(), vec(registrant, 0..20)).prop_map(
        |(generation, reservation, persistent, registrants)| ReservationReport {
            generation,
            reservation,
            persistent,
            registrants,
        },
    )
}

fn identify_controller() -> impl Strategy<Value = IdentifyController> {
    let texts = ("[!-~]{1,20}", "[!-~]{1,40}", "[!-~]{1,8}");
    let bytes = any::<[u8; 7]>();
    let halves = any::<[u16; 7]>();
    let words = any::<[u32; 7]>();
    let subsystem = proptest::option::of(nqn());
    (texts, bytes, halves, words, subsystem).prop_map(
        |((serial, model, firmware), b, h, w, subsystem)| IdentifyController {
            serial,
            model,
            firmware,
            multi_path: b[0],
            max_transfer_exponent: b[1],
            controller: h[0],
            version: w[0],
            async_events: w[1],
            attributes: w[2],
            controller_type: b[2],
            admin_commands: h[1],
            async_event_limit: b[3],
            log_page_attributes: b[4],
            keep_alive_granularity: h[2],
            command_quiesce_time_ms: h[3],
            max_commands: h[4],
            namespaces: w[3],
            optional_commands: h[5],
            volatile_write_cache: b[5],
            sgl_support: w[4],
            subsystem,
            io_command_capsule_16b: w[5],
            io_response_capsule_16b: w[6],
            in_capsule_offset_16b: h[6],
            max_sgl_descriptors: b[6],
        },
    )
}

proptest! {
    #[test]
    fn commands(command in command()) {
        prop_assert_eq!(Command::decode(&command.encode()), command);
    }

    #[test]
    fn any_64_bytes_are_a_command_and_keep_their_sgl(bytes in any::<[u8; 32]>()) {
        let mut entry = [0; 64];
        entry[8..40].copy_from_slice(&bytes);
        // The metadata pointer is not carried.
        entry[16..24].fill(0);
        prop_assert_eq!(Command::decode(&entry).encode(), entry);
    }

    #[test]
    fn completions(completion in completion()) {
        prop_assert_eq!(Completion::decode(&completion.encode()), completion);
    }

    #[test]
    fn units_to_the_controller(
        pdus in vec(to_controller(), 1..5), digests in digests(), alignment in 0..32u8) {
        let read = round_trip(pdus.clone(), Receiver::Controller, digests, alignment);
        prop_assert_eq!(read, pdus);
    }

    #[test]
    fn units_to_the_host(
        pdus in vec(to_host(), 1..5), digests in digests(), alignment in 0..32u8) {
        let read = round_trip(pdus.clone(), Receiver::Host, digests, alignment);
        prop_assert_eq!(read, pdus);
    }

    /// A unit with one byte changed is read as some unit, refused, or found incomplete.
    #[test]
    fn a_damaged_unit_does_no_harm(
        pdu in to_controller(), digests in digests(), at in any::<usize>(), to in any::<u8>()) {
        let mut bytes = BytesMut::new();
        codec::encode_header(&pdu, digests, 0, &mut bytes);
        bytes.extend_from_slice(pdu.data());
        let at = at % bytes.len();
        bytes[at] = to;
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut reader = PduReader::new(&bytes[..], Receiver::Controller, 1 << 16);
            reader.set_digests(digests);
            while reader.read().await.is_ok() {}
        });
    }

    #[test]
    fn fabrics_commands(
        record_format in any::<u16>(), queue in any::<u16>(), size_minus_one in any::<u16>(),
        attributes in any::<u8>(), keep_alive_ms in any::<u32>(),
        wide in any::<bool>(), offset in any::<u32>(), value in any::<u64>()) {
        let connect =
            Connect { record_format, queue, size_minus_one, attributes, keep_alive_ms };
        for command in [
            Fabrics::Connect(connect),
            Fabrics::PropertyGet { wide, offset },
            Fabrics::PropertySet { wide, offset, value },
            Fabrics::Disconnect,
        ] {
            prop_assert_eq!(Fabrics::from_command(&command.to_command()), command);
        }
    }

    #[test]
    fn connect_data(nqns in (nqn(), nqn()), id in host_id(), controller in any::<u16>()) {
        let host = HostIdentity { nqn: nqns.0, id };
        let data = ConnectData { host, controller, subsystem: nqns.1 };
        prop_assert_eq!(ConnectData::decode(&data.encode()), Ok(data));
    }

    #[test]
    fn any_connect_data_is_read_or_refused(bytes in vec(any::<u8>(), 0..1100)) {
        let _ = ConnectData::decode(&bytes);
    }

    #[test]
    fn capabilities(entries in any::<u16>(), timeout in any::<u8>()) {
        let capabilities =
            Capabilities { max_queue_entries_minus_one: entries, timeout_500ms: timeout };
        prop_assert_eq!(Capabilities::decode(capabilities.encode()), capabilities);
    }

    #[test]
    fn identify_controllers(controller in identify_controller()) {
        prop_assert_eq!(IdentifyController::decode(&controller.encode()), Some(controller));
    }

    #[test]
    fn identify_namespaces(
        sizes in any::<(u64, u64)>(), b in any::<[u8; 4]>(), nguid in uuid(),
        eui64 in any::<u64>(), exponent in any::<u8>()) {
        let namespace = IdentifyNamespace {
            blocks: sizes.0,
            used: sizes.1,
            features: b[0],
            multi_path: b[1],
            reservations: b[2],
            deallocation: b[3],
            nguid,
            eui64,
            block_size_exponent: exponent,
        };
        prop_assert_eq!(IdentifyNamespace::decode(&namespace.encode()), Some(namespace));
        let size = namespace.block_size();
        prop_assert_eq!(size.is_some(), (9..=16).contains(&exponent));
    }

    #[test]
    fn descriptors(eui64 in any::<u64>(), nguid in uuid(), uuid in uuid()) {
        let descriptors = Descriptors { eui64, nguid, uuid };
        prop_assert_eq!(Descriptors::decode(&descriptors.encode()), descriptors);
    }

    #[test]
    fn identify_data_of_any_bytes_is_read_or_refused(bytes in vec(any::<u8>(), 0..4200)) {
        let _ = IdentifyController::decode(&bytes);
        let _ = IdentifyNamespace::decode(&bytes);
        let _ = Descriptors::decode(&bytes);
        let _ = DiscoveryLog::decode(&bytes);
        let _ = decode_report(&bytes);
    }

    #[test]
    fn namespace_lists(list in vec(1..u32::MAX, 0..1024)) {
        prop_assert_eq!(decode_namespace_list(&encode_namespace_list(&list)), list);
    }

    #[test]
    fn deallocated_ranges(ranges in vec(any::<(u64, u32)>(), 0..256)) {
        let ranges: Vec<Range> =
            ranges.into_iter().map(|(lba, blocks)| Range { lba, blocks }).collect();
        prop_assert_eq!(decode_ranges(&encode_ranges(&ranges)), ranges);
    }

    #[test]
    fn reservation_requests(
        action in 0..8u8, iekey in any::<bool>(), persistence in 0..4u8, kind in any::<u8>(),
        keys in any::<(u64, u64)>()) {
        let register = RegisterRequest {
            action, ignore_existing_key: iekey, persistence, current: keys.0, new: keys.1,
        };
        let read = RegisterRequest::decode(register.cdw10(), &register.data());
        prop_assert_eq!(read, Ok(register));
        let acquire = AcquireRequest {
            action, ignore_existing_key: iekey, kind, current: keys.0, preempted: keys.1,
        };
        let read = AcquireRequest::decode(acquire.cdw10(), &acquire.data());
        prop_assert_eq!(read, Ok(acquire));
        let release =
            ReleaseRequest { action, ignore_existing_key: iekey, kind, current: keys.0 };
        prop_assert_eq!(ReleaseRequest::decode(release.cdw10(), &release.data()), Ok(release));
        // Linux sends 16 bytes.
        let long = [&release.data()[..], &[0; 8]].concat();
        prop_assert_eq!(ReleaseRequest::decode(release.cdw10(), &long), Ok(release));
    }

    #[test]
    fn reservation_reports(report in report()) {
        let bytes = encode_report(&report);
        prop_assert_eq!(decode_report(&bytes).unwrap(), report.clone());
        // Padding is ignored, a cut is seen.
        let padded = [&bytes[..], &[0; 64]].concat();
        prop_assert_eq!(decode_report(&padded).unwrap(), report);
        prop_assert_eq!(decode_report(&bytes[..bytes.len() - 1]).is_err(), true);
    }

    #[test]
    fn reservation_notifications(count in any::<u64>(), available in any::<u8>(),
        nsid in any::<u32>(), kind in 0..4u8) {
        let kind = [
            None,
            Some(NotificationKind::RegistrationPreempted),
            Some(NotificationKind::ReservationReleased),
            Some(NotificationKind::ReservationPreempted),
        ][usize::from(kind)];
        let page = ReservationNotification { count, kind, available, nsid };
        prop_assert_eq!(ReservationNotification::decode(&page.encode()), page);
    }

    #[test]
    fn discovery_logs(generation in any::<u64>(),
        entries in vec((any::<(std::net::IpAddr, u16)>(), nqn(), any::<u16>()), 0..5)) {
        let entries = entries.into_iter().map(|((ip, port), subsystem, admin_queue_size)| {
            DiscoveryEntry { address: SocketAddr::new(ip, port), subsystem, admin_queue_size }
        });
        let log = DiscoveryLog { generation, entries: entries.collect() };
        prop_assert_eq!(DiscoveryLog::decode(&log.encode()), Some(log));
    }
}
