//! Baton's own sequences against nvmet: register, acquire, be refused, fence, verify.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use baton::clock;
use bytes::Bytes;
use fencing::{
    AbsenceEvidence, Claim, ClusterTag, Drain, Epoch, Expectation, FenceSequence, KeyFlags, Limits,
    MemberId, StartSequence, Victim, WritePermit, drive,
};
use nvme::Namespace;
use nvme::initiator::Initiator;
use nvme::reservation::Release;

use super::{connect, identity};

/// How long one command may take.
const COMMAND: Duration = Duration::from_secs(5);

fn claim(member: u8, epoch: u32) -> Result<Claim> {
    Ok(Claim {
        host: identity(member)?.id,
        cluster: ClusterTag::of("vm"),
        member: MemberId::new(member).context("a member's number")?,
        epoch: Epoch::new(epoch).context("an epoch")?,
        flags: KeyFlags::NONE,
        former_controllers_gone: None,
    })
}

fn limits() -> Limits {
    Limits {
        deadline: clock::now() + COMMAND * 4,
        retry_pause: Duration::from_millis(100),
        drain_wait: Some(Duration::from_secs(25)),
        beat: Duration::from_secs(1),
        verify_within: COMMAND,
        // nvmet keeps nothing over a power loss.
        require_persistence: false,
    }
}

async fn start(host: &Initiator, member: u8) -> Result<()> {
    let mut sequence = StartSequence::new(claim(member, 0)?, limits());
    let started = drive(&mut sequence, host, clock::now, COMMAND).await;
    started
        .map(drop)
        .map_err(|refused| anyhow!("start of {member}: {refused}"))
}

async fn take(
    host: &Initiator,
    member: u8,
    epoch: u32,
    expected: Expectation,
) -> Result<WritePermit> {
    let mut sequence = FenceSequence::new(claim(member, epoch)?, expected, limits());
    let fenced = drive(&mut sequence, host, clock::now, COMMAND).await;
    fenced.map_err(|unverified| anyhow!("the fence of {member}: {unverified}"))
}

async fn is_refused(host: &Initiator) -> Result<bool> {
    match host.write(0, Bytes::from(vec![1; 512]), false).await {
        Ok(()) => Ok(false),
        Err(error) if error.is_conflict() => Ok(true),
        Err(error) => Err(error).context("a write is refused otherwise"),
    }
}

/// How the fence was proven, and how many writes were refused.
pub async fn sequence(address: &str) -> Result<(String, u64)> {
    let (a, b) = (connect(address, 1).await?, connect(address, 2).await?);
    start(&a, 1).await?;
    start(&b, 2).await?;
    let never = Expectation::Nobody(AbsenceEvidence::NeverOwned);
    let first = take(&a, 1, 1, never).await?;
    ensure!(!is_refused(&a).await?, "the holder cannot write");
    ensure!(is_refused(&b).await?, "another's write was not refused");
    ensure!(b.read(0, 1).await.is_ok(), "a standby cannot read");
    let victim = Victim {
        host: identity(1)?.id,
        member: claim(1, 1)?.member,
        epoch: claim(1, 1)?.epoch,
        clean: false,
    };
    let began = clock::now();
    let second = take(&b, 2, 2, Expectation::Holder(victim)).await?;
    let took = clock::now().since(began);
    let drained = matches!(second.drain(), Drain::Aborted { .. });
    ensure!(drained, "the permit says {:?}", second.drain());
    let report = b.report().await?;
    ensure!(second.confirm(&report).is_ok(), "unconfirmed: {report:?}");
    ensure!(first.confirm(&report).is_err(), "confirmed: {report:?}");
    ensure!(is_refused(&a).await?, "the victim's write was not refused");
    ensure!(
        a.flush().await.is_err(),
        "the victim's flush was not refused"
    );
    start(&a, 1).await?;
    ensure!(is_refused(&a).await?, "registered again, the victim writes");
    ensure!(!is_refused(&b).await?, "the new holder cannot write");
    b.release(Release::Clear, second.key().pack()).await?;
    Ok((format!("preempt and abort, proven in {took:?}"), 4))
}
