//! Finding the subsystem, keeping the path, and losing it.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use baton::clock;
use nvme::initiator::{Initiator, Options, Path, discover};
use nvme::reservation::{ChangePersistence, Register};
use nvme::{Error, Namespace};

use super::blocks::pattern;
use super::{identity, options};
use crate::nvmet::{SUBSYSTEM, Target};

/// A short keep-alive time-out, several of which pass without other commands.
const KEEP_ALIVE: Duration = Duration::from_secs(2);

/// Within this a path that can be had again is there again, under emulation.
const BACK_WITHIN: Duration = Duration::from_secs(20);

pub async fn discovery(address: &str) -> Result<String> {
    let log = discover(&options(address, 1)?).await?;
    let found = log.entries.iter().find(|entry| {
        entry.subsystem.as_str() == SUBSYSTEM && entry.address.to_string() == address
    });
    ensure!(
        found.is_some(),
        "{SUBSYSTEM} at {address} is not in {log:?}"
    );
    Ok(format!("discovery: {} entries", log.entries.len()))
}

pub async fn keep_alive(address: &str) -> Result<String> {
    let options = Options {
        keep_alive: KEEP_ALIVE,
        ..options(address, 1)?
    };
    let initiator = Initiator::connect(options).await?;
    let path = initiator.path();
    // Nothing but Keep Alive goes out meanwhile.
    tokio::time::sleep(KEEP_ALIVE * 4).await;
    let still_first = matches!(*path.borrow(), Path::Connected { association: 1, .. });
    ensure!(still_first, "the path did not last: {:?}", *path.borrow());
    initiator.flush().await?;
    Ok(format!(
        "keep alive: {:?} without other commands at KATO {KEEP_ALIVE:?}",
        KEEP_ALIVE * 4
    ))
}

pub async fn reconnect(target: &Target<'_>, address: &str) -> Result<String> {
    let key = 0x5157;
    let initiator = Initiator::connect(options(address, 1)?).await?;
    let register = Register::Register { key };
    initiator
        .register(register, ChangePersistence::Unchanged)
        .await?;
    let data = pattern(4096, 9);
    initiator.write(64, data.clone(), true).await?;
    let mut path = initiator.path();
    target.leave_port().await?;
    let lost = path.wait_for(|path| matches!(path, Path::Connecting { .. }));
    let lost = tokio::time::timeout(BACK_WITHIN, lost).await;
    drop(lost.context("the loss of the port goes unnoticed")??);
    match initiator.flush().await {
        Err(Error::NoPath { .. }) => {}
        other => bail!("without a path a flush ends with {other:?}"),
    }
    let began = clock::now();
    target.return_to_port().await?;
    initiator.connected(BACK_WITHIN).await?;
    let took = clock::now().since(began);
    ensure!(initiator.read(64, 8).await? == data, "the blocks differ");
    let report = initiator.report().await?;
    let kept = report.of_host(identity(1)?.id).map(|entry| entry.key);
    ensure!(kept == Some(key), "the registration is gone: {report:?}");
    let unregister = Register::Unregister { key };
    initiator
        .register(unregister, ChangePersistence::Unchanged)
        .await?;
    Ok(format!(
        "reconnect: {took:?} after the port's return; the registration stayed"
    ))
}
