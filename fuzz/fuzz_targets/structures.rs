//! Bytes from a controller or a host, read as the data of commands: no panic, and a report that is
//! read is written back to the same report.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nvme::command::{Command, decode_ranges};
use nvme::fabrics::{ConnectData, Fabrics};
use nvme::identify::{Descriptors, IdentifyController, IdentifyNamespace, decode_namespace_list};
use nvme::log_page::DiscoveryLog;
use nvme::reservation_codec::{
    AcquireRequest, RegisterRequest, ReleaseRequest, decode_report, encode_report,
};

fuzz_target!(|input: &[u8]| {
    if let Ok(report) = decode_report(input) {
        assert_eq!(decode_report(&encode_report(&report)).as_ref(), Ok(&report));
    }
    let _ = ConnectData::decode(input);
    let _ = IdentifyController::decode(input);
    let _ = IdentifyNamespace::decode(input).map(|namespace| namespace.block_size());
    let _ = Descriptors::decode(input);
    let _ = DiscoveryLog::decode(input);
    let _ = decode_namespace_list(input);
    let _ = decode_ranges(input);
    let _ = RegisterRequest::decode(0, input);
    let _ = AcquireRequest::decode(0, input);
    let _ = ReleaseRequest::decode(0, input);
    if let Some(entry) = input.first_chunk() {
        let command = Command::decode(entry);
        let _ = (Fabrics::from_command(&command), command.lba(), command.blocks());
    }
});
