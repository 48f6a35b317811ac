//! QEMU's control socket: one JSON command a line, one JSON answer a line, events in between.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;

/// QEMU answers at once, unless its main loop hangs.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// A connection that has been greeted.
pub struct Qmp {
    lines: Lines<BufReader<OwnedReadHalf>>,
    writer: OwnedWriteHalf,
}

impl Qmp {
    /// Takes over a fresh connection.
    pub async fn greet(stream: UnixStream) -> Result<Self> {
        let (reader, writer) = stream.into_split();
        let lines = BufReader::new(reader).lines();
        let mut qmp = Self { lines, writer };
        qmp.execute("qmp_capabilities", json!({})).await?;
        Ok(qmp)
    }

    /// Runs a command and gives what it returns.
    pub async fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let answer = timeout(ANSWER_WITHIN, self.exchange(command, arguments)).await;
        answer
            .with_context(|| format!("QEMU did not answer {command} in {ANSWER_WITHIN:?}"))?
            .with_context(|| format!("QEMU: {command}"))
    }

    async fn exchange(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let request = json!({"execute": command, "arguments": arguments});
        let line = format!("{request}\n");
        self.writer.write_all(line.as_bytes()).await?;
        loop {
            let line = self.lines.next_line().await?.context("QEMU has ended")?;
            let mut answer: Value = serde_json::from_str(&line)?;
            if let Some(error) = answer.get("error") {
                bail!("{error}");
            }
            // else the greeting or an event
            if let Some(returned) = answer.get_mut("return") {
                return Ok(returned.take());
            }
        }
    }
}
