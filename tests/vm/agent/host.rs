//! The end outside.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};

use super::{Answer, Do, Done, Request};

/// Waits for one answer each.
type Waiting = BTreeMap<u64, oneshot::Sender<Result<Done, String>>>;

type Asked = (Do, oneshot::Sender<Result<Done, String>>);

/// A connection to the agent of one machine.
pub struct Agent {
    asked: mpsc::UnboundedSender<Asked>,
}

impl Agent {
    /// Connects, and waits until the agent has come up: the machine has booted.
    pub async fn greet(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket).await;
        let (reader, writer) = stream.context("connect to the agent's port")?.into_split();
        let mut lines = BufReader::new(reader).lines();
        let hello = lines.next_line().await.context("read the greeting")?;
        let hello: Answer = serde_json::from_str(&hello.context("the machine has ended")?)
            .context("read the greeting")?;
        match hello.result {
            Ok(Done::Hello) => {}
            other => bail!("the agent greets with {other:?}"),
        }
        let (asked, questions) = mpsc::unbounded_channel();
        tokio::spawn(carry(questions, lines, writer));
        Ok(Self { asked })
    }

    /// Asks and waits for the answer.
    pub async fn ask(&self, what: Do, within: Duration) -> Result<Done> {
        let (answer, answered) = oneshot::channel();
        let ended = || anyhow!("the machine or its agent has ended");
        self.asked.send((what, answer)).map_err(|_| ended())?;
        let answered = tokio::time::timeout(within, answered).await;
        let answer = answered.map_err(|_| anyhow!("no answer from the machine in {within:?}"))?;
        answer.map_err(|_| ended())?.map_err(|error| anyhow!(error))
    }
}

/// Owns the connection: sends what is asked, hands out what is answered. Its end fails all waiters.
async fn carry(
    mut questions: mpsc::UnboundedReceiver<Asked>,
    mut lines: Lines<BufReader<OwnedReadHalf>>,
    mut writer: OwnedWriteHalf,
) {
    let mut waiting = Waiting::new();
    let mut id = 0;
    loop {
        tokio::select! {
            question = questions.recv() => {
                let Some((what, answer)) = question else { return };
                id += 1;
                waiting.insert(id, answer);
                let Ok(line) = serde_json::to_string(&Request { id, what }) else { return };
                // The socket's buffer takes it even while the machine stands still.
                if writer.write_all(format!("{line}\n").as_bytes()).await.is_err() {
                    return;
                }
            }
            line = lines.next_line() => {
                let Ok(Some(line)) = line else { return };
                let Ok(answer) = serde_json::from_str::<Answer>(&line) else { return };
                let waiter = answer.id.and_then(|id| waiting.remove(&id));
                if let Some(waiter) = waiter {
                    // who has given up does not listen
                    let _ = waiter.send(answer.result);
                }
            }
        }
    }
}
