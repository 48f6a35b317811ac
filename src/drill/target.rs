//! The target as the drills use it: its faults and its own record of who wrote when.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::lab::protocol::{AskError, ask};

/// How long the target may take to answer on its control socket.
const ASK_WITHIN: Duration = Duration::from_secs(10);

/// A target's control socket.
#[derive(Clone, Debug)]
pub struct Target {
    /// The socket.
    pub socket: PathBuf,
}

/// The target's own record since it started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Audit {
    /// Writes that were applied although their host was fenced. Must be 0.
    pub violations: u64,
    /// Every fence, in order.
    pub fences: Vec<FenceRecord>,
}

/// One host that lost its registration to another host's command.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct FenceRecord {
    /// When, in the order of the target's fences and writes.
    pub sequence: u64,
    /// The host identifier of the fenced host.
    pub victim: String,
    /// The key it had, where the record tells.
    pub victim_key: Option<u64>,
    /// The host identifier of the host that fenced it.
    pub by: String,
    /// By which command.
    pub kind: String,
    /// Writes of the victim that were refused since.
    pub refused_writes: u64,
}

#[derive(Serialize)]
struct Request<'a> {
    #[serde(rename = "do")]
    what: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<&'a str>,
}

impl Target {
    /// The record of fences and writes.
    pub async fn audit(&self) -> Result<Audit, AskError> {
        self.ask("audit", None).await
    }

    /// Cuts the path of one host: nothing passes, nothing is closed.
    pub async fn blackhole(&self, host_nqn: &str) -> Result<(), AskError> {
        self.done("blackhole", Some(host_nqn)).await
    }

    /// Ends every fault of one host.
    pub async fn heal(&self, host_nqn: &str) -> Result<(), AskError> {
        self.done("heal", Some(host_nqn)).await
    }

    /// Loses every unflushed write and all connections.
    pub async fn power_loss(&self) -> Result<(), AskError> {
        self.done("power_loss", None).await
    }

    async fn done(&self, what: &'static str, host: Option<&str>) -> Result<(), AskError> {
        self.ask::<Value>(what, host).await.map(drop)
    }

    async fn ask<A: serde::de::DeserializeOwned>(
        &self,
        what: &'static str,
        host: Option<&str>,
    ) -> Result<A, AskError> {
        let answer: Value = ask(&self.socket, &Request { what, host }, ASK_WITHIN).await?;
        if answer.get("ok") != Some(&json!(true)) {
            let reason = answer
                .get("error")
                .and_then(Value::as_str)
                .unwrap_or("no reason given");
            return Err(AskError::Refused {
                socket: self.socket.clone(),
                reason: reason.to_owned(),
            });
        }
        let text = answer.to_string();
        serde_json::from_value(answer).map_err(|source| AskError::Answer {
            socket: self.socket.clone(),
            text,
            source,
        })
    }
}

impl Audit {
    /// Joins the record of a target with that of the one that ran before it on the same namespace.
    pub fn after(mut self, earlier: Self) -> Self {
        let mut fences = earlier.fences;
        fences.append(&mut self.fences);
        Self {
            violations: earlier.violations + self.violations,
            fences,
        }
    }
}
