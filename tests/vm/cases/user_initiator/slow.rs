//! What a preempt does to commands under way: nvmet cannot abort them, it waits.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use baton::clock;
use bytes::Bytes;
use nvme::initiator::{Initiator, Options};
use nvme::reservation::{Acquire, ChangePersistence, Register, Release};
use nvme::{Namespace, ReservationType};

use super::identity;
use crate::exported::Exported;

/// How long each command of the disk takes.
pub const EACH: Duration = Duration::from_secs(3);

/// By then the write has reached the disk, and it is far from its end.
const UNDER_WAY: Duration = Duration::from_secs(1);

/// Two completions on two connections may be seen in the other order when this close together.
const CLOSE: Duration = Duration::from_millis(300);

const KEYS: [u64; 2] = [0x51, 0x52];
const KIND: ReservationType = ReservationType::WriteExclusive;

/// A plain preempt leaves the victim's write under way; a preempt-and-abort ends after it.
pub async fn preempts(exported: &Exported<'_>) -> Result<Vec<String>> {
    let mut hosts = Vec::new();
    for (number, key) in (1..).zip(KEYS) {
        let identity = identity(number)?;
        let options = Options::new(exported.address(), exported.subsystem()?, 1, identity);
        let host = Initiator::connect(options).await?;
        register(&host, key).await?;
        hosts.push(host);
    }
    let [victim, taker] = [&hosts[0], &hosts[1]];
    let mut notes = Vec::new();
    for waits in [false, true] {
        victim.acquire(Acquire::Acquire, KEYS[0], KIND).await?;
        notes.push(preempt(victim, taker, waits).await?);
        taker.release(Release::Release(KIND), KEYS[1]).await?;
        register(victim, KEYS[0]).await?;
    }
    taker.release(Release::Clear, KEYS[1]).await?;
    Ok(notes)
}

async fn register(host: &Initiator, key: u64) -> Result<()> {
    let register = Register::Register { key };
    Ok(host
        .register(register, ChangePersistence::Unchanged)
        .await?)
}

async fn preempt(victim: &Initiator, taker: &Initiator, waits: bool) -> Result<String> {
    let (name, action) = match waits {
        true => (
            "preempt and abort",
            Acquire::PreemptAndAbort { victim: KEYS[0] },
        ),
        false => ("preempt", Acquire::Preempt { victim: KEYS[0] }),
    };
    let data = Bytes::from(vec![7; 512]);
    let written = async {
        let done = victim.write(0, data.clone(), false).await;
        done.map(|()| clock::now())
    };
    let preempted = async {
        tokio::time::sleep(UNDER_WAY).await;
        let done = taker.acquire(action, KEYS[1], KIND).await;
        done.map(|()| clock::now())
    };
    let late = async {
        tokio::time::sleep(UNDER_WAY + Duration::from_millis(500)).await;
        victim.write(1, data.clone(), false).await
    };
    let (written, preempted, late) = tokio::join!(written, preempted, late);
    let written = written.context("the victim's write under way")?;
    let preempted = preempted.context(name)?;
    match late {
        Err(error) if error.is_conflict() => {}
        other => bail!("{name}: the victim's next write ends with {other:?}"),
    }
    ensure!(
        waits == (preempted + CLOSE >= written),
        "{name} ended at {preempted:?}, the write under way at {written:?}"
    );
    let (order, apart) = match preempted < written {
        true => ("before", written.since(preempted)),
        false => ("after", preempted.since(written)),
    };
    Ok(format!(
        "{name}: ended {apart:?} {order} the victim's write under way; its next one was refused"
    ))
}
