//! Reading, writing, flushing: in the capsule and by R2T, with digests, on several hosts and queues.

use crate::client::{Host, Lab, NSID, host};
use nvme::Status;
use nvme::command::{Command, Range, encode_ranges};
use nvme::pdu::Digests;

fn pattern(length: usize, seed: u8) -> Vec<u8> {
    (0..length)
        .map(|n| (n as u8).wrapping_mul(31).wrapping_add(seed))
        .collect()
}

#[tokio::test]
async fn what_is_written_is_read_in_the_capsule_and_by_r2t_with_all_digests() {
    let lab = Lab::start().await;
    for (header, data) in [(false, false), (true, false), (false, true), (true, true)] {
        let digests = Digests { header, data };
        let mut a = Host::attach(lab.target.address(), host(1), digests, 0)
            .await
            .unwrap();
        for length in [512, 8192, 8192 + 512, 300 * 1024, 1 << 20] {
            let written = pattern(length, length as u8);
            assert_eq!(a.write(64, &written).await, Status::SUCCESS);
            let read = a.read(64, length as u32 / 512).await.unwrap();
            assert!(read == written, "{digests:?} {length}");
        }
    }
}

#[tokio::test]
async fn hosts_share_the_namespace() {
    let lab = Lab::start().await;
    let (mut a, mut b) = (lab.host(1).await, lab.host(2).await);
    let written = pattern(4096, 3);
    assert_eq!(a.write(8, &written).await, Status::SUCCESS);
    assert_eq!(b.read(8, 8).await.unwrap(), written);
    assert_eq!(b.flush().await, Status::SUCCESS);
}

#[tokio::test]
async fn zeroes_deallocate_and_compare() {
    let lab = Lab::start().await;
    let mut a = lab.host(1).await;
    let ones = vec![1; 4096];
    a.write(0, &ones).await;
    let zeroes = Command::write_zeroes(NSID, 0, 2, true);
    assert_eq!(
        a.io.execute(zeroes, &[]).await.unwrap().0.status,
        Status::SUCCESS
    );
    let range = encode_ranges(&[Range { lba: 4, blocks: 1 }, Range { lba: 6, blocks: 2 }]);
    let deallocate = Command::deallocate(NSID, 2);
    assert_eq!(
        a.io.execute(deallocate, &range).await.unwrap().0.status,
        Status::SUCCESS
    );
    let read = a.read(0, 8).await.unwrap();
    let blocks: Vec<u8> = read.chunks(512).map(|block| block[0]).collect();
    assert_eq!(blocks, [0, 0, 1, 1, 0, 1, 0, 0]);

    let mut compare = Command::write(NSID, 2, 1, 512, false);
    compare.opcode = nvme::command::io::COMPARE;
    assert_eq!(
        a.io.execute(compare, &ones[..512]).await.unwrap().0.status,
        Status::SUCCESS
    );
    let different = a.io.execute(compare, &[2; 512]).await.unwrap().0.status;
    assert_eq!(different.code(), Status::COMPARE_FAILURE);
}

#[tokio::test]
async fn what_does_not_fit_is_refused_and_the_queue_goes_on() {
    let lab = Lab::start().await;
    let mut a = lab.host(1).await;
    let end = (16 << 20) / 512;
    assert_eq!(
        a.read(end - 1, 2).await.unwrap_err().code(),
        Status::LBA_OUT_OF_RANGE
    );
    assert_eq!(
        a.read(u64::MAX, 1).await.unwrap_err().code(),
        Status::LBA_OUT_OF_RANGE
    );
    assert_eq!(
        a.read(0, 4096).await.unwrap_err().code(),
        Status::INVALID_FIELD
    );
    let absent = Command::flush(9);
    let status = a.io.execute(absent, &[]).await.unwrap().0.status;
    assert_eq!(status.code(), Status::INVALID_NAMESPACE);
    let unknown = Command::new(0x7c, NSID);
    let status = a.io.execute(unknown, &[]).await.unwrap().0.status;
    assert_eq!(status.code(), Status::INVALID_OPCODE);
    // The data's length differs from the number of blocks.
    let short = Command::write(NSID, 0, 2, 512, false);
    let status = a.io.execute(short, &[0; 512]).await.unwrap().0.status;
    assert_eq!(status.code(), Status::DATA_SGL_LENGTH_INVALID);
    assert_eq!(a.read(end - 1, 1).await.unwrap().len(), 512);
}

#[tokio::test]
async fn many_commands_at_once_complete_each_with_its_own_data() {
    let lab = Lab::start().await;
    let mut a = lab.host(1).await;
    for n in 0..16 {
        a.write(n, &[n as u8; 512]).await;
    }
    let mut sent = Vec::new();
    for n in 0..16 {
        sent.push((
            a.io.send(Command::read(NSID, n, 1, 512), &[]).await,
            n as u8,
        ));
    }
    for (id, byte) in sent {
        let (completion, data) = a.io.complete(id, &[]).await.unwrap();
        assert!(completion.status.is_success());
        assert_eq!(data[..], [byte; 512]);
    }
}
