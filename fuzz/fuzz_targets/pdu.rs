//! Bytes from a peer, read as protocol data units: no panic, no unit beyond the limit, and whatever
//! is read as a unit can be written again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nvme::pdu::{Digests, PduReader, PduWriter, ReadError, Receiver};

const MAX_DATA: u32 = 64 * 1024;

fuzz_target!(|input: &[u8]| {
    let Some((options, bytes)) = input.split_first() else {
        return;
    };
    let receiver = if options & 1 == 0 { Receiver::Controller } else { Receiver::Host };
    let digests = Digests { header: options & 2 != 0, data: options & 4 != 0 };
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async {
        let mut reader = PduReader::new(bytes, receiver, MAX_DATA);
        reader.set_digests(digests);
        loop {
            let unit = match reader.read().await {
                Ok(unit) => unit,
                Err(ReadError::DataDigest(unit)) => *unit,
                Err(_) => return,
            };
            assert!(unit.data().len() <= MAX_DATA as usize);
            let mut writer = PduWriter::new(Vec::new());
            writer.set_digests(digests);
            writer.write(&unit).await.expect("memory takes everything");
            let written = writer.into_inner();
            let mut again = PduReader::new(&written[..], receiver, MAX_DATA);
            again.set_digests(digests);
            assert_eq!(again.read().await.expect("what was written is read"), unit);
        }
    });
});
