//! In a machine: carries out commands through Baton's kernel backend, one JSON line each.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use nvme::command::feature;
use nvme::kernel::{Identifier, KernelInitiator, Options, PathView, Selector};
use nvme::reservation::{Acquire, ChangePersistence, Register, Release};
use nvme::{HostId, HostIdentity, Namespace, Nqn, ReservationType};
use serde_json::{Value, json};
use uuid::Uuid;

/// How long a destruction may take.
const DESTROY_WITHIN: Duration = Duration::from_secs(30);

/// The kind of all reservations here.
const KIND: ReservationType = ReservationType::WriteExclusive;

/// Where to, as whom, and what to do.
#[derive(Args)]
pub struct Commands {
    #[arg(long)]
    address: String,
    #[arg(long)]
    subsystem: Nqn,
    #[arg(long)]
    nsid: Option<u32>,
    #[arg(long)]
    identifier: Option<Identifier>,
    #[arg(long)]
    host_nqn: Nqn,
    #[arg(long)]
    host_id: Uuid,
    /// For each command, in seconds
    #[arg(long, default_value_t = 20)]
    deadline: u64,
    /// Such as: attach identify register:a1 acquire:a1 preempt:b2:a1 report flush paths destroy
    steps: Vec<String>,
}

/// Does all steps, whatever becomes of each.
pub fn run(commands: &Commands) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("start the runtime")?;
    runtime.block_on(async {
        let initiator = KernelInitiator::detached(options(commands));
        for step in &commands.steps {
            let line = match one(&initiator, step).await {
                Ok(value) => json!({"step": step, "ok": value}),
                Err(error) => failed(step, &error),
            };
            println!("{line}");
        }
        Ok(ExitCode::SUCCESS)
    })
}

fn options(commands: &Commands) -> Options {
    let host = HostIdentity {
        nqn: commands.host_nqn.clone(),
        id: HostId(commands.host_id),
    };
    let namespace = Selector {
        nsid: commands.nsid,
        identifier: commands.identifier,
    };
    let (address, subsystem) = (commands.address.clone(), commands.subsystem.clone());
    let mut options = Options::new(address, subsystem, namespace, host);
    options.command_deadline = Duration::from_secs(commands.deadline);
    options.attach_deadline = Duration::from_secs(30);
    options
}

fn failed(step: &str, error: &anyhow::Error) -> Value {
    let command = error.downcast_ref::<nvme::Error>();
    json!({
        "step": step,
        "error": format!("{error:#}"),
        "unknown": command.map(nvme::Error::outcome_unknown),
        "conflict": command.map(nvme::Error::is_conflict),
    })
}

async fn one(initiator: &KernelInitiator, step: &str) -> Result<Value> {
    let words: Vec<_> = step.split(':').collect();
    let key = |text: &str| u64::from_str_radix(text, 16).context("a key");
    match words.as_slice() {
        ["attach"] => {
            let disk = initiator.attach().await?;
            Ok(json!({"device": disk.path(), "sequence": disk.sequence()}))
        }
        ["destroy"] => Ok(json!(initiator.destroy(DESTROY_WITHIN).await?)),
        ["paths"] => {
            let paths = initiator.paths()?;
            let usable = paths.iter().filter(|path| path.is_usable()).count();
            let all: Vec<_> = paths.iter().map(PathView::to_string).collect();
            Ok(json!({"usable": usable, "all": all}))
        }
        ["wait-usable", wanted] => {
            let wanted: usize = wanted.parse()?;
            while initiator.paths()?.iter().filter(|p| p.is_usable()).count() != wanted {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Ok(json!(null))
        }
        ["identify"] => Ok(serde_json::to_value(initiator.identify().await?)?),
        ["cache"] => {
            let value = initiator.feature(feature::VOLATILE_WRITE_CACHE).await?;
            Ok(json!(value))
        }
        ["report"] => Ok(serde_json::to_value(initiator.report().await?)?),
        ["flush"] => Ok(json!(initiator.flush().await?)),
        ["register", new] => {
            let action = Register::Register { key: key(new)? };
            register(initiator, action).await
        }
        ["replace", current, new] => {
            let (current, new) = (key(current)?, key(new)?);
            register(initiator, Register::Replace { current, new }).await
        }
        ["unregister", current] => {
            let action = Register::Unregister { key: key(current)? };
            register(initiator, action).await
        }
        ["acquire", own] => Ok(json!(
            initiator.acquire(Acquire::Acquire, key(own)?, KIND).await?
        )),
        ["preempt", own, victim] => {
            let action = Acquire::PreemptAndAbort {
                victim: key(victim)?,
            };
            Ok(json!(initiator.acquire(action, key(own)?, KIND).await?))
        }
        ["release", own] => {
            let action = Release::Release(KIND);
            Ok(json!(initiator.release(action, key(own)?).await?))
        }
        ["write", text] => {
            let size = initiator.identify().await?.block_size as usize;
            let mut data = text.as_bytes().to_vec();
            data.resize(size, 0);
            Ok(json!(initiator.write(0, data.into(), false).await?))
        }
        ["read"] => {
            let data = initiator.read(0, 1).await?;
            let end = data.iter().position(|b| *b == 0).unwrap_or(data.len());
            Ok(json!(String::from_utf8_lossy(&data[..end])))
        }
        _ => bail!("no step {step:?}"),
    }
}

async fn register(initiator: &KernelInitiator, action: Register) -> Result<Value> {
    let unchanged = ChangePersistence::Unchanged;
    Ok(json!(initiator.register(action, unchanged).await?))
}
