//! The commands that ask a member for something and wait until it is done: `switchover`, `restart`,
//! `reload`, `pause`, `resume`, `confirm-stopped`.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::json;

use crate::clock::{self, Mono};
use crate::control::{Client, ClientError, Reply, Request, Status};
use crate::decide::RoleName;

use super::reach::{Output, OutputArgs, Reach, print_json};
use super::status::role_text;

/// The arguments of a command that asks for something small.
#[derive(clap::Args)]
pub(super) struct Asking {
    #[command(flatten)]
    reach: Reach,
    /// How long to wait
    #[arg(long, default_value = "10s", value_parser = patience)]
    timeout: Duration,
    #[command(flatten)]
    output: OutputArgs,
}

impl Asking {
    /// Asks the member that is meant.
    pub(super) fn ask(self, request: &Request) -> anyhow::Result<ExitCode> {
        let client = self.reach.client(self.timeout)?;
        ask(client, request, self.output.output)
    }
}

/// Asks, shows what happens until it is done, and says so.
pub(super) fn ask(
    mut client: Client,
    request: &Request,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let mut progress = Progress::new(output);
    let result = follow(&mut client, request, &mut progress);
    let took = progress.elapsed_ms();
    match (result, output) {
        (Ok(()), Output::Text) => {
            println!("{}", progress.summary());
            Ok(ExitCode::SUCCESS)
        }
        (Ok(()), Output::Json) => {
            let active = progress.active();
            print_json(
                &json!({"done": true, "took_ms": took, "active": active, "phases": progress.phases}),
            )?;
            Ok(ExitCode::SUCCESS)
        }
        (Err(error), Output::Json) => {
            let reason = match &error {
                ClientError::Refused { reason, why: _ } => reason.clone(),
                _ => serde_json::Value::Null,
            };
            print_json(&json!({
                "done": false, "took_ms": took, "error": error.to_string(), "reason": reason,
                "phases": progress.phases,
            }))?;
            Err(error.into())
        }
        (Err(error), Output::Text) => Err(error.into()),
    }
}

fn follow(
    client: &mut Client,
    request: &Request,
    progress: &mut Progress,
) -> Result<(), ClientError> {
    client.send(request)?;
    loop {
        match client.receive()? {
            Reply::Done => return Ok(()),
            Reply::Status(status) => progress.see(*status),
            other @ (Reply::History(_) | Reply::Refused { .. }) => {
                return Err(ClientError::Strange {
                    what: format!("{other:?}"),
                });
            }
        }
    }
}

/// A phase that a member was seen in.
#[derive(serde::Serialize)]
struct Phase {
    member: String,
    phase: String,
    at_ms: u64,
}

/// Shows each member's phases as they come.
struct Progress {
    output: Output,
    began: Mono,
    shown: BTreeMap<String, String>,
    phases: Vec<Phase>,
    last: Option<Status>,
}

impl Progress {
    fn new(output: Output) -> Self {
        Self {
            output,
            began: clock::now(),
            shown: BTreeMap::new(),
            phases: Vec::new(),
            last: None,
        }
    }

    fn elapsed_ms(&self) -> u64 {
        u64::try_from(clock::now().since(self.began).as_millis()).unwrap_or(u64::MAX)
    }

    fn see(&mut self, status: Status) {
        let at_ms = self.elapsed_ms();
        for (index, member) in status.members.iter().enumerate() {
            let Some(role) = member.role else { continue };
            let step = status.step.as_ref().filter(|_| index == 0);
            let phase = match step {
                Some(step) => format!("{}: {}", role_text(role), step.name),
                None => role_text(role).to_owned(),
            };
            if self.shown.get(&member.name) == Some(&phase) {
                continue;
            }
            let first = self
                .shown
                .insert(member.name.clone(), phase.clone())
                .is_none();
            // What they were at the beginning is no progress.
            if first && step.is_none() {
                continue;
            }
            if self.output == Output::Text {
                println!("{at_ms:>7} ms  {}: {phase}", member.name);
            }
            self.phases.push(Phase {
                member: member.name.clone(),
                phase,
                at_ms,
            });
        }
        self.last = Some(status);
    }

    fn active(&self) -> Option<String> {
        let members = &self.last.as_ref()?.members;
        let active = members
            .iter()
            .filter(|member| member.role == Some(RoleName::Active));
        active
            .max_by_key(|member| member.epoch)
            .map(|member| member.name.clone())
    }

    fn summary(&self) -> String {
        match self.active() {
            Some(active) => format!("done in {} ms; {active} is active", self.elapsed_ms()),
            None => format!("done in {} ms", self.elapsed_ms()),
        }
    }
}

/// A number of seconds or a duration with units, such as `90s` or `2m`.
pub(super) fn patience(text: &str) -> Result<Duration, String> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let number: u64 = text[..digits]
        .parse()
        .map_err(|_| format!("{text:?} is no duration"))?;
    let millis = match &text[digits..] {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" => 60_000,
        _ => return Err(format!("{text:?} is no duration: write 500ms, 90s or 2m")),
    };
    number
        .checked_mul(millis)
        .map(Duration::from_millis)
        .ok_or_else(|| "too long".to_owned())
}
